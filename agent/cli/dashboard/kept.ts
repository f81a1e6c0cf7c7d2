import { setTimeout as sleep } from 'node:timers/promises';
import { toErrorBody } from '#protocol/errors.ts';

/** An answer, as old as `asOf` says; with a problem, the last one that there was. */
export interface Known<T> {
  readonly value: T | null;
  /** RFC 3339. */
  readonly asOf: string | null;
  readonly problem: { readonly code: string; readonly message: string } | null;
}

/** Never asked more often, and never for more than a tenth of the time. */
const LEAST_AGE_MS = 500;
const LEAST_AGE_PER_COST = 9;
const MOST_WAIT_MS = 1_000;
/** A heartbeat, with its default period. */
const SETTLES_MS = 6_000;

/** The answer to one question that many ask: it is asked once at a time, and again when the answer is old. */
export class Kept<T> {
  readonly #ask: () => Promise<T>;
  readonly #mostAgeMs: number;
  #known: Known<T> = { value: null, asOf: null, problem: null };
  #askedAt = Number.NEGATIVE_INFINITY;
  #costMs = 0;
  #outdatedUntil = Number.NEGATIVE_INFINITY;
  #asking: Promise<Known<T>> | undefined;

  constructor({ ask, mostAgeMs }: { ask: () => Promise<T>; mostAgeMs: number }) {
    this.#ask = ask;
    this.#mostAgeMs = mostAgeMs;
  }

  /** Something has changed. The answer may know of it a heartbeat later, so what is read until then is outdated, too. */
  outdate(): void {
    this.#outdatedUntil = performance.now() + SETTLES_MS;
  }

  /** Does not throw: why there is no answer is in it. */
  async read(): Promise<Known<T>> {
    if (this.#asking !== undefined) return this.#asking;
    const age = performance.now() - this.#askedAt;
    const least = Math.max(LEAST_AGE_MS, this.#costMs * LEAST_AGE_PER_COST);
    const isOutdated = performance.now() < this.#outdatedUntil;
    if (!isOutdated && age < Math.max(least, this.#mostAgeMs)) return this.#known;
    // Whoever has heard of a change wants to see it.
    const waitMs = Math.max(0, least - age);
    if (waitMs > MOST_WAIT_MS) return this.#known;
    this.#asking = sleep(waitMs)
      .then(() => this.#load())
      .finally(() => {
        this.#asking = undefined;
      });
    return this.#asking;
  }

  async #load(): Promise<Known<T>> {
    const began = performance.now();
    const asOf = new Date().toISOString();
    try {
      this.#known = { value: await this.#ask(), asOf, problem: null };
      this.#costMs = performance.now() - began;
    } catch (error) {
      const { code, message } = toErrorBody(error).error;
      this.#known = { ...this.#known, problem: { code, message } };
    }
    this.#askedAt = performance.now();
    return this.#known;
  }
}
