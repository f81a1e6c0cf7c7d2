import type { Redis } from 'ioredis';

/**
 * Whether a server has stopped to answer on one connection. One that is only slow answers in the end: until then it is
 * given nothing more to do here, and the connection stays. A new one would cost it more than the answer that it owes.
 */
export class Silence {
  #heard = 0;
  #silent = false;

  constructor(client: Redis) {
    client.once('ready', () => {
      client.stream.on('data', () => {
        this.#heard += 1;
        this.#silent = false;
      });
    });
  }

  /** A command has timed out, and nothing has come since. */
  get isSilent(): boolean {
    return this.#silent;
  }

  /** To be kept with a command that is sent. */
  get mark(): number {
    return this.#heard;
  }

  /** A command that was sent at `mark` has timed out. */
  noteTimeout(mark: number): void {
    this.#silent = mark === this.#heard;
  }
}
