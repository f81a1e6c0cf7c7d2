import { setImmediate as nextTurn } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';

/** So many requests begin in one turn of the event loop; what one does at once takes a millisecond or two. */
const PER_TURN = 16;
/** Requests that wait or are under way; past it whoever has more than its share of them is refused. */
const MOST = 1_024;

/**
 * Lets requests in, callers in turn: whoever sends very many at once is served as fast as the host can, and holds up
 * nobody else. Requests of one caller keep their order.
 */
export class Admission {
  /** Of each caller, the requests that wait to begin, first come first. */
  readonly #waiting = new Map<string, (() => void)[]>();
  /** How many of each caller are here. */
  readonly #here = new Map<string, number>();
  #all = 0;
  #begun = 0;
  #turning = false;

  /**
   * Does the work in the caller's turn, which comes before `deadline` (`performance.now()` time) or not at all
   * (DEADLINE_EXCEEDED). OVERLOADED where too many are here, and too many of them this caller's.
   */
  async pass<T>(caller: string, deadline: number, work: () => Promise<T>): Promise<T> {
    const own = this.#here.get(caller) ?? 0;
    const callers = this.#here.size + (own === 0 ? 1 : 0);
    if (this.#all >= MOST && own >= MOST / callers) {
      throw new VoltError('OVERLOADED', `${own} requests of this caller wait on this host already`);
    }
    this.#count(caller, 1);
    try {
      await this.#turn(caller);
      if (performance.now() > deadline) {
        throw new VoltError('DEADLINE_EXCEEDED', 'too many requests came before this one');
      }
      return await work();
    } finally {
      this.#count(caller, -1);
    }
  }

  #count(caller: string, change: 1 | -1): void {
    this.#all += change;
    const here = (this.#here.get(caller) ?? 0) + change;
    if (here === 0) this.#here.delete(caller);
    else this.#here.set(caller, here);
  }

  /** At once while few come. */
  async #turn(caller: string): Promise<void> {
    void this.#nextTurns();
    if (this.#begun < PER_TURN && this.#waiting.size === 0) {
      this.#begun += 1;
      return;
    }
    const { promise, resolve } = Promise.withResolvers<void>();
    const queue = this.#waiting.get(caller);
    if (queue === undefined) this.#waiting.set(caller, [resolve]);
    else queue.push(resolve);
    await promise;
  }

  async #nextTurns(): Promise<void> {
    if (this.#turning) return;
    this.#turning = true;
    do {
      await nextTurn();
      this.#begun = 0;
      while (this.#begun < PER_TURN && this.#waiting.size > 0) this.#beginNext();
    } while (this.#waiting.size > 0);
    this.#turning = false;
  }

  /** The first of the caller whose turn is longest ago. */
  #beginNext(): void {
    const [next] = this.#waiting;
    if (next === undefined) return;
    const [caller, queue] = next;
    const begin = queue.shift();
    this.#waiting.delete(caller);
    if (queue.length > 0) this.#waiting.set(caller, queue);
    this.#begun += 1;
    begin?.();
  }
}
