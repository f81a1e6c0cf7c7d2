import type { Reply } from './connection.ts';

/** Sends one call. Its arguments: what its requests share, then each of them. */
type Send = (name: string, args: readonly string[], requests: number) => Promise<Reply>;

interface Waiting {
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: unknown) => void;
}

interface Batch {
  readonly args: string[];
  readonly waiting: Waiting[];
}

/** So long that what a call costs by itself hardly counts, so short that the server is not held up: about 2 ms. */
const MAX_BATCH = 64;

/**
 * Requests that are made in one turn of the event loop, sent together: each has its own answer, and the server
 * takes them in the order in which they came. A request that comes alone is sent alone, in the same turn.
 */
export class Batches {
  readonly #send: Send;
  /** Of one function, by what the requests share. */
  readonly #open = new Map<string, Batch>();
  #name = '';
  readonly #flush = (): void => this.flush();

  constructor(send: Send) {
    this.#send = send;
  }

  /** The answer to one request, `own` being its arguments: a line of what the function answers to all of them. */
  add(name: string, shared: string, own: readonly string[]): Promise<Reply> {
    if (name !== this.#name) this.flush();
    this.#name = name;
    const batch = this.#open.get(shared) ?? this.#begin(shared);
    batch.args.push(...own);
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    batch.waiting.push({ resolve, reject });
    if (batch.waiting.length === MAX_BATCH) {
      this.#open.delete(shared);
      void this.#run(name, batch);
    }
    return promise;
  }

  /** Sends what was gathered, so that what is sent afterwards comes after it. */
  flush(): void {
    for (const [shared, batch] of this.#open) {
      this.#open.delete(shared);
      void this.#run(this.#name, batch);
    }
  }

  #begin(shared: string): Batch {
    if (this.#open.size === 0) process.nextTick(this.#flush);
    const batch = { args: [shared], waiting: [] };
    this.#open.set(shared, batch);
    return batch;
  }

  async #run(name: string, { args, waiting }: Batch): Promise<void> {
    try {
      const { text, stored } = await this.#send(name, args, waiting.length);
      const lines = text.split('\n');
      if (lines.length !== waiting.length) {
        throw new TypeError(`${name} answered ${lines.length} of ${waiting.length} requests`);
      }
      waiting.forEach(({ resolve }, n) => resolve({ text: lines[n] ?? '', stored }));
    } catch (error) {
      for (const { reject } of waiting) reject(error);
    }
  }
}
