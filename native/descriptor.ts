import { close } from './libc.ts';

/**
 * Owns one file descriptor. Whoever makes it closes it, with `using` or `close()`; closing twice is
 * harmless, reading `fd` after that throws, so a number that the kernel gave to somebody else meanwhile
 * is never used by mistake.
 */
export class Descriptor implements Disposable {
  #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  get fd(): number {
    if (this.#fd < 0) throw new Error('descriptor used after it was closed');
    return this.#fd;
  }

  get closed(): boolean {
    return this.#fd < 0;
  }

  /** Hands the number to a new owner, who has to close it. */
  release(): number {
    const fd = this.fd;
    this.#fd = -1;
    return fd;
  }

  close(): void {
    if (this.#fd >= 0) close(this.release());
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
