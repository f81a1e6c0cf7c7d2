import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { AGENT } from '../support/agent.ts';

/** Makes 200 MiB of objects of which each lives for a while, as an agent under load does, in the agent's place. */
const LOAD = `
  import v8 from 'node:v8';
  let kept = [];
  for (let n = 0; n < 3_000_000; n += 1) {
    kept.push({ n, text: String(n) });
    if (kept.length > 50_000) kept = [];
  }
  const young = v8.getHeapSpaceStatistics().find((space) => space.space_name === 'new_space');
  console.log(JSON.stringify({
    youngMiB: young.physical_space_size / 2 ** 20,
    arenas: process.env.MALLOC_ARENA_MAX,
  }));
  process.exit(0);`;

function underLoad(more: Record<string, string> = {}): unknown {
  const { NODE_OPTIONS: _options, MALLOC_ARENA_MAX: _arenas, ...env } = process.env;
  const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(LOAD)}`;
  const { stdout } = spawnSync(AGENT, { env: { ...env, NODE_OPTIONS, ...more }, encoding: 'utf8' });
  return JSON.parse(stdout);
}

// `npm run bench -- memory` shows what comes of it; left alone the young generation of this load is 64 MiB.
test('the memory that an agent keeps for what is gone has a small limit', () => {
  const { youngMiB, arenas } = underLoad() as { youngMiB: number; arenas: string };
  expect(youngMiB).toBeLessThanOrEqual(12);
  expect(arenas).toBe('2');
});

test('an operator who has set the number of arenas is listened to', () => {
  expect(underLoad({ MALLOC_ARENA_MAX: '7' })).toMatchObject({ arenas: '7' });
});
