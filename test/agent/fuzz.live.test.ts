import { expect, test } from 'vitest';
import { until } from '#test/support/agent.ts';
import { fuzz } from '#test/support/fuzz.ts';
import { startStack, VOLT0 } from '#test/support/stack.ts';

// A sample of test/soak/fuzz.test.ts, another each time.
const SEED = Number(process.env['SEED'] ?? Date.now() % 1e9);

test(`10,000 odd messages are answered and leave nothing (SEED=${SEED})`, async () => {
  await using stack = await startStack({ networks: [VOLT0] });
  const before = await stack.snapshot();
  const { jobs } = await fuzz(stack, { messages: 10_000, seed: SEED });
  expect(jobs).toBeGreaterThan(100);
  // Some have got an id that was odd, and good enough.
  for await (const { id } of stack.client.listAll('h1')) await stack.client.detach('h1', { id });
  await until('nothing is under way', async () => {
    const { unfinished, eventsPending } = await stack.agent.health();
    return unfinished === 0 && eventsPending === 0;
  });
  const { devices, records, attachments } = await stack.snapshot();
  // The bridges of networks stay.
  expect(devices.filter((name) => /^(tap|veth|vdel|ifb)/.test(name))).toEqual([]);
  expect({ records, attachments }).toEqual({ records: before.records, attachments: 0 });
  expect((await stack.agent.health())['unexpectedErrors']).toEqual({ count: 0 });
});
