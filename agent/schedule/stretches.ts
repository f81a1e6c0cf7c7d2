import { AsyncResource } from 'node:async_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';

/** How long stretches hold the event loop in one turn of it; the stretch during which that time ends is finished. */
const TURN_MS = 4;
/** One turn's worth. */
const CROWD = 4;

/**
 * The kernel work of requests. A stretch runs from its first message to its last without a pause. In one turn of the event
 * loop stretches run for some milliseconds together, first come, first served; the others wait for the next turn, so that
 * reads, heartbeats and the answers of Redis are handled in between.
 */
export class Stretches {
  readonly #turnMs: number;
  readonly #waiting: (() => void)[] = [];
  /** How long stretches have held the event loop in this turn. */
  #usedMs = 0;
  #scheduled = false;

  /** With `turnMs` 0 every stretch has a turn of its own. */
  constructor({ turnMs = TURN_MS }: { turnMs?: number } = {}) {
    this.#turnMs = turnMs;
  }

  /** True while enough of them wait. A request that is let in now would wait here, where no caller's turn counts. */
  get crowded(): boolean {
    return this.#waiting.length >= CROWD;
  }

  /** Runs the stretch, at once if nobody waits and this turn has time left; always in its caller's trace. */
  run<T>(stretch: () => T): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    const begin = (): void => {
      const began = performance.now();
      try {
        resolve(stretch());
      } catch (error) {
        reject(error);
      }
      this.#usedMs += performance.now() - began;
    };
    if (this.#waiting.length === 0 && this.#hasTime) begin();
    else this.#waiting.push(AsyncResource.bind(begin));
    this.#schedule();
    return promise;
  }

  get #hasTime(): boolean {
    return this.#usedMs === 0 || this.#usedMs < this.#turnMs;
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    void nextTurn().then(() => {
      this.#scheduled = false;
      this.#usedMs = 0;
      while (this.#waiting.length > 0 && this.#hasTime) this.#waiting.shift()?.();
      if (this.#usedMs > 0) this.#schedule();
    });
  }
}
