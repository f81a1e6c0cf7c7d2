import { chmodSync, rmSync } from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { watchReadable } from './poll.ts';

// Unix sockets that Node does not offer: SOCK_SEQPACKET, which keeps packets apart, with descriptors passed
// beside them (man 7 unix, cmsg 3), and datagrams for sd_notify.

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_PEERCRED = 17;
const SO_PEERGROUPS = 59;
const SCM_RIGHTS = 1;
const MSG_CTRUNC = 0x8;
const MSG_TRUNC = 0x20;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const BACKLOG = 128;
const PATH_BYTES = 108;
const CMSG_HEADER_BYTES = 16;
const EMSGSIZE = 90;
const ECONNRESET = 104;
const ETIMEDOUT = 110;

/** A packet of either direction. */
export const MAX_PACKET_BYTES = 64 * 1024;
/** SCM_MAX_FD of the kernel: descriptors beside one packet. */
export const MAX_DESCRIPTORS = 253;
/** NGROUPS that we read; a process in more counts by its first 1,024. */
const MAX_GROUPS = 1_024;

/** Who is at the other end, as the kernel noted it when it connected. */
export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
  readonly groups: readonly number[];
}

export interface Packet {
  readonly bytes: Buffer;
  /** Owned by whoever takes the packet. */
  readonly descriptors: Descriptor[];
}

export interface SeqpacketServer {
  close(): void;
}

/** One accepted connection. It closes itself when the peer goes, or sends what is no packet of ours. */
export class SeqpacketConnection {
  readonly peer: PeerCredentials;
  readonly #descriptor: Descriptor;
  readonly #onClose: () => void;
  #watch: Disposable | undefined;

  constructor(descriptor: Descriptor, onClose: () => void) {
    this.#descriptor = descriptor;
    this.#onClose = onClose;
    this.peer = peerCredentials(descriptor.fd);
  }

  /** Calls back for every packet. Descriptors that come with it are not expected here, and closed. */
  onPacket(callback: (bytes: Buffer) => void): void {
    this.#watch = watchReadable(this.#descriptor.fd, () => {
      try {
        const packet = receive(this.#descriptor.fd, MSG_DONTWAIT);
        for (const descriptor of packet.descriptors) descriptor.close();
        if (packet.bytes.length === 0) this.close();
        else callback(packet.bytes);
      } catch (error) {
        if (!isKernelError(error, 'EAGAIN', 'EINTR')) this.close();
      }
    });
  }

  /** Sends one packet. EAGAIN when the peer does not read: nothing is queued here. */
  send(bytes: Uint8Array, fds: readonly number[] = []): void {
    transmit(this.#descriptor.fd, bytes, fds);
  }

  close(): void {
    if (this.#descriptor.closed) return;
    this.#watch?.[Symbol.dispose]();
    this.#descriptor.close();
    this.#onClose();
  }
}

/**
 * Listens on a path. A socket file that nobody listens on any more is replaced; EADDRINUSE when somebody
 * does. Closing the server closes its connections and removes the file.
 */
export function listenSeqpacket(options: {
  readonly path: string;
  readonly mode: number;
  readonly onConnection: (connection: SeqpacketConnection) => void;
}): SeqpacketServer {
  const { path, mode, onConnection } = options;
  removeStale(path);
  const listener = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  try {
    const address = addressOf(path);
    checked(libc.bind(listener.fd, address, address.length), 'bind', path);
    chmodSync(path, mode);
    checked(libc.listen(listener.fd, BACKLOG), 'listen', path);
  } catch (error) {
    listener.close();
    throw error;
  }
  const connections = new Set<SeqpacketConnection>();
  const watch = watchReadable(listener.fd, () => {
    const fd = libc.accept4(listener.fd, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return; // taken back by the peer, or out of descriptors: the next readiness tries again
    const descriptor = new Descriptor(fd);
    try {
      const connection = new SeqpacketConnection(descriptor, () => connections.delete(connection));
      connections.add(connection);
      onConnection(connection);
    } catch {
      descriptor.close(); // gone before its credentials were read
    }
  });
  return {
    close: () => {
      watch[Symbol.dispose]();
      listener.close();
      for (const connection of connections) connection.close();
      rmSync(path, { force: true });
    },
  };
}

/**
 * Connects, sends one packet, waits for one, and closes. The descriptors that come with the answer are the
 * caller's, and close on exec. KernelError: ENOENT or ECONNREFUSED when nobody listens, ECONNRESET when the
 * connection is closed unanswered, ETIMEDOUT when no answer comes in time.
 */
export async function requestSeqpacket(
  path: string,
  bytes: Uint8Array,
  { timeoutMs = 10_000 }: { timeoutMs?: number } = {},
): Promise<Packet> {
  using socket = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  const address = addressOf(path);
  checked(libc.connect(socket.fd, address, address.length), 'connect', path);
  transmit(socket.fd, bytes, []);
  const answered = Promise.withResolvers<void>();
  const failed = (errno: number): KernelError =>
    new KernelError({ operation: 'recvmsg', subject: path, errno });
  const timer = setTimeout(() => answered.reject(failed(ETIMEDOUT)), timeoutMs);
  using _watch = watchReadable(socket.fd, () => answered.resolve());
  try {
    await answered.promise;
  } finally {
    clearTimeout(timer);
  }
  const packet = receive(socket.fd, MSG_DONTWAIT);
  if (packet.bytes.length === 0) throw failed(ECONNRESET);
  return packet;
}

/** Sends one datagram, as sd_notify(3) does; a leading "@" names an abstract socket. */
export function sendDatagram(path: string, message: string): void {
  using socket = openSocket(SOCK_DGRAM);
  const address = addressOf(path);
  checked(libc.connect(socket.fd, address, address.length), 'connect', path);
  const bytes = Buffer.from(message);
  checked(libc.send(socket.fd, bytes, bytes.length, MSG_NOSIGNAL), 'send', path);
}

const openSocket = (type: number): Descriptor =>
  new Descriptor(checked(libc.socket(AF_UNIX, type | SOCK_CLOEXEC, 0), 'socket', 'unix'));

/** struct sockaddr_un */
function addressOf(path: string): Buffer {
  const name = Buffer.from(path.startsWith('@') ? `\0${path.slice(1)}` : `${path}\0`);
  if (name.length > PATH_BYTES) {
    throw new KernelError({ operation: 'bind', subject: path, errno: EMSGSIZE });
  }
  const address = Buffer.alloc(2 + name.length);
  address.writeUInt16LE(AF_UNIX, 0);
  name.copy(address, 2);
  return address;
}

function removeStale(path: string): void {
  using probe = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  const address = addressOf(path);
  try {
    checked(libc.connect(probe.fd, address, address.length), 'connect', path);
  } catch (error) {
    if (isKernelError(error, 'ECONNREFUSED')) rmSync(path, { force: true });
  }
}

function peerCredentials(fd: number): PeerCredentials {
  const ucred = Buffer.alloc(12);
  checked(
    libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ucred, [ucred.length]),
    'getsockopt',
    'SO_PEERCRED',
  );
  const groups = Buffer.alloc(MAX_GROUPS * 4);
  const length = [groups.length];
  checked(
    libc.getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, length),
    'getsockopt',
    'SO_PEERGROUPS',
  );
  const count = (length[0] ?? 0) / 4;
  return {
    pid: ucred.readInt32LE(0),
    uid: ucred.readUInt32LE(4),
    gid: ucred.readUInt32LE(8),
    groups: Array.from({ length: count }, (_, n) => groups.readUInt32LE(n * 4)),
  };
}

function transmit(fd: number, bytes: Uint8Array, fds: readonly number[]): void {
  if (bytes.length > MAX_PACKET_BYTES || fds.length > MAX_DESCRIPTORS) {
    throw new KernelError({ operation: 'sendmsg', subject: 'packet', errno: EMSGSIZE });
  }
  const control = Buffer.alloc(fds.length === 0 ? 0 : CMSG_HEADER_BYTES + align8(fds.length * 4));
  if (fds.length > 0) {
    control.writeBigUInt64LE(BigInt(CMSG_HEADER_BYTES + fds.length * 4), 0);
    control.writeInt32LE(SOL_SOCKET, 8);
    control.writeInt32LE(SCM_RIGHTS, 12);
    for (const [n, one] of fds.entries()) control.writeInt32LE(one, CMSG_HEADER_BYTES + n * 4);
  }
  const message = messageOf(bytes, control);
  for (;;) {
    try {
      checked(libc.sendmsg(fd, message, MSG_NOSIGNAL | MSG_DONTWAIT), 'sendmsg', 'packet');
      return;
    } catch (error) {
      if (!isKernelError(error, 'EINTR')) throw error;
    }
  }
}

/** One packet; empty when the peer has closed. EMSGSIZE when it was cut: what came of it is closed. */
function receive(fd: number, flags: number): Packet {
  const bytes = Buffer.alloc(MAX_PACKET_BYTES);
  const control = Buffer.alloc(CMSG_HEADER_BYTES + align8(MAX_DESCRIPTORS * 4));
  const message = messageOf(bytes, control);
  const length = checked(libc.recvmsg(fd, message, flags | MSG_CMSG_CLOEXEC), 'recvmsg', 'packet');
  const descriptors = descriptorsIn(control.subarray(0, Number(message.msg_controllen)));
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) !== 0) {
    for (const descriptor of descriptors) descriptor.close();
    throw new KernelError({ operation: 'recvmsg', subject: 'packet', errno: EMSGSIZE });
  }
  return { bytes: bytes.subarray(0, length), descriptors };
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

function descriptorsIn(control: Buffer): Descriptor[] {
  const descriptors: Descriptor[] = [];
  let offset = 0;
  while (offset + CMSG_HEADER_BYTES <= control.length) {
    const length = Number(control.readBigUInt64LE(offset));
    if (length < CMSG_HEADER_BYTES || offset + length > control.length) break;
    const rights =
      control.readInt32LE(offset + 8) === SOL_SOCKET &&
      control.readInt32LE(offset + 12) === SCM_RIGHTS;
    for (let at = offset + CMSG_HEADER_BYTES; rights && at + 4 <= offset + length; at += 4) {
      descriptors.push(new Descriptor(control.readInt32LE(at)));
    }
    offset += align8(length);
  }
  return descriptors;
}

const align8 = (bytes: number): number => (bytes + 7) & ~7;
