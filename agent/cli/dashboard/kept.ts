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

/** The answer to one question that many ask: it is asked once at a time, and again when the answer is old. */
export class Kept<T> {
  readonly #ask: () => Promise<T>;
  readonly #mostAgeMs: number;
  #known: Known<T> = { value: null, asOf: null, problem: null };
  #askedAt = Number.NEGATIVE_INFINITY;
  #costMs = 0;
  #isOutdated = true;
  #asking: Promise<Known<T>> | undefined;

  constructor({ ask, mostAgeMs }: { ask: () => Promise<T>; mostAgeMs: number }) {
    this.#ask = ask;
    this.#mostAgeMs = mostAgeMs;
  }

  /** Something has changed: the next who reads does so after a short while at most. */
  outdate(): void {
    this.#isOutdated = true;
  }

  /** Does not throw: why there is no answer is in it. */
  async read(): Promise<Known<T>> {
    const least = Math.max(LEAST_AGE_MS, this.#costMs * LEAST_AGE_PER_COST);
    const most = this.#isOutdated ? least : Math.max(least, this.#mostAgeMs);
    if (this.#asking === undefined && performance.now() - this.#askedAt < most) return this.#known;
    this.#asking ??= this.#load().finally(() => {
      this.#asking = undefined;
    });
    return this.#asking;
  }

  async #load(): Promise<Known<T>> {
    this.#isOutdated = false;
    const began = performance.now();
    const asOf = new Date().toISOString();
    try {
      this.#known = { value: await this.#ask(), asOf, problem: null };
    } catch (error) {
      const { code, message } = toErrorBody(error).error;
      this.#known = { ...this.#known, problem: { code, message } };
    }
    this.#askedAt = performance.now();
    this.#costMs = this.#askedAt - began;
    return this.#known;
  }
}
