import { withDeadline } from './id-lock.ts';
import { nobodyWaits } from './slices.ts';

interface Run<Answer> {
  readonly answer: Promise<Answer>;
  /** The error for a run whose answer nobody waits for any more. */
  readonly over: AbortController;
  waiting: number;
}

/**
 * Work with one answer for all who ask the same question. One run at a time. Whoever asks during a run gets the
 * answer of the next run, which begins after he asked, together with all others who ask until then. A run goes on
 * only while somebody waits for it.
 */
export class SharedRun<Key, Answer> {
  readonly #work: (key: Key, signal: AbortSignal) => Promise<Answer>;
  /** Those that have not begun: one a key. */
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
