import { test } from 'vitest';
import { floodOfJobs } from '../support/job-flood.ts';
import { startStack } from '../support/stack.ts';

const WIDE = {
  network: 'volt0',
  subnet: '10.48.0.0/12',
  gateway: '10.48.0.1',
  reuseDelaySeconds: 1,
};

test('100,000 jobs, some twice and out of order, while NATS is killed three times, are done once each', async () => {
  await using stack = await startStack({ networks: [WIDE] });
  await floodOfJobs(stack, 50_000);
});
