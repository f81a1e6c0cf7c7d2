import { withDeadline } from './id-lock.ts';
import { nobodyWaits } from './slices.ts';

interface Run<Answer> {
  readonly answer: Promise<Answer>;
  /** Aborted when nobody waits for the answer any more. */
  readonly over: AbortController;
  waiting: number;
}

/**
 * Work with one answer for all callers that ask the same question. One run at a time. A caller that asks during a run
 * shares the answer of the next run, which begins after the question. A run goes on only while somebody waits for it.
 */
export class SharedRun<Key, Answer> {
  readonly #work: (key: Key, signal: AbortSignal) => Promise<Answer>;
  /** Runs that have not begun, at most one for each key. */
  readonly #next = new Map<Key, Run<Answer>>();
  #last: Promise<unknown> = Promise.resolve();

  constructor(work: (key: Key, signal: AbortSignal) => Promise<Answer>) {
    this.#work = work;
  }

  /** DEADLINE_EXCEEDED if there is no answer by `deadline` (`performance.now()` time). */
  async ask(key: Key, deadline: number): Promise<Answer> {
    const run = this.#next.get(key) ?? this.#plan(key);
    run.waiting += 1;
    try {
      await withDeadline(run.answer, deadline, nobodyWaits);
      return await run.answer;
    } finally {
      run.waiting -= 1;
      if (run.waiting === 0 && this.#next.get(key) !== run) run.over.abort();
    }
  }

  #plan(key: Key): Run<Answer> {
    const over = new AbortController();
    const answer = this.#last.then(() => {
      this.#next.delete(key);
      if (run.waiting === 0) throw nobodyWaits();
      return this.#work(key, over.signal);
    });
    this.#last = answer.catch(() => {});
    const run: Run<Answer> = { answer, over, waiting: 0 };
    this.#next.set(key, run);
    return run;
  }
}
