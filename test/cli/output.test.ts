import { describe, expect, test } from 'vitest';
import {
  COLOURS,
  createOutput,
  details,
  NO_COLOURS,
  type Output,
  printable,
  styleFor,
  table,
} from '#agent/cli/output.ts';

describe('tables', () => {
  test('columns are as wide as their widest cell, absent cells are "-", no line ends in a space', () => {
    const text = table(
      ['ID', 'DEVICE', 'AGE'],
      [
        ['web', 'tap-web', 5],
        ['a-longer-id', undefined, ''],
      ],
    );
    expect(text).toBe(
      ['ID           DEVICE   AGE', 'web          tap-web  5', 'a-longer-id  -        -'].join(
        '\n',
      ),
    );
  });

  test('without rows the header stands alone', () => {
    expect(table(['ID', 'MAC'], [])).toBe('ID  MAC');
  });

  test('details leave out what is undefined', () => {
    expect(
      details([
        ['id', 'web'],
        ['peer', undefined],
        ['generation', 3],
      ]),
    ).toBe('id          web\ngeneration  3');
  });

  test('a control character in a value never reaches the terminal', () => {
    const text = table(['LABEL'], [['\x1b[2Jgone\u202e\n\u009b']]);
    expect(text).toBe('LABEL\n\\u001b[2Jgone\\u202e\\u000a\\u009b');
    expect(printable('plain – ü')).toBe('plain – ü');
  });
});

describe('colours', () => {
  test.each([
    [true, {}, COLOURS],
    [true, { NO_COLOR: '' }, COLOURS],
    [true, { NO_COLOR: '1' }, NO_COLOURS],
    [true, { TERM: 'dumb' }, NO_COLOURS],
    [false, {}, NO_COLOURS],
  ])('terminal %s with %j', (isTTY, env, style) => {
    expect(styleFor(isTTY, env)).toBe(style);
  });
});

describe('--json', () => {
  test('results are JSON, notes are silent', () => {
    const { output, text } = written(true);
    output.result({ a: 1 }, () => 'a is 1');
    output.line({ a: 2 }, () => 'a is 2');
    output.note('for people');
    expect(text).toEqual(['out {\n  "a": 1\n}\n', 'out {"a":2}\n']);
  });

  test('without it they are text', () => {
    const { output, text } = written(false);
    output.result({ a: 1 }, () => 'a is 1');
    output.line({ a: 2 }, () => 'a is 2');
    output.note('for people');
    expect(text).toEqual(['out a is 1\n', 'out a is 2\n', 'note for people\n']);
  });
});

function written(json: boolean): { output: Output; text: string[] } {
  const text: string[] = [];
  const output = createOutput({
    json,
    style: () => NO_COLOURS,
    write: (part) => text.push(`out ${part}`),
    writeNote: (part) => text.push(`note ${part}`),
  });
  return { output, text };
}
