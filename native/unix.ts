import { chmodSync, lstatSync, rmSync } from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { type Packet, receivePacket, sendPacket } from './packet.ts';
import { peerCredentials, type PeerCredentials } from './peer.ts';
import { watchReadable } from './poll.ts';
import {
  bindTo,
  connectTo,
  openSocket,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_SEQPACKET,
} from './unix-socket.ts';

export type { PeerCredentials } from './peer.ts';

// Unix sockets that Node does not offer: SOCK_SEQPACKET, which keeps packets apart, and datagrams for
// sd_notify.

const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SO_SNDTIMEO = 21;
const MSG_NOSIGNAL = 0x4000;

const BACKLOG = 1_024;
/** Anybody may connect: these keep one user, or all but root, from taking every descriptor there is. */
const MAX_CONNECTIONS = 512;
const MAX_CONNECTIONS_PER_UID = 64;
const ROOT = 0;
/** Connections and packets taken in one go, so that nobody keeps the event loop to himself. */
const MAX_PER_WAKEUP = 32;
/** How long a server that has no descriptors left stops accepting. */
const ACCEPT_PAUSE_MS = 100;
const DATAGRAM_TIMEOUT_SECONDS = 1n;

const EADDRINUSE = 98;
const EAFNOSUPPORT = 97;
const ECONNRESET = 104;
const ETIMEDOUT = 110;

/** One accepted connection. It closes itself when the peer goes, or sends a packet over the limit. */
export class SeqpacketConnection {
  readonly peer: PeerCredentials;
  readonly #descriptor: Descriptor;
  readonly #onClose: () => void;
  #watch: Disposable | undefined;

  /** Made by the server, for an accepted socket. */
  constructor(descriptor: Descriptor, peer: PeerCredentials, onClose: () => void) {
    this.peer = peer;
    this.#descriptor = descriptor;
    this.#onClose = onClose;
  }

  get closed(): boolean {
    return this.#descriptor.closed;
  }

  /** Calls back for every packet. Descriptors that come with it are not expected here, and closed. */
  onPacket(callback: (bytes: Buffer) => void): void {
    this.#watch = watchReadable(this.#descriptor.fd, () => {
      for (let taken = 0; taken < MAX_PER_WAKEUP && !this.closed; taken += 1) {
        const bytes = this.#next();
        if (bytes === undefined) return;
        callback(bytes);
      }
    });
  }

  /** undefined: no packet now, or none any more. */
  #next(): Buffer | undefined {
    try {
      const packet = receivePacket(this.#descriptor.fd);
      if (packet === undefined) return undefined;
      for (const descriptor of packet.descriptors) descriptor.close();
      if (packet.bytes.length > 0) return packet.bytes;
    } catch (error) {
      if (!isKernelError(error)) throw error;
    }
    this.close();
    return undefined;
  }

  /** Sends one packet, with descriptors that stay the caller's. KernelError as of `sendPacket`. */
  send(bytes: Uint8Array, fds: readonly number[] = []): void {
    sendPacket(this.#descriptor.fd, bytes, fds);
  }

  /** Harmless when closed already. */
  close(): void {
    if (this.closed) return;
    this.#watch?.[Symbol.dispose]();
    this.#descriptor.close();
    this.#onClose();
  }
}

export interface ListenOptions {
  readonly path: string;
  readonly mode: number;
  readonly onConnection: (connection: SeqpacketConnection) => void;
}

/**
 * Listens on a path. A socket file that nobody listens on any more is replaced. KernelError EADDRINUSE when
 * somebody does, or the path is no socket; also where two start at the same time on a stale file one may
 * unlink the other's: hold a lock.
 */
export function listenSeqpacket(options: ListenOptions): SeqpacketServer {
  const { path, mode } = options;
  removeStale(path);
  const listener = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  try {
    bindTo(listener, path);
    try {
      // Nobody connects before listen(2), so nobody sees another mode than this.
      chmodSync(path, mode);
      checked(libc.listen(listener.fd, BACKLOG), 'listen', path);
      return new SeqpacketServer(listener, options);
    } catch (error) {
      rmSync(path, { force: true });
      throw error;
    }
  } catch (error) {
    listener.close();
    throw error;
  }
}

/** A listening socket with its connections. */
export class SeqpacketServer implements Disposable {
  readonly #listener: Descriptor;
  readonly #options: ListenOptions;
  readonly #inode: number;
  readonly #connections = new Set<SeqpacketConnection>();
  #watch: Disposable | undefined;
  #pause: NodeJS.Timeout | undefined;

  /** Use `listenSeqpacket`. The socket is the server's from here on. */
  constructor(listener: Descriptor, options: ListenOptions) {
    this.#listener = listener;
    this.#options = options;
    this.#inode = lstatSync(options.path).ino;
    this.#listen();
  }

  /** Closes the connections and removes the socket file, unless it is another server's by now. */
  close(): void {
    if (this.#listener.closed) return;
    clearTimeout(this.#pause);
    this.#watch?.[Symbol.dispose]();
    this.#listener.close();
    for (const connection of this.#connections) connection.close();
    const { path } = this.#options;
    if (lstatSync(path, { throwIfNoEntry: false })?.ino === this.#inode) rmSync(path);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #listen(): void {
    this.#watch = watchReadable(this.#listener.fd, () => {
      for (let taken = 0; taken < MAX_PER_WAKEUP && !this.#listener.closed; taken += 1) {
        if (!this.#accept()) return;
      }
    });
  }

  /** False when there is nobody to accept. */
  #accept(): boolean {
    let descriptor: Descriptor;
    try {
      const flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
      const { path } = this.#options;
      descriptor = new Descriptor(
        checked(libc.accept4(this.#listener.fd, null, null, flags), 'accept4', path),
      );
    } catch (error) {
      if (!isKernelError(error)) throw error;
      // Gone again before it was accepted, or a signal: there may be others.
      if (['ECONNABORTED', 'EINTR'].includes(error.code)) return true;
      // EMFILE, ENFILE, ENOMEM: whoever waits stays readable, which would turn the loop at full speed.
      if (error.code !== 'EAGAIN') this.#rest();
      return false;
    }
    this.#admit(descriptor);
    return true;
  }

  #admit(descriptor: Descriptor): void {
    const peer = peerCredentials(descriptor.fd);
    if (this.#tooMany(peer.uid)) {
      descriptor.close();
      return;
    }
    const connection = new SeqpacketConnection(descriptor, peer, () =>
      this.#connections.delete(connection),
    );
    this.#connections.add(connection);
    this.#options.onConnection(connection);
  }

  #tooMany(uid: number): boolean {
    if (uid === ROOT) return false;
    if (this.#connections.size >= MAX_CONNECTIONS) return true;
    const own = [...this.#connections].filter(({ peer }) => peer.uid === uid);
    return own.length >= MAX_CONNECTIONS_PER_UID;
  }

  #rest(): void {
    this.#watch?.[Symbol.dispose]();
    this.#pause = setTimeout(() => this.#listen(), ACCEPT_PAUSE_MS);
  }
}

/**
 * Connects, sends one packet, waits for one, and closes. The descriptors that come with the answer are the
 * caller's, and close on exec. KernelError: ENOENT or ECONNREFUSED when nobody listens, EAGAIN when too
 * many wait already, ECONNRESET when the connection is closed unanswered, ETIMEDOUT when no answer comes in
 * time, EMSGSIZE and EMFILE as of `receivePacket`.
 */
export async function requestSeqpacket(
  path: string,
  bytes: Uint8Array,
  { timeoutMs = 10_000 }: { timeoutMs?: number } = {},
): Promise<Packet> {
  using socket = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  connectTo(socket, path);
  sendPacket(socket.fd, bytes);
  const packet = await firstPacket(socket.fd, path, timeoutMs);
  if (packet.bytes.length > 0) return packet;
  for (const descriptor of packet.descriptors) descriptor.close();
  throw new KernelError({ operation: 'recvmsg', subject: path, errno: ECONNRESET });
}

async function firstPacket(fd: number, path: string, timeoutMs: number): Promise<Packet> {
  const { promise, resolve, reject } = Promise.withResolvers<Packet>();
  const timer = setTimeout(() => {
    reject(new KernelError({ operation: 'recvmsg', subject: path, errno: ETIMEDOUT }));
  }, timeoutMs);
  const watch = watchReadable(fd, () => {
    try {
      const packet = receivePacket(fd);
      if (packet === undefined) return;
      // Nothing more is read, so that no descriptor is taken that nobody waits for.
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
 * Sends one datagram, as sd_notify(3) does: to a path or, with a leading "@", an abstract name. Waits for a
 * receiver whose queue is full, for a second at most. KernelError: ENOENT or ECONNREFUSED when nobody
 * receives, EAGAIN after that second, EAFNOSUPPORT for what is neither.
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

// connect(2) refuses on a file that is no socket just as on a socket that nobody listens on.
function removeStale(path: string): void {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return;
  const taken = new KernelError({ operation: 'bind', subject: path, errno: EADDRINUSE });
  if (!stat.isSocket()) throw taken;
  using probe = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  try {
    connectTo(probe, path);
  } catch (error) {
    if (isKernelError(error, 'ENOENT')) return;
    // EAGAIN: so many wait there that one more would have to.
    if (!isKernelError(error, 'ECONNREFUSED')) throw taken;
    rmSync(path, { force: true });
    return;
  }
  throw taken;
}
