import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { type Asked, isBefore, Outcomes, type Position } from '#agent/outcomes.ts';

const log = pino({ level: 'silent' });
const HOUR_MS = 3_600_000;
let stateDir: string;

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'volt-outcomes-'));
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(stateDir, { recursive: true });
});

function open(maxEntries?: number): Outcomes {
  const outcomes = new Outcomes({ stateDir, log, ...(maxEntries !== undefined && { maxEntries }) });
  outcomes.load();
  return outcomes;
}

const asked = (requestId: string | undefined, change: Partial<Asked> = {}): Asked => ({
  operation: 'attach',
  id: 'web',
  requestId,
  content: { id: 'web', network: 'volt0' },
  position: undefined,
  ...change,
});

const at = (storedNs: bigint, sequence = 1): Position => ({ storedNs, sequence });
const recent = (): bigint => BigInt(Date.now()) * 1_000_000n;

test('an answer and an error are the same after a restart', () => {
  const first = open();
  first.keep(asked('r1'), { answer: { attachment: { id: 'web' }, replayed: false } });
  const error = new VoltError('UNKNOWN_NETWORK', 'there is no network volt9', {
    details: { a: 1 },
  });
  first.keep(asked('r2'), { error });
  const next = open();
  for (const outcomes of [first, next]) {
    expect(outcomes.find(asked('r1'))).toEqual({
      answer: { attachment: { id: 'web' }, replayed: false },
    });
    expect(outcomes.find(asked('r2'))).toMatchObject({
      error: { code: 'UNKNOWN_NETWORK', retryable: false, details: { a: 1 } },
    });
  }
});

test('operations have request ids of their own, and a request without one is not remembered', () => {
  const outcomes = open();
  outcomes.keep(asked('r1'), { answer: {} });
  outcomes.keep(asked(undefined), { answer: {} });
  expect(outcomes.find(asked('r1', { operation: 'detach' }))).toBeUndefined();
  expect(outcomes.find(asked(undefined))).toBeUndefined();
});

test('the id of another request is refused; the order of keys makes no other request', () => {
  const outcomes = open();
  outcomes.keep(asked('r1'), { answer: {} });
  expect(outcomes.find(asked('r1', { content: { network: 'volt0', id: 'web' } }))).toBeDefined();
  const other = asked('r1', { content: { id: 'web', network: 'volt1' } });
  expect(() => outcomes.find(other)).toThrow(
    expect.objectContaining({ code: 'INVALID_REQUEST', details: { path: 'requestId' } }),
  );
});

test('outcomes are forgotten after a day, and not before', () => {
  vi.useFakeTimers({ toFake: ['Date'] });
  const outcomes = open();
  outcomes.keep(asked('old'), { answer: {} });
  vi.advanceTimersByTime(23 * HOUR_MS);
  outcomes.keep(asked('new'), { answer: {} });
  expect(open().find(asked('old'))).toBeDefined();
  vi.advanceTimersByTime(3 * HOUR_MS);
  const later = open();
  expect(later.find(asked('old'))).toBeUndefined();
  expect(later.find(asked('new'))).toBeDefined();
});

test('where there are too many, the oldest are forgotten, and so is the order of their jobs', () => {
  vi.useFakeTimers({ toFake: ['Date'] });
  const outcomes = open(10);
  for (let hour = 0; hour < 5; hour += 1) {
    for (let n = 0; n < 4; n += 1) {
      const named = { id: `vm-${hour}-${n}`, position: at(recent(), n + 1) };
      outcomes.keep(asked(`r-${hour}-${n}`, named), { answer: {} });
    }
    vi.advanceTimersByTime(HOUR_MS);
  }
  const kept = [0, 1, 2, 3, 4].filter((hour) => outcomes.knows('attach', `r-${hour}-0`));
  // It is looked at as a segment begins: by then the last hour had one.
  expect(kept).toEqual([2, 3, 4]);
  expect(outcomes.lastOf('vm-1-0', 'attach')).toBeUndefined();
  expect(outcomes.lastOf('vm-4-3', 'attach')).toBeDefined();
});

test('the last attach and detach that ran are known, whichever came first, and failures are none', () => {
  const outcomes = open();
  const now = recent();
  outcomes.keep(asked('r1', { position: at(now + 2n) }), { answer: {} });
  outcomes.keep(asked('r2', { position: at(now + 1n) }), { answer: {} });
  outcomes.keep(asked('r3', { position: at(now + 3n) }), { error: new VoltError('NOT_FOUND', '') });
  outcomes.keep(asked(undefined, { operation: 'detach', position: at(now + 5n, 0) }), {
    answer: {},
  });
  for (const one of [outcomes, open()]) {
    expect(one.lastOf('web', 'attach')).toEqual(at(now + 2n));
    expect(one.lastOf('web', 'detach')).toEqual(at(now + 5n, 0));
    expect(one.lastOf('other', 'attach')).toBeUndefined();
  }
});

test('places in the stream go by time, then by number', () => {
  expect(isBefore(at(1n, 9), at(2n, 1))).toBe(true);
  expect(isBefore(at(2n, 1), at(2n, 2))).toBe(true);
  expect(isBefore(at(2n, 2), at(2n, 2))).toBe(false);
  expect(isBefore(at(3n, 1), at(2n, 2))).toBe(false);
});
