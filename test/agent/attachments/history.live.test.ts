import { expect, test } from 'vitest';
import { checkFailOver, checkLosses, checkUnheardHolder } from '../../support/history.ts';
import { mutantAgent } from '../../support/mutant.ts';

// A few thousand grants; test/soak/history.test.ts has a hundred thousand.

test('no address has two holders while Redis crashes, is emptied, turned back and paused', async () => {
  await checkLosses({ grants: 2_000, rounds: 1 });
});

test('no address has two holders where one of them is not heard after Redis was emptied', async () => {
  await checkUnheardHolder();
});

test('two holders are seen where the ledger grants before every host was heard', async () => {
  using mutant = mutantAgent([
    {
      file: 'ipam-store/functions/recovery.lua',
      right: 'if memory.missing_count > 0 or is_untold(root) then',
      wrong: 'if false then',
    },
  ]);
  const history = checkUnheardHolder({ wrap: mutant.wrap });
  await expect(history).rejects.toThrow(/is h1-1's on h1 .* and .* is h\d-\d+'s on h[23]/);
});

test('no address has two holders while Sentinel fails over', async () => {
  await checkFailOver({ grants: 1_000, rounds: 1 });
});
