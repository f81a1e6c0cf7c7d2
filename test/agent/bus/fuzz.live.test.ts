import { expect, test } from 'vitest';
import { fuzz, leavesNothing } from '#test/support/fuzz.ts';
import { startStack, VOLT0 } from '#test/support/stack.ts';

// A sample of test/soak/fuzz.test.ts, another each time.
const SEED = Number(process.env['SEED'] ?? Date.now() % 1e9);

test(`10,000 odd messages are answered and leave nothing (SEED=${SEED})`, async () => {
  await using stack = await startStack({ networks: [VOLT0] });
  const before = await stack.snapshot();
  const { jobs } = await fuzz(stack, { messages: 10_000, seed: SEED });
  expect(jobs).toBeGreaterThan(100);
  await leavesNothing(stack, before);
});
