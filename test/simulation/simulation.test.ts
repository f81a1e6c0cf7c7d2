import { expect, test } from 'vitest';
import { type Mistakes, simulate } from './simulation.ts';

const HISTORIES = 200;
/** In so few histories a mistake is found. */
const FEW = 250;
const MISTAKES: readonly Mistakes[] = [
  { ledger: 'no-owner' },
  { ledger: 'address-twice' },
  { ledger: 'generation-back' },
  { ledger: 'held-believed' },
  { ledger: 'pool-anew' },
  { ledger: 'stranded' },
  { ledger: 'loss-unnoticed' },
  { ledger: 'armed-early' },
  { ledger: 'revision-believed' },
  { ledger: 'edit-untold' },
  { ledger: 'clones-believed' },
  { host: 'renamed' },
  { kernel: 'no-detach' },
  { bus: 'event-lost' },
];

test('one seed is one history', async () => {
  expect(await simulate(7)).toEqual(await simulate(7));
});

test(`${HISTORIES} histories of three agents keep what the contract promises`, async () => {
  for (let seed = 1; seed <= HISTORIES; seed += 1) await simulate(seed);
});

test.each(MISTAKES)('histories find the mistake of %o', async (mistakes) => {
  const all = async (): Promise<void> => {
    for (let seed = 1; seed <= FEW; seed += 1) await simulate(seed, mistakes);
  };
  await expect(all()).rejects.toThrow('seed');
});
