import type { ToldEvent } from './told-event.ts';

export interface Percentiles {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
}

/** One minute; null where nothing ended in it. */
export interface Minute {
  /** RFC 3339, of its beginning. */
  readonly at: string;
  readonly attach: Percentiles | null;
  readonly detach: Percentiles | null;
}

export const MINUTES = 15;
const MINUTE_MS = 60_000;
const MOST_SAMPLES = 5_000;
// A map: types are text of the bus, `constructor` as well.
const OPERATIONS: ReadonlyMap<string, Operation> = new Map([
  ['attached', 'attach'],
  ['detached', 'detach'],
]);

type Operation = 'attach' | 'detach';

/**
 * How long attaches and detaches took, by the minute in which they ended: all phases but `publish`, for which no caller
 * waits.
 */
export class Latency {
  readonly #minutes = new Map<number, Record<Operation, number[]>>();

  add({ type, time, phases }: Pick<ToldEvent, 'type' | 'time' | 'phases'>): void {
    const operation = OPERATIONS.get(type);
    const minute = Math.floor(Date.parse(time) / MINUTE_MS);
    const took = phases.filter(({ phase }) => phase !== 'publish');
    if (operation === undefined || Number.isNaN(minute) || took.length === 0) return;
    if (!this.#shown().includes(minute)) return;
    const samples = this.#minutes.get(minute) ?? { attach: [], detach: [] };
    this.#minutes.set(minute, samples);
    if (samples[operation].length >= MOST_SAMPLES) return;
    samples[operation].push(took.reduce((sum, { ms }) => sum + ms, 0));
  }

  /** The last minutes, the one that is under way among them. */
  minutes(): Minute[] {
    const shown = this.#shown();
    for (const minute of this.#minutes.keys()) {
      if (!shown.includes(minute)) this.#minutes.delete(minute);
    }
    return shown.map((minute) => {
      const samples = this.#minutes.get(minute);
      return {
        at: new Date(minute * MINUTE_MS).toISOString(),
        attach: percentiles(samples?.attach ?? []),
        detach: percentiles(samples?.detach ?? []),
      };
    });
  }

  #shown(): number[] {
    const now = Math.floor(Date.now() / MINUTE_MS);
    return Array.from({ length: MINUTES }, (_, n) => now - MINUTES + 1 + n);
  }
}

function percentiles(samples: readonly number[]): Percentiles | null {
  const sorted = samples.toSorted((a, b) => a - b);
  const at = (share: number): number =>
    sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
  return sorted.length === 0 ? null : { count: sorted.length, p50: at(0.5), p99: at(0.99) };
}
