import { afterAll, beforeAll, test } from 'vitest';
import { DISTURBANCES, DisturbedHost } from '../../../support/disturbances.ts';

let host: DisturbedHost;

beforeAll(async () => {
  host = await DisturbedHost.start();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

for (const first of DISTURBANCES) {
  test(`${first}, and anything after it, ends in agreement`, async () => {
    for (const second of DISTURBANCES) await host.endure([first, second]);
  });
}
