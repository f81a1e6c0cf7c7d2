import { AsyncLocalStorage } from 'node:async_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Stretches } from '#agent/schedule/stretches.ts';

function hold(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

test('one that comes alone runs at once', () => {
  const stretches = new Stretches();
  let ran = false;
  void stretches.run(() => (ran = true));
  expect(ran).toBe(true);
});

test('in one turn of the event loop no more run than take their time, first come first', async () => {
  const stretches = new Stretches({ turnMs: 4 });
  const ran: number[] = [];
  const all = Promise.all(
    Array.from({ length: 20 }, (_, n) =>
      stretches.run(() => {
        hold(1.5);
        ran.push(n);
      }),
    ),
  );
  const perTurn = [ran.length];
  while (ran.length < 20) {
    const before = ran.length;
    await nextTurn();
    perTurn.push(ran.length - before);
  }
  await all;
  // Three take 4.5 ms. Two turns of the loop may pass between two looks.
  expect(Math.max(...perTurn)).toBeLessThanOrEqual(6);
  expect(perTurn[0]).toBeLessThanOrEqual(3);
  expect(ran).toEqual(Array.from({ length: 20 }, (_, n) => n));
});

test('without a limit of its own each still has a turn', async () => {
  const stretches = new Stretches({ turnMs: 0 });
  let ran = 0;
  const all = Promise.all(
    Array.from({ length: 5 }, () =>
      stretches.run(() => {
        hold(0.01);
        ran += 1;
      }),
    ),
  );
  expect(ran).toBe(1);
  await all;
  expect(ran).toBe(5);
});

test('is crowded while a turn’s worth waits', async () => {
  const stretches = new Stretches({ turnMs: 0 });
  const all = Array.from({ length: 6 }, () => stretches.run(() => hold(0.01)));
  expect(stretches.crowded).toBe(true);
  await Promise.all(all);
  expect(stretches.crowded).toBe(false);
});

test('an error goes to whoever asked, and holds up nobody', async () => {
  const stretches = new Stretches({ turnMs: 0 });
  const fail = (): never => {
    hold(0.01);
    throw new Error('refused');
  };
  const outcomes = await Promise.allSettled([
    stretches.run(fail),
    stretches.run(fail),
    stretches.run(() => 'made'),
  ]);
  expect(outcomes).toMatchObject([
    { reason: new Error('refused') },
    { reason: new Error('refused') },
    { value: 'made' },
  ]);
});

test('one that waited runs in the trace of whoever asked for it', async () => {
  const stretches = new Stretches({ turnMs: 0 });
  const trace = new AsyncLocalStorage<string>();
  const seen = await Promise.all(
    ['one', 'two', 'three'].map((name) =>
      trace.run(name, () =>
        stretches.run(() => {
          hold(0.01);
          return trace.getStore();
        }),
      ),
    ),
  );
  expect(seen).toEqual(['one', 'two', 'three']);
});
