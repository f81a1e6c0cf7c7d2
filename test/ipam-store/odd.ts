import type { Redis } from 'ioredis';
import assert from 'node:assert/strict';
import { expect } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { contents } from './fixture.ts';

// Values that no field of the ledger may be, and what each has to be answered with.

const LONG = 'x'.repeat(100_000);
/** Label → value. What a field may be is left out where that field is tried. */
export const ODD: Readonly<Record<string, unknown>> = {
  null: null,
  zero: 0,
  'minus one': -1,
  'a fraction': 1.5,
  NaN: Number.NaN,
  infinity: Number.POSITIVE_INFINITY,
  'minus infinity': Number.NEGATIVE_INFINITY,
  'a huge number': 1e300,
  'a number of another kind': 10n,
  true: true,
  'a map': {},
  'a list of a number': [1],
  'a list of a list': [['10.42.0.9']],
  'no text': '',
  'a space': ' ',
  'a space inside': 'a b',
  'a space behind': 'a ',
  'a zero byte': 'a\u0000',
  'a line break': 'a\n',
  'half a surrogate pair': '\ud800',
  'a letter beyond ASCII': 'ünï',
  'a letter that looks like another': 'vm-\u0430',
  'text from right to left': '\u202Evm',
  'a path': '../x',
  'the end of a range': '(a',
  'all of a range': '+',
  'a brace': '{x}',
  'a format': '%s%n',
  'long text': LONG,
};

export const labels = (...fine: readonly string[]): string[] =>
  Object.keys(ODD).filter((label) => !fine.includes(label));

/** `accepted`, or the code and the path of a refusal whose message is of a length to be read. */
export const codeOf = (call: () => Promise<unknown>): Promise<string> =>
  call().then(
    () => 'accepted',
    (error: unknown) => {
      if (!(error instanceof VoltError)) throw error;
      assert(error.message.length < 300, `message of ${error.message.length} characters`);
      return `${error.code} ${String(error.details?.['path'])}`;
    },
  );

/** Every odd value in one field of a call is refused by the field's name, and nothing is changed. */
export async function refusesAll(
  raw: Redis,
  field: string,
  odd: readonly string[],
  call: (fields: object) => Promise<unknown>,
): Promise<void> {
  const before = await contents(raw);
  const codes: [string, string][] = [];
  for (const label of odd) {
    codes.push([label, await codeOf(() => call({ [field]: ODD[label] }))]);
  }
  expect(codes).toEqual(odd.map((label) => [label, `INVALID_REQUEST ${field}`]));
  expect(await contents(raw)).toEqual(before);
}
