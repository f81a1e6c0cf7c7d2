import { describe, expect, test } from 'vitest';
import { details, marked, type Page, table } from '#agent/cli/page.ts';
import { hasColours, Printer, render } from '#agent/cli/printer.ts';

const text = (page: Page): string => render(page).trimEnd();

describe('tables', () => {
  test('columns are as wide as their widest cell, absent cells are "-", no line ends in a space', () => {
    const page = table(
      ['ID', 'DEVICE', 'AGE'],
      [
        ['web', 'tap-web', 5],
        ['a-longer-id', undefined, ''],
      ],
    );
    expect(text(page)).toBe(
      ['ID           DEVICE   AGE', 'web          tap-web  5', 'a-longer-id  -        -'].join(
        '\n',
      ),
    );
  });

  test('without rows the header stands alone', () => {
    expect(text(table(['ID', 'MAC'], []))).toBe('ID  MAC');
  });

  test('details leave out what is undefined', () => {
    expect(
      text(
        details([
          ['id', 'web'],
          ['peer', undefined],
          ['generation', 3],
        ]),
      ),
    ).toBe('id          web\ngeneration  3');
  });

  test('a control character in a value never reaches the terminal, and columns stay columns', () => {
    const page = table(['LABEL', 'MAC'], [['\x1b[2Jgone\u202e\n\u009b', 'x']]);
    expect(text(page)).toBe(
      [`LABEL${' '.repeat(28)}MAC`, '\\u001b[2Jgone\\u202e\\u000a\\u009b  x'].join('\n'),
    );
  });
});

describe('colours', () => {
  test.each([
    [true, {}, true],
    [true, { NO_COLOR: '' }, true],
    [true, { NO_COLOR: '1' }, false],
    [true, { TERM: 'dumb' }, false],
    [false, {}, false],
  ])('terminal %s with %j', (isTTY, env, coloured) => {
    expect(hasColours(isTTY, env)).toBe(coloured);
  });

  test('are the only sequences that a terminal gets, and the text within them is text', () => {
    const page = [['a ', marked('bad', '\x1b[2Jb\n'), marked('strong', '\x9bc')]];
    expect(render(page, true)).toBe('a \x1b[31m\\u001b[2Jb\\u000a\x1b[0m\x1b[1m\\u009bc\x1b[0m\n');
  });
});

describe('--json', () => {
  test('results are JSON, notes are silent', () => {
    const { printer, written } = printing(true);
    printer.result({ a: 1 }, () => ['a is 1']);
    printer.line({ a: 2 }, () => 'a is 2');
    printer.note('for people');
    printer.complaint({ error: 3 }, () => ['wrong']);
    expect(written).toEqual(['out {\n  "a": 1\n}\n', 'out {"a":2}\n', 'err {"error":3}\n']);
  });

  test('without it they are text', () => {
    const { printer, written } = printing(false);
    printer.result({ a: 1 }, () => ['a is 1', '']);
    printer.line({ a: 2 }, () => ['a ', marked('bad', 'is 2')]);
    printer.note('for people');
    printer.complaint({ error: 3 }, () => ['wrong']);
    expect(written).toEqual(['out a is 1\n\n', 'out a is 2\n', 'err for people\n', 'err wrong\n']);
  });
});

function printing(json: boolean): { printer: Printer; written: string[] } {
  const written: string[] = [];
  const terminal = {
    write: (part: string) => written.push(`out ${part}`),
    writeError: (part: string) => written.push(`err ${part}`),
    isTTY: () => false,
  };
  return { printer: new Printer({ terminal, json, env: {} }), written };
}
