import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';
import { jittered } from '../schedule/rhythm.ts';

const WAIT_MS = 3_000;
/** What of a deadline is left for the last try. */
const LAST_TRY_MS = 100;
/** Between two heartbeats of a host on which something waits for the ledger: doubled while it does not grant. */
const RETRY_MS = 100;
const RETRY_MOST_MS = 1_000;

/** Lets all that waits for the ledger to grant wait for the answer to one heartbeat, however much it is. */
export class HeartbeatAnswers {
  readonly #beat: () => void;
  readonly #isOpen: () => boolean;
  #asking: Promise<void> | undefined;
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

  /**
   * Does what the ledger may refuse as RECOVERING; then it is tried again after the next heartbeat's answer, for three
   * seconds, and not beyond `deadline` (`performance.now()` time): after a restart of Redis that is all it takes.
   */
  async whileRecovering<T>(deadline: number, work: () => Promise<T>): Promise<T> {
    const end = Math.min(deadline - LAST_TRY_MS, performance.now() + WAIT_MS);
    for (;;) {
      try {
        return await work();
      } catch (error) {
        const code = error instanceof VoltError ? error.code : undefined;
        if (code === 'HOST_CONFLICT') this.#beat();
        if (code !== 'RECOVERING' || performance.now() > end) throw error;
        // Not for what the answer asks for: that may wait for what waits here.
        await this.#next(end);
      }
    }
  }

  /** Resolves with the next answer, and at `end` (`performance.now()` time) at the latest. */
  async #next(end: number): Promise<void> {
    this.#asking ??= this.#ask();
    const timer = new AbortController();
    const late = sleep(Math.max(0, end - performance.now()), undefined, { signal: timer.signal });
    await Promise.race([this.#asking, late.catch(() => {})]);
    timer.abort();
  }

  async #ask(): Promise<void> {
    await sleep(jittered(this.#retryMs));
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#answered = resolve;
    this.#beat();
    await promise;
    this.#answered = undefined;
    this.#asking = undefined;
    this.#retryMs = this.#isOpen() ? RETRY_MS : Math.min(this.#retryMs * 2, RETRY_MOST_MS);
  }
}
