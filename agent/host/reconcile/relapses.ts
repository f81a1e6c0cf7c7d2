/** Counts what happens to the same again and again: true for `note` when it is the `limit`th time within `withinMs`. */
export class Relapses {
  readonly #limit: number;
  readonly #withinMs: number;
  /** The latest times, `limit` at most, by what happened to. */
  readonly #times = new Map<string, readonly number[]>();

  constructor({ limit, withinMs }: { readonly limit: number; readonly withinMs: number }) {
    this.#limit = limit;
    this.#withinMs = withinMs;
  }

  note(key: string, now: number): boolean {
    const times = [...(this.#times.get(key) ?? []), now].slice(-this.#limit);
    // What was long ago is forgotten with the next that happens to anybody.
    for (const [other, [latest = 0]] of this.#latest()) {
      if (now - latest >= this.#withinMs) this.#times.delete(other);
    }
    this.#times.set(key, times);
    const [first = now] = times;
    return times.length >= this.#limit && now - first < this.#withinMs;
  }

  forget(key: string): void {
    this.#times.delete(key);
  }

  #latest(): [key: string, times: readonly number[]][] {
    return [...this.#times].map(([key, times]) => [key, times.slice(-1)]);
  }
}
