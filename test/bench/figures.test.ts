import { expect, test } from 'vitest';
import { inTurns, isMet, median, quantile, shown, Turns } from './figures.ts';

test.each([
  [[], 0.5, Number.NaN],
  [[7], 0.99, 7],
  [[3, 1, 2], 0.5, 2],
  [[4, 1, 3, 2], 0.5, 2],
  [[4, 1, 3, 2], 0.75, 3],
  [[1, 2, 3], 0, 1],
  [[1, 2, 3], 1, 3],
])('the quantile of %j at %d is %d, by nearest rank', (values, share, expected) => {
  expect(quantile(values, share)).toBe(expected);
});

test('of a hundred values p95 is the 95th and p99 the 99th, in whichever order they come', () => {
  const values = Array.from({ length: 100 }, (_, n) => 100 - n);
  expect(quantile(values, 0.95)).toBe(95);
  expect(quantile(values, 0.99)).toBe(99);
});

test.each([
  [[], Number.NaN],
  [[5], 5],
  [[10, 1], 5.5],
  [[9, 1, 2], 2],
  [[10, 9, 2, 1], 5.5],
])('the median of %j is %d', (values, expected) => {
  expect(median(values)).toBe(expected);
});

const figure = { name: 'f', unit: 'ratio', values: [1, 2, 9] };

test.each([
  [{}, undefined],
  [{ bound: 2 }, true],
  [{ bound: 1.9 }, false],
  [{ bound: 2, sense: '>=' as const }, true],
  [{ bound: 2.1, sense: '>=' as const }, false],
])('the median 2 against %j is met: %s', (against, expected) => {
  expect(isMet({ ...figure, ...against })).toBe(expected);
});

test('a figure without values keeps to no bound', () => {
  expect(isMet({ ...figure, values: [], bound: 1 })).toBe(false);
  expect(isMet({ ...figure, values: [], bound: 1, sense: '>=' })).toBe(false);
});

test.each([
  [0.0123, '0.012'],
  [0.5, '0.50'],
  [2.345, '2.35'],
  [12.34, '12.3'],
  [123.4, '123'],
  [12_345.6, '12,346'],
  [0, '0.000'],
  [Number.NaN, '–'],
])('%d is shown as %s', (value, expected) => {
  expect(shown(value)).toBe(expected);
});

test('a ratio is of two medians of the same round, and a round that one of them lacks counts for nothing', () => {
  const turns = new Turns();
  const note = (rival: string, round: number, ...values: number[]): void => {
    for (const value of values) turns.note({ rival, what: 'attach', round, value });
  };
  note('fast', 0, 1, 2, 300);
  note('slow', 0, 4, 4, 4);
  note('fast', 1, 1);
  note('fast', 2, 3);
  note('slow', 2, 12);
  expect(turns.ratios('attach', 'fast', 'slow')).toEqual([0.5, 0.25]);
  expect(turns.values('attach', 'fast')).toEqual([1, 2, 300, 1, 3]);
  expect(turns.values('detach', 'fast')).toEqual([]);
});

test('every rival has a turn in each round, and each of them comes first', async () => {
  const order: string[] = [];
  const rivals = ['a', 'b', 'c'].map((name) => ({ name }));
  const turns = await inTurns(rivals, 3, async ({ name }, note) => {
    order.push(name);
    note('turn', order.length);
  });
  expect(order.join('')).toBe('abcbcacab');
  expect(turns.values('turn', 'a')).toEqual([1, 6, 8]);
});
