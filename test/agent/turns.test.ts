import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Turns } from '#agent/turns.ts';

const soon = (): number => performance.now() + 5_000;

test('work for one id runs in the order it came, other ids meanwhile', async () => {
  const turns = new Turns();
  const done: string[] = [];
  const work = (name: string, ms: number) => async (): Promise<void> => {
    await sleep(ms);
    done.push(name);
  };
  await Promise.all([
    turns.take('a', soon(), work('a1', 50)),
    turns.take('a', soon(), work('a2', 0)),
    turns.take('b', soon(), work('b1', 0)),
  ]);
  expect(done).toEqual(['b1', 'a1', 'a2']);
});

test('past sixty-four that wait for an id one is refused, and the order of the others stays', async () => {
  const turns = new Turns();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  const done: number[] = [];
  const first = turns.take('a', soon(), () => held);
  const waiting = Array.from({ length: 64 }, (_, n) =>
    turns.take('a', soon(), async () => void done.push(n)),
  );
  await expect(turns.take('a', soon(), async () => {})).rejects.toMatchObject({
    code: 'OVERLOADED',
    retryable: true,
  });
  // Another's, and the agent's own, are not concerned.
  await turns.take('b', soon(), async () => {});
  const own = turns.take('a', Infinity, async () => void done.push(64));
  letGo();
  await Promise.all([first, ...waiting, own]);
  expect(done).toEqual(Array.from({ length: 65 }, (_, n) => n));
  await turns.take('a', soon(), async () => {});
});

test('where the last that waits gives up, the next still waits for the work under way', async () => {
  const turns = new Turns();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  let ended = false;
  const first = turns.take('a', soon(), async () => {
    await held;
    ended = true;
  });
  const late = turns.take('a', performance.now() + 10, async () => {});
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  const next = turns.take('a', soon(), async () => ended);
  letGo();
  await first;
  expect(await next).toBe(true);
});

test('one whose deadline passes while it waits does nothing, and holds up nobody', async () => {
  const turns = new Turns();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  const first = turns.take('a', soon(), () => held);
  const late = turns.take('a', performance.now() + 10, async () => {
    throw new Error('is not to run');
  });
  const last = turns.take('a', soon(), async () => 'last');
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  letGo();
  await first;
  expect(await last).toBe('last');
});
