import { test } from 'vitest';
import { checkFailOver, checkLosses } from '../support/history.ts';

test('80,000 grants while Redis crashes, is emptied, turned back and paused, ten times each', async () => {
  await checkLosses({ grants: 80_000, rounds: 10 });
});

test('20,000 grants while Sentinel fails over ten times', async () => {
  await checkFailOver({ grants: 20_000, rounds: 10 });
});
