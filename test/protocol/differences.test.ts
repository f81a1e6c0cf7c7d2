import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { LEDGER_DIFFERENCES } from '#protocol/differences.ts';

const FUNCTIONS = new URL('../../ipam-store/functions/', import.meta.url);

/** A name is in a table of what is noted. One with a key beside it is an entry of a lease, noted where it is missing. */
const NOTED = /\bwhat = '([a-z ]+)',?(\s*key = )?/g;

test('every difference that a function of the ledger notes has its name in the protocol, and no other', () => {
  const noted = readdirSync(FUNCTIONS)
    .filter((name) => name.startsWith('audit'))
    .flatMap((name) => [...readFileSync(new URL(name, FUNCTIONS), 'utf8').matchAll(NOTED)])
    .map(([, name = '', entry]) => (entry === undefined ? name : `${name} missing`));
  expect([...new Set(noted)].toSorted()).toEqual([...LEDGER_DIFFERENCES].toSorted());
});
