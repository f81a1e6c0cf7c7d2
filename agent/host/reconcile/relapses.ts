/** Notices events that repeat: `note` returns true if the last `limit` events of a key are within `withinMs`. */
export class Relapses {
  readonly #limit: number;
  readonly #withinMs: number;
  /** The times of the latest events, `limit` at most, by key. */
  readonly #times = new Map<string, readonly number[]>();

  constructor({ limit, withinMs }: { readonly limit: number; readonly withinMs: number }) {
    this.#limit = limit;
    this.#withinMs = withinMs;
  }

  note(key: string, now: number): boolean {
    const times = [...(this.#times.get(key) ?? []), now].slice(-this.#limit);
    // Each event also drops the keys whose latest event was long ago.
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
