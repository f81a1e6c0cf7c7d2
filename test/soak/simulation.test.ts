import { test } from 'vitest';
import { simulate } from '../simulation/simulation.ts';

// SEED=n: that history alone, with its trace where a promise is broken.

const HISTORIES = 5_000;
const { SEED } = process.env;

test('thousands of histories of three agents keep what the contract promises', async () => {
  const broken: string[] = [];
  const seeds =
    SEED === undefined ? Array.from({ length: HISTORIES }, (_, n) => n + 1) : [Number(SEED)];
  for (const seed of seeds) {
    try {
      await simulate(seed);
    } catch (error) {
      broken.push(SEED === undefined ? String(error).split('\n', 1).join() : String(error));
    }
  }
  if (broken.length > 0) throw new Error(broken.join('\n'));
});
