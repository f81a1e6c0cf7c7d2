import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { type Asked, isBefore, RequestLog, type Position } from '#agent/attachments/request-log.ts';

const log = pino({ level: 'silent' });
const HOUR_MS = 3_600_000;
let stateDir: string;

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'volt-requestLog-'));
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(stateDir, { recursive: true });
});

function open(maxEntries?: number): RequestLog {
  const requestLog = new RequestLog({
    stateDir,
    log,
    ...(maxEntries !== undefined && { maxEntries }),
  });
  requestLog.load();
  return requestLog;
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
  for (const requestLog of [first, next]) {
    expect(requestLog.find(asked('r1'))).toEqual({
      answer: { attachment: { id: 'web' }, replayed: false },
    });
    expect(requestLog.find(asked('r2'))).toMatchObject({
      error: { code: 'UNKNOWN_NETWORK', retryable: false, details: { a: 1 } },
    });
  }
});

test('operations have request ids of their own, and a request without one is not remembered', () => {
  const requestLog = open();
  requestLog.keep(asked('r1'), { answer: {} });
  requestLog.keep(asked(undefined), { answer: {} });
  expect(requestLog.find(asked('r1', { operation: 'detach' }))).toBeUndefined();
  expect(requestLog.find(asked(undefined))).toBeUndefined();
});

test('the id of another request is refused; the order of keys makes no other request', () => {
  const requestLog = open();
  requestLog.keep(asked('r1'), { answer: {} });
  expect(requestLog.find(asked('r1', { content: { network: 'volt0', id: 'web' } }))).toBeDefined();
  const other = asked('r1', { content: { id: 'web', network: 'volt1' } });
  expect(() => requestLog.find(other)).toThrow(
    expect.objectContaining({ code: 'INVALID_REQUEST', details: { path: 'requestId' } }),
  );
});

test('outcomes are forgotten after a day, and not before', () => {
  vi.useFakeTimers({ toFake: ['Date'] });
  const requestLog = open();
  requestLog.keep(asked('old'), { answer: {} });
  vi.advanceTimersByTime(23 * HOUR_MS);
  requestLog.keep(asked('new'), { answer: {} });
  expect(open().find(asked('old'))).toBeDefined();
  vi.advanceTimersByTime(3 * HOUR_MS);
  const later = open();
  expect(later.find(asked('old'))).toBeUndefined();
  expect(later.find(asked('new'))).toBeDefined();
});

test('where there are too many, the oldest are forgotten, and so is the order of their jobs', () => {
  vi.useFakeTimers({ toFake: ['Date'] });
  const requestLog = open(10);
  for (let hour = 0; hour < 5; hour += 1) {
    for (let n = 0; n < 4; n += 1) {
      const named = { id: `vm-${hour}-${n}`, position: at(recent(), n + 1) };
      requestLog.keep(asked(`r-${hour}-${n}`, named), { answer: {} });
    }
    vi.advanceTimersByTime(HOUR_MS);
  }
  const kept = [0, 1, 2, 3, 4].filter((hour) => requestLog.knows('attach', `r-${hour}-0`));
  // It is looked at as a segment begins: by then the last hour had one.
  expect(kept).toEqual([2, 3, 4]);
  expect(requestLog.lastOf('vm-1-0', 'attach')).toBeUndefined();
  expect(requestLog.lastOf('vm-4-3', 'attach')).toBeDefined();
});

test('the last attach and detach that ran are known, whichever came first, and failures are none', () => {
  const requestLog = open();
  const now = recent();
  requestLog.keep(asked('r1', { position: at(now + 2n) }), { answer: {} });
  requestLog.keep(asked('r2', { position: at(now + 1n) }), { answer: {} });
  requestLog.keep(asked('r3', { position: at(now + 3n) }), {
    error: new VoltError('NOT_FOUND', ''),
  });
  requestLog.keep(asked(undefined, { operation: 'detach', position: at(now + 5n, 0) }), {
    answer: {},
  });
  for (const one of [requestLog, open()]) {
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
