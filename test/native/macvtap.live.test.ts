import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, statSync } from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { MacAddress } from '#protocol/address.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { KernelError } from '#native/errors.ts';
import { ioctl } from '#native/libc.ts';
import { Links } from '#native/link.ts';
import { characterDevice, type Macvtap, openMacvtap, randomIndex } from '#native/macvtap.ts';
import { Namespace } from '#native/namespace.ts';
import { NetlinkSocket } from '#native/netlink.ts';
import { ip, only } from '../support/kernel.ts';
import { requireTool } from '../support/tools.ts';

// Macvtaps by the kernel's own account, and descriptors that say what they are.

const TUNGETIFF = 0x800454d2;
const TUNGETVNETHDRSZ = 0x800454d7;
const TUNSETVNETHDRSZ = 0x400454d8;
const BRIDGE_MODE = 4;
const MAC = MacAddress.parse('02:00:00:00:00:07');

const socket = NetlinkSocket.open();
const links = new Links(socket);
let parent: number;
let macvtap: Macvtap;

beforeAll(() => {
  const words = 'link add lower type veth peer name upper'.split(' ');
  execFileSync(requireTool('ip'), words);
  parent = links.indexOf('lower') ?? 0;
});
afterAll(() => socket[Symbol.dispose]());

const make = (name: string, index = randomIndex()): Macvtap => {
  links.createMacvlan({ kind: 'macvtap', name, index, mac: MAC, parent, mode: BRIDGE_MODE });
  return { name, index };
};

beforeEach(() => {
  const old = links.get('mt0');
  if (old !== null) links.delete(old);
  macvtap = make('mt0');
});

const open = (shape: { queues?: number; vnetHdr?: boolean; mac?: MacAddress } = {}): Descriptor[] =>
  openMacvtap({ ...macvtap, queues: 1, vnetHdr: true, mac: MAC, ...shape });

const closeAll = (descriptors: readonly Descriptor[]): void => {
  for (const descriptor of descriptors) descriptor.close();
};

const errorOf = (work: () => unknown): Partial<KernelError> => {
  try {
    work();
    return {};
  } catch (error) {
    if (error instanceof KernelError) return error;
    throw error;
  }
};

const asked = (descriptor: Descriptor | undefined, request: number): Buffer => {
  const argument = Buffer.alloc(40);
  expect(ioctl(descriptor?.fd ?? -1, request, argument)).toBe(0);
  return argument;
};

test('has the ifindex that was asked for, and its device file under that', () => {
  const link = only(ip('-d', 'link', 'show', 'mt0'));
  expect(link).toMatchObject({
    ifindex: macvtap.index,
    address: MAC.toString(),
    link: 'lower',
    linkinfo: { info_kind: 'macvtap', info_data: { mode: 'bridge' } },
  });
  expect(links.get('mt0')).toMatchObject({ kind: 'macvtap', macvlanMode: BRIDGE_MODE });
  const path = characterDevice(macvtap);
  expect(path).toBe(`/dev/tap${macvtap.index}`);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

test('an index or a name that is taken is EEXIST', () => {
  expect(errorOf(() => make('mt1', macvtap.index)).code).toBe('EEXIST');
  expect(errorOf(() => make('mt0')).code).toBe('EEXIST');
});

test('a macvlan is made inside a namespace, and no other socket hears of it', () => {
  using inside = Namespace.create('/run/netns/inside');
  using other = NetlinkSocket.open({ namespace: inside });
  const index = randomIndex();
  const name = 'eth0';
  links.createMacvlan({
    ...{ kind: 'macvlan', name, index, parent, mode: BRIDGE_MODE, mac: MAC, namespace: inside },
  });
  expect(new Links(other).get(index)).toMatchObject({ name, kind: 'macvlan', index });
  expect(only(ip('-n', 'inside', 'link', 'show', name))).toMatchObject({ ifindex: index });
  Namespace.remove('/run/netns/inside');
});

describe('the device file', () => {
  test('is made where /dev does not have it', () => {
    const path = characterDevice(macvtap);
    const { rdev } = statSync(path);
    rmSync(path);
    expect(characterDevice(macvtap)).toBe(path);
    expect(statSync(path)).toMatchObject({ rdev, mode: 0o020600 });
    const opened = open();
    expect(opened).toHaveLength(1);
    closeAll(opened);
    rmSync(path);
  });

  test('of something else is refused', () => {
    const path = characterDevice(macvtap);
    const other = make('mt1');
    rmSync(path);
    const [major, minor] = readFileSync(`/sys/class/net/mt1/tap${other.index}/dev`, 'utf8')
      .trim()
      .split(':');
    execFileSync('mknod', ['-m', '600', path, 'c', major ?? '', minor ?? '']);
    expect(errorOf(() => open())).toMatchObject({ code: 'EEXIST', subject: path });
    rmSync(path);
    links.delete(other);
  });
});

describe('descriptors', () => {
  test.each([
    [1, true, 0x5002],
    [3, true, 0x5102],
    [2, false, 0x1102],
  ])('%i queues, header %s: flags %i', (queues, vnetHdr, flags) => {
    const opened = open({ queues, vnetHdr });
    expect(opened).toHaveLength(queues);
    for (const descriptor of opened) {
      const ifreq = asked(descriptor, TUNGETIFF);
      expect(ifreq.toString('latin1', 0, 3)).toBe('mt0');
      expect(ifreq.readUInt16LE(16)).toBe(flags);
      if (vnetHdr) expect(asked(descriptor, TUNGETVNETHDRSZ).readInt32LE(0)).toBe(12);
    }
    closeAll(opened);
  });

  test('are refused while one of them is held, also by a copy, and only then', () => {
    const [first, second, ...rest] = open({ queues: 3 });
    expect(errorOf(open).code).toBe('EBUSY');
    first?.close();
    closeAll(rest);
    expect(errorOf(() => open({ queues: 2 })).code).toBe('EBUSY');
    const size = Buffer.alloc(4);
    size.writeInt32LE(20);
    expect(ioctl(second?.fd ?? -1, TUNSETVNETHDRSZ, size)).toBe(0);
    second?.close();
    const [again] = open();
    expect(asked(again, TUNGETVNETHDRSZ).readInt32LE(0)).toBe(12);
    again?.close();
  });

  test('of a device with another address are refused, and none stays open', () => {
    const mac = MacAddress.parse('02:00:00:00:00:99');
    expect(errorOf(() => open({ mac }))).toMatchObject({
      code: 'EINVAL',
      operation: 'SIOCGIFHWADDR',
    });
    closeAll(open());
  });
});
