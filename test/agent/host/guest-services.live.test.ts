import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { bareAddresses, dhclient, dig as digAt } from '../../support/asking.ts';
import { attachBox, detachBox } from '../../support/boxes.ts';
import { PROTOCOL, udp } from '../../support/frames.ts';
import { stationOf } from '../../support/hearing.ts';
import { type Station, v6 } from '../../support/packets.ts';
import { claimVm } from '../../support/raw-port.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// DHCP, router advertisements and names, asked for by the clients that guests have.

const NETWORK = {
  network: 'gs0',
  subnet: '10.50.0.0/24',
  gateway: '10.50.0.1',
  ipv6: { subnet: 'fd50::/64', gateway: 'fd50::1' },
  mtu: 1400,
  dhcp: { leaseSeconds: 600, ntp: ['10.50.0.1'] },
  dns: { names: true, domain: 'example.internal', search: ['example.org'] },
  routes: [{ to: '10.9.0.0/16', via: '10.50.0.9' }],
  reuseDelaySeconds: 0,
} as const;

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: [NETWORK] });
});
afterAll(() => stack[Symbol.asyncDispose]());

const attach = (id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> =>
  attachBox(stack, id, { network: 'gs0', hostname: id, ...more });
const detach = (id: string): Promise<void> => detachBox(stack, id);

const dig = (id: string, ...question: string[]): string => digAt(id, '10.50.0.1', ...question);

const dnsmasqPid = (network: string): number =>
  Number(readFileSync(join(stack.agent.runtimeDir, 'dnsmasq', network, 'state', 'pid'), 'utf8'));

describe('a workload that asks', () => {
  let web: Attachment;
  beforeAll(async () => {
    web = await attach('web');
  });
  afterAll(() => detach('web'));

  test('gets by DHCP what the answer to the attach says', async () => {
    const [own4, own6] = bareAddresses(web);
    expect(await dhclient('web')).toMatchObject({
      'fixed-address': own4,
      'subnet-mask': '255.255.255.0',
      routers: '10.50.0.1',
      'dhcp-lease-time': '600',
      'domain-name-servers': '10.50.0.1',
      'domain-name': '"gs0.example.internal"',
      'domain-search': '"gs0.example.internal.", "example.org."',
      'interface-mtu': '1400',
      'ntp-servers': '10.50.0.1',
      'host-name': '"web"',
      'rfc3442-classless-static-routes': '16,10,9,10,50,0,9,0,10,50,0,1',
    });
    expect(await dhclient('web', 6)).toMatchObject({
      iaaddr: own6,
      'dhcp6.name-servers': 'fd50::1',
      'dhcp6.domain-search': '"gs0.example.internal.", "example.org."',
    });
    expect(web.dns).toEqual({
      servers: ['10.50.0.1', 'fd50::1'],
      search: ['gs0.example.internal', 'example.org'],
      domain: 'gs0.example.internal',
    });
  });

  test('finds others by name, of both families and in reverse', async () => {
    const [own4, own6] = bareAddresses(web);
    const db = await attach('db');
    const [db4 = '', db6 = ''] = bareAddresses(db);
    await until('the name is there', () => dig('web', 'db.gs0.example.internal') === db4);
    expect(dig('web', 'db.gs0.example.internal', 'AAAA')).toBe(db6);
    expect(dig('web', '-x', db4)).toBe('db.gs0.example.internal.');
    expect(dig('web', '-x', db6)).toBe('db.gs0.example.internal.');
    expect(dig('db', 'web.gs0.example.internal')).toBe(own4);
    expect(dig('db', 'web.gs0.example.internal', 'AAAA')).toBe(own6);
    expect((await dhclient('db'))?.['fixed-address']).toBe(db4);
    await detach('db');
    await until('the name is gone', () => dig('web', 'db.gs0.example.internal') === '');
    expect(dig('web', '-x', db4)).toBe('');
  });
});

describe('an address that goes from one workload to another', () => {
  test('is told to the next one at once, under another MAC', async () => {
    const addresses = ['10.50.0.77', 'fd50::77'];
    const first = await attach('first', { addresses });
    expect((await dhclient('first'))?.['fixed-address']).toBe('10.50.0.77');
    expect((await dhclient('first', 6))?.['iaaddr']).toBe('fd50::77');
    await detach('first');
    const next = await attach('next', { addresses });
    expect(next.mac).not.toBe(first.mac);
    expect(await dhclient('next')).toMatchObject({
      'fixed-address': '10.50.0.77',
      'host-name': '"next"',
    });
    expect((await dhclient('next', 6))?.['iaaddr']).toBe('fd50::77');
    await detach('next');
  });

  test('is no longer the name of the one before', async () => {
    const asker = await attach('asker');
    expect(asker.state).toBe('attached');
    await attach('old', { addresses: ['10.50.0.78'] });
    await until(
      'old is there',
      () => dig('asker', '-x', '10.50.0.78') === 'old.gs0.example.internal.',
    );
    await detach('old');
    await attach('new', { addresses: ['10.50.0.78'] });
    await until(
      'new is there',
      () => dig('asker', '-x', '10.50.0.78') === 'new.gs0.example.internal.',
    );
    expect(dig('asker', 'old.gs0.example.internal')).toBe('');
    await detach('new');
    await detach('asker');
  });
});

test('a lease of DHCPv6 ends with its attachment, and with its guest', async () => {
  const leases = (): string =>
    readFileSync(join(stack.agent.runtimeDir, 'dnsmasq', 'gs0', 'state', 'leases'), 'utf8');
  await attach('keeper');
  await attach('six', { addresses: ['fd50::66'] });
  expect((await dhclient('six', 6))?.['iaaddr']).toBe('fd50::66');
  expect(leases()).toContain(' fd50::66 ');
  await detach('six');
  await until('it has ended', () => !leases().includes(' fd50::66 '));
  const { attachment } = await stack.client.attach(stack.host, {
    id: 'vm',
    workload: 'vm-vm',
    kind: 'vm',
    network: 'gs0',
    hostname: 'vm',
  });
  const [, own6 = ''] = bareAddresses(attachment);
  const from = stationOf(attachment);
  // By it dnsmasq knows who asks; a raw port answers no solicitation.
  const neighbour = ['neigh', 'replace', from.linkLocal, 'lladdr', from.mac, 'dev', 'gs0'];
  execFileSync(requireTool('ip'), neighbour);
  const ask = async (duid: string): Promise<void> => {
    using port = await claimVm('vm', stack.agent.socketPath);
    await until('leased', () => {
      port.send(rapidSolicit(from, duid));
      return leases().includes(`${own6} vm ${duid}`);
    });
  };
  await ask('00:03:00:01:02:00:00:00:00:01');
  await ask('00:03:00:01:02:00:00:00:00:02');
  await detachVm('vm');
  await detach('keeper');
});

const detachVm = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

/** RFC 8415, 18.2.1: asks for an address in two messages in place of four, with rapid commit. */
function rapidSolicit({ mac, linkLocal }: Station, duid: string): Buffer {
  const option = (code: number, body: Buffer): Buffer => {
    const head = Buffer.alloc(4);
    head.writeUInt16BE(code, 0);
    head.writeUInt16BE(body.length, 2);
    return Buffer.concat([head, body]);
  };
  const identity = Buffer.concat([Buffer.from([0, 0, 0, 7]), Buffer.alloc(8)]);
  const message = Buffer.concat([
    Buffer.from([1, 0x11, 0x22, 0x33]),
    option(1, Buffer.from(duid.replaceAll(':', ''), 'hex')),
    option(3, identity),
    option(8, Buffer.alloc(2)),
    option(14, Buffer.alloc(0)),
  ]);
  const way = { from: linkLocal, to: 'ff02::1:2' };
  return v6(mac, way, PROTOCOL.udp, udp(way, 546, 547, message));
}

describe('dnsmasq and the agent, killed', () => {
  test('dnsmasq is back with its names', async () => {
    await attach('stays');
    await attach('asks');
    await until('named', () => dig('asks', 'stays.gs0.example.internal') !== '');
    const before = dnsmasqPid('gs0');
    process.kill(before, 'SIGKILL');
    await until('another runs', () => dnsmasqPid('gs0') !== before);
    await until('named', () => dig('asks', 'stays.gs0.example.internal') !== '');
    expect((await dhclient('asks'))?.['host-name']).toBe('"asks"');
  });

  test('it outlives the agent, and the next agent goes on with it', async () => {
    const before = dnsmasqPid('gs0');
    await stack.agent.kill();
    expect(dig('asks', 'stays.gs0.example.internal')).not.toBe('');
    await stack.agent.restart();
    await stack.agent.ready();
    expect(dig('asks', 'stays.gs0.example.internal')).not.toBe('');
    await detach('stays');
    await until('the name is gone', () => dig('asks', 'stays.gs0.example.internal') === '');
    expect(dnsmasqPid('gs0')).toBe(before);
    process.kill(before, 'SIGKILL');
    await until('another runs', () => dnsmasqPid('gs0') !== before);
    expect((await dhclient('asks'))?.['host-name']).toBe('"asks"');
  });

  test('what was detached while dnsmasq was away is gone when it is back', async () => {
    await attach('leaves', { addresses: ['10.50.0.80'] });
    expect((await dhclient('leaves'))?.['fixed-address']).toBe('10.50.0.80');
    process.kill(dnsmasqPid('gs0'), 'SIGKILL');
    await detach('leaves');
    await attach('comes', { addresses: ['10.50.0.80'] });
    await until('asked', async () => (await dhclient('comes'))?.['fixed-address'] === '10.50.0.80');
    await detach('comes');
  });

  test('it goes with the last workload', async () => {
    const pid = dnsmasqPid('gs0');
    await detach('asks');
    await until('dnsmasq has ended', () => !existsSync(`/proc/${pid}`));
    await until('its files are gone', () => {
      return readdirSync(join(stack.agent.runtimeDir, 'dnsmasq')).length === 0;
    });
  });
});

describe('an edit while it is in use', () => {
  test('switches DHCP off and on, and names', async () => {
    await attach('edited');
    expect(await dhclient('edited')).toBeDefined();
    const { revision } = await stack.client.getNetwork('gs0');
    const { dhcp: _dhcp, dns: _dns, ...off } = NETWORK;
    await stack.client.putNetwork({ ...off, revision });
    await until('off', () => !existsSync(join(stack.agent.runtimeDir, 'dnsmasq', 'gs0')));
    expect(await dhclient('edited')).toBeUndefined();
    const without = await stack.client.getNetwork('gs0');
    await stack.client.putNetwork({ ...NETWORK, revision: without.revision });
    await until('on', async () => (await dhclient('edited')) !== undefined);
    await until('named', () => dig('edited', 'edited.gs0.example.internal') !== '');
    const on = await stack.client.getNetwork('gs0');
    const dns = { names: true, domain: 'other.internal' };
    await stack.client.putNetwork({ ...NETWORK, dns, revision: on.revision });
    await until('renamed', () => dig('edited', 'edited.gs0.other.internal') !== '');
    expect(dig('edited', 'edited.gs0.example.internal')).toBe('');
    const { attachment } = await stack.client.get(stack.host, { id: 'edited' });
    expect(attachment.dns.domain).toBe('gs0.other.internal');
    await detach('edited');
  });
});
