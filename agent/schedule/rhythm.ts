/** How the last run ended: as it should, to be repeated soon, with more to do at once, or without an answer in time. */
export type Beaten = 'calm' | 'soon' | 'busy' | 'late';

/** The longest pause after it; otherwise it is a period. */
const PAUSES_MS: Partial<Record<Beaten, number>> = { soon: 1_000, busy: 60 };
/** So much of a period may be missing: what begins at once on many hosts does not stay together. */
const CALM_SHARE = 0.2;
const LATE_SHARE = 0.5;

/** A time between what is left of `ms` without `share` of it, and `ms`. */
export const jittered = (ms: number, share = CALM_SHARE): number =>
  ms * (1 - share * Math.random());

/**
 * Says when a repeated thing is due next: after a period, never more; after one that was not answered later and later,
 * so that a server that is slow gets less to do, but not less often than `longestMs`.
 */
export class Rhythm {
  readonly #periodMs: number;
  readonly #longestMs: number;
  readonly #run: () => void;
  #timer: NodeJS.Timeout | undefined;
  #late = 0;
  #stopped = true;

  constructor(options: { periodMs: number; longestMs?: number; run: () => void }) {
    this.#periodMs = options.periodMs;
    this.#longestMs = Math.max(options.periodMs, options.longestMs ?? 0);
    this.#run = options.run;
  }

  /** The first run is now. */
  start(): void {
    this.#stopped = false;
    this.#run();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  /** A run has ended. Without this there is no next one, so two are never under way. */
  ended(how: Beaten): void {
    if (this.#stopped) return;
    this.#late = how === 'late' ? this.#late + 1 : 0;
    const waitMs = Math.min(PAUSES_MS[how] ?? Infinity, this.#periodMs);
    const longer = Math.min(waitMs * 2 ** this.#late, this.#longestMs);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#run, jittered(longer, this.#late > 0 ? LATE_SHARE : CALM_SHARE));
  }
}
