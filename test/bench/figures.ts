/** Something measured. */
export interface Figure {
  readonly name: string;
  /** `ms`, `a second`, `MiB`; `ratio` for what has none. */
  readonly unit: string;
  /** Samples, or the one value that there is. */
  readonly values: readonly number[];
  /** What the median may not pass, and on which side of it is well. */
  readonly bound?: number;
  readonly sense?: '<=' | '>=';
}

/** What one bench tells. */
export interface Table {
  /** Of its chart's file. */
  readonly name: string;
  readonly title: string;
  /** How it was measured, in sentences. */
  readonly how: string;
  /** The figures that decide: mostly ratios of two things measured in turns. */
  readonly decisive: readonly Figure[];
  /** The times and amounts behind them. */
  readonly shown: readonly Figure[];
}

/** The value below which so large a share of the values lies (nearest rank); NaN of none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const rank = Math.max(1, Math.ceil(sorted.length * share));
  return sorted[rank - 1] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2;
}

/** Whether the median keeps to the bound; undefined where there is none. */
export function isMet({ values, bound, sense = '<=' }: Figure): boolean | undefined {
  if (bound === undefined) return undefined;
  const figure = median(values);
  return sense === '<=' ? figure <= bound : figure >= bound;
}

/** Two digits behind the point, or as many as say something. */
export function shown(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1_000) return Math.round(value).toLocaleString('en');
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3;
  return value.toFixed(digits);
}

export async function timed(work: () => unknown): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

interface Rival {
  readonly name: string;
}

/** What was measured of several rivals, round by round. */
export class Turns {
  /** By rival and what was measured: an array of values for each round. */
  readonly #noted = new Map<string, number[][]>();

  note(order: { rival: string; what: string; round: number; value: number }): void {
    const { rival, what, round, value } = order;
    const key = `${what} of ${rival}`;
    const rounds = this.#noted.get(key) ?? [];
    this.#noted.set(key, rounds);
    (rounds[round] ??= []).push(value);
  }

  values(what: string, rival: string): number[] {
    return (this.#noted.get(`${what} of ${rival}`) ?? []).flat();
  }

  /** Of each round in which both had a turn: the median of the one, divided by the median of the other. */
  ratios(what: string, rival: string, base: string): number[] {
    const bases = this.#noted.get(`${what} of ${base}`) ?? [];
    const rounds = this.#noted.get(`${what} of ${rival}`) ?? [];
    return rounds.flatMap((values, round) => {
      const others = bases[round] ?? [];
      return values.length === 0 || others.length === 0 ? [] : [median(values) / median(others)];
    });
  }
}

/**
 * Gives each rival one turn in each round, and another one the first each time: what drifts on the machine meets all of
 * them, and a ratio is of two turns that are next to each other.
 */
export async function inTurns<R extends Rival>(
  rivals: readonly R[],
  rounds: number,
  turn: (rival: R, note: (what: string, value: number) => void) => Promise<void>,
): Promise<Turns> {
  const turns = new Turns();
  for (let round = 0; round < rounds; round += 1) {
    const first = round % rivals.length;
    for (const rival of [...rivals.slice(first), ...rivals.slice(0, first)]) {
      await turn(rival, (what, value) => turns.note({ rival: rival.name, what, round, value }));
    }
  }
  return turns;
}
