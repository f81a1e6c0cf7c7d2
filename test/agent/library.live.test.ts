import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, readSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createTap, createVeth } from '#agent/library.ts';
import { IpAddress, MacAddress } from '#protocol/address.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { addNamespace, bridge, deviceNames, ip, only } from '../support/kernel.ts';
import { startStack } from '../support/stack.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';
import { DEVICE_GROUP } from '#agent/host/ownership.ts';

// The library face on real bridges: what it makes, what passes, what it refuses, and what it leaves.

const VNET_HDR_BYTES = 12;
/** As a program in plain JavaScript may have it. */
const misspelt: object = { queue: 2 };

const run = (...command: string[]): string =>
  execFileSync(requireTool(command[0] ?? ''), command.slice(1), { encoding: 'utf8' });

function addBridge(name: string, address: string): void {
  run('ip', 'link', 'add', name, 'address', '02:00:00:00:00:50', 'type', 'bridge');
  run('ip', 'address', 'add', address, 'dev', name);
  run('ip', 'link', 'set', name, 'up');
}

beforeAll(() => {
  addBridge('br0', '10.50.0.1/24');
  for (const name of ['one', 'two', 'try']) addNamespace(name);
});

let before: string[] = [];
beforeAll(() => {
  before = deviceNames();
});
afterEach(() => {
  const left = deviceNames().filter((name) => !before.includes(name));
  if (left.length > 0) throw new Error(`left behind: ${left.join(', ')}`);
});

/** A frame with an ARP request (RFC 826). */
function arpRequest(from: { mac: string; ip: string }, target: string): Buffer {
  const mac = MacAddress.parse(from.mac).toBytes();
  return Buffer.concat([
    Buffer.from('ffffffffffff', 'hex'),
    mac,
    Buffer.from('08060001080006040001', 'hex'),
    mac,
    IpAddress.parse(from.ip).toBytes(),
    Buffer.alloc(6),
    IpAddress.parse(target).toBytes(),
  ]);
}

/** The MAC in the ARP answer from `target`, to a question asked through a descriptor of a TAP. */
async function whoHas(
  { fd }: Descriptor,
  from: { mac: string; ip: string },
  { target, header = VNET_HDR_BYTES }: { target: string; header?: number },
): Promise<string> {
  writeSync(fd, Buffer.concat([Buffer.alloc(header), arpRequest(from, target)]));
  const frame = Buffer.alloc(2048);
  const end = Date.now() + 2_000;
  const sender = Buffer.from(IpAddress.parse(target).toBytes());
  while (Date.now() < end) {
    try {
      const bytes = frame.subarray(header, readSync(fd, frame));
      const answers = bytes.readUInt16BE(12) === 0x0806 && bytes.readUInt16BE(20) === 2;
      if (answers && bytes.subarray(28, 32).equals(sender)) {
        return MacAddress.fromBytes(bytes.subarray(22, 28)).toString();
      }
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      await sleep(5);
    }
  }
  throw new Error(`no answer from ${target}`);
}

describe('createTap', () => {
  test('gives a name and a descriptor through which frames pass, both ways', async () => {
    using peer = createVeth('br0', 'container-peer', {
      netns: '/run/netns/one',
      addresses: ['10.50.0.2/24'],
    });
    using tap = createTap('br0', 'vm-abc123');
    expect(tap).toMatchObject({ name: 'tap-abc123', mac: expect.stringMatching(/^.[26ae]:/) });
    const guest = { mac: tap.mac, ip: '10.50.0.7' };
    expect(await whoHas(tap.descriptor, guest, { target: '10.50.0.2' })).toBe(peer.mac);
    expect(await whoHas(tap.descriptor, guest, { target: '10.50.0.1' })).toBe('02:00:00:00:00:50');
  });

  test('makes the device that the agent makes, but for whom it outlives', () => {
    using tap = createTap('br0', 'vm-abc123', { queues: 2, mtu: 1400 });
    const { device } = tap;
    expect(device).toEqual({
      type: 'tap',
      name: 'tap-abc123',
      ifindex: only(ip('link', 'show', 'tap-abc123'))['ifindex'],
      mac: `fe${tap.mac.slice(2)}`,
      mtu: 1400,
      bridge: 'br0',
      queues: 2,
      vnetHdr: true,
      vnetHdrSize: 12,
    });
    expect(tap.descriptors).toHaveLength(2);
    const link = only(ip('-d', 'link', 'show', 'tap-abc123'));
    expect(link).toMatchObject({
      address: device.mac,
      mtu: 1400,
      master: 'br0',
      ifalias: 'volt:library:vm-abc123',
      linkinfo: { info_data: { type: 'tap', vnet_hdr: true, multi_queue: true, persist: false } },
    });
    expect(link.flags).toContain('UP');
    // A bridge whose MTU nobody has set would follow this port.
    expect(only(ip('link', 'show', 'br0'))['mtu']).toBe(1500);
  });

  test('without a header passes bare frames', async () => {
    using tap = createTap('br0', 'vm-bare', { vnetHdr: false, mac: '02:00:00:00:07:07' });
    expect(tap.mac).toBe('02:00:00:00:07:07');
    expect(tap.device).not.toHaveProperty('vnetHdrSize');
    const guest = { mac: tap.mac, ip: '10.50.0.7' };
    const asked = whoHas(tap.descriptor, guest, { target: '10.50.0.1', header: 0 });
    expect(await asked).toBe('02:00:00:00:00:50');
  });

  test('goes with the last copy of its descriptors, in whatever process that is', async () => {
    using tap = createTap('br0', 'vm-gone');
    const [program, args] = dyingWithParent(['sleep', '60']);
    const child = spawn(program, args, {
      stdio: ['ignore', 'ignore', 'ignore', tap.descriptor.fd],
    });
    await once(child, 'spawn');
    closeSync(tap.descriptor.release());
    expect(deviceNames()).toContain('tap-gone');
    child.kill('SIGKILL');
    await once(child, 'exit');
    expect(deviceNames()).not.toContain('tap-gone');
  });

  test('is taken from who still has a copy when it is disposed of', async () => {
    const tap = createTap('br0', 'vm-taken');
    const [program, args] = dyingWithParent(['sleep', '60']);
    const child = spawn(program, args, {
      stdio: ['ignore', 'ignore', 'ignore', tap.descriptor.fd],
    });
    await once(child, 'spawn');
    tap[Symbol.dispose]();
    expect(deviceNames()).toEqual(before);
    tap[Symbol.dispose]();
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
});

describe('createVeth', () => {
  test('gives both ends, and two workloads reach each other and the host', () => {
    using one = createVeth('br0', 'container-one', {
      netns: '/run/netns/one',
      addresses: ['10.50.0.2/24', 'fd50::2/64'],
      gateways: ['10.50.0.1', 'fd50::1'],
    });
    using two = createVeth('br0', 'container-two', {
      netns: '/run/netns/two',
      ifname: 'net7',
      addresses: ['10.50.0.3/24'],
    });
    expect([one.name, one.peer.name, one.peer.netns]).toEqual([
      'veth-one-h',
      'eth0',
      '/run/netns/one',
    ]);
    expect([two.name, two.peer.name]).toEqual(['veth-two-h', 'net7']);
    expect(only(ip('-n', 'one', 'link', 'show', 'eth0'))).toMatchObject({
      address: one.mac,
      ifindex: one.peer.ifindex,
    });
    expect(ip('-n', 'one', 'route', 'show', 'default')).toMatchObject([{ gateway: '10.50.0.1' }]);
    expect(ip('-n', 'one', '-6', 'route', 'show', 'default')).toMatchObject([
      { gateway: 'fd50::1' },
    ]);
    for (const target of ['10.50.0.3', '10.50.0.1']) {
      const said = run('ip', 'netns', 'exec', 'one', 'ping', '-c', '1', '-W', '5', target);
      expect(said).toContain('1 received');
    }
  });

  test('without a namespace leaves the workload’s end here, down, for the caller to move', () => {
    using veth = createVeth('br0', 'container-moved');
    expect(veth).toMatchObject({ name: 'veth-moved-h', peer: { name: 'veth-moved-c' } });
    expect(only(ip('link', 'show', 'veth-moved-c')).flags).not.toContain('UP');
    run('ip', 'link', 'set', 'veth-moved-c', 'netns', 'two', 'name', 'eth0');
    expect(only(ip('-n', 'two', 'link', 'show', 'eth0'))).toMatchObject({ address: veth.mac });
  });
});

test('two calls for one workload give two names and two MACs, the same ones each time', () => {
  const three = (): string[][] => {
    using first = createTap('br0', 'vm-twice');
    using second = createTap('br0', 'vm-twice');
    using other = createVeth('br0', 'container-twice');
    using another = createVeth('br0', 'container-twice');
    return [first, second, other, another].map(({ name, mac }) => [name, mac]);
  };
  const made = three();
  expect(made.map(([name]) => name)).toEqual([
    'tap-twice',
    expect.stringMatching(/^tap-[0-9a-f]{8}$/),
    'veth-twice-h',
    expect.stringMatching(/^veth-[0-9a-f]{8}-h$/),
  ]);
  expect(new Set(made.map(([, mac]) => mac)).size).toBe(4);
  expect(three()).toEqual(made);
});

describe('refused, and nothing left', () => {
  const netns = '/run/netns/one';
  beforeAll(() => {
    run('ip', 'link', 'add', 'agents', 'group', String(DEVICE_GROUP), 'type', 'bridge');
    run('ip', 'link', 'add', 'full', 'type', 'veth', 'peer', 'name', 'fuller');
    run('ip', '-n', 'two', 'link', 'add', 'eth0', 'type', 'bridge');
    before = deviceNames();
  });
  afterAll(() => {
    for (const name of ['agents', 'full']) run('ip', 'link', 'delete', name);
    run('ip', '-n', 'two', 'link', 'delete', 'eth0');
    before = deviceNames();
  });

  test.each<[what: string, code: string, path: string | undefined, make: () => unknown]>([
    ['no bridge', 'NOT_FOUND', 'bridge', () => createTap('nowhere', 'vm-a')],
    ['no name', 'NOT_FOUND', 'bridge', () => createVeth('', 'container-a')],
    ['no bridge but a veth', 'INVALID_REQUEST', 'bridge', () => createTap('full', 'vm-a')],
    ['an agent’s bridge', 'UNSUPPORTED', 'bridge', () => createTap('agents', 'vm-a')],
    ['a workload', 'INVALID_REQUEST', 'workload', () => createTap('br0', 'vm/a')],
    ['queues', 'INVALID_REQUEST', 'tap.queues', () => createTap('br0', 'vm-a', { queues: 0 })],
    ['an MTU', 'INVALID_REQUEST', 'mtu', () => createTap('br0', 'vm-a', { mtu: 1501 })],
    ['a misspelt option', 'INVALID_REQUEST', 'queue', () => createTap('br0', 'vm-a', misspelt)],
    ['another of a veth', 'INVALID_REQUEST', 'queue', () => createVeth('br0', 'c-a', misspelt)],
    [
      'a MAC',
      'INVALID_REQUEST',
      'mac',
      () => createTap('br0', 'vm-a', { mac: '01:00:5e:00:00:01' }),
    ],
    [
      'no namespace',
      'NAMESPACE_NOT_FOUND',
      'netns',
      () => createVeth('br0', 'container-a', { netns: '/run/netns/none' }),
    ],
    [
      'the host’s namespace',
      'INVALID_REQUEST',
      'netns',
      () => createVeth('br0', 'container-a', { netns: '/proc/self/ns/net' }),
    ],
    [
      'a name that is taken inside',
      'INTERFACE_EXISTS',
      undefined,
      () => createVeth('br0', 'container-a', { netns: '/run/netns/two' }),
    ],
    [
      'a name without a namespace',
      'INVALID_REQUEST',
      'ifname',
      () => createVeth('br0', 'container-a', { ifname: 'eth1' }),
    ],
    [
      'addresses without a namespace',
      'INVALID_REQUEST',
      'addresses',
      () => createVeth('br0', 'container-a', { addresses: ['10.50.0.2/24'] }),
    ],
    [
      'an address without a length',
      'INVALID_REQUEST',
      'addresses',
      () => createVeth('br0', 'container-a', { netns, addresses: ['10.50.0.2'] }),
    ],
    [
      'two gateways of a family',
      'INVALID_REQUEST',
      'gateways',
      () =>
        createVeth('br0', 'container-a', {
          netns,
          addresses: ['10.50.0.2/24'],
          gateways: ['10.50.0.1', '10.50.0.254'],
        }),
    ],
    [
      'a gateway that cannot be reached',
      'KERNEL_ERROR',
      undefined,
      () =>
        createVeth('br0', 'container-a', {
          netns,
          addresses: ['10.50.0.2/24'],
          gateways: ['10.51.0.1'],
        }),
    ],
  ])('%s: %s', (_, code, path, make) => {
    let thrown: unknown;
    try {
      make();
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toMatchObject({ name: 'VoltError', code, ...(path && { details: { path } }) });
    expect(ip('-n', 'one', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
  });
});

test.each([
  ['vm', 'sendto'],
  ['vm', 'ioctl'],
  ['container', 'sendto'],
  ['container', 'ioctl'],
])('of a %s’s port nothing is left, whichever %s fails', (kind, call) => {
  const script = new URL('library-attempts.ts', import.meta.url).pathname;
  const said = run(
    ...['strace', '-f', '-qq', '-o', '/dev/null', '-e', `trace=${call}`],
    ...['-e', `inject=${call}:error=ENOMEM:when=64+24`, process.execPath, script, kind, call, '24'],
  );
  const outcomes = said
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as [number, string, string[]]);
  expect(outcomes.filter(([, , left]) => left.length > 0)).toEqual([]);
  // The first calls are those of the making; where they end, the port stands.
  const codes = outcomes.map(([, code]) => code);
  const made = codes.indexOf('made');
  expect(made).toBeGreaterThan(1);
  expect(codes.slice(made).filter((code) => code !== 'made')).toEqual([]);
});

test('an agent on the same bridge leaves the port alone, and its own workloads out of reach', async () => {
  addBridge('volt0', '10.42.0.1/24');
  before = deviceNames();
  await using stack = await startStack();
  using tap = createTap('volt0', 'vm-ours');
  using peer = createVeth('volt0', 'container-ours', {
    netns: '/run/netns/two',
    addresses: ['10.42.0.78/24'],
  });
  const { attachment } = await stack.client.attach(stack.host, {
    id: 'theirs',
    workload: 'container-theirs',
    kind: 'container',
    network: 'volt0',
    netns: '/run/netns/one',
  });
  const theirs = attachment.addresses[0]?.address.split('/')[0] ?? '';
  const guest = { mac: tap.mac, ip: '10.42.0.77' };
  const asked = (target: string): Promise<string> => whoHas(tap.descriptor, guest, { target });
  const ports = bridge('link');
  for (const restart of [false, true]) {
    if (restart) await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    expect(await asked('10.42.0.1')).toBe('02:00:00:00:00:50');
    expect(await asked('10.42.0.78')).toBe(peer.mac);
    await expect(asked(theirs)).rejects.toThrow('no answer');
    expect(bridge('link')).toEqual(ports);
    const answer = await stack.client.check(stack.host, {});
    expect(answer).toEqual({ inSync: true, differences: [], plan: [] });
  }
  await stack.client.detach(stack.host, { id: 'theirs' });
  await stack.gone('theirs');
});
