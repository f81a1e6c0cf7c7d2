/** Times of one thing, in milliseconds. */
export interface Series {
  readonly name: string;
  readonly times: readonly number[];
}

export function median(times: readonly number[]): number {
  const sorted = times.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2;
}

/** A row per series: minimum, median, 95th percentile, and the median's ratio to the first one's. */
export function printFigures(title: string, series: readonly Series[]): void {
  const [first] = series;
  const base = first === undefined ? Number.NaN : median(first.times);
  const rows = series.map(({ name, times }) => {
    const sorted = times.toSorted((a, b) => a - b);
    const p95 = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.95))] ?? Number.NaN;
    const figures = [sorted[0] ?? Number.NaN, median(times), p95].map((ms) =>
      ms.toFixed(2).padStart(9),
    );
    return `  ${name.padEnd(34)}${figures.join('')}${(median(times) / base).toFixed(2).padStart(9)}`;
  });
  const head = ['min ms', 'median', 'p95', 'ratio'].map((word) => word.padStart(9)).join('');
  process.stdout.write(`\n${title}\n  ${''.padEnd(34)}${head}\n${rows.join('\n')}\n`);
}

export async function timed(work: () => unknown): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

/** A figure that may not pass a bound. */
export interface Floor {
  readonly what: string;
  readonly figure: number;
  readonly bound: number;
  readonly sense: '<=' | '>=';
}

export function printFloors(floors: readonly Floor[]): void {
  process.stdout.write('\n');
  for (const { what, figure, bound, sense } of floors) {
    const met = sense === '<=' ? figure <= bound : figure >= bound;
    process.stdout.write(
      `  ${what.padEnd(42)}${figure.toFixed(2).padStart(7)}  ${sense} ${bound}  ${met ? 'met' : 'MISSED'}\n`,
    );
  }
}
