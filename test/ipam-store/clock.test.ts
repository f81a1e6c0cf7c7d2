import assert from 'node:assert/strict';
import { Redis } from 'ioredis';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { librarySource } from '#ipam-store/library.ts';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { startRedis } from '#test/support/servers.ts';
import { clockedLibrary, setClock } from './clocked.ts';
import { openLedger, owned, put, ROOT, useStore } from './fixture.ts';
import { fleetOf, forgetMemory, type Member } from './member.ts';

// Somebody sets the clock of the server, or another server has another clock: the ledger's time goes on, from where it
// was.

// Otherwise it waits five seconds before it sends a replica a copy.
const store = useStore(['--repl-diskless-sync-delay', '0']);
const START_MS = 1_800_000_000_000;
const HOURS_MS = 7_200_000;
/** Of everything that waits here: for an address, for the end of a lease, for what a network has left behind. */
const WAIT_SECONDS = 60;
const SMALL = { subnet: '10.46.0.0/30', reuseDelaySeconds: WAIT_SECONDS };

let serverMs = START_MS;
let members: readonly Member[];
/** Every time that the ledger has told. */
let told: number[];

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw, clockedLibrary());
  serverMs = START_MS;
  await setClock(store.raw, serverMs);
  members = await fleetOf(store.ledger, ['h1', 'h2']);
  told = [];
});

afterAll(async () => {
  await store.raw.call('FUNCTION', 'LOAD', 'REPLACE', librarySource());
});

function pair(): [Member, Member] {
  const [one, two] = members;
  assert(one !== undefined && two !== undefined);
  return [one, two];
}

async function step(ms: number): Promise<void> {
  serverMs += ms;
  await setClock(store.raw, serverMs);
  const { nowMs } = await pair()[0].beat();
  told.push(nowMs);
}

/** Time passes, in which h1 is heard. Answers which leases and hosts that has ended. */
async function pass(seconds: number): Promise<{ due: string[]; fallen: string[]; lost: string[] }> {
  const due = new Set<string>();
  const fallen: string[] = [];
  const lost: string[] = [];
  for (let second = 0; second < seconds; second += 5) {
    serverMs += 5_000;
    await setClock(store.raw, serverMs);
    const pulse = await pair()[0].beat();
    told.push(pulse.nowMs);
    for (const { id } of pulse.due) due.add(id);
    fallen.push(...pulse.fallen);
    lost.push(...pulse.reclaimed.map(({ id }) => id));
  }
  return { due: [...due], fallen, lost };
}

/** Both hosts have leases; one is given back, one expires, one was of a network that is deleted. */
async function act(): Promise<NetworkRecord> {
  const [one, two] = pair();
  const record = await one.put(put(store.ledger, { network: 'small', ...SMALL }));
  const kept = { network: 'kept', subnet: '10.47.0.0/24', reclaimAfterSeconds: 30 };
  two.networks.set('kept', await one.put(put(store.ledger, kept)));
  await one.put(put(store.ledger, { network: 'past', ...SMALL, subnet: '10.48.0.0/30' }));
  await drop(one, 'past');
  await store.ledger.deleteNetwork('past');
  one.networks.delete('past');
  await one.acquire(networkOf('kept'), 'expires', { ttlSeconds: WAIT_SECONDS });
  await two.acquire(networkOf('kept'), 'silent');
  for (const member of members) await member.turn();
  await drop(one, 'small');
  await one.acquire(record, 'other');
  return record;
}

const networkOf = (name: string): NetworkRecord => {
  const record = pair()[0].networks.get(name);
  assert(record !== undefined);
  return record;
};

/** Acquires and gives back. */
async function drop(member: Member, network: string): Promise<void> {
  const lease = await member.acquire(networkOf(network), `of-${network}`);
  await store.ledger.release({ ...owned(lease), cool: true });
  member.leases.delete(lease.id);
}

const restart = async (): Promise<void> => {
  await forgetMemory(store.raw, clockedLibrary());
  for (const member of [...members, ...members]) await member.turn();
};

const differences = async (): Promise<unknown[]> => {
  const found: unknown[] = [];
  for await (const difference of store.ledger.audit()) found.push(difference);
  return found;
};

/** By how much the clock is set before, and after, what has to wait. */
const STEPS: readonly [string, number, number][] = [
  ['right', 0, 0],
  ['set back', 0, -HOURS_MS],
  ['ahead, and set back', HOURS_MS, -HOURS_MS],
  ['set back, and put right', -HOURS_MS, HOURS_MS],
  ['set back twice', -HOURS_MS, -HOURS_MS],
];

describe.each(STEPS)('while the clock is %s', (_, before, after) => {
  test.each([[false], [true]])(
    'nothing waits for it, and nothing is early; restarted: %s',
    async (restarted) => {
      const [one] = pair();
      await step(before);
      const record = await act();
      if (restarted) await forgetMemory(store.raw, clockedLibrary());
      await step(after);
      if (restarted) await restart();
      const early = await pass(50);
      expect(early.due).toEqual([]);
      const rest = WAIT_SECONDS - 45;
      await expect(one.acquire(record, 'late')).rejects.toMatchObject({
        code: 'POOL_EXHAUSTED',
        retryAfterMs: expect.toSatisfy((ms: number) => ms > 0 && ms <= rest * 1_000),
      });
      expect(await store.raw.zcard(`${ROOT}:gone:4`)).toBe(1);
      expect(await differences()).toEqual([]);
      const ended = await pass(60);
      expect(ended.due).toEqual(['expires']);
      expect([...early.fallen, ...ended.fallen]).toEqual(['h2']);
      expect([...early.lost, ...ended.lost]).toEqual(['silent']);
      await one.acquire(record, 'late');
      expect(await store.raw.zcard(`${ROOT}:gone:4`)).toBe(0);
      expect(told).toEqual(told.toSorted((a, b) => a - b));
      expect(await differences()).toEqual([]);
    },
  );
});

test('a step back is made good: after twenty hours of it the time is that of the server again', async () => {
  await step(-HOURS_MS);
  for (let minutes = 0; minutes < 20 * 60; minutes += 1) await step(60_000);
  expect(told.at(-1)).toBe(serverMs);
  expect(told).toEqual(told.toSorted((a, b) => a - b));
});

test('a clock that jumps ahead makes nobody suspect, and no suspect lose what may be reclaimed', async () => {
  await act();
  const { fallen } = await pass(40);
  expect(fallen).toEqual(['h2']);
  await step(HOURS_MS);
  expect(await pass(40)).toMatchObject({ fallen: [], lost: [] });
  expect((await pass(60)).lost).toEqual(['silent']);
});

test('a replica with another clock goes on from the time of its master', async () => {
  const copy = await startRedis({ args: ['--replicaof', '127.0.0.1', String(store.server.port)] });
  const raw = new Redis(copy.url);
  try {
    await step(1_000);
    await expect
      .poll(() => raw.hget(`${ROOT}:meta`, 'clockMs'), { timeout: 8_000 })
      .toBe(String(serverMs));
    await raw.replicaof('NO', 'ONE');
    await setClock(raw, serverMs - HOURS_MS);
    const ledger = await openLedger(copy.url);
    const [member] = await fleetOf(ledger, ['h1']);
    expect((await member?.beat())?.nowMs).toBe(serverMs);
    await setClock(raw, serverMs - HOURS_MS + 10_000);
    expect((await member?.beat())?.nowMs).toBe(serverMs + 9_000);
    await ledger.close();
  } finally {
    raw.disconnect();
    await copy.stop();
  }
});

test('a time that nobody can have told is not believed', async () => {
  for (const garbage of ['garbage', '1e300', 'nan', '']) {
    await store.raw.hset(`${ROOT}:meta`, 'clockMs', garbage);
    await restart();
    expect((await pair()[0].beat()).nowMs).toBe(serverMs);
  }
});
