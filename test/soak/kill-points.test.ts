import { afterAll, beforeAll, test } from 'vitest';
import { FatedHost, OPERATIONS, SUBJECT_NAMES } from '../support/kill-points.ts';
import { REFUSALS } from '../support/strace.ts';

let host: FatedHost;

beforeAll(async () => {
  host = await FatedHost.start();
});
afterAll(() => host[Symbol.asyncDispose]());

for (const name of SUBJECT_NAMES) {
  for (const operation of OPERATIONS) {
    for (const fate of ['signal=SIGKILL', ...REFUSALS] as const) {
      test(`${operation} of ${name}: ${fate} at every system call`, async () => {
        for (const point of await host.pointsOf(name, operation)) {
          if (FatedHost.canBefall(point, fate)) await host.endure(name, operation, { point, fate });
        }
      });
    }
  }
}
