import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Clocks } from '#agent/health/clocks.ts';

const WALL_MS = 1_800_000_000_000;

beforeEach(() => {
  vi.useFakeTimers({ now: WALL_MS, toFake: ['Date', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

const ns = (ms: number): bigint => BigInt(Math.round(ms)) * 1_000_000n;
/** The stream's time to the millisecond. */
const streamMs = (clocks: Clocks): number => Number(clocks.streamNowNs() / 1_000_000n);

function ledgerSays(clocks: Clocks, nowMs: number, roundTripMs = 2): void {
  const receivedAtMs = performance.now();
  clocks.noteLedger({ nowMs, sentAtMs: receivedAtMs - roundTripMs, receivedAtMs });
}

test('a request has the time of the stream: by prompt jobs, else by the ledger, else by this host', () => {
  const clocks = new Clocks();
  expect(streamMs(clocks)).toBe(WALL_MS);
  ledgerSays(clocks, WALL_MS - 2_000);
  expect(Math.abs(streamMs(clocks) - (WALL_MS - 2_000))).toBeLessThanOrEqual(1);
  clocks.noteStored({ storedNs: ns(WALL_MS - 3_000), prompt: true });
  expect(Math.abs(streamMs(clocks) - (WALL_MS - 3_000))).toBeLessThanOrEqual(1);
});

test('a job that has waited says nothing but that the stream was so far', () => {
  const clocks = new Clocks();
  clocks.noteStored({ storedNs: ns(WALL_MS - 60_000), prompt: false });
  expect(streamMs(clocks)).toBe(WALL_MS);
  expect(clocks.aheadMs.stream).toBeUndefined();
  // It is stored already: the stream's clock is ahead.
  clocks.noteStored({ storedNs: ns(WALL_MS + 5_000), prompt: false });
  expect(streamMs(clocks)).toBe(WALL_MS + 5_000);
});

test('of several prompt jobs the one with the least delay counts', () => {
  const clocks = new Clocks();
  for (const delayMs of [40, 3, 700]) {
    clocks.noteStored({ storedNs: ns(WALL_MS - delayMs), prompt: true });
  }
  expect(clocks.aheadMs.stream).toBe(3);
  expect(clocks.problems).toEqual([]);
});

test('what a job has said of the clocks is over after ten minutes, whether another comes or not', () => {
  const clocks = new Clocks();
  clocks.noteStored({ storedNs: ns(WALL_MS + 2_000), prompt: true });
  expect(clocks.problems).toHaveLength(1);
  vi.advanceTimersByTime(10 * 60_000 + 1);
  expect(clocks.problems).toEqual([]);
  expect(clocks.aheadMs.stream).toBeUndefined();
});

test('a host whose clock is set keeps the time of the stream', () => {
  const clocks = new Clocks();
  clocks.noteStored({ storedNs: ns(WALL_MS), prompt: true });
  vi.setSystemTime(WALL_MS + 3_600_000);
  expect(streamMs(clocks)).toBe(WALL_MS);
  expect(clocks.aheadMs.stream).toBe(3_600_000);
});

test('more than half a second between two clocks is told, with which is ahead', () => {
  const clocks = new Clocks();
  ledgerSays(clocks, WALL_MS - 2_000);
  expect(clocks.problems.map(({ reason }) => reason)).toEqual([
    'this host and Redis: the first is 2.0 s ahead',
  ]);
  clocks.noteStored({ storedNs: ns(WALL_MS), prompt: true });
  expect(clocks.problems.map(({ reason }) => reason)).toEqual([
    'this host and Redis: the first is 2.0 s ahead',
    'Redis and NATS: the first is 2.0 s behind',
  ]);
});

test('an answer that took long is no proof', () => {
  const clocks = new Clocks();
  ledgerSays(clocks, WALL_MS - 900, 2_000);
  expect(clocks.problems).toEqual([]);
});
