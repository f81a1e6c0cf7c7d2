import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, test, vi } from 'vitest';
import { createLog } from '#agent/log.ts';
import { type QueuedDryRun, DryRuns } from '#agent/host/networks/dry-runs.ts';
import { VoltError } from '#protocol/errors.ts';
import { parseNetwork } from '#protocol/network.ts';

// The life of the thread that does dry runs; what it does there, dry-run.live.test.ts has.

const FILE = new URL('../../support/dry-run-thread.ts', import.meta.url);
const opened: DryRuns[] = [];

function open(options: { idleMs?: number; stuckMs?: number } = {}): DryRuns {
  const settings = { host: 'h1', nftablesTable: 'volt' };
  const log = createLog('silent', 'h1');
  const made = new DryRuns({ settings, log, file: FILE, ...options });
  opened.push(made);
  return made;
}

afterEach(async () => {
  await Promise.all(opened.splice(0).map((one) => one.close()));
});

const order = (deviceName: string): QueuedDryRun => ({
  request: { id: 'a', workload: 'vm-a', kind: 'vm', network: 'volt0' },
  network: parseNetwork({ network: 'volt0', subnet: '10.42.0.0/24' }),
  lease: {
    id: 'a',
    generation: 1,
    network: 'volt0',
    workload: 'vm-a',
    kind: 'vm',
    host: 'h1',
    bootId: 'boot',
    mac: '02:00:00:00:00:01',
    addresses: ['10.42.0.2/24'],
    grantedAt: '2026-01-01T00:00:00.000Z',
  },
  deviceName,
  knowsBridge: false,
});

const threadOf = async (dryRuns: DryRuns): Promise<string> => {
  const [operation] = await dryRuns.dryRun(order('tap'), Infinity);
  return operation?.subject ?? '';
};

test('one thread does all, and is ended when it has had nothing to do for a while', async () => {
  const dryRuns = open({ idleMs: 100 });
  const first = await threadOf(dryRuns);
  expect(await Promise.all([threadOf(dryRuns), threadOf(dryRuns)])).toEqual([first, first]);
  const another = async (): Promise<void> => {
    await sleep(150);
    expect(await threadOf(dryRuns)).not.toBe(first);
  };
  await vi.waitFor(another, { timeout: 60_000 });
});

test.each(['dies', 'exits'])(
  'one that %s is replaced, and its caller may ask again',
  async (how) => {
    const dryRuns = open();
    const first = await threadOf(dryRuns);
    const failed = dryRuns.dryRun(order(how), Infinity);
    await expect(failed).rejects.toMatchObject({ code: 'INTERNAL', retryable: true });
    expect(await threadOf(dryRuns)).not.toBe(first);
  },
);

test('an answer that is none is an error, and the next is heard', async () => {
  const dryRuns = open();
  await expect(dryRuns.dryRun(order('answers-nonsense'), Infinity)).rejects.toThrow(
    'unexpected answer',
  );
  expect(await threadOf(dryRuns)).toMatch(/^\d+$/);
});

test('a caller waits no longer than his deadline; the next one waits for the thread', async () => {
  const dryRuns = open();
  const first = await threadOf(dryRuns);
  const late = { code: 'DEADLINE_EXCEEDED', retryable: true };
  const short = dryRuns.dryRun(order('sleeps'), performance.now() + 50);
  const shorter = dryRuns.dryRun(order('tap'), performance.now() + 50);
  await expect(short).rejects.toMatchObject(late);
  await expect(shorter).rejects.toMatchObject(late);
  expect(await threadOf(dryRuns)).toBe(first);
});

/** Asks again whoever says that he may be asked again. */
async function answerOf(dryRuns: DryRuns): Promise<string> {
  for (;;) {
    const answer = await threadOf(dryRuns).catch((error: unknown) => error);
    if (typeof answer === 'string') return answer;
    if (!(answer instanceof VoltError && answer.retryable)) throw answer;
    await sleep(10);
  }
}

test('one that is stuck is given up', async () => {
  // Longer than a thread takes to start on a busy machine, as a rule.
  const dryRuns = open({ stuckMs: 3_000 });
  const first = await answerOf(dryRuns);
  await expect(dryRuns.dryRun(order('is-stuck'), Infinity)).rejects.toMatchObject({
    code: 'DEADLINE_EXCEEDED',
  });
  // While it is still there, nobody starts another: threads that are stuck do not add up.
  const next = await answerOf(dryRuns);
  expect(next).not.toBe(first);
});

test('closed, it leaves no thread, and may be used again', async () => {
  const dryRuns = open();
  const first = await threadOf(dryRuns);
  await dryRuns.close();
  await dryRuns.close();
  expect(await threadOf(dryRuns)).not.toBe(first);
});
