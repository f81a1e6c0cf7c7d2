import { describe, expect, test } from 'vitest';
import { type Page } from '#agent/cli/page.ts';
import { render } from '#agent/cli/printer.ts';
import { eventLine } from '#agent/cli/event-line.ts';
import {
  attachmentDetails,
  attachmentTable,
  differenceTable,
  hostTable,
  leaseTable,
  ledgerDifferenceTable,
} from '#agent/cli/views.ts';
import type { Attachment } from '#protocol/attachment.ts';

const text = (page: Page): string => render(page).trimEnd();

const vm: Attachment = {
  id: 'web',
  generation: 4_294_967_301,
  workload: 'vm-web',
  kind: 'vm',
  network: 'volt0',
  type: 'bridged',
  host: 'h1',
  state: 'attached',
  mac: '0a:58:0a:2a:00:0a',
  device: {
    type: 'tap',
    name: 'tap-web',
    ifindex: 7,
    mac: 'fe:58:0a:2a:00:0a',
    mtu: 1500,
    queues: 1,
    vnetHdr: true,
    vnetHdrSize: 12,
  },
  filter: 'none',
  addresses: [{ address: '10.42.0.10/24', gateway: '10.42.0.1' }],
  routes: [],
  dns: {},
  ports: [{ protocol: 'tcp', hostPort: 8080, port: 80 }],
  bandwidth: { egressBitsPerSecond: 100_000_000 },
  lease: { generation: 4_294_967_301, grantedAt: '2026-01-02T03:04:05.000Z' },
  createdAt: '2026-01-02T03:04:05.000Z',
  labels: { team: 'a' },
};
const now = Date.parse('2026-01-02T03:09:05.000Z');

describe('views', () => {
  test('a table of attachments', () => {
    const isolated: Attachment = {
      ...vm,
      id: 'lone',
      kind: 'container',
      device: null,
      addresses: [],
    };
    expect(text(attachmentTable([vm, isolated], { now }))).toBe(
      [
        'ID    KIND       NETWORK  STATE     DEVICE   ADDRESSES      MAC                AGE',
        'web   vm         volt0    attached  tap-web  10.42.0.10/24  0a:58:0a:2a:00:0a  5m',
        'lone  container  volt0    attached  -        -              0a:58:0a:2a:00:0a  5m',
      ].join('\n'),
    );
  });

  test('one attachment in full', () => {
    expect(text(attachmentDetails(vm))).toBe(
      [
        'id          web',
        'generation  4294967301',
        'workload    vm-web (vm)',
        'network     volt0 (bridged) on host h1',
        'state       attached',
        'mac         0a:58:0a:2a:00:0a',
        'address     10.42.0.10/24 via 10.42.0.1',
        'device      tap tap-web, ifindex 7, fe:58:0a:2a:00:0a, mtu 1500, 1 queue, vnet header of 12 bytes',
        'port        *:8080 -> 80/tcp',
        'egress      100000000 bit/s',
        'filter      none',
        'lease       since 2026-01-02T03:04:05.000Z',
        'label       team=a',
      ].join('\n'),
    );
  });

  test('one in a namespace that the agent has made, without a device on the host', () => {
    const isolated = { ...vm, device: null, ports: [], netns: '/run/netns/volt-web' };
    expect(text(attachmentDetails(isolated))).toContain(
      'device      none\nnamespace   /run/netns/volt-web\n',
    );
  });

  test('differences', () => {
    const differences = [
      { id: 'web', what: 'mtu', expected: 1500, observed: 1400 },
      { id: 'web', what: 'device', expected: 'tap-web', observed: null },
    ];
    expect(text(differenceTable(differences))).toBe(
      [
        'ID   WHAT    EXPECTED  OBSERVED',
        'web  mtu     1500      1400',
        'web  device  tap-web   absent',
      ].join('\n'),
    );
  });

  test('leases, hosts, and what is wrong with the ledger', () => {
    const lease = {
      id: 'web',
      generation: 4_294_967_301,
      network: 'volt0',
      workload: 'vm-web',
      kind: 'vm' as const,
      host: 'h1',
      mac: '0a:58:0a:2a:00:0a',
      addresses: ['10.42.0.10/24', 'fd00:42::a/64'],
      grantedAt: '2026-01-02T03:04:05.000Z',
      state: 'suspect' as const,
    };
    expect(text(leaseTable([lease], now))).toBe(
      [
        'ID   NETWORK  ADDRESSES              MAC                HOST  STATE    AGE',
        'web  volt0    10.42.0.10,fd00:42::a  0a:58:0a:2a:00:0a  h1    suspect  5m',
      ].join('\n'),
    );
    const heard = { state: 'live' as const, leases: 3, seenAt: '2026-01-02T03:09:00.000Z' };
    const hosts = [
      { host: 'h1', ...heard },
      { host: 'h22', state: 'awaited' as const, leases: 0 },
    ];
    expect(text(hostTable(hosts, now))).toBe(
      [
        'HOST  STATE    LEASES  HEARD',
        'h1    live     3       5s ago',
        'h22   awaited  0       -',
      ].join('\n'),
    );
    const lost = { id: '-', what: 'ledger lost', expected: null, observed: '10.42.0.3-10.42.0.7' };
    const leaked = { id: 'web', host: 'h1', what: 'record', expected: null, observed: 7 };
    const both = [
      { ...lost, repaired: false },
      { ...leaked, repaired: true },
    ];
    expect(text(ledgerDifferenceTable(both))).toBe(
      [
        'ID   HOST  WHAT         EXPECTED  OBSERVED             REPAIRED',
        '-    -     ledger lost  absent    10.42.0.3-10.42.0.7  no',
        'web  h1    record       absent    7                    yes',
      ].join('\n'),
    );
  });

  test('an event on one line, with how long its phases took', () => {
    const event = {
      id: 'x',
      type: 'attached' as const,
      host: 'h1',
      network: 'volt0',
      subject: 'web',
      time: '2026-01-02T03:04:05.678Z',
      body: { ...vm, durationMs: { ipam: 0.42, kernel: 1.2 } },
    };
    expect(text([eventLine(event)])).toBe(
      '03:04:05.678  attached         h1        volt0     web tap-web 10.42.0.10/24  ipam 0.4 ms, kernel 1.2 ms',
    );
  });

  test('a failure says its error, without control characters', () => {
    const event = {
      id: 'x',
      type: 'failed' as const,
      host: 'h1',
      network: '-',
      subject: 'web',
      time: '2026-01-02T03:04:05.678Z',
      body: { error: { code: 'POOL_EXHAUSTED', message: 'volt0 is \x1b[31mfull' } },
    };
    expect(text([eventLine(event)])).toContain('web POOL_EXHAUSTED: volt0 is \\u001b[31mfull');
  });
});
