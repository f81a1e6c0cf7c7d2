import assert from 'node:assert/strict';
import { describe, expect, test } from 'vitest';
import { type Followed, Follower } from '#ipam-store/follower.ts';
import { actionsOn, owned, put, ROOT, until, useStore, VOLT0 } from './fixture.ts';
import { checkFollowing } from './following.ts';
import { fleetOf, forgetMemory, type Member, snapshotOf } from './member.ts';
import type { Patch } from './mutants.ts';

const store = useStore();

/** The same histories each time: whether one of them finds a mistake is no matter of chance. */
const SEED = 1;
const { acquire } = actionsOn(store);

test('a follower ends with what the ledger has, whatever happened', async () => {
  await checkFollowing(store, { histories: 300, longest: 40, withinMs: 8_000 });
});

async function onlyHost(): Promise<Member> {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const [one] = await fleetOf(store.ledger, ['h1']);
  assert(one !== undefined);
  return one;
}

const leasesOf = (follower: Follower): string[] => [...follower.leases.keys()].toSorted();
const followed = async (follower: Follower): Promise<string[]> => {
  follower.nudge();
  await until(() => follower.problem === undefined);
  return leasesOf(follower);
};

test('while the ledger is not armed a follower keeps what it has, and says so', async () => {
  const one = await onlyHost();
  const record = await one.put(put(store.ledger, VOLT0));
  await one.acquire(record, 'a');
  const follower = new Follower({ network: 'volt0', ledger: store.ledger });
  using _stopped = follower;
  follower.start();
  expect(await followed(follower)).toEqual(['a']);
  await store.raw.flushall();
  follower.nudge();
  await until(() => /hears every host/.test(follower.problem ?? ''));
  expect(leasesOf(follower)).toEqual(['a']);
  await one.turn();
  await one.acquire(record, 'b');
  expect(await followed(follower)).toEqual(['a', 'b']);
  expect(follower.revision).toBe(record.revision);
});

test('an entry of an older server is not taken for one of the newer that was read', async () => {
  const one = await onlyHost();
  const record = await one.put(put(store.ledger, VOLT0));
  const [a, b] = [await one.acquire(record, 'a'), await one.acquire(record, 'b')];
  const goBack = await snapshotOf(store.raw);
  const follower = new Follower({ network: 'volt0', ledger: store.ledger });
  using _stopped = follower;
  follower.start();
  await store.ledger.release({ ...owned(a), cool: true });
  expect(await followed(follower)).toEqual(['b']);
  // The counters are the same: nobody can tell that the release is lost.
  await goBack();
  await one.turn();
  await store.ledger.release({ ...owned(b), cool: true });
  expect(await followed(follower)).toEqual(['a']);
});

test('a network without a log, as an earlier library leaves it, is followed from a snapshot on', async () => {
  const record = await put(store.ledger, VOLT0);
  await acquire(record, 'a');
  await store.raw.del(`${ROOT}:net:volt0:log`);
  const follower = new Follower({ network: 'volt0', ledger: store.ledger });
  using _stopped = follower;
  follower.start();
  expect(await followed(follower)).toEqual(['a']);
  await acquire(record, 'b');
  expect(await followed(follower)).toEqual(['a', 'b']);
});

test('what is told while the ledger answers is read, too', async () => {
  const record = await put(store.ledger, VOLT0);
  const differences: string[] = [];
  // The answer is on its way while a lease is granted, and the notice comes.
  const ledger = {
    snapshot: (network: string, cursor?: string) => store.ledger.snapshot(network, cursor),
    readLog: async (network: string, after: string) => {
      const page = await store.ledger.readLog(network, after);
      if (differences.length === 0) {
        differences.push('asked');
        await acquire(record, 'a');
        follower.nudge();
      }
      return page;
    },
  };
  const follower: Follower = new Follower({
    network: 'volt0',
    ledger,
    onChange: ({ set }) => differences.push(...set.map(({ id }) => id)),
  });
  using _stopped = follower;
  follower.start();
  await until(() => follower.problem === undefined && differences.includes('a'));
  expect(differences).toEqual(['asked', 'a']);
});

describe('histories find the mistake, where the library', () => {
  const MISTAKES: readonly [string, Patch][] = [
    [
      'keeps a log to which it could not append',
      ["  if type(added) == 'table' and added.err then", '  if false then'],
    ],
    [
      'takes a log for whole that does not have the entry',
      ['if not (found[1] and found[1][1] == ask.after) then', 'if not found[1] then'],
    ],
    [
      'does not log what is granted',
      [
        "  write_entry(batch.log, generation .. '-' .. batch.now_digits .. '000', CHANGED, ask.id)\n",
        '',
      ],
    ],
    ['does not log edits', ['  append(root, ask.name, now, EDITED, digits(revision))\n', '']],
    ['names nothing as moved', ['if last ~= position or last', 'if false and last']],
  ];

  test.each(MISTAKES)('%s', async (_, patch) => {
    const checked = checkFollowing(store, {
      histories: 400,
      longest: 40,
      mistakes: [patch],
      seed: SEED,
    });
    await expect(checked).rejects.toThrow(/Property failed/);
  });
});

test('who waits until a follower has caught up has all that happened before, or hears why not', async () => {
  const one = await onlyHost();
  const record = await one.put(put(store.ledger, VOLT0));
  const follower = new Follower({ network: 'volt0', ledger: store.ledger });
  using _stopped = follower;
  expect(follower.asOf).toBeUndefined();
  await follower.caughtUp();
  for (const id of ['a', 'b', 'c']) {
    await one.acquire(record, id);
    const before = performance.now();
    const waiting = [follower.caughtUp(), follower.caughtUp()];
    await Promise.all(waiting);
    expect(leasesOf(follower)).toContain(id);
    expect(follower.asOf).toBeGreaterThanOrEqual(before);
  }
  // No refusal: the leases are read anew.
  await store.raw.del(`${ROOT}:net:volt0:log`);
  await follower.caughtUp();
  expect(leasesOf(follower)).toEqual(['a', 'b', 'c']);

  const { asOf, position } = follower;
  follower.confirm({ position: '1-1', at: performance.now() });
  expect(follower.asOf).toBe(asOf);
  follower.confirm({ position, at: performance.now() });
  const confirmed = follower.asOf;
  expect(confirmed).toBeGreaterThan(Number(asOf));
  await forgetMemory(store.raw);
  await store.raw.flushall();
  // The second is not made to wait for the next try.
  for (const _ of ['first', 'second']) {
    await expect(follower.caughtUp()).rejects.toMatchObject({ code: 'RECOVERING' });
  }
  follower.confirm({ position, at: performance.now() });
  expect(follower.asOf).toBe(confirmed);
});

test('an answer that was on its way before is not all that has happened', async () => {
  const one = await onlyHost();
  const record = await one.put(put(store.ledger, VOLT0));
  const [arrived, released] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  let isSlow = false;
  const slow: Followed = {
    snapshot: (network, cursor) => store.ledger.snapshot(network, cursor),
    readLog: async (network, after) => {
      const page = await store.ledger.readLog(network, after);
      if (isSlow) arrived.resolve();
      if (isSlow) await released.promise;
      return page;
    },
  };
  const follower = new Follower({ network: 'volt0', ledger: slow });
  using _stopped = follower;
  await follower.caughtUp();
  isSlow = true;
  follower.nudge();
  await arrived.promise;
  await one.acquire(record, 'a');
  const waiting = follower.caughtUp();
  released.resolve();
  await waiting;
  expect(leasesOf(follower)).toEqual(['a']);
});
