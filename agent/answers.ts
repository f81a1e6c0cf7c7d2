import { setTimeout as sleep } from 'node:timers/promises';
import { jittered } from './rhythm.ts';

/** Between two heartbeats of a host on which something waits for the ledger: doubled while it does not grant. */
const RETRY_MS = 100;
const RETRY_MOST_MS = 1_000;

/** Lets all that waits for the ledger to grant wait for the answer to one heartbeat, however much it is. */
export class Answers {
  readonly #beat: () => void;
  readonly #isOpen: () => boolean;
  #next: Promise<void> | undefined;
  #answered: (() => void) | undefined;
  #retryMs = RETRY_MS;

  constructor(options: { beat: () => void; isOpen: () => boolean }) {
    this.#beat = options.beat;
    this.#isOpen = options.isOpen;
  }

  /** A heartbeat has been answered, or cannot be. */
  note(): void {
    this.#answered?.();
  }

  /** Resolves with the next answer, and at `end` (`performance.now()` time) at the latest. */
  async next(end: number): Promise<void> {
    this.#next ??= this.#ask();
    const timer = new AbortController();
    const late = sleep(Math.max(0, end - performance.now()), undefined, { signal: timer.signal });
    await Promise.race([this.#next, late.catch(() => {})]);
    timer.abort();
  }

  async #ask(): Promise<void> {
    await sleep(jittered(this.#retryMs));
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#answered = resolve;
    this.#beat();
    await promise;
    this.#answered = undefined;
    this.#next = undefined;
    this.#retryMs = this.#isOpen() ? RETRY_MS : Math.min(this.#retryMs * 2, RETRY_MOST_MS);
  }
}
