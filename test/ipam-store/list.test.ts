import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, beatOf, put, refused, ROOT, useStore, VOLT0 } from './fixture.ts';
import { fleetOf, forgetMemory, heard, Member } from './member.ts';

// The list of hosts, which agents keep so that a server that was emptied knows whom to wait for: told as changes, told
// back when it is lost.

const store = useStore();
const RECOVERING = { code: 'RECOVERING' };

let one: Member;
let two: Member;
let three: Member;
let record: NetworkRecord;

beforeEach(async () => {
  await emptied();
  const [first, second, third] = await fleetOf(store.ledger, ['h1', 'h2', 'h3']);
  assert(first !== undefined && second !== undefined && third !== undefined);
  [one, two, three] = [first, second, third];
  record = await one.put(put(store.ledger, VOLT0));
  for (const member of [one, two, three]) await member.turn();
});

async function emptied(): Promise<void> {
  await store.raw.flushall();
  await forgetMemory(store.raw);
}

/** Hosts that only say that they live. */
async function crowd(count: number, more: Parameters<typeof beatOf>[1] = {}): Promise<void> {
  const beats = Array.from({ length: count }, (_, n) => beatOf(`c${n}`, more));
  for (const { host, machineId, epoch } of await Promise.all(
    beats.map(async (beat) => ({ ...beat, ...(await store.ledger.heartbeat(beat)) })),
  )) {
    await store.ledger.reassert({ host, machineId, epoch }, { networks: [], leases: [] });
  }
}

/** More hosts than are told of at once, which join a fleet of a thousand. */
async function joining(): Promise<Member[]> {
  await crowd(1_000);
  for (let turns = 0; turns < 4; turns += 1) await one.beat();
  return Array.from({ length: 60 }, (_, n) => new Member(store.ledger, `n${n}`));
}

const listed = async (): Promise<string[]> =>
  (await store.raw.zrange(`${ROOT}:hosts`, '0', '-1')).toSorted();

const grantsNothing = async (): Promise<void> => {
  const thief = (): Promise<unknown> => store.ledger.acquire(askFor(record, 'thief'));
  expect(await refused(store.raw, thief)).toMatchObject(RECOVERING);
};

describe('what a host is told', () => {
  test('is what has changed: who came, who fell silent, who was forgotten', async () => {
    await store.ledger.heartbeat(beatOf('h4'));
    const came = await one.beat();
    expect(came.list?.changes).toEqual([['h4', true]]);
    await store.ledger.heartbeat(beatOf('h4', { suspectAfterSeconds: 0.01 }));
    await sleep(20);
    await store.ledger.forgetHost('h4');
    const went = await one.beat();
    expect(went.list?.changes).toEqual([['h4', false]]);
    expect((await one.beat()).list).toBeUndefined();
    expect(one.seen.hosts.toSorted()).toEqual(await listed());
  });

  test('is as long in a large fleet as in a small one', async () => {
    const length = async (): Promise<number> => {
      const { host, machineId, bootId } = beatOf('h1');
      const seen = { generation: '0', revision: 0, roster: 0, digest: 0 };
      const ask = JSON.stringify({ host, machineId, bootId, suspectMs: 9_000, seen });
      const answer = await store.raw.call('FCALL', 'volt1_heartbeat', '1', ROOT, ask);
      return String(answer).length;
    };
    await crowd(40);
    const small = await length();
    await crowd(400);
    expect(Math.abs((await length()) - small)).toBeLessThan(20);
  });

  test('is read where it is more than an answer holds, and all of it where the ledger has forgotten', async () => {
    await crowd(700);
    expect((await one.beat()).behind).toBe(true);
    expect(one.seen.hosts.toSorted()).toEqual(await listed());
    // Trimmed: what has changed since is not known any more.
    const roster = (await store.raw.hget(`${ROOT}:meta`, 'roster')) ?? '';
    await store.raw.hset(`${ROOT}:meta`, 'changedFrom', roster);
    await two.beat();
    expect(two.seen.hosts.toSorted()).toEqual(await listed());
    // Vanished: the digest tells.
    await store.raw.del(`${ROOT}:changed`);
    await store.raw.hset(`${ROOT}:meta`, 'changedFrom', '0');
    await three.beat();
    expect(three.seen.hosts.toSorted()).toEqual(await listed());
  });

  test('is read by a few hosts at a time where it is long, and by whoever has to vouch at once', async () => {
    const newcomers = await joining();
    const turns = await Promise.all(newcomers.map(async (member) => (await member.beat()).behind));
    const readers = turns.filter(Boolean).length;
    expect(readers).toBeGreaterThan(0);
    // Turns are given by time: how many fit in is a matter of how fast the heartbeats are answered.
    expect(readers).toBeLessThan(newcomers.length);
    expect(await one.beat()).toMatchObject({ vouch: true, behind: true });
    while (newcomers.some(({ seen }) => seen.hosts.length < 1_063)) {
      await Promise.all(newcomers.map((member) => member.beat()));
    }
    expect(newcomers[0]?.seen.hosts.toSorted()).toEqual(await listed());
  });

  test('is all of the list where it has another one of the same roster', async () => {
    one.seen = { ...one.seen, hosts: [...one.seen.hosts, 'x9'] };
    expect((await one.beat()).behind).toBe(true);
    expect(one.seen.hosts.toSorted()).toEqual(await listed());
  });
});

describe('hosts that join', () => {
  test('a thousand at once are vouched for by one that has read the list, which is asked to', async () => {
    await crowd(1_000);
    const asked = await one.beat();
    expect(asked.vouch).toBe(true);
    // One at a time.
    expect((await two.beat()).vouch).toBe(false);
    await one.beat();
    const { cursor, hosts } = await store.ledger.listHosts({ limit: 2_000 });
    expect(hosts.filter(({ state }) => state !== 'live')).toEqual([]);
    expect(cursor).toBeDefined();
    const ask = askFor(record, 'a', { host: 'c999' });
    expect((await store.ledger.acquire(ask)).created).toBe(true);
  });

  test('are not vouched for by a list of another history', async () => {
    const four = new Member(store.ledger, 'h4');
    await four.turn();
    const roster = Number(await store.raw.hget(`${ROOT}:meta`, 'roster'));
    await store.ledger.heartbeat(beatOf('h1', { seen: { ...one.seen, roster } }));
    expect((await four.beat()).mayAcquire).toBe(false);
    await one.beat();
    await one.beat();
    expect((await four.beat()).mayAcquire).toBe(true);
  });

  test('are waited for by way of the one that has vouched, also when that has died', async () => {
    const four = new Member(store.ledger, 'h4');
    await four.turn();
    await two.turn();
    await four.turn();
    await four.acquire(record, 'of-h4');
    await emptied();
    // Neither has seen h4; h2, which has, does not come back.
    for (const member of [one, three, one, three]) await member.turn();
    await grantsNothing();
    expect(await one.beat()).toMatchObject({ state: 'recovering', awaiting: ['h2'] });
    await four.turn();
    await grantsNothing();
    expect(await store.ledger.forgetHost('h2')).toMatchObject({ forgotten: true });
    for (const member of [four, one]) await member.turn();
    expect((await one.beat()).state).toBe('armed');
    const asked = askFor(record, 'thief', { addresses: ['10.42.0.2'] });
    expect(await refused(store.raw, () => store.ledger.acquire(asked))).toMatchObject({
      code: 'ADDRESS_IN_USE',
    });
  });
});

test('a host that has yet to read the list knows by way of whom the others are found', async () => {
  const newcomers = await joining();
  for (const member of newcomers) await member.turn();
  for (let turns = 0; turns < 3; turns += 1) await one.beat();
  const late = newcomers.find(({ seen }) => seen.hosts.length < 1_000);
  assert(late !== undefined);
  expect((await late.beat()).mayAcquire).toBe(true);
  const { generation } = await late.acquire(record, 'of-late');
  await emptied();
  await late.turn();
  await grantsNothing();
  expect((await late.turn()).awaiting.length).toBeGreaterThan(0);
  await one.turn();
  expect((await listed()).length).toBeGreaterThan(1_000);
  expect(await store.ledger.getLease('of-late')).toMatchObject({ generation });
});

describe('a list that was lost', () => {
  beforeEach(async () => {
    await three.acquire(record, 'of-h3');
    await emptied();
  });

  test('is waited for, whatever else was said, until one that has it has told it', async () => {
    const asked = await one.beat();
    expect(asked).toMatchObject({ state: 'recovering', tell: true });
    await one.reassert(asked.epoch);
    await two.reassert((await two.beat()).epoch);
    expect(await two.beat()).toMatchObject({ state: 'recovering', awaiting: ['h1'], tell: false });
    await grantsNothing();
    await one.tell(asked);
    expect(await two.beat()).toMatchObject({ state: 'recovering', awaiting: ['h3'] });
    await three.turn();
    expect(await two.beat()).toMatchObject({ state: 'armed' });
  });

  test('is asked of another where the first dies in the middle of it, and is forgotten', async () => {
    const { host, machineId } = beatOf('h1');
    expect((await one.beat()).tell).toBe(true);
    const { roster } = one.seen;
    const page = { host, machineId, roster, digest: 1, hosts: ['h1'], last: false, suspectMs: 9 };
    await store.raw.call('FCALL', 'volt1_tell', '1', ROOT, JSON.stringify(page));
    await forgetMemory(store.raw);
    await two.beat();
    expect(await store.ledger.forgetHost('h1')).toMatchObject({ forgotten: true });
    expect(await two.turn()).toMatchObject({ state: 'recovering', awaiting: ['h1', 'h3'] });
    await three.turn();
    await grantsNothing();
    await one.turn();
    expect(await two.beat()).toMatchObject({ state: 'armed' });
    expect(await store.ledger.getLease('of-h3')).not.toBeNull();
  });

  test('is told again where the server is emptied in the middle, and where it restarts', async () => {
    expect((await one.beat()).tell).toBe(true);
    await emptied();
    const again = await two.beat();
    expect(again.tell).toBe(true);
    await forgetMemory(store.raw);
    expect((await two.beat()).tell).toBe(true);
    await two.tell(again);
    for (const member of [two, one, two, one]) await member.turn();
    await grantsNothing();
    expect(await three.turn()).toMatchObject({ state: 'armed' });
  });

  test('of two hosts that have different ones of the same roster is that of both', async () => {
    one.seen = { ...one.seen, hosts: ['h1', 'h2', 'x1'] };
    two.seen = { ...two.seen, hosts: ['h1', 'h2', 'x2'] };
    for (const member of [one, two, one]) await member.turn();
    expect((await two.turn()).awaiting).toEqual(['x1', 'x2']);
    for (const host of ['x1', 'x2']) await store.ledger.forgetHost(host);
    await three.turn();
    expect(await two.turn()).toMatchObject({ state: 'armed' });
  });

  test('of hundreds of hosts makes those suspect that a newer one does not name', async () => {
    const many = Array.from({ length: 700 }, (_, n) => `m${String(n).padStart(3, '0')}`);
    two.seen = { ...two.seen, hosts: [...two.seen.hosts, ...many] };
    await two.turn();
    expect((await listed()).length).toBe(703);
    one.seen = { ...one.seen, roster: one.seen.roster + 1, hosts: one.seen.hosts.toSorted() };
    await one.turn();
    // Of them nothing was heard.
    expect(await listed()).toEqual(['h1', 'h2', 'h3']);
  });
});

describe('silence', () => {
  const quick = { suspectAfterSeconds: 0.3 };
  let members: readonly Member[];

  beforeEach(async () => {
    await emptied();
    members = await fleetOf(store.ledger, ['h1', 'h2', 'h3'], quick);
  });

  const fallen = async (late: readonly number[]): Promise<string[]> => {
    const names: string[] = [];
    // Two hosts are more than one in twenty of what is heard in that time.
    for (const end = Date.now() + 1_500; Date.now() < end; await sleep(60)) {
      for (const [n, count] of late.entries()) {
        names.push(...((await members[n]?.beat({ late: count }))?.fallen ?? []));
      }
    }
    return names;
  };

  test('does not count while several hosts have waited in vain for an answer', async () => {
    expect(await fallen([1, 1])).toEqual([]);
    expect(await fallen([0, 0])).toEqual(['h3']);
  });

  test('counts where that is one host alone: the way to it was bad', async () => {
    expect(await fallen([3, 0])).toEqual(['h3']);
  });

  test('of hundreds is found in one go, and told to the others', async () => {
    const crowded = Array.from({ length: 700 }, (_, n) => beatOf(`c${n}`, quick));
    await Promise.all(crowded.map((beat) => store.ledger.heartbeat(beat)));
    const [first, second] = members;
    assert(first !== undefined && second !== undefined);
    await first.beat();
    const pulses = await heard([first, second], 2_000);
    const names = pulses.flatMap((pulse) => pulse.fallen);
    expect(new Set(names.filter((host) => host.startsWith('c'))).size).toBe(700);
    await first.beat();
    expect(first.seen.hosts.filter((host) => host.startsWith('c'))).toEqual([]);
  });
});
