import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, test } from 'vitest';
import type { Lease, NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, put, refused, useStore, VOLT0 } from './fixture.ts';
import { fleetOf, forgetMemory, Member, snapshotOf } from './member.ts';

// Recoveries into which others come: hosts that join or return, and news that arrives late.

const store = useStore();
const RECOVERING = { code: 'RECOVERING' };

let one: Member;
let two: Member;
let record: NetworkRecord;

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const [first, second] = await fleetOf(store.ledger, ['h1', 'h2']);
  assert(first !== undefined && second !== undefined);
  [one, two] = [first, second];
  record = await one.put(put(store.ledger, VOLT0));
});

/** Every server has forgotten what it was told, and its memory with it. */
async function emptied(): Promise<void> {
  await store.raw.flushall();
  await forgetMemory(store.raw);
}

/** A host that another has vouched for, and that holds an address; only h2 has seen it. */
async function joined(host: string): Promise<Member> {
  const member = new Member(store.ledger, host);
  await member.turn();
  const before = one.seen;
  await two.turn();
  await member.turn();
  await member.acquire(record, `of-${host}`);
  one.seen = before;
  return member;
}

describe('a host that re-asserts', () => {
  const session = (epoch: string): Parameters<typeof store.ledger.reassert>[0] => ({
    host: 'h1',
    machineId: 'machine-h1',
    epoch,
  });

  test('one of its leases has not said what else it holds', async () => {
    const lease = await one.acquire(record, 'a');
    await one.acquire(record, 'b');
    await emptied();
    const found = await one.beat();
    await one.tell(found);
    await two.turn();
    const held = { networks: [record], leases: [lease] };
    await store.ledger.reassert(session(found.epoch), { ...held, some: true });
    expect(await two.turn()).toMatchObject({ state: 'recovering', awaiting: ['h1'] });
    expect(await one.turn()).toMatchObject({ state: 'armed' });
    expect(await store.ledger.getLease('b')).not.toBeNull();
  });

  test('is asked for each lease when it is sent', async () => {
    const leases: Lease[] = [];
    for (let n = 0; n < 60; n += 1) leases.push(await one.acquire(record, `n${n}`));
    await emptied();
    const found = await one.beat();
    await one.tell(found);
    let answered = 0;
    store.ledger.onChange(({ change }) => (answered += change === 'leases' ? 1 : 0));
    const answeredWhenTaken: number[] = [];
    const taken = function* (): Generator<Lease, void, undefined> {
      for (const lease of leases) {
        answeredWhenTaken.push(answered);
        yield lease;
      }
    };
    await store.ledger.reassert(session(found.epoch), { networks: [record], leases: taken() });
    expect(answeredWhenTaken[0]).toBe(0);
    expect(answeredWhenTaken.at(-1)).toBeGreaterThan(0);
  });
});

describe('a host that joins while the ledger is not armed', () => {
  test('does not hide that another, who joined last, has to be waited for', async () => {
    const three = await joined('h3');
    await emptied();
    await one.turn();
    await new Member(store.ledger, 'h4').turn();
    expect(await two.turn()).toMatchObject({ state: 'recovering', awaiting: ['h3'] });
    const thief = (): Promise<unknown> => store.ledger.acquire(askFor(record, 'thief'));
    expect(await refused(store.raw, thief)).toMatchObject(RECOVERING);
    expect(await three.turn()).toMatchObject({ state: 'armed' });
    expect(await store.ledger.getLease('of-h3')).not.toBeNull();
  });

  test('does not hide that the list of hosts is an old one', async () => {
    const turnBack = await snapshotOf(store.raw);
    await joined('h3');
    await turnBack();
    await new Member(store.ledger, 'h4').beat();
    await one.beat();
    const found = await two.beat();
    expect(found).toMatchObject({ state: 'recovering', began: true, tell: true });
    await two.tell(found);
    expect((await store.ledger.listHosts()).hosts).toMatchObject([
      {},
      {},
      { host: 'h3', state: 'awaited' },
      {},
    ]);
  });

  test('is not taken for one that a list of before names', async () => {
    const turnBack = await snapshotOf(store.raw);
    for (const host of ['h3', 'h4']) await joined(host);
    await turnBack();
    const fresh = new Member(store.ledger, 'h9');
    await fresh.beat();
    const [three, four] = ['h3', 'h4'].map((host) => new Member(store.ledger, host));
    for (const member of [two, one, three, four, fresh]) await member?.turn();
    await two.beat();
    expect((await store.ledger.listHosts()).state).toBe('armed');
    // Whoever may acquire is in a list that a host that is no newcomer has.
    const mayAcquire = (await fresh.beat()).mayAcquire;
    expect(two.seen.hosts.includes('h9') || !mayAcquire).toBe(true);
  });
});

test('a host that was suspect, and is back, does not hide it either', async () => {
  await joined('h3');
  const suspect = new Member(store.ledger, 'h0');
  await emptied();
  await one.turn();
  suspect.seen = { generation: 1, revision: 0, roster: 1, hosts: ['h0'] };
  await suspect.turn();
  expect(await two.turn()).toMatchObject({ awaiting: ['h3'] });
});

test('a host that is forgotten meanwhile does not hide it either', async () => {
  const three = await joined('h3');
  one.seen = { ...one.seen, hosts: [...one.seen.hosts, 'gone'] };
  await emptied();
  await one.turn();
  expect(await store.ledger.forgetHost('gone')).toMatchObject({ forgotten: true });
  expect(await two.turn()).toMatchObject({ awaiting: ['h3'] });
  expect(await three.turn()).toMatchObject({ state: 'armed' });
});

test('the window begins with the loss, not with the restart', async () => {
  const recoveryWindowSeconds = 0.05;
  const turnBack = await snapshotOf(store.raw);
  await two.acquire(record, 'a');
  await turnBack();
  await one.beat({ recoveryWindowSeconds });
  await sleep(60);
  expect(await two.beat({ recoveryWindowSeconds })).toMatchObject({
    state: 'recovering',
    began: true,
    missed: [],
  });
});
