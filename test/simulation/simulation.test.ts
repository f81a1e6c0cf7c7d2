import { expect, test } from 'vitest';
import { simulate } from './simulation.ts';

const HISTORIES = 200;

test('one seed is one history', async () => {
  expect(await simulate(7)).toEqual(await simulate(7));
});

test('200 histories of three agents keep what the contract promises', async () => {
  for (let seed = 1; seed <= HISTORIES; seed += 1) await simulate(seed);
}, 60_000);
