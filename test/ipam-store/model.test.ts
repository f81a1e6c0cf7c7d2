import { describe, expect, test } from 'vitest';
import { useStore } from './fixture.ts';
import { checkHistories } from './histories.ts';
import type { Patch } from './mutants.ts';

const store = useStore();

/** The same histories each time: whether one of them finds a mistake is no matter of chance. */
const SEED = 1;

test('any history is one that a plain model has too', async () => {
  await checkHistories(store, { histories: 150, longest: 40 });
});

describe('histories find the mistake, where the library', () => {
  const MISTAKES: readonly [string, Patch][] = [
    [
      'releases whatever the generation',
      ['if lease.generation ~= generation then', 'if false then'],
    ],
    ['gives what has not rested', ['if wait and wait <= 0 then', 'if wait then']],
    [
      'gives what was used last',
      ["'0', batch.avoided_count, 'WITHSCORES')", "'-1', '-1', 'WITHSCORES')"],
    ],
    ['waits a millisecond less', ['if wait and wait <= 0 then', 'if wait and wait <= 1 then']],
    ['makes every release one with cool-down', ['    if cool then\n', '    if true then\n']],
    [
      'grants before every host was heard',
      ['if memory.missing_count > 0 or is_untold(root) then', 'if false then'],
    ],
    [
      'lets nothing rest that a forgotten host had',
      [
        'end_lease(root, lease, now, true)\n      released = released + 1',
        'end_lease(root, lease, now, false)\n      released = released + 1',
      ],
    ],
    [
      'gives back to a host that was forgotten what others have since',
      ['if tonumber(other.generation) >= tonumber(lease.generation) then', 'if false then'],
    ],
    [
      'goes back in time when the clock is set back',
      ['clock.offset = clock.offset - passed', 'clock.offset = 0'],
    ],
    ['deletes a network with leases', ['  if #ids > 0 then', '  if false then']],
    [
      'keeps the MAC of what was released',
      ["  redis.call('HDEL', network_key(root, lease.network), 'mac:' .. lease.mac)\n", ''],
    ],
  ];

  test.each(MISTAKES)('%s', async (_, patch) => {
    const checked = checkHistories(store, {
      histories: 300,
      longest: 40,
      mistakes: [patch],
      seed: SEED,
    });
    await expect(checked).rejects.toThrow(/history \d+ failed/);
  });
});
