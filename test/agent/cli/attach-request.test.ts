import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type AttachFlags, attachRequest } from '#agent/cli/attach-request.ts';

const folder = mkdtempSync(join(tmpdir(), 'voltnet-'));
afterAll(() => rmSync(folder, { recursive: true }));

const file = (name: string, content: string): string => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};

const vm: AttachFlags = { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' };
const vmRequest = { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' };

const cases: readonly [claim: string, flags: AttachFlags, more: Record<string, unknown>][] = [
  ['nothing but what is required', {}, {}],
  [
    'namespace and interface',
    { netns: '/run/netns/a', ifname: 'net0' },
    {
      netns: '/run/netns/a',
      ifname: 'net0',
    },
  ],
  [
    'one address per family',
    { address: ['10.42.0.9', 'fd00::9'] },
    {
      addresses: ['10.42.0.9', 'fd00::9'],
    },
  ],
  [
    'MAC, MTU and host name',
    { mac: '02:00:00:00:00:01', mtu: '1400', hostname: 'web' },
    {
      mac: '02:00:00:00:00:01',
      mtu: 1400,
      hostname: 'web',
    },
  ],
  [
    'TAP',
    { queues: '2', vnetHdr: false, owner: '1000', group: '100' },
    {
      tap: { queues: 2, vnetHdr: false, ownerUid: 1000, ownerGid: 100 },
    },
  ],
  ['the default of --no-vnet-hdr says nothing', { vnetHdr: true }, {}],
  [
    'ports',
    { port: ['8080:80', '127.0.0.1:5353:53/udp'] },
    {
      ports: [
        { protocol: 'tcp', hostPort: 8080, port: 80 },
        { protocol: 'udp', hostPort: 5353, port: 53, hostAddress: '127.0.0.1' },
      ],
    },
  ],
  [
    'bandwidth',
    { ingress: '100M', egress: '2.5G' },
    {
      bandwidth: { ingressBitsPerSecond: 100_000_000, egressBitsPerSecond: 2_500_000_000 },
    },
  ],
  ['lifetime', { ttl: '15m' }, { leaseTtlSeconds: 900 }],
  [
    'labels, also with = in the value',
    { label: ['team=a', 'note=x=y'] },
    {
      labels: { team: 'a', note: 'x=y' },
    },
  ],
  ['request id and dry run', { requestId: 'r1', dryRun: true }, { requestId: 'r1', dryRun: true }],
];

describe('attach: flags to request', () => {
  test.each(cases)('%s', (_claim, flags, more) => {
    expect(attachRequest({ ...vm, ...flags })).toEqual({ ...vmRequest, ...more });
  });

  test('a file is the request, and flags win over it, also inside tap and labels', () => {
    const path = file(
      'request.json',
      JSON.stringify({ ...vmRequest, tap: { queues: 4, ownerUid: 7 }, labels: { a: '1', b: '2' } }),
    );
    expect(attachRequest({ file: path, id: 'other', queues: '2', label: ['b=3'] })).toEqual({
      ...vmRequest,
      id: 'other',
      tap: { queues: 2, ownerUid: 7 },
      labels: { a: '1', b: '3' },
    });
  });

  test('keys of the file that have no flag are passed on for the agent to judge', () => {
    const path = file('odd.json', JSON.stringify({ ...vmRequest, colour: 'red' }));
    expect(attachRequest({ file: path })).toEqual({ ...vmRequest, colour: 'red' });
  });

  test('what is missing is named all at once, with a request that would do', () => {
    expect(() => attachRequest({ id: 'web' })).toThrow(
      /missing --workload, --kind, --network; [^]*voltnet attach --id web/,
    );
  });

  test.each<[string, AttachFlags, RegExp]>([
    ['a number', { mtu: '1500b' }, /--mtu "1500b": must be a whole number/],
    ['a queue count', { queues: '-1' }, /--queues "-1"/],
    ['a label', { label: ['team'] }, /--label "team": write key=value/],
    ['a rate', { ingress: '100 Mbit' }, /"100 Mbit" is no rate/],
    ['a duration', { ttl: '1w' }, /"1w" is no duration/],
    ['a port', { port: ['80'] }, /"80" is no port/],
    ['a file that is not there', { file: '/nonexistent' }, /cannot read \/nonexistent/],
    ['a file that is not JSON', { file: file('bad.json', '{') }, /bad\.json: not JSON/],
    ['a file that is no object', { file: file('list.json', '[]') }, /must hold one JSON object/],
  ])('%s that cannot be meant is refused by name', (_claim, flags, message) => {
    expect(() => attachRequest({ ...vm, ...flags })).toThrow(message);
  });
});
