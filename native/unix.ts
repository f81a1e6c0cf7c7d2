import { setTimeout as sleep } from 'node:timers/promises';
import type { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { MAX_PACKET_BYTES, type Packet, receivePacket, sendPacket } from './packet.ts';
import { watchReadable } from './poll.ts';
import { connectTo, openSocket, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_SEQPACKET } from './unix-socket.ts';

// The client's end of unix sockets that Node does not offer: SOCK_SEQPACKET, which keeps packets apart, and datagrams
// for sd_notify.

const SOL_SOCKET = 1;
const SO_SNDTIMEO = 21;
const MSG_NOSIGNAL = 0x4000;

const DATAGRAM_TIMEOUT_SECONDS = 1n;
/** How long a client waits before it tries again to connect to a server with a full queue. */
const KNOCK_MS = 20;
/** What an answer may have in all its packets. */
const MAX_ANSWER_BYTES = 4 * 1024 * 1024;

const EMSGSIZE = 90;
const EAFNOSUPPORT = 97;
const ECONNRESET = 104;
const ETIMEDOUT = 110;

/**
 * Connects, sends one packet, waits for its answer, and closes. An answer is one packet, or several, of which all but
 * the last are full. The descriptors that come with it are the caller's, and close on exec. KernelError: ENOENT or
 * ECONNREFUSED if nobody listens, EAGAIN if the server's queue was full all the time, ECONNRESET if the connection is
 * closed without an answer, ETIMEDOUT if no answer comes in time, EMSGSIZE for an answer of more than 4 MiB, EMSGSIZE
 * and EMFILE as of `receivePacket`.
 */
export async function requestSeqpacket(
  path: string,
  bytes: Uint8Array,
  { timeoutMs = 10_000 }: { timeoutMs?: number } = {},
): Promise<Packet> {
  using socket = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  const end = performance.now() + timeoutMs;
  await connected(socket, path, end);
  sendPacket(socket.fd, bytes);
  const pieces: Buffer[] = [];
  const descriptors: Descriptor[] = [];
  try {
    let last: Packet;
    do {
      last = await firstPacket(socket.fd, path, end - performance.now());
      pieces.push(last.bytes);
      descriptors.push(...last.descriptors);
      if (last.bytes.length === 0) throw recvError(path, ECONNRESET);
      if (pieces.length * MAX_PACKET_BYTES > MAX_ANSWER_BYTES) throw recvError(path, EMSGSIZE);
    } while (last.bytes.length === MAX_PACKET_BYTES);
    return { bytes: Buffer.concat(pieces), descriptors };
  } catch (error) {
    for (const descriptor of descriptors) descriptor.close();
    throw error;
  }
}

const recvError = (path: string, errno: number): KernelError =>
  new KernelError({ operation: 'recvmsg', subject: path, errno });

/** A client that floods a server with connections holds others up only for as long as they wait in its queue. */
async function connected(socket: Descriptor, path: string, end: number): Promise<void> {
  for (;;) {
    try {
      connectTo(socket, path);
      return;
    } catch (error) {
      if (!isKernelError(error, 'EAGAIN') || performance.now() >= end) throw error;
    }
    await sleep(KNOCK_MS);
  }
}

/** The next packet of a connected socket: empty when its peer is gone. KernelError ETIMEDOUT. */
export async function firstPacket(fd: number, path: string, timeoutMs: number): Promise<Packet> {
  const { promise, resolve, reject } = Promise.withResolvers<Packet>();
  const timer = setTimeout(() => {
    reject(recvError(path, ETIMEDOUT));
  }, timeoutMs);
  const watch = watchReadable(fd, () => {
    try {
      const packet = receivePacket(fd);
      if (packet === undefined) return;
      // Nothing more is read, so that no descriptor comes that nobody waits for.
      watch[Symbol.dispose]();
      clearTimeout(timer);
      resolve(packet);
    } catch (error) {
      reject(error);
    }
  });
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    watch[Symbol.dispose]();
  }
}

/**
 * Sends one datagram, as sd_notify(3) does: to a path or, with a leading "@", an abstract name. Waits a second at
 * most for a receiver whose queue is full. KernelError: ENOENT or ECONNREFUSED if nobody receives, EAGAIN after that
 * second, EAFNOSUPPORT for a name that is neither.
 */
export function sendDatagram(path: string, message: string): void {
  if (!path.startsWith('/') && !path.startsWith('@')) {
    throw new KernelError({ operation: 'connect', subject: path, errno: EAFNOSUPPORT });
  }
  using socket = openSocket(SOCK_DGRAM);
  const timeval = Buffer.alloc(16);
  timeval.writeBigInt64LE(DATAGRAM_TIMEOUT_SECONDS, 0);
  checked(
    libc.setsockopt(socket.fd, SOL_SOCKET, SO_SNDTIMEO, timeval, timeval.length),
    'SO_SNDTIMEO',
    path,
  );
  connectTo(socket, path);
  const bytes = Buffer.from(message);
  checked(libc.send(socket.fd, bytes, bytes.length, MSG_NOSIGNAL), 'send', path);
}
