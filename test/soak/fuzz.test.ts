import { expect, test } from 'vitest';
import { fuzz } from '../support/fuzz.ts';
import { startStack, VOLT0 } from '../support/stack.ts';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1e9);
const MESSAGES = Number(process.env['MESSAGES'] ?? 1_000_000);

test(`a million odd messages: none ends the agent or stays unanswered, and its memory is level (SEED=${SEED})`, async () => {
  await using stack = await startStack({ networks: [VOLT0] });
  const { packets, jobs, residentMiB } = await fuzz(stack, { messages: MESSAGES, seed: SEED });
  const { unexpectedErrors } = await stack.agent.health();
  console.log({ messages: MESSAGES, packets, jobs, residentMiB });
  expect(unexpectedErrors).toEqual({ count: 0 });
  // Warm after three tenths; from then on it stays within what the collector leaves lying around.
  const warm = Math.max(...residentMiB.slice(0, 3));
  expect(Math.max(...residentMiB.slice(-3))).toBeLessThan(warm * 1.15);
});
