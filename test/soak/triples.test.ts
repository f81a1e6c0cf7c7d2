import { afterAll, beforeAll, test } from 'vitest';
import { DISTURBANCES, DisturbedHost } from '../support/disturbances.ts';

let host: DisturbedHost;

beforeAll(async () => {
  host = await DisturbedHost.start();
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
});

for (const first of DISTURBANCES) {
  for (const second of DISTURBANCES) {
    test(`${first}, ${second}, and anything after them, ends in agreement`, async () => {
      for (const third of DISTURBANCES) await host.endure([first, second, third]);
    });
  }
}
