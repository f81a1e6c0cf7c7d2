import { describe, expect, test } from 'vitest';
import type { LeaseRequest } from '#ipam-store/ledger.ts';
import { actionsOn, askFor, bare, put, refused, small, useStore, VOLT0 } from './fixture.ts';

// Addresses that the asking host has itself are granted to nobody there.

const store = useStore();
const { acquire, release, usage } = actionsOn(store);

const DUAL = {
  network: 'dual',
  subnet: '10.44.0.0/24',
  gateway: '10.44.0.1',
  ipv6: { subnet: 'fd44::/64', gateway: 'fd44::1' },
};

describe('a drawn address is none of them', () => {
  test('of fresh ones, in order, and others get what was passed over', async () => {
    const record = await put(store.ledger, small());
    const avoid = ['10.9.0.2', '10.9.0.3', '10.9.0.5'];
    expect(await acquire(record, 'a', { avoid })).toBe('10.9.0.4');
    expect(await acquire(record, 'b', { avoid })).toBe('10.9.0.6');
    const error = await refused(store.raw, () => acquire(record, 'c', { avoid }));
    expect(error).toMatchObject({ code: 'POOL_EXHAUSTED' });
    expect(error.message).toContain('h1');
    expect(await acquire(record, 'c', { host: 'h2', avoid: ['10.9.0.2'] })).toBe('10.9.0.3');
    expect(await acquire(record, 'd', { host: 'h3' })).toBe('10.9.0.2');
    expect(await acquire(record, 'e')).toBe('10.9.0.5');
    expect(await usage('small')).toMatchObject({ size: 5, used: 5, free: 0 });
    const found = [];
    for await (const difference of store.ledger.audit()) found.push(difference);
    expect(found).toEqual([]);
  });

  test('of used ones, also the workload’s own', async () => {
    const record = await put(store.ledger, small({ reuseDelaySeconds: 0 }));
    for (const id of ['a', 'b', 'c', 'd', 'e']) await acquire(record, id);
    for (const id of ['a', 'b', 'c']) await release(id);
    const avoid = ['10.9.0.2', '10.9.0.3'];
    expect(await acquire(record, 'a', { avoid })).toBe('10.9.0.4');
    expect(await acquire(record, 'b')).toBe('10.9.0.2');
  });

  test('nor what the workload may have back before others', async () => {
    const record = await put(store.ledger, small());
    for (const id of ['a', 'b', 'c', 'd', 'e']) await acquire(record, id);
    for (const id of ['a', 'b']) await release(id);
    const error = await refused(store.raw, () => acquire(record, 'a', { avoid: ['10.9.0.2'] }));
    expect(error).toMatchObject({ code: 'POOL_EXHAUSTED' });
    expect(error.retryAfterMs).toBeGreaterThan(0);
    expect(await acquire(record, 'a')).toBe('10.9.0.2');
  });

  test('of both families', async () => {
    const record = await put(store.ledger, DUAL);
    const avoid = ['fd44::2', '10.44.0.2', '192.0.2.1', 'fe80::1', '10.44.0.1', 'FD44:0::2'];
    expect(await acquire(record, 'a', { avoid })).toBe('10.44.0.3 fd44::3');
    expect(await acquire(record, 'b', { avoid })).toBe('10.44.0.4 fd44::4');
  });

  test('and a preview says the same', async () => {
    const record = await put(store.ledger, small());
    const ask = askFor(record, 'a', { avoid: ['10.9.0.2'] });
    expect(bare((await store.ledger.preview(ask)).lease)).toBe('10.9.0.3');
    expect(bare((await store.ledger.acquire(ask)).lease)).toBe('10.9.0.3');
  });
});

describe('by name', () => {
  test.each<[string, Partial<LeaseRequest>, string]>([
    ['asked for', { addresses: ['10.42.0.50'] }, '10.42.0.50'],
    ['reserved', { workload: 'vm-web' }, '10.42.0.10'],
  ])('one that is %s is refused', async (_, more, address) => {
    const record = await put(store.ledger, VOLT0);
    const avoid = [address];
    const error = await refused(store.raw, () => acquire(record, 'a', { ...more, avoid }));
    expect(error).toMatchObject({ code: 'ADDRESS_OUT_OF_RANGE', details: { address, host: 'h1' } });
    expect(error.message).toBe(`host h1 itself has ${address}`);
    expect(await acquire(record, 'a', more)).toBe(address);
    // What is granted already is answered: a repeat is harmless.
    expect(await acquire(record, 'a', { ...more, avoid })).toBe(address);
  });
});

test('a list that cannot be meant is refused by its path', async () => {
  const record = await put(store.ledger, VOLT0);
  const many = Array.from({ length: 65 }, (_, n) => `10.42.0.${n + 100}`);
  for (const [avoid, path] of [
    [['10.42.0.0/24'], 'avoid.0'],
    [['10.42.0.9', 'x'], 'avoid.1'],
    ['10.42.0.9', 'avoid'],
    [many, 'avoid'],
  ] as const) {
    const asked = { avoid: avoid as readonly string[] };
    const error = await refused(store.raw, () => acquire(record, 'a', asked));
    expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path } });
  }
  expect(await acquire(record, 'a', { avoid: many.slice(1) })).toBe('10.42.0.2');
});

test('an agent that does not say its boot may name them too, and many at once agree', async () => {
  const record = await put(store.ledger, { ...VOLT0, pool: undefined, reservations: undefined });
  const avoid = Array.from({ length: 30 }, (_, n) => `10.42.0.${2 + n * 3}`);
  const ids = Array.from({ length: 223 }, (_, n) => `n${n}`);
  const given = await Promise.all(
    ids.map((id, n) => acquire(record, id, { avoid, ...(n % 2 === 0 && { agentId: 'agent' }) })),
  );
  expect(new Set(given).size).toBe(ids.length);
  expect(given.filter((one) => avoid.includes(one))).toEqual([]);
  expect((await usage('volt0'))?.free).toBe(30);
});
