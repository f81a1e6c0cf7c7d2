import type { Redis } from 'ioredis';
import { messageOf, unavailable } from './errors.ts';

/**
 * Waits until replicas have what one connection has written; WAIT on any other would tell nothing.
 *
 * The server does nothing else for a connection that waits. So there is one WAIT at a time, and what is written
 * meanwhile shares the next: with a replica gone, a heartbeat is late by one time-out and not by one per lease.
 */
export class Replicas {
  readonly #client: Redis;
  readonly #wanted: number;
  readonly #timeoutMs: number;
  #current: Promise<unknown> = Promise.resolve();
  #next: Promise<void> | undefined;

  constructor(options: { client: Redis; wanted: number; timeoutMs: number }) {
    this.#client = options.client;
    this.#wanted = options.wanted;
    this.#timeoutMs = options.timeoutMs;
  }

  /**
   * Resolves when enough replicas have all that was sent on the connection before this call. STORE_UNAVAILABLE
   * where they are too few: what was sent is done, and may be lost again with its server.
   */
  acknowledged(): Promise<void> {
    if (this.#wanted === 0) return Promise.resolve();
    this.#next ??= this.#waitNext();
    return this.#next;
  }

  async #waitNext(): Promise<void> {
    await this.#current;
    // Whoever comes after this line has sent something behind the WAIT.
    this.#next = undefined;
    const wait = this.#wait();
    this.#current = wait.catch(() => {});
    await wait;
  }

  async #wait(): Promise<void> {
    let count: number;
    try {
      count = await this.#client.wait(this.#wanted, this.#timeoutMs);
    } catch (error) {
      throw unavailable(messageOf(error), true, error);
    }
    if (count >= this.#wanted) return;
    throw unavailable(`${count} of ${this.#wanted} replicas have what was written`, true);
  }
}
