import { setTimeout as sleep } from 'node:timers/promises';
import { Descriptor } from './descriptor.ts';
import { isKernelError, KernelError } from './errors.ts';
import { inPackets, receivePlain, sendPacket } from './packet.ts';
import type { PacketTurns } from './packet-turns.ts';
import type { PeerCredentials } from './peer.ts';
import { watchReadable } from './poll.ts';

/** How long to wait before more is sent to a peer that does not read. */
const FULL_MS = 5;

const EBADF = 9;
const ETIMEDOUT = 110;

/**
 * One accepted connection. It closes itself when the peer goes, sends a packet over the limit or descriptors, or
 * sends nothing for `idleMs`.
 */
export class SeqpacketConnection {
  readonly peer: PeerCredentials;
  readonly #server: ServerOfConnection;
  readonly #descriptor: Descriptor;
  #idle: NodeJS.Timeout;
  #watch: Disposable | undefined;
  #heardAt = performance.now();

  /** Made by the server, for an accepted socket. */
  constructor(descriptor: Descriptor, peer: PeerCredentials, server: ServerOfConnection) {
    this.peer = peer;
    this.#descriptor = descriptor;
    this.#server = server;
    this.#idle = this.#closeWhenIdle();
  }

  get closed(): boolean {
    return this.#descriptor.closed;
  }

  /** When its last packet came, or else when it was accepted (`performance.now()` time). */
  get heardAt(): number {
    return this.#heardAt;
  }

  /**
   * Calls back for every packet. While a promise of the callback is pending, the connection is not read and does not
   * count as idle. The promise must not reject.
   */
  onPacket(callback: (bytes: Buffer) => Promise<void> | void): void {
    const take = (): void => {
      const bytes = this.closed || this.#watch === undefined ? undefined : this.#next();
      if (bytes === undefined) return;
      this.#heardAt = performance.now();
      this.#idle.refresh();
      const pending = callback(bytes);
      if (pending === undefined || this.closed) return;
      this.#stopReading();
      void pending.then(() => {
        if (this.closed) return;
        this.#idle = this.#closeWhenIdle();
        read();
      });
    };
    const sender = { uid: this.peer.uid, take };
    const read = (): void => {
      this.#watch = watchReadable(this.#descriptor.fd, () => this.#server.turns.add(sender));
    };
    read();
  }

  #closeWhenIdle(): NodeJS.Timeout {
    return setTimeout(() => this.close(), this.#server.idleMs);
  }

  #stopReading(): void {
    clearTimeout(this.#idle);
    this.#watch?.[Symbol.dispose]();
    this.#watch = undefined;
  }

  /** undefined: no packet now, or none any more. */
  #next(): Buffer | undefined {
    try {
      const found = receivePlain(this.#descriptor.fd, { look: this.#server.mayBringDescriptors });
      if (found.kind === 'none') return undefined;
      if (found.kind === 'packet' && found.bytes.length > 0) return found.bytes;
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

  /**
   * Sends bytes of any length, in packets that are all full but the last (`inPackets`), as fast as the peer reads.
   * KernelError as of `sendPacket`, ETIMEDOUT if the peer has not taken all in time, EBADF if the connection is
   * closed meanwhile.
   */
  async sendAll(bytes: Uint8Array, { timeoutMs }: { timeoutMs: number }): Promise<void> {
    const end = performance.now() + timeoutMs;
    for (const packet of inPackets(bytes)) {
      while (!this.#trySend(packet)) {
        if (performance.now() > end) throw this.#sendError(ETIMEDOUT);
        await sleep(FULL_MS);
        if (this.closed) throw this.#sendError(EBADF);
      }
    }
  }

  /** False where the peer has to read first. */
  #trySend(packet: Uint8Array): boolean {
    try {
      this.send(packet);
      return true;
    } catch (error) {
      if (isKernelError(error, 'EAGAIN')) return false;
      throw error;
    }
  }

  #sendError(errno: number): KernelError {
    return new KernelError({ operation: 'sendmsg', subject: `pid ${this.peer.pid}`, errno });
  }

  /** Harmless when closed already. */
  close(): void {
    if (this.closed) return;
    this.#stopReading();
    this.#server.part(new Descriptor(this.#descriptor.release()));
  }
}

/** What a connection needs of its server. */
export interface ServerOfConnection {
  readonly idleMs: number;
  readonly mayBringDescriptors: boolean;
  readonly turns: PacketTurns;
  /** Takes the socket of a connection that is over. */
  part(socket: Descriptor): void;
}
