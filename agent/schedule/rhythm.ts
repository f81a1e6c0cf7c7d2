/** How the last run ended. `calm`: nothing left to do. `soon`, `busy`: more to do. `late`: no answer in time. */
export type Beaten = 'calm' | 'soon' | 'busy' | 'late';

/** The longest pause after a run that ended like this; for the others it is one period. */
const PAUSES_MS: Partial<Record<Beaten, number>> = { soon: 1_000, busy: 60 };
/** The part of a period by which a pause may be shorter, so that hosts that begin together do not stay together. */
const CALM_SHARE = 0.2;
const LATE_SHARE = 0.5;

/** A random time between `ms` less its `share`, and `ms`. */
export const jittered = (ms: number, share = CALM_SHARE): number =>
  ms * (1 - share * Math.random());

/**
 * Says when the next run is due. It is due after a period at most. After runs without an answer the pauses grow up to
 * `longestMs`, so that a slow server gets less to do and yet hears of this host.
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

  /** A run has ended. Only this starts the next one, so there are never two at once. */
  ended(how: Beaten): void {
    if (this.#stopped) return;
    this.#late = how === 'late' ? this.#late + 1 : 0;
    const waitMs = Math.min(PAUSES_MS[how] ?? Infinity, this.#periodMs);
    const longer = Math.min(waitMs * 2 ** this.#late, this.#longestMs);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#run, jittered(longer, this.#late > 0 ? LATE_SHARE : CALM_SHARE));
  }
}
