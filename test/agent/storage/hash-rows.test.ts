import { expect, test } from 'vitest';
import { HashRows, keyWordsOf } from '#agent/storage/hash-rows.ts';

function rowsOver(segments: Set<number>): HashRows {
  return new HashRows({ keyWords: 2, rowWords: 4, isThere: (segment) => segments.has(segment) });
}

test('a row is found by its key, among a hundred thousand', () => {
  const rows = rowsOver(new Set([1]));
  const many = 100_000;
  for (let n = 0; n < many; n += 1) rows.add([...keyWordsOf(`key ${n}`, 2), 1, n]);
  for (let n = 0; n < many; n += 1) {
    expect(rows.of(keyWordsOf(`key ${n}`, 2)).map((row) => row[3])).toEqual([n]);
  }
  expect(rows.of(keyWordsOf('another', 2))).toEqual([]);
});

test('all rows with one key are found, and none of a key that begins alike', () => {
  const rows = rowsOver(new Set([1]));
  for (let n = 0; n < 100; n += 1) rows.add([7, n % 2, 1, n]);
  const found = rows.of([7, 1]).map((row) => row[3] ?? 0);
  expect(found.toSorted((one, other) => one - other)).toEqual(
    Array.from({ length: 50 }, (_, n) => 2 * n + 1),
  );
  expect(rows.of([8, 1])).toEqual([]);
});

test('rows of a segment that is gone are not found, and others take their place', () => {
  const segments = new Set<number>();
  const rows = rowsOver(segments);
  const addSegment = (segment: number): void => {
    segments.add(segment);
    for (let n = 0; n < 5_000; n += 1) {
      rows.add([...keyWordsOf(`${segment} ${n}`, 2), segment, n]);
    }
  };
  for (let segment = 1; segment <= 4; segment += 1) addSegment(segment);
  const { bytes } = rows;
  for (let segment = 5; segment <= 40; segment += 1) {
    segments.delete(segment - 4);
    addSegment(segment);
  }
  expect(rows.of(keyWordsOf('36 1', 2))).toEqual([]);
  expect(rows.of(keyWordsOf('37 1', 2))).toHaveLength(1);
  expect(rows.bytes).toBeLessThan(1.5 * bytes);
});

test('a key is the beginning of a SHA-256, and never begins with the mark of a free row', () => {
  // printf 'attach r1' | sha256sum
  expect(keyWordsOf('attach r1', 2)).toEqual([0x95073036, 0x440c99b7]);
  for (let n = 0; n < 1_000; n += 1) expect(keyWordsOf(`${n}`, 1)[0]).toBeGreaterThan(0);
});
