import { beforeEach, describe, expect, test } from 'vitest';
import { auditProgress, type LedgerDifference, type NetworkRecord } from '#ipam-store/ledger.ts';
import { actionsOn, beatOf, contents, enrol, put, ROOT, useStore, VOLT0 } from './fixture.ts';

const store = useStore();
const { acquire, release } = actionsOn(store);
const DUAL = {
  ...VOLT0,
  ipv6: { subnet: 'fd00:42::/64', gateway: 'fd00:42::1' },
  exclude: ['10.42.0.128/25'],
};

let record: NetworkRecord;

beforeEach(async () => {
  record = await put(store.ledger, DUAL);
  await acquire(record, 'a');
  await acquire(record, 'b', { host: 'h2', ttlSeconds: 60 });
  await acquire(record, 'web', { workload: 'vm-web' });
  await acquire(record, 'gone');
  await release('gone');
  await acquire(record, 'undone');
  await release('undone', { cool: false });
});

async function found(): Promise<LedgerDifference[]> {
  const differences: LedgerDifference[] = [];
  for await (const one of store.ledger.audit()) differences.push(one);
  return differences;
}

test('a ledger as its functions leave it is in order', async () => {
  expect(await found()).toEqual([]);
});

test('also one of many leases, page by page', async () => {
  const wide = await put(store.ledger, { network: 'wide', subnet: '10.50.0.0/20' });
  for (let n = 0; n < 700; n += 1) await acquire(wide, `n${n}`);
  expect(await found()).toEqual([]);
  const told: string[] = [];
  for await (const { next } of store.ledger.auditPages()) told.push(auditProgress(next));
  const percents = told.flatMap((text) => /^leases, (\d+) %$/.exec(text)?.[1] ?? []).map(Number);
  expect(percents.length).toBeGreaterThan(3);
  expect(percents).toEqual(percents.toSorted((a, b) => a - b));
  expect(new Set(percents).size).toBe(percents.length);
  expect(percents.at(-1)).toBeLessThan(100);
  expect(told).toContain('networks up to wide');
  const held = await store.raw.zrange(`${ROOT}:net:wide:4:held`, '0', '-1');
  await store.raw.zrem(`${ROOT}:net:wide:4:held`, ...held);
  // Of all these leases, and of the one range of addresses that is nowhere now.
  const differences = await found();
  expect(differences.filter(({ what }) => what === 'held missing')).toHaveLength(700);
  expect(differences.slice(700)).toMatchObject([
    { what: 'lost', id: '-' },
    { what: 'count', id: '-' },
  ]);
});

/** All that Redis holds but what its repairs are logged by. */
async function unlogged(): Promise<object> {
  const all = Object.entries(await contents(store.raw));
  return Object.fromEntries(all.filter(([key]) => !key.endsWith(':log')));
}

describe('damage is named, and put right where a lease proves what is right', () => {
  const A = '0a2a0002';
  const DAMAGES: readonly [string, string, () => Promise<unknown>][] = [
    ['host missing', 'a', () => store.raw.zrem(`${ROOT}:host:h1:ids`, 'volt0 a')],
    ['due missing', 'b', () => store.raw.zrem(`${ROOT}:host:h2:due`, 'b')],
    ['held missing', 'a', () => store.raw.zrem(`${ROOT}:net:volt0:4:held`, `${A} a`)],
    ['host stray', 'nobody', () => store.raw.zadd(`${ROOT}:host:h1:ids`, 0, 'volt0 nobody')],
    ['host stray', 'b', () => store.raw.zadd(`${ROOT}:host:h1:ids`, 0, 'volt0 b')],
    ['held stray', 'x', () => store.raw.zadd(`${ROOT}:net:volt0:4:held`, 0, '0a2a0063 x')],
    ['held and free', 'a', () => store.raw.zadd(`${ROOT}:net:volt0:4:fresh`, 0, `${A}-${A}`)],
    ['held and free', 'a', () => store.raw.zadd(`${ROOT}:net:volt0:4:free`, 1, A)],
    ['held stray', 'x', () => store.raw.zadd(`${ROOT}:net:volt0:4:held`, 0, `${A} x`)],
    ['due stray', 'nobody', () => store.raw.zadd(`${ROOT}:host:h1:due`, 1, 'nobody')],
    ['due stray', 'b', () => store.raw.zadd(`${ROOT}:host:h1:due`, 1, 'b')],
    ['mac stray', 'x', () => store.raw.hset(`${ROOT}:net:volt0`, 'mac:02:00:00:00:00:01', 'x')],
  ];

  test.each(DAMAGES)('%s', async (what, id, damage) => {
    const before = await unlogged();
    await damage();
    const [difference, ...others] = await found();
    // Without that entry the address is nowhere, too; and there are more or fewer entries than were counted.
    const kinds = new Set(others.map((one) => one.what));
    for (const kind of ['count', 'pool differs', 'free stray']) kinds.delete(kind);
    expect([...kinds]).toEqual(what === 'held missing' ? ['lost'] : []);
    expect(difference).toMatchObject({ what, id });
    if (difference === undefined) return;
    if (id === 'nobody' && what === 'host stray') {
      // Its host may have a record of it.
      expect(await store.ledger.repair(difference)).toBe(false);
      await enrol(store.ledger, 'h1');
    }
    expect(await store.ledger.repair(difference)).toBe(true);
    for (const other of await found()) expect(await store.ledger.repair(other)).toBe(true);
    expect(await found()).toEqual([]);
    // An address that somebody may have used cools down; all else is as it was.
    if (what === 'held stray') return;
    if (id !== 'nobody') expect(await unlogged()).toEqual(before);
  });

  test('mac missing', async () => {
    const { mac = '' } = (await store.ledger.getLease('a')) ?? {};
    await store.raw.hdel(`${ROOT}:net:volt0`, `mac:${mac}`);
    const [difference] = await found();
    expect(difference).toMatchObject({ what: 'mac missing', id: 'a', mac });
    if (difference !== undefined) expect(await store.ledger.repair(difference)).toBe(true);
    expect(await found()).toEqual([]);
  });
});

test('the address of a lease is free at no time, whatever is in its place', async () => {
  const one = { subnet: '10.9.0.0/29', pool: { start: '10.9.0.2', end: '10.9.0.2' } };
  const tight = await put(store.ledger, { network: 'tight', ...one, reuseDelaySeconds: 0 });
  await acquire(tight, 'mine');
  const held = `${ROOT}:net:tight:4:held`;
  for (const damage of [
    () => store.raw.zadd(held, 0, '0a090002 x'),
    () => store.raw.zadd(`${ROOT}:net:tight:4:free`, 1, '0a090002'),
    async () => {
      await store.raw.zrem(held, '0a090002 mine');
      await store.raw.zadd(held, 0, '0a090002 x');
    },
  ]) {
    await damage();
    for (const difference of await found()) {
      await store.ledger.repair(difference);
      await expect(acquire(tight, 'other')).rejects.toMatchObject({ code: 'POOL_EXHAUSTED' });
    }
    expect(await found()).toEqual([]);
  }
});

test('addresses that are nowhere are named, a range at a time, and fresh again', async () => {
  const next = (await store.raw.hget(`${ROOT}:net:volt0`, 'next:4')) ?? '';
  const [first = '', last = ''] = next.split('-');
  await store.raw.hset(`${ROOT}:net:volt0`, 'next:4', `0a2a0008-${last}`);
  await store.raw.zadd(`${ROOT}:net:volt0:4:free`, 1, '0a2a0070');
  const differences = await found();
  const from = `10.42.0.${Number.parseInt(first.slice(-2), 16)}`;
  expect(differences).toMatchObject([
    { what: 'free stray', id: '-', address: '10.42.0.112' },
    { what: 'lost', id: '-', address: `${from}-10.42.0.7` },
  ]);
  for (const one of differences) expect(await store.ledger.repair(one)).toBe(true);
  expect(await found()).toEqual([]);
  expect(await store.raw.hget(`${ROOT}:net:volt0`, 'next:4')).toBe(next);
});

test('lists, heartbeats and forget pass over what leads to no lease', async () => {
  await store.raw.zadd(`${ROOT}:host:h1:ids`, 0, 'volt0 a0', 0, 'volt0 b');
  await store.raw.zadd(`${ROOT}:host:h1:due`, 1, 'nobody');
  expect((await store.ledger.heartbeat(beatOf('h1'))).state).toBe('armed');
  const listed: string[] = [];
  let cursor: string | undefined;
  do {
    const page = await store.ledger.listLeases({ cursor, limit: 1 });
    listed.push(...page.leases.map(({ id, host }) => `${id} ${host}`));
    ({ cursor } = page);
  } while (cursor !== undefined);
  expect(listed).toEqual(['a h1', 'web h1', 'b h2']);
  await store.raw.zadd(`${ROOT}:hosts`, 1, 'h1');
  expect(await store.ledger.forgetHost('h1')).toEqual({ forgotten: true, released: 2 });
  expect(await store.ledger.getLease('b')).not.toBeNull();
});

test('what is not proven is left: an address that two leases claim', async () => {
  const text = await store.raw.hget(`${ROOT}:leases`, 'a');
  const double = (text ?? '').replaceAll('"a"', '"b"');
  await store.raw.hset(`${ROOT}:leases`, 'b', double);
  for (const difference of await found()) await store.ledger.repair(difference);
  const left = await found();
  expect(left).toContainEqual(expect.objectContaining({ what: 'held missing', id: 'b' }));
  expect((await store.ledger.getLease('a'))?.addresses[0]).toBe('10.42.0.2/24');
});

test('a difference that is none any more is left alone', async () => {
  await store.raw.zrem(`${ROOT}:host:h1:ids`, 'volt0 a');
  const [difference] = await found();
  await release('a');
  const before = await contents(store.raw);
  if (difference !== undefined) expect(await store.ledger.repair(difference)).toBe(false);
  expect(await contents(store.raw)).toEqual(before);
});

test('nothing is repaired while the ledger is not armed', async () => {
  await store.raw.zrem(`${ROOT}:host:h1:ids`, 'volt0 a');
  const [difference] = await found();
  const seen = { generation: 2 ** 33 + 5, revision: 1, roster: 1, hosts: ['h9'] };
  await store.ledger.heartbeat(beatOf('h1', { seen }));
  if (difference === undefined) throw new Error('nothing found');
  await expect(store.ledger.repair(difference)).rejects.toMatchObject({ code: 'RECOVERING' });
});
