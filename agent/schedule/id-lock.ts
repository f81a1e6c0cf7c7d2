import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';

/** The most requests that may wait for one id. A caller that waits for its answers does not send more. */
const MOST_WAITING = 64;

/**
 * Work for one id runs one after the other, in the order in which it came; work for different ids runs side by side.
 */
export class IdLocks {
  /** For each id with work under way: the last work. */
  readonly #last = new Map<string, Promise<void>>();
  /** The number of waiting requests for each id. */
  readonly #waiting = new Map<string, number>();

  /**
   * Waits for the earlier work of this id, until `deadline` at most (DEADLINE_EXCEEDED), then does the work. OVERLOADED
   * if too many wait already. The agent's own work has no deadline and is always let in.
   */
  async take<T>(id: string, deadline: number, work: () => Promise<T>): Promise<T> {
    if (deadline !== Infinity && (this.#waiting.get(id) ?? 0) >= MOST_WAITING) {
      throw new VoltError('OVERLOADED', `${MOST_WAITING} requests for ${id} wait already`);
    }
    const previous = this.#last.get(id);
    const { promise: done, resolve } = Promise.withResolvers<void>();
    const turn = previous === undefined ? done : Promise.all([previous, done]).then(() => {});
    this.#last.set(id, turn);
    // `turn` includes the earlier work: when a waiting request gives up, the next one must not overtake that work.
    void turn.then(() => {
      if (this.#last.get(id) === turn) this.#last.delete(id);
    });
    try {
      if (previous !== undefined) {
        this.#waits(id, 1);
        await withDeadline(previous, deadline, () => {
          return new VoltError('DEADLINE_EXCEEDED', `other requests for ${id} are under way`);
        }).finally(() => this.#waits(id, -1));
      }
      return await work();
    } finally {
      resolve();
    }
  }

  #waits(id: string, change: 1 | -1): void {
    const waiting = (this.#waiting.get(id) ?? 0) + change;
    if (waiting === 0) this.#waiting.delete(id);
    else this.#waiting.set(id, waiting);
  }

  /** Resolves when all that is under way now has ended. */
  async idle(): Promise<void> {
    await Promise.all(this.#last.values());
  }
}

/** Waits for `work` until `deadline` (`performance.now()` time), then throws the error that `late` makes. */
export async function withDeadline(
  work: Promise<unknown>,
  deadline: number,
  late: () => Error,
): Promise<void> {
  if (deadline === Infinity) {
    await work;
    return;
  }
  const timer = new AbortController();
  const timeout = sleep(Math.max(0, deadline - performance.now()), 'late', {
    signal: timer.signal,
  }).catch(() => 'cancelled');
  try {
    if ((await Promise.race([work, timeout])) === 'late') throw late();
  } finally {
    timer.abort();
  }
}
