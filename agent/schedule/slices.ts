import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';
import type { Steps } from '#native/steps.ts';

/** How long a slice holds the event loop; the step during which that time ends is finished. */
const SLICE_MS = 5;
/**
 * The pause between two slices while more urgent work is under way. The slices still get a third of the time, so that
 * their work does not stand still.
 */
const PAUSE_MS = 10;

/** Until when somebody waits for the work: a deadline (`performance.now()` time), or until the signal aborts. */
export interface Wanted {
  readonly deadline?: number;
  readonly signal?: AbortSignal;
}

/**
 * Long work on the main thread, cut into slices. All such work together gets one slice in each turn of the event loop,
 * so that requests and the answers of Redis and NATS are handled in between.
 */
export class Slices {
  readonly #sliceMs: number;
  readonly #comesFirst: () => boolean;
  /** Runs that wait for a slice, first come, first served. Admission limits their number. */
  readonly #waiting: (() => void)[] = [];
  #scheduled = false;
  #busyMs = 0;

  /** `comesFirst`: whether more urgent work is under way. With `sliceMs` 0 every step is a slice of its own. */
  constructor(options: { sliceMs?: number; comesFirst?: () => boolean } = {}) {
    this.#sliceMs = options.sliceMs ?? SLICE_MS;
    this.#comesFirst = options.comesFirst ?? (() => false);
  }

  /** How long all slices so far have held the event loop. */
  get busyMs(): number {
    return this.#busyMs;
  }

  /** Does the work. DEADLINE_EXCEEDED once nobody waits for it; then the rest is not done. */
  async run<T>(steps: Steps<T>, wanted: Wanted = {}): Promise<T> {
    for (;;) {
      await this.#slice();
      if (!isWanted(wanted)) {
        // Closes the resources that the work has open.
        steps[Symbol.dispose]();
        throw nobodyWaits();
      }
      const began = performance.now();
      try {
        do {
          const step = steps.next();
          if (step.done === true) return step.value;
        } while (performance.now() < began + this.#sliceMs);
      } finally {
        this.#busyMs += performance.now() - began;
      }
    }
  }

  /** Does work that cannot be cut, in a slice of its own. */
  async once<T>(work: () => T): Promise<T> {
    await this.#slice();
    return work();
  }

  #slice(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push(resolve);
    this.#schedule();
    return promise;
  }

  #schedule(): void {
    if (this.#scheduled || this.#waiting.length === 0) return;
    this.#scheduled = true;
    const turn = this.#comesFirst() ? sleep(PAUSE_MS) : nextTurn();
    void turn.then(() => {
      this.#scheduled = false;
      try {
        this.#waiting.shift()?.();
      } finally {
        this.#schedule();
      }
    });
  }
}

const isWanted = ({ deadline = Infinity, signal }: Wanted): boolean =>
  signal?.aborted !== true && performance.now() <= deadline;

/** The error for work that nobody waits for any more. */
export const nobodyWaits = (): VoltError =>
  new VoltError('DEADLINE_EXCEEDED', 'it took longer than its caller waits');
