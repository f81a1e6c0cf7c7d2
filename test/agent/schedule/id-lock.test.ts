import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { IdLocks } from '#agent/schedule/id-lock.ts';

const soon = (): number => performance.now() + 5_000;

test('work for one id runs in the order it came, other ids meanwhile', async () => {
  const locks = new IdLocks();
  const done: string[] = [];
  const work = (name: string, ms: number) => async (): Promise<void> => {
    await sleep(ms);
    done.push(name);
  };
  await Promise.all([
    locks.take('a', soon(), work('a1', 50)),
    locks.take('a', soon(), work('a2', 0)),
    locks.take('b', soon(), work('b1', 0)),
  ]);
  expect(done).toEqual(['b1', 'a1', 'a2']);
});

test('past sixty-four that wait for an id one is refused, and the order of the others stays', async () => {
  const locks = new IdLocks();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  const done: number[] = [];
  const first = locks.take('a', soon(), () => held);
  const waiting = Array.from({ length: 64 }, (_, n) =>
    locks.take('a', soon(), async () => void done.push(n)),
  );
  await expect(locks.take('a', soon(), async () => {})).rejects.toMatchObject({
    code: 'OVERLOADED',
    retryable: true,
  });
  // Another's, and the agent's own, are not concerned.
  await locks.take('b', soon(), async () => {});
  const own = locks.take('a', Infinity, async () => void done.push(64));
  letGo();
  await Promise.all([first, ...waiting, own]);
  expect(done).toEqual(Array.from({ length: 65 }, (_, n) => n));
  await locks.take('a', soon(), async () => {});
});

test('where the last that waits gives up, the next still waits for the work under way', async () => {
  const locks = new IdLocks();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  let ended = false;
  const first = locks.take('a', soon(), async () => {
    await held;
    ended = true;
  });
  const late = locks.take('a', performance.now() + 10, async () => {});
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  const next = locks.take('a', soon(), async () => ended);
  letGo();
  await first;
  expect(await next).toBe(true);
});

test('one whose deadline passes while it waits does nothing, and holds up nobody', async () => {
  const locks = new IdLocks();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  const first = locks.take('a', soon(), () => held);
  const late = locks.take('a', performance.now() + 10, async () => {
    throw new Error('is not to run');
  });
  const last = locks.take('a', soon(), async () => 'last');
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  letGo();
  await first;
  expect(await last).toBe('last');
});
