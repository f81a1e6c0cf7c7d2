import { randomInt } from 'node:crypto';
import { lstatSync, readFileSync, rmSync } from 'node:fs';
import { MacAddress } from '#protocol/address.ts';
import type { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { openQueue, resetQueue, type TapShape } from './tun.ts';

// A macvtap is opened by a character device of its own (drivers/net/macvtap.c, tap.c): /dev/tap<ifindex>.

const S_IFCHR = 0o020000;
const ROOT_ONLY = 0o600;
const SIOCGIFHWADDR = 0x8927;
/** struct ifreq: name of 16 bytes, then here the address's type of 2 and the address. */
const IFREQ_BYTES = 40;
const IFREQ_ADDRESS = 18;
const MAC_BYTES = 6;
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;
const EBUSY = 16;
const EEXIST = 17;
const EINVAL = 22;
const FIRST_INDEX = 2 ** 30;
const INDEX_END = 2 ** 31 - 1;

/** A macvtap of the calling thread's network namespace. */
export interface Macvtap {
  readonly name: string;
  readonly index: number;
}

/**
 * An ifindex for a new macvtap. All network namespaces share one /dev, which names the character devices by ifindex;
 * of two macvtaps that want one name the kernel serves only the first. So the ifindex is drawn at random from the
 * upper half of all numbers, which the kernel's own counting does not reach.
 */
export function randomIndex(): number {
  let index: number;
  do index = randomInt(FIRST_INDEX, INDEX_END);
  while (lstatSync(pathOf(index), { throwIfNoEntry: false }) !== undefined);
  return index;
}

/**
 * Path of a macvtap's character device. If /dev is the kernel's devtmpfs, the device is there already. Elsewhere, in
 * a container, it is made, also in /dev: other mounts, such as /run, are usually `nodev`. EEXIST if something else
 * has the path. Needs a /sys of this network namespace.
 */
export function characterDevice(macvtap: Macvtap): string {
  const path = pathOf(macvtap.index);
  const device = deviceNumber(macvtap);
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    checked(libc.mknod(path, S_IFCHR | ROOT_ONLY, device), 'mknod', path);
  } else if (!found.isCharacterDevice() || found.rdev !== device) {
    const kernelText = `it is not the device of ${macvtap.name}`;
    throw new KernelError({ operation: 'stat', subject: path, errno: EEXIST, kernelText });
  }
  return path;
}

/** Removes the file that `characterDevice` made, once the macvtap is gone; the kernel's own goes with the macvtap. */
export const removeCharacterDevice = (index: number): void =>
  rmSync(pathOf(index), { force: true });

/**
 * Opens all queues of a macvtap, as `openTap` does those of a TAP. The kernel does not refuse a second holder. So
 * each descriptor carries a shared flock(2), which goes with the last copy of the descriptor, whoever has that: EBUSY
 * while there is one. A process that opens the path without the lock is not seen. `mac` is the device's own: EINVAL
 * if the opened device has another one.
 */
export function openMacvtap(
  shape: TapShape & { readonly index: number; readonly mac: MacAddress },
): Descriptor[] {
  const path = characterDevice(shape);
  if (isLocked(path)) throw held(path);
  const opened: Descriptor[] = [];
  try {
    for (let queue = 0; queue < shape.queues; queue += 1) {
      const descriptor = openQueue(path, shape);
      opened.push(descriptor);
      if (queue === 0) lock(descriptor, LOCK_EX, path);
    }
    for (const descriptor of opened) {
      lock(descriptor, LOCK_SH, path);
      resetQueue(descriptor, shape);
      checkAddress(descriptor, shape);
    }
    return opened;
  } catch (error) {
    for (const descriptor of opened) descriptor.close();
    throw error;
  }
}

const pathOf = (index: number): string => `/dev/tap${index}`;

function deviceNumber({ name, index }: Macvtap): number {
  const text = readFileSync(`/sys/class/net/${name}/tap${index}/dev`, 'utf8').trim();
  const [major = 0, minor = 0] = text.split(':').map(Number);
  return makedev(major, minor);
}

// makedev(3), as far as the kernel's own numbers go: 12 bits of major in the middle of 20 of minor.
const makedev = (major: number, minor: number): number =>
  (minor % 0x100) + major * 0x100 + Math.floor(minor / 0x100) * 0x10_0000;
const majorOf = (device: number): number => Math.floor(device / 0x100) % 0x1000;
const minorOf = (device: number): number =>
  (device % 0x100) + Math.floor(device / 0x10_0000) * 0x100;

/**
 * Whether a lock is held on a file, by /proc/locks (man 5 proc_locks). To ask by flock would mean to open the file,
 * and that makes a queue, to which the kernel hands some of the frames of a running guest. Locks of other process
 * namespaces are not shown; the lock itself tells of those.
 */
function isLocked(path: string): boolean {
  const { dev, ino } = lstatSync(path);
  const hex = [majorOf(dev), minorOf(dev)].map((part) => part.toString(16).padStart(2, '0'));
  return readFileSync('/proc/locks', 'utf8').includes(` ${hex.join(':')}:${ino} `);
}

function lock(descriptor: Descriptor, operation: number, path: string): void {
  try {
    checked(libc.flock(descriptor.fd, operation | LOCK_NB), 'flock', path);
  } catch (error) {
    throw isKernelError(error, 'EAGAIN') ? held(path) : error;
  }
}

const held = (path: string): KernelError =>
  new KernelError({ operation: 'flock', subject: path, errno: EBUSY });

function checkAddress(
  descriptor: Descriptor,
  { name, mac }: { readonly name: string; readonly mac: MacAddress },
): void {
  const ifreq = Buffer.alloc(IFREQ_BYTES);
  checked(libc.ioctl(descriptor.fd, SIOCGIFHWADDR, ifreq), 'SIOCGIFHWADDR', name);
  const found = MacAddress.fromBytes(ifreq.subarray(IFREQ_ADDRESS, IFREQ_ADDRESS + MAC_BYTES));
  if (found.equals(mac)) return;
  throw new KernelError({
    operation: 'SIOCGIFHWADDR',
    subject: name,
    errno: EINVAL,
    kernelText: `it has ${found.toString()}, not ${mac.toString()}`,
  });
}
