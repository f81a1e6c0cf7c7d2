import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Beaten, Rhythm } from '#agent/schedule/rhythm.ts';

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** When each run began, of one whose runs all end in one way. */
async function times(how: Beaten, ms: number): Promise<number[]> {
  const began = Date.now();
  const runs: number[] = [];
  const rhythm = new Rhythm({
    periodMs: 5_000,
    longestMs: 10_000,
    run: () => {
      runs.push(Date.now() - began);
      rhythm.ended(how);
    },
  });
  rhythm.start();
  await vi.advanceTimersByTimeAsync(ms);
  rhythm.stop();
  return runs;
}

const gapsOf = (runs: readonly number[]): number[] =>
  runs.slice(1).map((at, n) => at - (runs[n] ?? 0));

describe('a rhythm', () => {
  test('begins at once, and never waits for more than its period', async () => {
    const runs = await times('calm', 500_000);
    expect(runs[0]).toBe(0);
    const gaps = gapsOf(runs);
    expect(gaps.length).toBeGreaterThan(99);
    expect(Math.max(...gaps)).toBeLessThanOrEqual(5_001);
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(3_999);
  });

  test('differs from host to host', async () => {
    expect(await times('calm', 60_000)).not.toEqual(await times('calm', 60_000));
  });

  test('of what is not answered in time grows longer, to a bound', async () => {
    const gaps = gapsOf(await times('late', 500_000));
    expect(Math.max(...gaps)).toBeGreaterThan(5_001);
    expect(Math.max(...gaps)).toBeLessThanOrEqual(10_001);
    expect(gaps.length).toBeLessThan(100);
  });

  test('goes on soon where there is more to do, but never at once', async () => {
    const gaps = gapsOf(await times('busy', 10_000));
    expect(gaps.length).toBeGreaterThan(100);
    expect(Math.min(...gaps)).toBeGreaterThan(40);
  });

  test('has no next run before the last one has ended', async () => {
    let runs = 0;
    const rhythm = new Rhythm({ periodMs: 1_000, run: () => void (runs += 1) });
    rhythm.start();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(runs).toBe(1);
    rhythm.ended('calm');
    rhythm.ended('calm');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(runs).toBe(2);
  });

  test('that was stopped has ended', async () => {
    let runs = 0;
    const rhythm = new Rhythm({ periodMs: 1_000, run: () => void (runs += 1) });
    rhythm.start();
    rhythm.stop();
    rhythm.ended('soon');
    await vi.advanceTimersByTimeAsync(60_000);
    expect(runs).toBe(1);
  });
});
