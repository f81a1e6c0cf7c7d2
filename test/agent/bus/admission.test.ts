import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { Admission, type LaneName } from '#agent/bus/admission.ts';

const soon = (): number => performance.now() + 5_000;

const change = <T>(
  admission: Admission,
  caller: string,
  deadline: number,
  work: () => Promise<T>,
): Promise<T> => admission.passIn('change', { caller, deadline }, work);

test('whoever sends one request is not kept waiting by whoever sends hundreds', async () => {
  const admission = new Admission();
  const begun: string[] = [];
  const pass = (caller: string, name: string): Promise<void> =>
    change(admission, caller, soon(), async () => void begun.push(name));
  const flood = Array.from({ length: 300 }, (_, n) => pass('flood', `flood ${n}`));
  const others = ['one', 'two'].map((name) => pass(name, name));
  await Promise.all([...flood, ...others]);
  expect(begun.indexOf('one')).toBeLessThan(40);
  expect(begun.indexOf('two')).toBeLessThan(40);
  // Of one caller in order.
  const own = begun.filter((name) => name.startsWith('flood'));
  expect(own).toEqual(Array.from({ length: 300 }, (_, n) => `flood ${n}`));
});

test("a caller's attach does not wait for the detaches sent before, unless it is for the same attachment", async () => {
  const admission = new Admission();
  const begun: string[] = [];
  const pass = (operation: string, id: string): Promise<void> => {
    const about = () => ({ operation, id });
    return admission.passIn('change', { caller: 'one', deadline: soon(), about }, async () => {
      begun.push(`${operation} ${id}`);
    });
  };
  const drain = Array.from({ length: 300 }, (_, n) => pass('detach', `a${n}`));
  const others = [pass('attach', 'new'), pass('attach', 'a299'), pass('update', 'a200')];
  const last = pass('detach', 'a299');
  await Promise.all([...drain, ...others, last]);
  expect(begun.indexOf('attach new')).toBeLessThan(20);
  expect(begun.filter((one) => one.endsWith(' a299'))).toEqual([
    'detach a299',
    'attach a299',
    'detach a299',
  ]);
  expect(begun.indexOf('update a200')).toBeGreaterThan(begun.indexOf('detach a200'));
  expect(begun).toHaveLength(304);
});

test('between two turns of the event loop no more begin than do not hold it up', async () => {
  const admission = new Admission();
  let begun = 0;
  const all = Array.from({ length: 100 }, () =>
    change(admission, 'flood', soon(), async () => void (begun += 1)),
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
  const flood = Array.from({ length: 1_024 }, () => change(admission, 'flood', soon(), () => held));
  await expect(change(admission, 'flood', soon(), () => held)).rejects.toMatchObject(refusal);
  const other = Array.from({ length: 512 }, () => change(admission, 'other', soon(), () => held));
  await expect(change(admission, 'other', soon(), () => held)).rejects.toMatchObject(refusal);
  const third = change(admission, 'third', soon(), () => held);
  letGo();
  await Promise.all([...flood, ...other, third]);
  await change(admission, 'flood', soon(), async () => {});
});

test('what nobody waits for any more is not begun', async () => {
  const admission = new Admission();
  const flood = Array.from({ length: 100 }, () =>
    change(admission, 'flood', soon(), async () => {}),
  );
  const late = change(admission, 'late', performance.now() - 1, async () => {
    throw new Error('is not to run');
  });
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  await Promise.all(flood);
});

/** Work that goes on until it is let go, and counts how much of it is under way. */
function endless() {
  const { promise, resolve } = Promise.withResolvers<void>();
  const state = { underWay: 0, most: 0 };
  const work = async (): Promise<void> => {
    state.underWay += 1;
    state.most = Math.max(state.most, state.underWay);
    await promise;
    state.underWay -= 1;
  };
  return { work, state, letGo: resolve };
}

const refusal = { code: 'OVERLOADED', retryable: true };

/** So many turns of the event loop. */
const turns = async (count: number): Promise<void> => {
  for (let n = 0; n < count; n += 1) await nextTurn();
};

describe('callers that pass themselves off as very many', () => {
  const caller = (n: number) => ({ caller: `inbox-${n}`, deadline: soon() });

  test('fill the lane of what they ask for and no other', async () => {
    const admission = new Admission();
    const { work, state, letGo } = endless();
    const flood = Array.from({ length: 256 }, (_, n) => admission.passIn('list', caller(n), work));
    await expect(admission.passIn('list', caller(256), work)).rejects.toMatchObject(refusal);
    await turns(10);
    const other = { caller: 'other', deadline: soon() };
    for (const lane of ['change', 'read', 'dry-run', 'check', 'leases'] as const) {
      await admission.passIn(lane, other, async () => {});
    }
    expect(state.most).toBe(1);
    letGo();
    await Promise.all(flood);
    await admission.passIn('list', other, async () => {});
  });

  test('are refused as everybody is once there are too many to be served in time', async () => {
    const admission = new Admission();
    const { work, letGo } = endless();
    const pass = (n: number) => admission.passIn('change', caller(n), work);
    const flood = Array.from({ length: 2_048 }, (_, n) => pass(n));
    await expect(pass(2_048)).rejects.toMatchObject(refusal);
    letGo();
    await Promise.all(flood);
    await admission.passIn('change', caller(0), async () => {});
  });
});

test('changes begin before reads, reads before what is expensive, and none of them never', async () => {
  const admission = new Admission();
  const begun: string[] = [];
  const many = (lane: LaneName, count: number) =>
    Array.from({ length: count }, (_, n) =>
      admission.passIn(lane, { caller: `${lane} ${n}`, deadline: soon() }, async () => {
        begun.push(lane);
      }),
    );
  const all = [...many('list', 100), ...many('read', 200), ...many('change', 200)];
  await Promise.all(all);
  const lastOf = (lane: LaneName): number => begun.lastIndexOf(lane);
  const before = (lane: LaneName, at: number): number =>
    begun.slice(0, at).filter((one) => one === lane).length;
  expect(lastOf('change')).toBeLessThan(lastOf('read'));
  // Two in each turn, and one of the expensive ones.
  expect(before('read', lastOf('change'))).toBeGreaterThan(20);
  expect(before('list', lastOf('change'))).toBeGreaterThan(5);
  expect(before('list', lastOf('change'))).toBeLessThan(100);
});

test('expensive ones begin one in a turn of the event loop, kinds in turn, and callers within a kind', async () => {
  const admission = new Admission();
  const begun: string[] = [];
  const pass = (lane: LaneName, caller: string) =>
    admission.passIn(lane, { caller, deadline: soon() }, async () => {
      begun.push(`${lane} ${caller}`);
    });
  const all = [
    pass('list', 'flood'),
    pass('list', 'flood'),
    pass('list', 'flood'),
    pass('list', 'other'),
    pass('leases', 'other'),
  ];
  expect(begun).toEqual([]);
  const perTurn: number[] = [];
  for (let n = 0; n < 8; n += 1) {
    const before = begun.length;
    await nextTurn();
    perTurn.push(begun.length - before);
  }
  await Promise.all(all);
  expect(Math.max(...perTurn)).toBe(1);
  expect(begun).toEqual(['list flood', 'leases other', 'list other', 'list flood', 'list flood']);
});

test('one that waits for an expensive one longer than its caller is not begun, and holds up nobody', async () => {
  const admission = new Admission();
  const { work, letGo } = endless();
  const first = admission.passIn('list', { caller: 'one', deadline: soon() }, work);
  const short = { caller: 'two', deadline: performance.now() + 5 };
  const late = admission.passIn('list', short, async () => {
    throw new Error('is not to run');
  });
  const next = admission.passIn('list', { caller: 'three', deadline: soon() }, async () => 'done');
  await sleep(10);
  letGo();
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  expect(await next).toBe('done');
  await first;
});

describe('a request that turns out dearer than it looked', () => {
  test('waits anew, and leaves its place to others', async () => {
    const admission = new Admission();
    const { work, state, letGo } = endless();
    const caller = { caller: 'one', deadline: soon() };
    const moved = Array.from({ length: 20 }, () =>
      admission.passIn('change', caller, async (move) => {
        await move('dry-run');
        await work();
      }),
    );
    await turns(30);
    expect(state.underWay).toBe(4);
    letGo();
    await Promise.all(moved);
  });

  test('is refused where that lane is full, and both are as they were', async () => {
    const admission = new Admission();
    const { work, letGo } = endless();
    const caller = (n: number) => ({ caller: `inbox-${n}`, deadline: soon() });
    const full = Array.from({ length: 256 }, (_, n) =>
      admission.passIn('dry-run', caller(n), work),
    );
    const refused = Array.from({ length: 3_000 }, async (_, n) => {
      await turns(n % 50);
      return admission.passIn('change', caller(n), (move) => move('dry-run'));
    });
    const outcomes = await Promise.allSettled(refused);
    expect(outcomes.every(({ status }) => status === 'rejected')).toBe(true);
    await Promise.all(
      Array.from({ length: 1_024 }, () => change(admission, 'one', soon(), async () => {})),
    );
    letGo();
    await Promise.all(full);
  });
});

test('while enough changes wait for their kernel work no more begin, and reads do', async () => {
  let crowded = true;
  const admission = new Admission({ crowded: () => crowded });
  const begun: string[] = [];
  const pass = (lane: LaneName): Promise<void> =>
    admission.passIn(lane, { caller: 'one', deadline: soon() }, async () => void begun.push(lane));
  const all = [pass('change'), pass('change'), pass('read')];
  await all[2];
  for (let turn = 0; turn < 5; turn += 1) await nextTurn();
  expect(begun).toEqual(['read']);
  crowded = false;
  await Promise.all(all);
  expect(begun).toEqual(['read', 'change', 'change']);
});
