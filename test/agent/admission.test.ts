import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { Admission } from '#agent/admission.ts';

const soon = (): number => performance.now() + 5_000;

test('whoever sends one request is not kept waiting by whoever sends hundreds', async () => {
  const admission = new Admission();
  const begun: string[] = [];
  const pass = (caller: string, name: string): Promise<void> =>
    admission.pass(caller, soon(), async () => void begun.push(name));
  const flood = Array.from({ length: 300 }, (_, n) => pass('flood', `flood ${n}`));
  const others = ['one', 'two'].map((name) => pass(name, name));
  await Promise.all([...flood, ...others]);
  expect(begun.indexOf('one')).toBeLessThan(40);
  expect(begun.indexOf('two')).toBeLessThan(40);
  // Of one caller in order.
  const own = begun.filter((name) => name.startsWith('flood'));
  expect(own).toEqual(Array.from({ length: 300 }, (_, n) => `flood ${n}`));
});

test('between two turns of the event loop no more begin than do not hold it up', async () => {
  const admission = new Admission();
  let begun = 0;
  const all = Array.from({ length: 100 }, () =>
    admission.pass('flood', soon(), async () => void (begun += 1)),
  );
  const perTurn: number[] = [];
  while (begun < 100) {
    const before = begun;
    await nextTurn();
    perTurn.push(begun - before);
  }
  await Promise.all(all);
  expect(Math.max(...perTurn)).toBeLessThanOrEqual(32);
});

test('full, it refuses whoever has more than its share, and nobody else', async () => {
  const admission = new Admission();
  const { promise: held, resolve: letGo } = Promise.withResolvers<void>();
  const flood = Array.from({ length: 1_024 }, () => admission.pass('flood', soon(), () => held));
  const refusal = { code: 'OVERLOADED', retryable: true };
  await expect(admission.pass('flood', soon(), () => held)).rejects.toMatchObject(refusal);
  const other = Array.from({ length: 512 }, () => admission.pass('other', soon(), () => held));
  await expect(admission.pass('other', soon(), () => held)).rejects.toMatchObject(refusal);
  const third = admission.pass('third', soon(), () => held);
  letGo();
  await Promise.all([...flood, ...other, third]);
  await admission.pass('flood', soon(), async () => {});
});

test('what nobody waits for any more is not begun', async () => {
  const admission = new Admission();
  const flood = Array.from({ length: 100 }, () => admission.pass('flood', soon(), async () => {}));
  const late = admission.pass('late', performance.now() - 1, async () => {
    throw new Error('is not to run');
  });
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  await Promise.all(flood);
});
