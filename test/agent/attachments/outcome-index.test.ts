import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { pino } from 'pino';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { OutcomeIndex } from '#agent/attachments/outcome-index.ts';
import { type Asked, RequestLog } from '#agent/attachments/request-log.ts';

const HOUR_MS = 3_600_000;
let stateDir: string;
let told: string[];

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'volt-outcomes-'));
  told = [];
  vi.useFakeTimers({ toFake: ['Date'] });
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(stateDir, { recursive: true });
});

const log = pino({ level: 'warn' }, { write: (line: string) => told.push(line) });

function open(
  options: { maxEntries?: number; hash?: (text: string) => number[] } = {},
): RequestLog {
  const requestLog = new RequestLog({ stateDir, log, ...options });
  requestLog.load();
  return requestLog;
}

const asked = (n: number, change: Partial<Asked> = {}): Asked => ({
  operation: 'attach',
  id: `vm-${n}`,
  requestId: `request-${n}`,
  content: { id: `vm-${n}` },
  position: { storedNs: 1_800_000_000_000_000_000n + BigInt(n), sequence: 2 ** 40 + n },
  ...change,
});

/** The end of a segment by which it is known again is smaller than five of these answers. */
const FILLER = 'x'.repeat(2_000);

const keep = (requestLog: RequestLog, n: number): void =>
  requestLog.keep(asked(n), { answer: { number: n, filler: FILLER } });

const numberOf = (requestLog: RequestLog, n: number): unknown => {
  const found = requestLog.find(asked(n));
  return found && 'answer' in found && 'number' in found.answer ? found.answer.number : found;
};

/** The numbers from 0 of which the log knows both the answer and the position. */
function known(requestLog: RequestLog, most = 20): number[] {
  return Array.from({ length: most }, (_, n) => n).filter((n) => {
    const isKnown = requestLog.knows('attach', `request-${n}`);
    expect(numberOf(requestLog, n)).toEqual(isKnown ? n : undefined);
    expect(requestLog.lastOf(`vm-${n}`, 'attach')).toEqual(isKnown ? asked(n).position : undefined);
    return isKnown;
  });
}

const segmentFile = (segment: number): string =>
  join(stateDir, 'outcomes', `${String(segment).padStart(12, '0')}.log`);
const indexFile = (segment: number): string => `${segmentFile(segment)}.index`;

/** Four segments with five outcomes each, the last of them not finished. */
async function fourSegments(requestLog = open()): Promise<RequestLog> {
  for (let n = 0; n < 20; n += 1) {
    if (n > 0 && n % 5 === 0) vi.advanceTimersByTime(HOUR_MS);
    keep(requestLog, n);
    await requestLog.sync();
  }
  return requestLog;
}

const ALL = Array.from({ length: 20 }, (_, n) => n);

describe.each([
  ['one key for all requests', () => [1, 0]],
  ['two keys', (text: string) => [1, text.length % 2]],
])('requests whose hashes collide: %s', (_, hash) => {
  test('each has its own answer, and a request that never came has none', async () => {
    const first = await fourSegments(open({ hash }));
    for (const requestLog of [first, open({ hash }), open({ hash })]) {
      expect(known(requestLog)).toEqual(ALL);
      expect(requestLog.find(asked(77))).toBeUndefined();
      expect(requestLog.knows('attach', 'request-77')).toBe(false);
      expect(requestLog.knows('detach', 'request-3')).toBe(false);
      const other = asked(3, { content: { id: 'another' } });
      expect(() => requestLog.find(other)).toThrow(
        expect.objectContaining({ code: 'INVALID_REQUEST' }),
      );
    }
  });

  test('of two outcomes of one request the later one counts', async () => {
    const requestLog = await fourSegments(open({ hash }));
    requestLog.keep(asked(3), { answer: { number: 'again' } });
    expect(numberOf(requestLog, 3)).toBe('again');
    expect(numberOf(open({ hash }), 3)).toBe('again');
    expect(numberOf(open({ hash }), 3)).toBe('again');
  });
});

test('each finished segment has an index, and the next start reads that alone', async () => {
  const requestLog = await fourSegments();
  expect([1, 2, 3, 4].map((n) => existsSync(indexFile(n)))).toEqual([true, true, true, false]);
  keep(requestLog, 20);
  // Damage in the midst of a segment is found by whoever reads the segment.
  const bytes = readFileSync(segmentFile(2));
  writeFileSync(segmentFile(2), bytes.fill('x', 0, 20));
  const next = open();
  expect(existsSync(`${segmentFile(2)}.corrupt`)).toBe(false);
  expect(numberOf(next, 6)).toBe(6);
  expect(numberOf(next, 20)).toBe(20);
  expect(told).toEqual([]);
  // The entry that was damaged is the first of the segment.
  expect(numberOf(next, 5)).toBeUndefined();
  expect(told.join()).toContain('outcome forgotten: it is damaged');
});

test('a segment that an agent left unfinished has its index after the next start', async () => {
  await fourSegments();
  open();
  expect(existsSync(indexFile(4))).toBe(true);
  expect(known(open())).toEqual(ALL);
});

/** Another text in place of the first, of the same length, under a checksum that is right. */
function rewritten(file: string, from: string, to: string): void {
  const bytes = readFileSync(file);
  expect(bytes.toString('latin1')).toContain(from);
  const content = Buffer.from(bytes.toString('latin1', 4).replace(from, to), 'latin1');
  const checksum = Buffer.alloc(4);
  checksum.writeUInt32LE(crc32(content));
  writeFileSync(file, Buffer.concat([checksum, content]));
}

describe('an index file that is damaged is no loss, and is written anew:', () => {
  test.each<[string, (file: string) => void]>([
    ['gone', (file) => rmSync(file)],
    ['empty', (file) => truncateSync(file, 0)],
    ['a part of a checksum', (file) => truncateSync(file, 3)],
    ['a part of its first line', (file) => truncateSync(file, 20)],
    ['cut short', (file) => truncateSync(file, statSync(file).size - 4)],
    ['longer', (file) => writeFileSync(file, Buffer.alloc(4), { flag: 'a' })],
    ['zeroes', (file) => writeFileSync(file, Buffer.alloc(statSync(file).size))],
    ['of another segment', (file) => copyFileSync(indexFile(3), file)],
    ['of another version', (file) => rewritten(file, 'index 1', 'index 2')],
    ['no JSON', (file) => rewritten(file, '{"format"', 'x"format"')],
    ['without numbers', (file) => rewritten(file, '"numbers"', '"nummers"')],
    ['with fewer numbers', (file) => rewritten(file, ',5]', '  ]')],
    ['of tables that are not there', (file) => rewritten(file, '"words":[2', '"words":[9')],
    ['of tables without end', (file) => rewritten(file, '"words":[25', '"words":[9e')],
    ['of an older form of the segment', () => writeFileSync(segmentFile(2), '\n', { flag: 'a' })],
  ])('%s', async (_, damage) => {
    await fourSegments();
    const whole = readFileSync(indexFile(2));
    damage(indexFile(2));
    expect(known(open())).toEqual(ALL);
    const anew = readFileSync(indexFile(2));
    // The size and the checksum of the segment's end are others when the segment is another.
    if (statSync(segmentFile(2)).size === Number(/"bytes":(\d+)/.exec(whole.toString())?.[1])) {
      expect(anew).toEqual(whole);
    } else {
      expect(anew).not.toEqual(whole);
    }
    expect(known(open())).toEqual(ALL);
  });

  test('every bit of it', async () => {
    await fourSegments();
    const whole = readFileSync(indexFile(2));
    for (let bit = 0; bit < 8 * whole.length; bit += 61) {
      const flipped = Buffer.from(whole);
      flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      writeFileSync(indexFile(2), flipped);
      expect(known(open())).toEqual(ALL);
      expect(readFileSync(indexFile(2))).toEqual(whole);
    }
  });
});

test.each<[string, (bytes: Buffer) => Buffer]>([
  ['took its end', (bytes) => bytes.subarray(0, -30)],
  ['left zeroes at its end', (bytes) => bytes.fill(0, bytes.length - 30)],
])('a power failure that %s is found, whatever the index says', async (_, fail) => {
  await fourSegments();
  writeFileSync(segmentFile(2), fail(readFileSync(segmentFile(2))));
  const expected = ALL.filter((n) => n !== 9);
  expect(known(open())).toEqual(expected);
  expect(known(open())).toEqual(expected);
});

test('a segment goes with its index, and its outcomes are forgotten', async () => {
  const requestLog = await fourSegments(open({ maxEntries: 10 }));
  expect(known(requestLog)).toEqual(ALL.filter((n) => n >= 10));
  expect([1, 2, 3].map((n) => existsSync(indexFile(n)))).toEqual([false, false, true]);
  vi.advanceTimersByTime(25 * HOUR_MS);
  expect(known(open())).toEqual(ALL.filter((n) => n >= 15));
  expect(readdirSync(join(stateDir, 'outcomes')).toSorted()).toEqual([
    '000000000004.log',
    '000000000004.log.index',
  ]);
});

test('an index whose segment is gone is removed, and says nothing of a later segment', async () => {
  await fourSegments();
  for (const n of [1, 2, 3, 4]) rmSync(segmentFile(n));
  writeFileSync(`${indexFile(2)}.tmp`, 'left by an agent that was killed');
  const requestLog = open();
  expect(readdirSync(join(stateDir, 'outcomes'))).toEqual([]);
  keep(requestLog, 1);
  expect(known(open())).toEqual([1]);
});

test('an index that the disk refuses is told of, and nothing is lost', async () => {
  mkdirSync(join(`${indexFile(2)}.tmp`, 'in the way'), { recursive: true });
  const requestLog = await fourSegments();
  expect(told.join()).toContain('index of outcomes not written to disk');
  expect(existsSync(indexFile(2))).toBe(false);
  expect(existsSync(indexFile(3))).toBe(true);
  rmSync(`${indexFile(2)}.tmp`, { recursive: true });
  expect(known(requestLog)).toEqual(ALL);
  expect(known(open())).toEqual(ALL);
});

test('the last position counts, in whichever order the jobs ran, also out of index files', async () => {
  const requestLog = open();
  const at = (storedNs: bigint, sequence: number): Partial<Asked> => ({
    id: 'web',
    position: { storedNs, sequence },
  });
  const late = 2n ** 61n;
  for (const [n, position] of [
    at(late, 1),
    at(late, 2 ** 33),
    at(late, 2 ** 33 - 1),
    at(late - 2n ** 33n, 2 ** 34),
    at(1n, 1),
  ].entries()) {
    requestLog.keep(asked(n, position), { answer: {} });
    vi.advanceTimersByTime(HOUR_MS);
  }
  await requestLog.sync();
  for (const one of [requestLog, open(), open()]) {
    expect(one.lastOf('web', 'attach')).toEqual({ storedNs: late, sequence: 2 ** 33 });
    expect(one.lastOf('web', 'detach')).toBeUndefined();
  }
});

test('a million outcomes take 40 bytes each at most', () => {
  const index = new OutcomeIndex({ fileOf: segmentFile, log });
  const many = 1_000_000;
  for (let n = 0; n < many; n += 1) {
    index.note(
      {
        operation: 'attach',
        id: 'vm',
        requestId: `request-${n}`,
        atMs: 1,
        content: '',
        position: undefined,
      },
      { segment: 1 + Math.floor(n / 10_000), start: 800 * (n % 10_000), offset: 200, bytes: 599 },
    );
  }
  expect(index.bytes).toBeLessThan(40 * many);
});
