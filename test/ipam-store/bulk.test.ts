import { expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { askFor, put, useStore, VOLT0, owned } from './fixture.ts';
import { acquireMany, releaseMany } from './bulk.ts';

const store = useStore();

const codesOf = (results: readonly unknown[]): unknown[] =>
  results.map((one) => (one instanceof VoltError ? one.code : 'done'));

test('each of a bulk has a result of its own, and sees what those before it did', async () => {
  const record = await put(store.ledger, VOLT0);
  const results = await acquireMany(store.ledger, [
    askFor(record, 'a', { addresses: ['10.42.0.50'] }),
    askFor(record, 'b', { addresses: ['10.42.0.50'] }),
    askFor(record, 'c', { addresses: ['192.0.2.1'] }),
    askFor(record, 'a', { addresses: ['10.42.0.50'] }),
    askFor(record, 'd'),
  ]);
  expect(codesOf(results)).toEqual([
    'done',
    'ADDRESS_IN_USE',
    'ADDRESS_OUT_OF_RANGE',
    'done',
    'done',
  ]);
  const [first, , , again] = results;
  expect(first).toMatchObject({ created: true });
  expect(again).toEqual(Object.assign({}, first, { created: false }));
  const { leases } = await store.ledger.listLeases({});
  expect(leases.map(({ id }) => id)).toEqual(['a', 'd']);
  const held = leases.map((lease) => ({ ...owned(lease), cool: true }));
  const late = held.map((one) => ({ ...one, generation: one.generation - 1 }));
  expect(codesOf(await releaseMany(store.ledger, [...late, ...held, ...held]))).toEqual([
    'STALE_GENERATION',
    'STALE_GENERATION',
    'done',
    'done',
    'done',
    'done',
  ]);
  expect((await store.ledger.getNetwork('volt0'))?.usage).toMatchObject({ used: 0, cooling: 2 });
});

test('a bulk of several batches, networks and hosts gives each address once', async () => {
  const one = await put(store.ledger, { network: 'one', subnet: '10.50.0.0/20' });
  const two = await put(store.ledger, { network: 'two', subnet: '10.60.0.0/20' });
  const requests = Array.from({ length: 3_000 }, (_, n) =>
    askFor(n % 3 === 0 ? two : one, `id-${n}`, { host: `h${1 + (n % 2)}` }),
  );
  const results = await acquireMany(store.ledger, requests);
  expect(new Set(codesOf(results))).toEqual(new Set(['done']));
  const leases = results.map((result) => ('lease' in result ? result.lease : undefined));
  expect(leases.map((lease) => lease?.id)).toEqual(requests.map(({ id }) => id));
  expect(new Set(leases.flatMap((lease) => lease?.addresses)).size).toBe(3_000);
  const generations = new Set(leases.map((lease) => lease?.generation));
  expect(generations.size).toBe(3_000);
});

test('of two families both are granted or neither, and the rest of the bulk goes on', async () => {
  const record = await put(store.ledger, {
    network: 'dual',
    subnet: '10.9.0.0/24',
    ipv6: { subnet: 'fd00:9::/64', pool: { start: 'fd00:9::2', end: 'fd00:9::3' } },
  });
  const asking = ['a', 'b', 'c'].map((id) => askFor(record, id));
  expect(codesOf(await acquireMany(store.ledger, asking))).toEqual([
    'done',
    'done',
    'POOL_EXHAUSTED',
  ]);
  expect((await store.ledger.getNetwork('dual'))?.usage.used).toBe(2);
});

test('a request of which the ledger cannot read what it holds fails alone', async () => {
  const record = await put(store.ledger, VOLT0);
  const { lease } = await store.ledger.acquire(askFor(record, 'broken'));
  await store.raw.hset('volt:{ledger}:leases', 'broken', 'no JSON');
  const asking = ['a', 'broken', 'b'].map((id) => askFor(record, id));
  const results = await acquireMany(store.ledger, asking);
  expect(codesOf(results)).toEqual(['done', 'RECOVERING', 'done']);
  const addresses = results.flatMap((one) => ('lease' in one ? one.lease.addresses : []));
  expect(new Set([...addresses, ...lease.addresses]).size).toBe(3);
  expect(codesOf(await releaseMany(store.ledger, [{ ...owned(lease), cool: true }]))).toEqual([
    'RECOVERING',
  ]);
});
