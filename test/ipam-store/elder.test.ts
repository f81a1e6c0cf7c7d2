import assert from 'node:assert/strict';
import { beforeEach, describe, expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, beatOf, put, refused, ROOT, useStore, VOLT0 } from './fixture.ts';
import { fleetOf, forgetMemory, Member } from './member.ts';

// Agents of 1.6 beside those of now: the list of hosts goes with their heartbeats, as it did.

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

const listed = async (): Promise<string[]> =>
  (await store.raw.zrange(`${ROOT}:hosts`, '0', '-1')).toSorted();

const grantsNothing = async (): Promise<void> => {
  const thief = (): Promise<unknown> => store.ledger.acquire(askFor(record, 'thief'));
  expect(await refused(store.raw, thief)).toMatchObject(RECOVERING);
};

describe('an agent of 1.6', () => {
  interface ElderSeen {
    generation: string;
    revision: number;
    roster: number;
    hosts: string[];
  }

  /** As it sends it, and what it does with the answer. */
  class Elder {
    seen: ElderSeen = { generation: '0', revision: 0, roster: 0, hosts: ['e1'] };
    async beat(): Promise<Record<string, unknown>> {
      const { machineId, bootId } = beatOf('e1');
      const ask = { host: 'e1', machineId, bootId, suspectMs: 20_000, newFleet: false };
      const text = JSON.stringify({ ...ask, seen: this.seen });
      const answer = await store.raw.call('FCALL', 'volt1_heartbeat', '1', ROOT, text);
      const pulse = JSON.parse(String(answer)) as { epoch: string; seen: ElderSeen };
      this.seen = { ...this.seen, ...pulse.seen };
      const session = { host: 'e1', machineId, epoch: pulse.epoch };
      await store.ledger.reassert(session, { networks: [], leases: [] });
      return { ...pulse };
    }
  }

  test('has all of the list with each change, and vouches for those of now', async () => {
    const elder = new Elder();
    await elder.beat();
    for (const member of [one, two, one]) await member.beat();
    expect(await elder.beat()).toMatchObject({ mayAcquire: true });
    expect(elder.seen.hosts.toSorted()).toEqual(await listed());
    const four = new Member(store.ledger, 'h4');
    await four.turn();
    await elder.beat();
    expect(elder.seen.hosts).toContain('h4');
    await elder.beat();
    expect((await four.beat()).mayAcquire).toBe(true);
  });

  test('says whom the ledger has to wait for, and is waited for itself', async () => {
    const elder = new Elder();
    await elder.beat();
    for (const member of [one, two, three, one]) await member.turn();
    await elder.beat();
    await three.acquire(record, 'of-h3');
    await emptied();
    expect(await elder.beat()).toMatchObject({ state: 'recovering' });
    for (const member of [one, two, one]) await member.turn();
    await grantsNothing();
    expect((await one.beat()).awaiting).toEqual(['h3']);
    await emptied();
    for (const member of [one, two, three, one]) await member.turn();
    expect((await one.beat()).awaiting).toEqual(['e1']);
    await grantsNothing();
    await elder.beat();
    expect((await one.turn()).state).toBe('armed');
  });
});
