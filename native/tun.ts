import { Descriptor } from './descriptor.ts';
import { checked, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { traced } from './trace.ts';

// linux/if_tun.h; ioctl numbers are _IOW('T', n, int) and _IOR('T', n, unsigned int).
const TUN_DEVICE = '/dev/net/tun';
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const TUNSETIFF = 0x400454ca;
const TUNSETPERSIST = 0x400454cb;
const TUNSETOWNER = 0x400454cc;
const TUNSETGROUP = 0x400454ce;
const TUNSETOFFLOAD = 0x400454d0;
const TUNGETIFF = 0x800454d2;
const TUNSETVNETHDRSZ = 0x400454d8;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const IFF_MULTI_QUEUE = 0x0100;
const IFF_TUN_EXCL = 0x8000;
const IFREQ_BYTES = 40;
const IFNAME_BYTES = 16;
const EINVAL = 22;

/** sizeof(struct virtio_net_hdr_mrg_rxbuf): the header of virtio 1 devices, which VMMs of today set. */
export const VNET_HDR_SIZE = 12;

export interface TapShape {
  readonly name: string;
  /** More than one makes a multi-queue device: IFF_MULTI_QUEUE. */
  readonly queues: number;
  /** Frames carry a virtio_net_hdr: IFF_VNET_HDR. */
  readonly vnetHdr: boolean;
}

/** A new TAP, which goes with its descriptor until it is made persistent. */
export interface NewTap extends Disposable {
  /** From here on the device stays even if nobody holds it. */
  persist(): void;
}

/**
 * Makes a TAP. EBUSY if a device of that name exists, also one that the caller might open. Without owner and group
 * the device is root's: if neither were set, the kernel would let in everybody who may open /dev/net/tun.
 */
export function createTap(
  shape: TapShape & { readonly ownerUid?: number; readonly ownerGid?: number },
): NewTap {
  const { name, ownerUid, ownerGid } = shape;
  const tap = openQueue(TUN_DEVICE, shape, IFF_TUN_EXCL);
  try {
    // The kernel lets anybody in if neither is set; if both are set, both have to match.
    if (ownerUid !== undefined || ownerGid === undefined) {
      setInteger(tap, TUNSETOWNER, 'TUNSETOWNER', name, ownerUid ?? 0);
    }
    if (ownerGid !== undefined) setInteger(tap, TUNSETGROUP, 'TUNSETGROUP', name, ownerGid);
  } catch (error) {
    tap.close();
    throw error;
  }
  return {
    persist: () => setInteger(tap, TUNSETPERSIST, 'TUNSETPERSIST', name, 1),
    [Symbol.dispose]: () => tap.close(),
  };
}

/**
 * Opens all queues of an existing TAP, one descriptor each, non-blocking, with offloads off and, with
 * `vnetHdr`, a header of VNET_HDR_SIZE bytes, whatever an earlier holder left. All or none: EBUSY when a
 * single-queue device is held. A multi-queue device does not refuse a second holder: ask its link first.
 */
export function openTap(shape: TapShape): Descriptor[] {
  const { queues } = shape;
  const opened: Descriptor[] = [];
  try {
    for (let queue = 0; queue < queues; queue += 1) opened.push(openQueue(TUN_DEVICE, shape));
    for (const descriptor of opened) resetQueue(descriptor, shape);
    return opened;
  } catch (error) {
    for (const descriptor of opened) descriptor.close();
    throw error;
  }
}

/** Takes `persist` back: from here on the device goes with the last copy of its descriptors, whoever has that. */
export const unpersist = (descriptor: Descriptor, name: string): void =>
  setInteger(descriptor, TUNSETPERSIST, 'TUNSETPERSIST', name, 0);

const flagsOf = ({ queues, vnetHdr }: TapShape): number =>
  IFF_TAP | IFF_NO_PI | (vnetHdr ? IFF_VNET_HDR : 0) | (queues > 1 ? IFF_MULTI_QUEUE : 0);

/** Opens one queue of a device by way of `path`: /dev/net/tun, or the character device of a macvtap. */
export function openQueue(path: string, shape: TapShape, extraFlags = 0): Descriptor {
  const { name } = shape;
  const fd = checked(libc.open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK, 0), 'open', path);
  const descriptor = new Descriptor(fd);
  try {
    traced('TUNSETIFF', name, () => {
      const ifreq = Buffer.alloc(IFREQ_BYTES);
      ifreq.write(name, 0, IFNAME_BYTES - 1, 'utf8');
      ifreq.writeUInt16LE(flagsOf(shape) | extraFlags, IFNAME_BYTES);
      checked(libc.ioctl(fd, TUNSETIFF, ifreq), 'TUNSETIFF', name);
    });
    return descriptor;
  } catch (error) {
    descriptor.close();
    throw error;
  }
}

/**
 * Turns offloads off and, with `vnetHdr`, sets a header of VNET_HDR_SIZE bytes. EINVAL if the descriptor is of
 * another device, or has other flags, than the shape says.
 */
export function resetQueue(descriptor: Descriptor, shape: TapShape): void {
  const { name, vnetHdr } = shape;
  checkDevice(descriptor, shape);
  // The argument is the flags themselves, not a pointer to them.
  checked(libc.ioctlValue(descriptor.fd, TUNSETOFFLOAD, 0), 'TUNSETOFFLOAD', name);
  if (vnetHdr) setPointed(descriptor, TUNSETVNETHDRSZ, 'TUNSETVNETHDRSZ', name, VNET_HDR_SIZE);
}

function checkDevice(descriptor: Descriptor, shape: TapShape): void {
  const ifreq = Buffer.alloc(IFREQ_BYTES);
  checked(libc.ioctl(descriptor.fd, TUNGETIFF, ifreq), 'TUNGETIFF', shape.name);
  const name = ifreq.toString('utf8', 0, ifreq.indexOf(0));
  const flags = ifreq.readUInt16LE(IFNAME_BYTES);
  const compared = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
  const asked = flagsOf(shape);
  if (name === shape.name && (flags & compared) === asked) return;
  throw new KernelError({
    operation: 'TUNGETIFF',
    subject: shape.name,
    errno: EINVAL,
    kernelText: `it is ${name} with flags 0x${flags.toString(16)}, not 0x${asked.toString(16)}`,
  });
}

const setInteger = (
  descriptor: Descriptor,
  request: number,
  operation: string,
  name: string,
  value: number,
): void => {
  traced(operation, name, () =>
    checked(libc.ioctlValue(descriptor.fd, request, value), operation, name),
  );
};

function setPointed(
  descriptor: Descriptor,
  request: number,
  operation: string,
  name: string,
  value: number,
): void {
  const pointed = Buffer.alloc(4);
  pointed.writeInt32LE(value, 0);
  checked(libc.ioctl(descriptor.fd, request, pointed), operation, name);
}
