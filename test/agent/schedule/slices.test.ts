import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { SharedRun } from '#agent/schedule/shared-run.ts';
import { Slices } from '#agent/schedule/slices.ts';
import { atOnce, type Steps } from '#native/steps.ts';

const soon = (): number => performance.now() + 5_000;

/** Counts to so much; a step takes so long. */
function* count(to: number, stepMs = 0, note: (n: number) => void = () => {}): Steps<number> {
  try {
    for (let n = 0; n < to; n += 1) {
      yield;
      const end = performance.now() + stepMs;
      while (performance.now() < end);
      note(n);
    }
  } finally {
    note(-1);
  }
  return to;
}

test('work in steps comes to the same at once and in slices', async () => {
  expect(atOnce(count(1_000))).toBe(1_000);
  expect(await new Slices().run(count(1_000))).toBe(1_000);
});

test('of several pieces of long work one slice is done in a turn of the event loop', async () => {
  const slices = new Slices({ sliceMs: 2 });
  let steps = 0;
  const all = ['one', 'two', 'three'].map(() => slices.run(count(20, 1, () => (steps += 1))));
  let over = false;
  const done = Promise.all(all).then(() => (over = true));
  const perTurn: number[] = [];
  while (!over) {
    const before = steps;
    await nextTurn();
    perTurn.push(steps - before);
  }
  await done;
  // As many steps as take two milliseconds, and the last one's end: three slices would be six and more.
  expect(Math.max(...perTurn)).toBeLessThanOrEqual(4);
});

test('while something comes first, work goes on all the same, with pauses', async () => {
  let first = true;
  const slices = new Slices({ sliceMs: 0, comesFirst: () => first });
  let steps = 0;
  const work = slices.run(count(200, 0, () => (steps += 1)));
  // On a busy machine a turn may be as long as a pause.
  const started = performance.now();
  for (let n = 0; n < 50; n += 1) await nextTurn();
  expect(steps).toBeLessThanOrEqual((performance.now() - started) / 5);
  await vi.waitFor(() => expect(steps).toBeGreaterThan(0), { timeout: 30_000 });
  first = false;
  expect(await work).toBe(200);
});

test('work that nobody waits for any more ends, and closes what it has open', async () => {
  const slices = new Slices({ sliceMs: 0 });
  const seen: number[] = [];
  const over = new AbortController();
  const work = slices.run(
    count(1_000, 0, (n) => {
      seen.push(n);
      if (n === 5) over.abort();
    }),
    { signal: over.signal },
  );
  await expect(work).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
  expect(seen).toEqual([0, 1, 2, 3, 4, 5, -1]);
  const late = slices.run(count(1), { deadline: performance.now() - 1 });
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_EXCEEDED' });
});

test('a step that throws ends its own work and no other', async () => {
  const slices = new Slices();
  const broken = slices.run(
    count(3, 0, (n) => {
      if (n === 1) throw new Error('no');
    }),
  );
  const other = slices.run(count(3));
  await expect(broken).rejects.toThrow('no');
  expect(await other).toBe(3);
});

test('whoever asks while work is under way shares the next run, one at a time', async () => {
  const runs: { readonly key: string; readonly end: (answer: string) => void }[] = [];
  const joint = new SharedRun<string, string>((key) => {
    return new Promise((resolve) => {
      runs.push({ key, end: resolve });
    });
  });
  const first = joint.ask('a', soon());
  await nextTurn();
  const [second, third, other] = [
    joint.ask('a', soon()),
    joint.ask('a', soon()),
    joint.ask('b', soon()),
  ];
  await nextTurn();
  expect(runs.map(({ key }) => key)).toEqual(['a']);
  runs[0]?.end('1');
  expect(await first).toBe('1');
  await nextTurn();
  expect(runs.map(({ key }) => key)).toEqual(['a', 'a']);
  runs[1]?.end('2');
  expect(await Promise.all([second, third])).toEqual(['2', '2']);
  await nextTurn();
  expect(runs.map(({ key }) => key)).toEqual(['a', 'a', 'b']);
  runs[2]?.end('3');
  expect(await other).toBe('3');
});

test('a run goes on while somebody waits for it, and is not begun where nobody does', async () => {
  const signals: AbortSignal[] = [];
  const joint = new SharedRun<string, string>((_, signal) => {
    signals.push(signal);
    return new Promise((_resolve, reject) => {
      signal.addEventListener('abort', () => reject(new Error('over')));
    });
  });
  const short = joint.ask('a', performance.now() + 10);
  await nextTurn();
  const never = joint.ask('a', performance.now() + 5);
  const gone = { code: 'DEADLINE_EXCEEDED' };
  await expect(never).rejects.toMatchObject(gone);
  expect(signals[0]?.aborted).toBe(false);
  await expect(short).rejects.toMatchObject(gone);
  expect(signals[0]?.aborted).toBe(true);
  await nextTurn();
  expect(signals).toHaveLength(1);
  // One that failed is nobody's hindrance.
  await expect(joint.ask('a', performance.now() + 5)).rejects.toMatchObject(gone);
  expect(signals).toHaveLength(2);
});
