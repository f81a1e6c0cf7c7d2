import { describe, expect, test } from 'vitest';
import {
  actionsOn,
  askFor,
  enrol,
  hostLeases,
  HOSTS,
  owned,
  put,
  refused,
  ROOT,
  small,
  useStore,
  VOLT0,
} from './fixture.ts';

const store = useStore();
const { acquire, release, usage } = actionsOn(store);

describe('a grant', () => {
  test('says who holds what, since when, under which generation', async () => {
    const record = await put(store.ledger, VOLT0);
    const before = Date.now();
    const { lease, created } = await store.ledger.acquire(
      askFor(record, 'one', { hostname: 'one.example', ttlSeconds: 60 }),
    );
    expect(created).toBe(true);
    expect(lease).toMatchObject({
      id: 'one',
      workload: 'vm-one',
      kind: 'vm',
      network: 'volt0',
      host: 'h1',
      bootId: 'boot-1',
      hostname: 'one.example',
      addresses: ['10.42.0.2/24'],
      generation: 2 ** 32 + 1,
    });
    expect(lease.mac).toMatch(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/);
    expect(Date.parse(lease.grantedAt)).toBeGreaterThanOrEqual(before - 1);
    expect(Date.parse(lease.expiresAt ?? '') - Date.parse(lease.grantedAt)).toBe(60_000);
    expect(await store.ledger.getLease('one')).toEqual(lease);
  });

  test('repeated for the same id finds the same lease, and extends it', async () => {
    const record = await put(store.ledger, VOLT0);
    const first = await store.ledger.acquire(askFor(record, 'one', { ttlSeconds: 10 }));
    const again = await store.ledger.acquire(
      askFor(record, 'one', { ttlSeconds: 100, bootId: 'boot-2' }),
    );
    expect(again.created).toBe(false);
    const { expiresAt, ...same } = again.lease;
    expect(first.lease).toMatchObject({ ...same, bootId: 'boot-1' });
    expect(same.bootId).toBe('boot-2');
    expect(Date.parse(expiresAt ?? '')).toBeGreaterThan(Date.parse(first.lease.expiresAt ?? ''));
    expect(await usage('volt0')).toMatchObject({ used: 1 });
  });

  test('is found also when the network has changed since', async () => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'one');
    await put(store.ledger, { ...VOLT0, filter: false }, record.revision);
    expect(await acquire(record, 'one')).toBe('10.42.0.2');
  });

  test('needs the revision of the network that it was checked against', async () => {
    const record = await put(store.ledger, VOLT0);
    await put(store.ledger, { ...VOLT0, exclude: ['10.42.0.2'] }, record.revision);
    expect(await refused(store.raw, () => acquire(record, 'one'))).toMatchObject({
      code: 'REVISION_CHANGED',
    });
  });

  test('has a generation higher than every one before, whatever the id and network', async () => {
    const one = await put(store.ledger, VOLT0);
    const other = await put(store.ledger, small());
    const generations: number[] = [];
    for (const [record, id] of [
      [one, 'a'],
      [other, 'b'],
      [one, 'c'],
    ] as const) {
      const { lease } = await store.ledger.acquire(askFor(record, id));
      generations.push(lease.generation);
    }
    await release('a');
    const { lease } = await store.ledger.acquire(askFor(other, 'a'));
    generations.push(lease.generation);
    expect(generations).toEqual(generations.toSorted((a, b) => a - b));
    expect(new Set(generations).size).toBe(4);
    expect(await store.raw.hget(`${ROOT}:leases`, '#generation')).toBe(String(lease.generation));
  });

  test('keeps generations beyond what a double prints in full', async () => {
    const generation = 1_000_000 * 2 ** 32 + 123;
    await store.raw.hset(`${ROOT}:leases`, '#generation', String(generation - 1));
    await enrol(store.ledger, ...HOSTS);
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    expect(lease.generation).toBe(generation);
    const error = await refused(store.raw, () =>
      store.ledger.release({
        id: 'one',
        generation: generation - 1,
        host: 'h1',
        machineId: 'machine-h1',
        cool: true,
      }),
    );
    expect(error.code).toBe('STALE_GENERATION');
    expect(error.details).toMatchObject({ generation });
  });
});

describe('an id', () => {
  test('is held by one host', async () => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'one');
    const error = await refused(store.raw, () => acquire(record, 'one', { host: 'h2' }));
    expect(error.code).toBe('WRONG_HOST');
    expect(error.details).toEqual({ host: 'h1' });
  });

  test.each([
    ['workload', { workload: 'vm-other' }],
    ['kind', { kind: 'container' }],
    ['address', { addresses: ['10.42.0.99'] }],
    ['MAC', { mac: '02:00:00:00:00:01' }],
  ] as const)('is not given another %s while it is held', async (_, more) => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'one');
    expect(await refused(store.raw, () => acquire(record, 'one', more))).toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
  });

  test('is in one network at a time', async () => {
    const record = await put(store.ledger, VOLT0);
    const other = await put(store.ledger, small());
    await acquire(record, 'one');
    expect(await refused(store.raw, () => acquire(other, 'one'))).toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
  });

  test.each([
    ['id', { id: 'a b' }],
    ['id', { id: '\ud800' }],
    ['id', { id: 'x'.repeat(65) }],
    ['workload', { workload: 'ünï' }],
    ['host', { host: 'h1:ids' }],
    ['mac', { mac: 'no' }],
    ['addresses', { addresses: ['10.42.0.300'] }],
    ['addresses', { addresses: ['10.42.0.5', '10.42.0.6'] }],
  ] as const)('with a %s that cannot be is refused (%o)', async (path, more) => {
    const record = await put(store.ledger, VOLT0);
    const error = await refused(store.raw, () => acquire(record, 'one', more));
    expect(error.code).toBe('INVALID_REQUEST');
    expect(error.details).toEqual({ path });
  });

  test('of an unknown network is refused', async () => {
    const record = await put(store.ledger, VOLT0);
    await store.ledger.deleteNetwork('volt0');
    expect(await refused(store.raw, () => acquire(record, 'one'))).toMatchObject({
      code: 'UNKNOWN_NETWORK',
    });
  });
});

describe('a MAC', () => {
  test('is unique in its network', async () => {
    const record = await put(store.ledger, VOLT0);
    const other = await put(store.ledger, small());
    const mac = '02:AA:00:00:00:01';
    const { lease } = await store.ledger.acquire(askFor(record, 'one', { mac }));
    expect(lease.mac).toBe('02:aa:00:00:00:01');
    const error = await refused(store.raw, () => acquire(record, 'two', { mac }));
    expect(error.code).toBe('MAC_IN_USE');
    expect(error.details).toMatchObject({ mac: '02:aa:00:00:00:01', id: 'one' });
    await acquire(other, 'two', { mac });
    await release('one');
    await acquire(record, 'three', { mac });
  });

  test('derived from the id is another one where somebody has asked for it', async () => {
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    await release('one');
    await acquire(record, 'thief', { mac: lease.mac });
    const again = await store.ledger.acquire(askFor(record, 'one'));
    expect(again.lease.mac).not.toBe(lease.mac);
    expect((await store.ledger.acquire(askFor(record, 'one'))).created).toBe(false);
  });
});

describe('a release', () => {
  test('ends the lease, and repeated finds nothing', async () => {
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one', { ttlSeconds: 5 }));
    await release('one');
    expect(await store.ledger.getLease('one')).toBeNull();
    const again = { ...owned(lease), cool: true };
    expect(await store.ledger.release(again)).toBe('absent');
    const left = Object.keys(await hostLeases(store.raw)).filter((key) =>
      /ids|due|macs|leases/.test(key),
    );
    expect(left).toEqual([]);
  });

  test('of an earlier generation changes nothing', async () => {
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    await release('one');
    await acquire(record, 'one');
    const error = await refused(store.raw, () =>
      store.ledger.release({
        id: 'one',
        generation: lease.generation,
        host: 'h1',
        machineId: 'machine-h1',
        cool: true,
      }),
    );
    expect(error.code).toBe('STALE_GENERATION');
    expect(error.details).toEqual({ id: 'one', generation: lease.generation + 1 });
  });

  test('by another host changes nothing', async () => {
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    const error = await refused(store.raw, () =>
      store.ledger.release({
        id: 'one',
        generation: lease.generation,
        host: 'h2',
        machineId: 'machine-h2',
        cool: true,
      }),
    );
    expect(error.code).toBe('WRONG_HOST');
    expect(error.details).toEqual({ host: 'h1' });
  });

  test.each([
    ['a fresh address', {}],
    ['an address asked for', { addresses: ['10.9.0.4'] }],
    ['an address used before', { workload: 'vm-a', addresses: ['10.9.0.2'] }],
    ['an address and an expiry', { ttlSeconds: 5, hostname: 'x' }],
  ])('without cool-down leaves the store as it was: %s', async (_, more) => {
    const record = await put(store.ledger, small());
    await acquire(record, 'a');
    await acquire(record, 'b');
    await release('a');
    const before = await hostLeases(store.raw);
    await acquire(record, 'undone', more);
    expect(await hostLeases(store.raw)).not.toEqual(before);
    await release('undone', { cool: false });
    expect(await hostLeases(store.raw)).toEqual(before);
  });

  test('without cool-down of the last addresses makes whole what was cut', async () => {
    const record = await put(store.ledger, small());
    const before = await hostLeases(store.raw);
    for (const id of ['a', 'b', 'c', 'd', 'e']) await acquire(record, id);
    for (const id of ['c', 'a', 'e', 'b', 'd']) await release(id, { cool: false });
    expect(await hostLeases(store.raw)).toEqual(before);
  });
});

describe('leases', () => {
  test('without an address have a MAC and a generation', async () => {
    const record = await put(store.ledger, { network: 'dark', type: 'isolated' });
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    expect(lease.addresses).toEqual([]);
    expect(await refused(store.raw, () => store.ledger.deleteNetwork('dark'))).toMatchObject({
      code: 'NETWORK_IN_USE',
    });
    await release('one');
    expect(await store.ledger.deleteNetwork('dark')).toEqual({ deleted: true });
  });

  test('are listed by network, by host, by both, page by page', async () => {
    const one = await put(store.ledger, VOLT0);
    const two = await put(store.ledger, small());
    for (let n = 0; n < 9; n += 1) await acquire(one, `a${n}`, { host: n % 2 === 0 ? 'h1' : 'h2' });
    for (let n = 0; n < 4; n += 1) await acquire(two, `b${n}`, { host: 'h2' });
    const all = async (filter: { network?: string; host?: string }): Promise<string[]> => {
      const ids: string[] = [];
      let cursor: string | undefined;
      do {
        const page = await store.ledger.listLeases({ ...filter, limit: 3, cursor });
        expect(page.leases.length).toBeLessThanOrEqual(3);
        ids.push(...page.leases.map(({ id }) => id));
        ({ cursor } = page);
      } while (cursor !== undefined);
      return ids;
    };
    expect(await all({})).toHaveLength(13);
    expect(await all({ network: 'small' })).toEqual(['b0', 'b1', 'b2', 'b3']);
    expect(await all({ host: 'h1' })).toEqual(['a0', 'a2', 'a4', 'a6', 'a8']);
    expect(await all({ host: 'h2', network: 'volt0' })).toEqual(['a1', 'a3', 'a5', 'a7']);
    expect(await all({ host: 'nobody' })).toEqual([]);
    expect(await store.ledger.listLeases({ network: 'smal' })).toEqual({ leases: [] });
  });
});
