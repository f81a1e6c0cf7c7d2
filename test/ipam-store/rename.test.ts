import assert from 'node:assert/strict';
import { beforeEach, expect, test } from 'vitest';
import { type Lease, type Ledger, type NetworkRecord } from '#ipam-store/ledger.ts';
import { beatOf, owned, put, refused, ROOT, small, useStore } from './fixture.ts';
import { fleetOf, forgetMemory, type Member, silentFor, snapshotOf } from './member.ts';

// A host gets another id, its agent being stopped: what it holds is the same under the new one.

const store = useStore();
const OLD = { host: 'old', machineId: 'machine-old', agentId: 'agent-1' };
const AS_NEW = { to: 'new', machineId: 'machine-old', suspectAfterSeconds: 20 };

let record: NetworkRecord;
let old: Member;
let other: Member;

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  [other = assert.fail(), old = assert.fail()] = await fleetOf(store.ledger, ['other', 'old'], {
    agentId: 'agent-1',
  });
  record = await old.put(put(store.ledger, { network: 'wide', subnet: '10.8.0.0/23' }));
});

const rename = (
  was: Parameters<Ledger['renameHost']>[0] = OLD,
  by: Parameters<Ledger['renameHost']>[1] = AS_NEW,
): Promise<number | null> => store.ledger.renameHost(was, by);

async function held(count: number): Promise<Lease[]> {
  const leases: Lease[] = [];
  for (let n = 0; n < count; n += 1) {
    const ttl = n % 2 === 0 ? { ttlSeconds: 1_000 } : {};
    leases.push(await old.acquire(record, `id-${n}`, ttl));
  }
  return leases;
}

const asNew = (leases: readonly Lease[]): Lease[] =>
  leases.map((lease) => ({ ...lease, host: 'new' }));

async function ofNew(): Promise<unknown[]> {
  const leases: Lease[] = [];
  let cursor: string | undefined;
  do {
    const page = await store.ledger.listLeases({ host: 'new', cursor });
    leases.push(...page.leases);
    ({ cursor } = page);
  } while (cursor !== undefined);
  const inOrder = leases.toSorted((a, b) => a.generation - b.generation);
  return Promise.all(inOrder.map(({ id }) => store.ledger.getLease(id)));
}

async function differences(): Promise<string[]> {
  const found: string[] = [];
  for await (const { what, id } of store.ledger.audit()) found.push(`${what} ${id}`);
  return found;
}

/** The agent starts under the new id. */
async function startAsNew(leases: readonly Lease[]): Promise<void> {
  const beat = () =>
    store.ledger.heartbeat(
      beatOf('new', { ...AS_NEW, agentId: 'agent-1', newFleet: false, seen: old.seen }),
    );
  const { epoch, reassert } = await beat();
  expect(reassert).toBe(true);
  const session = { host: 'new', machineId: 'machine-old', epoch };
  const { leases: outcomes } = await store.ledger.reassert(session, {
    networks: [record],
    leases: asNew(leases),
  });
  for (const { outcome } of outcomes) expect(outcome).toBe('kept');
  await other.turn();
  await beat();
}

test('leases, their addresses and generations are those of the new id, and the old one is unknown', async () => {
  const leases = await held(250);
  await silentFor(store.raw, 'old', 60);
  const log = `${ROOT}:net:wide:log`;
  const told = await store.raw.xlen(log);
  expect(await rename()).toBe(250);
  // Who follows the network hears where its endpoints are now.
  expect(await store.raw.xlen(log)).toBe(told + 250);
  expect(await ofNew()).toEqual(asNew(leases));
  const { hosts } = await store.ledger.listHosts();
  expect(hosts.map(({ host, leases: count }) => `${host} ${count}`)).toEqual([
    'new 250',
    'other 0',
  ]);
  expect(await store.raw.keys(`${ROOT}:host:old*`)).toEqual([]);
  expect(await differences()).toEqual([]);
  await startAsNew(leases);
  const [one] = leases;
  assert(one !== undefined);
  const own = { host: 'new', machineId: 'machine-old', agentId: 'agent-1', bootId: 'boot-1' };
  expect(
    await store.ledger.release({ ...own, id: one.id, generation: one.generation, cool: true }),
  ).toBe('released');
  // Its name is free.
  await store.ledger.heartbeat(beatOf('old', { machineId: 'another', newFleet: false }));
});

test('a renaming that was cut short goes on', async () => {
  const leases = await held(150);
  await silentFor(store.raw, 'old', 60);
  const ask = {
    host: 'old',
    to: 'new',
    wasMachineId: 'machine-old',
    machineId: 'machine-old',
    agentId: 'agent-1',
    suspectMs: 20_000,
  };
  const step = await store.raw.fcall('volt1_rename', 1, ROOT, JSON.stringify(ask));
  expect(step).toBe('{"known":true,"moved":100,"more":true}');
  expect((await differences()).length).toBe(0);
  expect(await rename()).toBe(50);
  expect(await ofNew()).toEqual(asNew(leases));
  // Once more, when it was done and nobody had heard so.
  expect(await rename()).toBeNull();
  expect(await ofNew()).toEqual(asNew(leases));
});

test.each([
  ['while it is heard', 'HOST_ALIVE', async () => rename()],
  [
    'to a host that there is',
    'HOST_CONFLICT',
    async () => {
      await silentFor(store.raw, 'old', 60);
      return rename(OLD, { ...AS_NEW, to: 'other' });
    },
  ],
  [
    'to a name under which something is held still',
    'HOST_CONFLICT',
    async () => {
      await silentFor(store.raw, 'old', 60);
      await store.raw.zadd(`${ROOT}:host:new:ids`, 0, 'wide gone');
      return rename();
    },
  ],
  [
    'whose machines are not told apart',
    'HOST_CONFLICT',
    async () => {
      await store.raw.hset(`${ROOT}:host:old`, 'clones', 'a b');
      await silentFor(store.raw, 'old', 60);
      return rename();
    },
  ],
])('not %s', async (_, code, ask) => {
  await held(1);
  await expect(ask()).rejects.toMatchObject({ code });
  expect((await store.ledger.listLeases({ host: 'old' })).leases).toHaveLength(1);
});

test('to a name that was forgotten', async () => {
  const leases = await held(1);
  await silentFor(store.raw, 'old', 60);
  await store.ledger.heartbeat(beatOf('new', { suspectAfterSeconds: 0.001, newFleet: false }));
  await new Promise((resolve) => setTimeout(resolve, 10));
  await store.ledger.forgetHost('new');
  expect(await rename()).toBe(1);
  await startAsNew(leases);
});

test('the machine id alone is another', async () => {
  await held(1);
  await silentFor(store.raw, 'old', 60);
  expect(await rename(OLD, { ...AS_NEW, to: 'old', machineId: 'machine-again' })).toBe(0);
  const again = beatOf('old', { machineId: 'machine-again', agentId: 'agent-1', newFleet: false });
  expect(await store.ledger.heartbeat({ ...again, seen: old.seen })).toMatchObject({
    reassert: true,
  });
  const error = await refused(store.raw, () => old.beat());
  expect(error.code).toBe('HOST_CONFLICT');
});

test('nothing moves of a host that the ledger does not know, or as another machine or agent', async () => {
  await held(1);
  await silentFor(store.raw, 'old', 60);
  for (const was of [{ host: 'nobody' }, { agentId: 'copy' }, { machineId: 'copy' }]) {
    expect(await rename({ ...OLD, ...was })).toBeNull();
  }
  expect((await store.ledger.listLeases({ host: 'old' })).leases).toHaveLength(1);
});

test('a Redis that is older than the renaming has its leases under the new id again', async () => {
  const leases = await held(3);
  await other.turn();
  const back = await snapshotOf(store.raw);
  await silentFor(store.raw, 'old', 60);
  await rename();
  await startAsNew(leases);
  const later = await other.acquire(await other.put(put(store.ledger, small())), 'later');
  await back();
  await other.turn();
  const session = { machineId: 'machine-old', agentId: 'agent-1', newFleet: false };
  const pulse = await store.ledger.heartbeat(beatOf('new', { ...session, seen: old.seen }));
  expect(pulse).toMatchObject({ state: 'recovering', reassert: true });
  const { leases: outcomes } = await store.ledger.reassert(
    { host: 'new', machineId: 'machine-old', epoch: pulse.epoch },
    { networks: [record], leases: asNew(leases) },
  );
  expect(outcomes.map(({ outcome }) => outcome)).toEqual(['kept', 'kept', 'kept']);
  expect(await ofNew()).toEqual(asNew(leases));
  expect((await store.ledger.listLeases({ host: 'old' })).leases).toEqual([]);
  expect((await store.ledger.getLease('later'))?.generation).toBe(later.generation);
});

test('what the host had of a lease that has vanished stays its own until it has answered', async () => {
  const [lease = assert.fail()] = await held(1);
  const isHeld = (): Promise<string[]> => store.raw.zrange(`${ROOT}:net:wide:4:held`, '0', '-1');
  const before = await isHeld();
  await store.raw.hdel(`${ROOT}:leases`, lease.id);
  await silentFor(store.raw, 'old', 30);
  expect(await rename()).not.toBeNull();
  for await (const one of store.ledger.audit()) await store.ledger.repair(one);
  expect(await isHeld()).toEqual(before);
});

test('to a name that was forgotten, whose host had applied more of what has changed', async () => {
  const gateway = { network: 'net', subnet: '10.9.0.0/24', gateway: '10.9.0.1' };
  const first = await put(store.ledger, gateway);
  for (const member of [other, old]) await member.acquire(first, `of-${member.host}`);
  for (const lease of (await store.ledger.listLeases({ network: 'net' })).leases)
    await store.ledger.release({ ...owned(lease), agentId: 'agent-1', cool: true });
  const { revision } = await put(
    store.ledger,
    { ...gateway, gateway: '10.9.0.254' },
    first.revision,
  );
  await other.beat({ applied: revision });
  await store.raw.zadd(`${ROOT}:hosts`, 1, 'other');
  expect(await store.ledger.forgetHost('other')).toMatchObject({ forgotten: true });
  await silentFor(store.raw, 'old', 30);
  expect(await rename(OLD, { ...AS_NEW, to: 'other' })).toBe(0);
  expect(await store.raw.zcard(`${ROOT}:leaving:4`)).toBe(1);
});
