import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';

/** How long a call may wait for the ledger to grant again. */
export interface Wait {
  /** `performance.now()` time. Three seconds at most in any case. */
  readonly deadline?: number | undefined;
}

const WAIT_MS = 3_000;
/** What of a deadline is left for the last try. */
const LAST_TRY_MS = 100;
/** Between two heartbeats of a host on which something waits for the ledger: doubled while it does not grant. */
const RETRY_MS = 100;
const RETRY_MOST_MS = 1_000;
/** Pauses differ by so much, so that the hosts of a fleet do not ask at once. */
const JITTER = 0.2;

/**
 * Calls that the ledger refuses as RECOVERING, waiting for it to grant again: all of them share one heartbeat, and are
 * tried again with its answer.
 */
export class RecoveryWait {
  /** Sends a heartbeat; settles when it is done, or cannot be. */
  #beat: (() => Promise<void>) | undefined;
  #asking: Promise<void> | undefined;
  #answered: (() => void) | undefined;
  #retryMs = RETRY_MS;
  #isOpen = false;

  /** Without it no call waits: nothing would end the recovery. */
  beatWith(beat: () => Promise<void>): void {
    this.#beat = beat;
  }

  /** A heartbeat was answered, or cannot be. `isOpen`: the host may acquire. */
  note(isOpen: boolean): void {
    this.#isOpen = isOpen;
    this.#answered?.();
  }

  /**
   * Does `work`; while that is RECOVERING, again after each heartbeat's answer. After a restart of Redis one is enough.
   * Without `wait` nobody waits for the work: a heartbeat asks the ledger itself, and must not wait for its own answer.
   */
  async retry<T>(wait: Wait | undefined, work: () => Promise<T>): Promise<T> {
    if (wait === undefined) return work();
    const { deadline = Infinity } = wait;
    const end = Math.min(deadline - LAST_TRY_MS, performance.now() + WAIT_MS);
    for (;;) {
      try {
        return await work();
      } catch (error) {
        const beat = this.#beat;
        const code = error instanceof VoltError ? error.code : undefined;
        // The heartbeat's answer says who the ledger takes this host for.
        if (code === 'HOST_CONFLICT') void beat?.();
        if (beat === undefined || code !== 'RECOVERING' || performance.now() > end) throw error;
        // For the answer alone, and not for what it asks of this host: that may wait for what waits here.
        await this.#next(beat, end);
      }
    }
  }

  /** Resolves with the next answer, and at `end` (`performance.now()` time) at the latest. */
  async #next(beat: () => Promise<void>, end: number): Promise<void> {
    this.#asking ??= this.#ask(beat);
    const timer = new AbortController();
    const late = sleep(Math.max(0, end - performance.now()), undefined, { signal: timer.signal });
    await Promise.race([this.#asking, late.catch(() => {})]);
    timer.abort();
  }

  async #ask(beat: () => Promise<void>): Promise<void> {
    await sleep(this.#retryMs * (1 - JITTER * Math.random()));
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#answered = resolve;
    // It may also end without having been sent.
    void beat().then(resolve, resolve);
    await promise;
    this.#answered = undefined;
    this.#asking = undefined;
    this.#retryMs = this.#isOpen ? RETRY_MS : Math.min(this.#retryMs * 2, RETRY_MOST_MS);
  }
}
