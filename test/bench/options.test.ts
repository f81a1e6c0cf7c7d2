import { describe, expect, test, vi } from 'vitest';
import { parseOptions } from './options.ts';
import { FULL, QUICK } from './sizes.ts';

const BENCHES = { suite: ['attach', 'rate'], others: ['fleet'] };
const parse = (...words: string[]) => parseOptions(words, BENCHES);

test('nothing means the suite, in full', () => {
  const command = 'npm run bench';
  expect(parse()).toEqual({ names: [], sizes: FULL, write: false, command });
});

test('words are benches, and numbers sizes', () => {
  expect(parse('fleet', '10', '1000')).toMatchObject({
    names: ['fleet'],
    sizes: { ...FULL, numbers: [10, 1_000] },
  });
});

test('sizes given one by one count more than --quick', () => {
  const { sizes } = parse('--rounds', '7', '--quick', '--attachments', '50', 'attach');
  expect(sizes).toEqual({ ...QUICK, rounds: 7, attachments: 50 });
});

test('--json takes a file or standard output, --against a commit', () => {
  expect(parse('--json', '-', '--against', 'HEAD~3')).toMatchObject({
    json: '-',
    against: 'HEAD~3',
    names: [],
  });
});

test('what is told of the command has all that the figures depend on, and no path', () => {
  const words = ['rate', '--json', '/somewhere/else', '--quick', '--rounds', '3'];
  expect(parse(...words).command).toBe('npm run bench -- rate --quick --rounds 3');
  expect(parse('--write').command).toBe('npm run bench -- --write');
});

describe('refused', () => {
  test.each([
    [['nothing'], /unknown: nothing; known: attach, rate, fleet/],
    [['--rounds', '0'], /a number from 1 on/],
    [['--rounds', '1e3'], /a number from 1 on/],
    [['--rounds', '-4'], /argument missing|a number from 1 on/],
    [['--json'], /argument missing/],
    [['--slow'], /unknown option/],
    [['--write', 'attach'], /whole suite/],
    [['--write', '--against', 'HEAD'], /whole suite/],
  ])('%j', (words, message) => {
    vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    expect(() => parse(...words)).toThrow(message);
  });
});
