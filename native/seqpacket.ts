import { chmodSync, lstatSync, rmSync } from 'node:fs';
import { Descriptor } from './descriptor.ts';
import { checked, isKernelError, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import { PacketTurns } from './packet-turns.ts';
import { part } from './parting.ts';
import { peerCredentials } from './peer.ts';
import { watchReadable } from './poll.ts';
import { SeqpacketConnection } from './seqpacket-connection.ts';
import { placeFor } from './shares.ts';
import { bindTo, connectTo, openSocket, SOCK_NONBLOCK, SOCK_SEQPACKET } from './unix-socket.ts';

// The server's end of SOCK_SEQPACKET, for a socket that anybody may connect to.

const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
/** asm-generic/socket.h; Linux 6.16. */
const SO_PASSRIGHTS = 83;

const BACKLOG = 1_024;
/** Connections accepted in one go, so that nobody keeps the event loop to himself. */
const MAX_PER_WAKEUP = 8;
/** How long a server that has no descriptors left stops accepting. */
const ACCEPT_PAUSE_MS = 100;
/** How long a connection may be without a packet. */
export const IDLE_MS = 10_000;

const EADDRINUSE = 98;

export interface ListenOptions {
  readonly path: string;
  readonly mode: number;
  readonly onConnection: (connection: SeqpacketConnection) => void;
  readonly idleMs?: number;
  /** False: does without SO_PASSRIGHTS, as on a kernel before 6.16. */
  readonly refuseDescriptors?: boolean;
}

/**
 * Listens on a path. A socket file on which nobody listens any more is replaced. KernelError EADDRINUSE if somebody
 * does, or if the path is no socket. Hold a lock: of two that start at the same time on a stale file, one may unlink
 * the other's.
 */
export function listenSeqpacket(options: ListenOptions): SeqpacketServer {
  const { path, mode, refuseDescriptors = true } = options;
  removeStale(path);
  const listener = openSocket(SOCK_SEQPACKET | SOCK_NONBLOCK);
  try {
    // Accepted sockets inherit it from the listening one; a peer that sends descriptors gets EPERM.
    const mayBringDescriptors = !refuseDescriptors || !refuseRights(listener);
    bindTo(listener, path);
    try {
      // Nobody can connect before listen(2), so nobody sees another mode than this.
      chmodSync(path, mode);
      checked(libc.listen(listener.fd, BACKLOG), 'listen', path);
      return new SeqpacketServer(listener, { ...options, mayBringDescriptors });
    } catch (error) {
      rmSync(path, { force: true });
      throw error;
    }
  } catch (error) {
    listener.close();
    throw error;
  }
}

/** False: this kernel has no such option. */
function refuseRights(listener: Descriptor): boolean {
  const off = Buffer.alloc(4);
  try {
    const result = libc.setsockopt(listener.fd, SOL_SOCKET, SO_PASSRIGHTS, off, off.length);
    return checked(result, 'SO_PASSRIGHTS', 'listener') === 0;
  } catch (error) {
    if (isKernelError(error, 'ENOPROTOOPT')) return false;
    throw error;
  }
}

/** A listening socket with its connections. */
export class SeqpacketServer implements Disposable {
  readonly #listener: Descriptor;
  readonly #options: ListenOptions & { readonly mayBringDescriptors: boolean };
  readonly #inode: number;
  readonly #connections = new Set<SeqpacketConnection>();
  readonly #turns = new PacketTurns();
  #watch: Disposable | undefined;
  #pause: NodeJS.Timeout | undefined;

  /** Use `listenSeqpacket`. The socket is the server's from here on. */
  constructor(
    listener: Descriptor,
    options: ListenOptions & { readonly mayBringDescriptors: boolean },
  ) {
    this.#listener = listener;
    this.#options = options;
    this.#inode = lstatSync(options.path).ino;
    this.#listen();
  }

  /** Closes the connections and removes the socket file, unless another server has it by now. */
  close(): void {
    if (this.#listener.closed) return;
    clearTimeout(this.#pause);
    this.#watch?.[Symbol.dispose]();
    void this.#close(new Descriptor(this.#listener.release()));
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
      // The connection was gone before it was accepted, or a signal came: there may be others.
      if (['ECONNABORTED', 'EINTR'].includes(error.code)) return true;
      // EMFILE, ENFILE, ENOMEM: the waiting connection keeps the socket readable, and the loop would turn at full
      // speed.
      if (error.code !== 'EAGAIN') this.#rest();
      return false;
    }
    this.#admit(descriptor);
    return true;
  }

  #admit(descriptor: Descriptor): void {
    const peer = peerCredentials(descriptor.fd);
    const { admitted, instead } = placeFor(peer.uid, this.#connections);
    if (!admitted) {
      void this.#close(descriptor);
      return;
    }
    instead?.close();
    const { idleMs = IDLE_MS, mayBringDescriptors } = this.#options;
    const connection = new SeqpacketConnection(descriptor, peer, {
      idleMs,
      mayBringDescriptors,
      turns: this.#turns,
      part: (own) => this.#part(own, connection),
    });
    this.#connections.add(connection);
    this.#options.onConnection(connection);
  }

  /** Until it is closed it counts for its account. */
  #part(socket: Descriptor, connection: SeqpacketConnection): void {
    const closing = this.#close(socket);
    if (closing === undefined) this.#connections.delete(connection);
    else void closing.then(() => this.#connections.delete(connection));
  }

  #close(socket: Descriptor): Promise<void> | undefined {
    if (this.#options.mayBringDescriptors) return part(socket);
    socket.close();
    return undefined;
  }

  #rest(): void {
    this.#watch?.[Symbol.dispose]();
    this.#pause = setTimeout(() => this.#listen(), ACCEPT_PAUSE_MS);
  }
}

// connect(2) refuses a file that is no socket in the same way as a socket on which nobody listens.
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
    // EAGAIN: the queue of the server is full.
    if (!isKernelError(error, 'ECONNREFUSED')) throw taken;
    rmSync(path, { force: true });
    return;
  }
  throw taken;
}
