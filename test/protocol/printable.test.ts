import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { printable, printableLines } from '#protocol/printable.ts';
import { actsOnTerminals, hostileText } from '../support/hostile-text.ts';

describe('text of others', () => {
  test.each([
    ['plain – ü 漢字 🙂', 'plain – ü 漢字 🙂'],
    ['\x1b[2J', '\\u001b[2J'],
    ['\0\t\r\n\x7f', '\\u0000\\u0009\\u000d\\u000a\\u007f'],
    ['\x80\x9b\x9f', '\\u0080\\u009b\\u009f'],
    ['\u202a\u202e\u2066\u2069\u200e', '\\u202a\\u202e\\u2066\\u2069\\u200e'],
    ['\u2028\u2029', '\\u2028\\u2029'],
    [
      '\u200b\u200d\u2060\ufeff\u00ad\u034f\ufe0f',
      '\\u200b\\u200d\\u2060\\ufeff\\u00ad\\u034f\\ufe0f',
    ],
    // A tag character, beyond the first plane, and halves of such.
    ['\u{e0041}', '\\udb40\\udc41'],
    ['a\ud800b\udc00', 'a\\ud800b\\udc00'],
  ])('%j is shown as %j', (text, shown) => {
    expect(printable(text)).toBe(shown);
  });

  test('nothing that a terminal acts upon is left, and what is left is text for good', () => {
    fc.assert(
      fc.property(hostileText(), (text) => {
        const shown = printable(text);
        expect(actsOnTerminals(shown)).toEqual([]);
        expect(shown).not.toContain('\n');
        expect(printable(shown)).toBe(shown);
      }),
    );
  });

  test('in JSON it is the same value, and line feeds of the layout stay', () => {
    fc.assert(
      fc.property(hostileText(), hostileText(), (key, value) => {
        const json = printableLines(JSON.stringify({ [key]: [value] }, null, 2));
        expect(actsOnTerminals(json)).toEqual([]);
        expect(JSON.parse(json)).toEqual({ [key]: [value] });
        expect(json.split('\n')).toHaveLength(5);
      }),
    );
  });
});
