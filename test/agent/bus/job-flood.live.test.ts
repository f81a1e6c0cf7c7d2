import { test } from 'vitest';
import { floodOfJobs } from '../../support/job-flood.ts';
import { startStack } from '../../support/stack.ts';

// `npm run test:soak` does the same with 100,000 requests.

const WIDE = { network: 'volt0', subnet: '10.42.0.0/16', gateway: '10.42.0.1' };

test('2,000 jobs, some twice and out of order, while NATS is killed three times, are done once each', async () => {
  await using stack = await startStack({ networks: [WIDE] });
  await floodOfJobs(stack, 1_000);
}, 300_000);
