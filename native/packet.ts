import { Descriptor } from './descriptor.ts';
import { checked, KernelError } from './errors.ts';
import * as libc from './libc.ts';

// Packets of a SOCK_SEQPACKET socket with descriptors beside them (man 7 unix, man 3 cmsg).

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_PEEK = 0x2;
const MSG_CTRUNC = 0x8;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
const CMSG_HEADER_BYTES = 16;
const EINTR = 4;
const EAGAIN = 11;
const EMFILE = 24;
const EMSGSIZE = 90;

/** A packet of either direction. */
export const MAX_PACKET_BYTES = 64 * 1024;
/** SCM_MAX_FD of the kernel: descriptors beside one packet. */
export const MAX_DESCRIPTORS = 253;

/**
 * Cuts bytes that may be longer than a packet. All packets but the last are full, so that the reader knows the last
 * one by its length. Add a byte to bytes that would fill their last packet: the reader would wait for another one.
 */
export function* inPackets(bytes: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += MAX_PACKET_BYTES) {
    yield bytes.subarray(at, at + MAX_PACKET_BYTES);
  }
}

export interface Packet {
  /** None: the peer has closed its end. */
  readonly bytes: Buffer;
  /** Owned by whoever takes the packet. They close on exec. */
  readonly descriptors: Descriptor[];
}

/**
 * Sends one packet, or throws KernelError: EAGAIN when the peer does not read and its queue is full, EPIPE
 * or ECONNRESET when it is gone, EMSGSIZE over the limits. The descriptors stay the caller's.
 */
export function sendPacket(fd: number, bytes: Uint8Array, fds: readonly number[] = []): void {
  const subject = `${bytes.length} bytes, ${fds.length} descriptors`;
  if (bytes.length > MAX_PACKET_BYTES || fds.length > MAX_DESCRIPTORS) {
    throw new KernelError({ operation: 'sendmsg', subject, errno: EMSGSIZE });
  }
  const message = messageOf(bytes, rightsOf(fds));
  checked(
    uninterrupted(() => libc.sendmsg(fd, message, MSG_NOSIGNAL | MSG_DONTWAIT)),
    'sendmsg',
    subject,
  );
}

// Reading is synchronous, so one buffer serves every socket. One byte over the limit would be cut anyway.
const received = Buffer.alloc(MAX_PACKET_BYTES);
const receivedControl = Buffer.alloc(CMSG_HEADER_BYTES + aligned(MAX_DESCRIPTORS * 4));

/**
 * Takes the next packet, without waiting; undefined if there is none. KernelError: ECONNRESET if the peer went
 * without reading what it was sent, EMSGSIZE if the packet was longer than the limit, EMFILE if this process could
 * not take all its descriptors. Nothing of a refused packet stays open.
 */
export function receivePacket(fd: number): Packet | undefined {
  const message = messageOf(received, receivedControl);
  const length = uninterrupted(() => libc.recvmsg(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
  if (length < 0 && libc.errno() === EAGAIN) return undefined;
  checked(length, 'recvmsg', 'packet');
  const descriptors = descriptorsIn(receivedControl.subarray(0, message.msg_controllen));
  const refused = refusal(message.msg_flags);
  if (refused !== undefined) {
    for (const descriptor of descriptors) descriptor.close();
    throw new KernelError({ operation: 'recvmsg', subject: 'packet', errno: refused });
  }
  return { bytes: Buffer.from(received.subarray(0, length)), descriptors };
}

/** What a socket has for a reader that takes no descriptors. */
export type Plain =
  | { readonly kind: 'none' }
  /** Empty: the peer has closed its end. */
  | { readonly kind: 'packet'; readonly bytes: Buffer }
  /** The next packet has descriptors beside it. It was left where it is. */
  | { readonly kind: 'descriptors' };

const NO_CONTROL = Buffer.alloc(0);

/**
 * Takes the next packet, without waiting, and never a descriptor. With `look`, for sockets whose peers can send
 * descriptors, a packet with descriptors is left where it is. Otherwise this process might drop the last reference to
 * a file and would have to close it, for as long as that file likes (a TCP socket with SO_LINGER). KernelError:
 * ECONNRESET, EMSGSIZE as of `receivePacket`.
 */
export function receivePlain(fd: number, { look }: { look: boolean }): Plain {
  if (look) {
    // Peeking takes references of its own to the files and drops them; the packet keeps the files alive meanwhile.
    const peeked = messageOf(received.subarray(0, 1), NO_CONTROL);
    const seen = uninterrupted(() => libc.recvmsg(fd, peeked, MSG_DONTWAIT | MSG_PEEK));
    // Nothing is there yet, and a packet that comes before the next call has not been looked at.
    if (seen < 0 && libc.errno() === EAGAIN) return { kind: 'none' };
    checked(seen, 'recvmsg', 'packet');
    if ((peeked.msg_flags & MSG_CTRUNC) !== 0) return { kind: 'descriptors' };
  }
  const message = messageOf(received, NO_CONTROL);
  const length = uninterrupted(() => libc.recvmsg(fd, message, MSG_DONTWAIT));
  if (length < 0 && libc.errno() === EAGAIN) return { kind: 'none' };
  checked(length, 'recvmsg', 'packet');
  if ((message.msg_flags & MSG_TRUNC) !== 0) {
    throw new KernelError({ operation: 'recvmsg', subject: 'packet', errno: EMSGSIZE });
  }
  return { kind: 'packet', bytes: Buffer.from(received.subarray(0, length)) };
}

// There is room for every descriptor that the kernel passes at once: it cuts them only at RLIMIT_NOFILE.
function refusal(flags: number): number | undefined {
  if ((flags & MSG_TRUNC) !== 0) return EMSGSIZE;
  return (flags & MSG_CTRUNC) === 0 ? undefined : EMFILE;
}

/** Repeats a call that a signal interrupted; errno is that of the last try. */
function uninterrupted(call: () => number): number {
  for (;;) {
    const result = call();
    if (result >= 0 || libc.errno() !== EINTR) return result;
  }
}

const messageOf = (bytes: Uint8Array, control: Buffer) => ({
  msg_name: null,
  msg_namelen: 0,
  msg_iov: [{ iov_base: bytes, iov_len: bytes.length }],
  msg_iovlen: 1,
  msg_control: control.length === 0 ? null : control,
  msg_controllen: control.length,
  msg_flags: 0,
});

/** One SCM_RIGHTS message; nothing for no descriptors. */
function rightsOf(fds: readonly number[]): Buffer {
  if (fds.length === 0) return Buffer.alloc(0);
  const control = Buffer.alloc(CMSG_HEADER_BYTES + aligned(fds.length * 4));
  control.writeBigUInt64LE(BigInt(CMSG_HEADER_BYTES + fds.length * 4), 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  for (const [n, fd] of fds.entries()) control.writeInt32LE(fd, CMSG_HEADER_BYTES + n * 4);
  return control;
}

function descriptorsIn(control: Buffer): Descriptor[] {
  const descriptors: Descriptor[] = [];
  let offset = 0;
  while (offset + CMSG_HEADER_BYTES <= control.length) {
    const length = Number(control.readBigUInt64LE(offset));
    if (length < CMSG_HEADER_BYTES) break;
    const end = Math.min(offset + length, control.length);
    const level = control.readInt32LE(offset + 8);
    const type = control.readInt32LE(offset + 12);
    if (level === SOL_SOCKET && type === SCM_RIGHTS) {
      for (let at = offset + CMSG_HEADER_BYTES; at + 4 <= end; at += 4) {
        descriptors.push(new Descriptor(control.readInt32LE(at)));
      }
    }
    offset += aligned(length);
  }
  return descriptors;
}

function aligned(bytes: number): number {
  return (bytes + 7) & ~7;
}
