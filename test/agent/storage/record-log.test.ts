import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { RecordLog } from '#agent/storage/record-log.ts';

const log = pino({ level: 'silent' });
let folder: string;
const open = new Set<RecordLog>();

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'volt-records-'));
});
afterEach(() => {
  for (const one of open) one.close();
  open.clear();
  rmSync(folder, { recursive: true });
});

function opened(): { readonly records: RecordLog; readonly texts: Record<string, string> } {
  const records = new RecordLog({ folder, log });
  open.add(records);
  return { records, texts: Object.fromEntries(records.load()) };
}

const bytes = (): number =>
  readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);

test('the next process finds the last text of each id, and none of what was removed', () => {
  const first = opened().records;
  first.put('a', 'one\nline');
  first.put('b', 'two');
  first.put('a', 'three');
  first.remove('b');
  first.remove('never');
  const second = opened();
  expect(second.texts).toEqual({ a: 'three' });
  second.records.put('b', 'again');
  second.records.remove('a');
  expect(opened().texts).toEqual({ b: 'again' });
});

test('what a kill cut short is as it was before', () => {
  const { records } = opened();
  records.put('a', 'whole');
  const [file = ''] = readdirSync(folder);
  appendFileSync(join(folder, file), '{"v":1,"bytes":500,"id":"a"}\ncut');
  expect(opened().texts).toEqual({ a: 'whole' });
});

test('the log stays small however often texts change, and loses none', async () => {
  const text = 'x'.repeat(60_000);
  const { records } = opened();
  records.put('still', 'here all the time');
  for (let n = 0; n < 800; n += 1) {
    records.put(`changes-${n % 10}`, `${n} ${text}`);
    if (n % 10 === 0) await nextTurn();
  }
  for (let turns = 0; turns < 100; turns += 1) await nextTurn();
  // 48 MB were written.
  expect(bytes()).toBeLessThan(20_000_000);
  const expected = Array.from({ length: 10 }, (_, n) => [`changes-${n}`, `${790 + n} ${text}`]);
  const { texts } = opened();
  expect(texts).toEqual({ still: 'here all the time', ...Object.fromEntries(expected) });
});

test('a removal that the disk refuses is noted with the next change', () => {
  const { records } = opened();
  for (const id of ['ends', 'stays', 'goes']) records.put(id, 'text');
  records.close();
  // Without its folder no segment can be made.
  const [file = ''] = readdirSync(folder);
  const before = readFileSync(join(folder, file));
  rmSync(folder, { recursive: true });
  expect(() => records.put('new', 'text')).toThrow(/ENOENT/);
  records.remove('ends');
  mkdirSync(folder);
  records.remove('goes');
  writeFileSync(join(folder, file), before);
  expect(opened().texts).toEqual({ stays: 'text' });
});
