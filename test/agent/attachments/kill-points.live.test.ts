import { afterAll, beforeAll, test } from 'vitest';
import { FatedHost, OPERATIONS, SUBJECT_NAMES } from '../../support/kill-points.ts';
import { REFUSALS } from '../../support/strace.ts';

// Some points of each request, other ones from type to type; all of them are in the soak.

const KILLS = 4;

let host: FatedHost;

beforeAll(async () => {
  host = await FatedHost.start();
});
afterAll(() => host[Symbol.asyncDispose]());

for (const [nth, name] of SUBJECT_NAMES.entries()) {
  for (const operation of OPERATIONS) {
    test(`${operation} of ${name}: an agent that is killed midway, or refused something, leaves no trace`, async () => {
      const points = await host.pointsOf(name, operation);
      const at = (part: number): (typeof points)[number] | undefined =>
        points[Math.floor(part * points.length)];
      for (let n = 0; n < KILLS; n += 1) {
        const point = at((n + (nth + 1) / (SUBJECT_NAMES.length + 1)) / KILLS);
        if (point !== undefined) {
          await host.endure(name, operation, { point, fate: 'signal=SIGKILL' });
        }
      }
      for (const [n, fate] of REFUSALS.entries()) {
        const refusable = points.filter((point) => FatedHost.canBefall(point, fate));
        const point = refusable[(nth * 7 + n * 5) % refusable.length];
        if (point !== undefined) await host.endure(name, operation, { point, fate });
      }
    });
  }
}
