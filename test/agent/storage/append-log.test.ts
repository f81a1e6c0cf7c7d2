import {
  appendFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { AppendLog, type Place } from '#agent/storage/append-log.ts';

const log = pino({ level: 'silent' });
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'volt-log-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function loaded(): { readonly entries: AppendLog; readonly found: string[] } {
  const entries = new AppendLog({ folder, log });
  const places: [unknown, Place][] = [];
  entries.load((header, place) => places.push([header['name'], place]));
  return {
    entries,
    found: places.map(([name, place]) => `${String(name)}=${entries.read(place)}`),
  };
}

function write(...names: readonly string[]): AppendLog {
  const { entries } = loaded();
  for (const name of names) entries.append({ name }, `body of ${name}\nand more`);
  return entries;
}

const ofNames = (...names: readonly string[]): string[] =>
  names.map((name) => `${name}=body of ${name}\nand more`);

test('entries are there for the next process, in order, also without a close', () => {
  write('a', 'b');
  write('c');
  expect(loaded().found).toEqual(ofNames('a', 'b', 'c'));
});

test.each(['{"v":1,"byt', '{"v":1,"bytes":100,"name":"x"}\nshort'])(
  'what a kill cut short is passed over: %s',
  (rest) => {
    write('a');
    appendFileSync(join(folder, '000000000001.log'), rest);
    write('b');
    expect(loaded().found).toEqual(ofNames('a', 'b'));
  },
);

test('of a damaged segment the whole entries before the damage count, and the file is kept aside', () => {
  write('a', 'b');
  const file = join(folder, '000000000001.log');
  const text = readFileSync(file, 'utf8');
  writeFileSync(file, text.replace('"name":"b"', '"name":'));
  expect(loaded().found).toEqual(ofNames('a'));
  expect(readdirSync(folder)).toContain('000000000001.log.corrupt');
  expect(loaded().found).toEqual(ofNames('a'));
});

test('a dropped segment is gone, and what comes after it stays', async () => {
  const entries = write('a');
  entries.drop(entries.current);
  entries.append({ name: 'b' }, 'body of b\nand more');
  await Promise.all([entries.sync(), entries.sync()]);
  expect(loaded().found).toEqual(ofNames('b'));
});

test('an entry is read back by its place, whatever characters it has', () => {
  const entries = write();
  const body = 'Zürich ☃ \u0000 \n {"v":1}';
  const place = entries.append({ name: 'ü' }, body);
  expect(entries.read(place)).toBe(body);
  expect(loaded().found).toEqual([`ü=${body}`]);
});

test('a segment that is left while it is synced is synced to its end', async () => {
  const entries = write('a');
  entries.rotate();
  entries.append({ name: 'b' });
  const syncing = entries.sync();
  entries.rotate();
  await syncing;
  entries.append({ name: 'c' });
  await entries.sync();
  entries.close();
});

test('one that is written to and left while it is synced is synced again', async () => {
  const entries = write('a');
  const syncing = entries.sync();
  entries.append({ name: 'b' });
  entries.rotate();
  await syncing;
  await entries.sync();
  // It is closed by now: what is opened next has its number.
  entries.append({ name: 'c' });
  await entries.sync();
  entries.close();
});
