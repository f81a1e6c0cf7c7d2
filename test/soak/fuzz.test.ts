import { expect, test } from 'vitest';
import { fuzz, leavesNothing } from '../support/fuzz.ts';
import { startStack, VOLT0 } from '../support/stack.ts';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1e9);
const MESSAGES = Number(process.env['MESSAGES'] ?? 1_000_000);

test(`a million odd messages: none ends the agent, stays unanswered or leaves anything, and its memory is level (SEED=${SEED})`, async () => {
  await using stack = await startStack({ networks: [VOLT0] });
  const before = await stack.snapshot();
  const { packets, jobs, residentMiB } = await fuzz(stack, { messages: MESSAGES, seed: SEED });
  console.log({ messages: MESSAGES, packets, jobs, residentMiB });
  await leavesNothing(stack, before);
  // Warm after three tenths; from then on it stays within what the collector leaves lying around.
  const warm = Math.max(...residentMiB.slice(0, 3));
  expect(Math.max(...residentMiB.slice(-3))).toBeLessThan(warm * 1.15);
});
