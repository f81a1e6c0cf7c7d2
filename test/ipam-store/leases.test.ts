import { describe, expect, test } from 'vitest';
import { setTimeout as sleep } from 'node:timers/promises';
import type { LeaseRequest, NetworkRecord } from '#ipam-store/ledger.ts';
import { askFor, bare, holdings, put, refused, ROOT, useStore, VOLT0 } from './fixture.ts';

const store = useStore();

const acquire = async (
  record: NetworkRecord,
  id: string,
  more: Partial<LeaseRequest> = {},
): Promise<string> => bare((await store.ledger.acquire(askFor(record, id, more))).lease);

async function release(id: string, { cool = true, host = 'h1' } = {}): Promise<void> {
  const lease = await store.ledger.getLease(id);
  if (lease === null) throw new Error(`${id} has no lease`);
  const done = await store.ledger.release({ id, generation: lease.generation, host, cool });
  expect(done).toBe('released');
}

const usage = async (name: string): Promise<object | undefined> =>
  (await store.ledger.getNetwork(name))?.usage;

const small = (keys: object = {}): object => ({
  network: 'small',
  subnet: '10.9.0.0/29',
  gateway: '10.9.0.1',
  ...keys,
});

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
    await put(store.ledger, { ...VOLT0, mtu: 1400 }, record.revision);
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
    expect(await store.raw.hget(`${ROOT}:meta`, 'generation')).toBe(String(lease.generation));
  });

  test('keeps generations beyond what a double prints in full', async () => {
    const record = await put(store.ledger, VOLT0);
    const generation = 1_000_000 * 2 ** 32 + 123;
    await store.raw.hset(`${ROOT}:meta`, 'generation', String(generation - 1));
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    expect(lease.generation).toBe(generation);
    const error = await refused(store.raw, () =>
      store.ledger.release({ id: 'one', generation: generation - 1, host: 'h1', cool: true }),
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

describe('an address asked for', () => {
  test('is given, also outside the pool', async () => {
    const pool = { start: '10.42.0.100', end: '10.42.0.110' };
    const record = await put(store.ledger, { ...VOLT0, pool });
    expect(await acquire(record, 'in', { addresses: ['10.42.0.105'] })).toBe('10.42.0.105');
    expect(await acquire(record, 'out', { addresses: ['10.42.0.50'] })).toBe('10.42.0.50');
    expect(await usage('volt0')).toEqual({
      size: 13,
      used: 2,
      free: 10,
      reserved: 2,
      cooling: 0,
      suspect: 0,
    });
  });

  test.each([
    ['the gateway', '10.42.0.1'],
    ['the network address', '10.42.0.0'],
    ['the broadcast address', '10.42.0.255'],
    ['outside the subnet', '10.43.0.5'],
    ['excluded', '10.42.0.77'],
    ['in an excluded prefix', '10.42.0.130'],
    ['of a family that the network has not', '2001:db8::5'],
  ])('is refused: %s', async (_, address) => {
    const record = await put(store.ledger, {
      ...VOLT0,
      exclude: ['10.42.0.77', '10.42.0.128/28'],
    });
    const error = await refused(store.raw, () => acquire(record, 'one', { addresses: [address] }));
    expect(error.code).toBe('ADDRESS_OUT_OF_RANGE');
    expect(error.details).toMatchObject({ address, network: 'volt0' });
  });

  test('is refused while another holds it, by name of the other', async () => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'one', { addresses: ['10.42.0.50'] });
    const error = await refused(store.raw, () =>
      acquire(record, 'two', { addresses: ['10.42.0.50'] }),
    );
    expect(error.code).toBe('ADDRESS_IN_USE');
    expect(error.message).toBe('10.42.0.50 is held by one');
    expect(error.details).toMatchObject({ address: '10.42.0.50', id: 'one' });
  });

  test('is refused where it is reserved for another workload', async () => {
    const record = await put(store.ledger, VOLT0);
    const error = await refused(store.raw, () =>
      acquire(record, 'one', { addresses: ['10.42.0.10'] }),
    );
    expect(error.code).toBe('ADDRESS_IN_USE');
    expect(error).toMatchObject({ retryable: false, details: { workload: 'vm-web' } });
  });

  test('is refused while it cools down, but not to the workload that released it', async () => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'one', { addresses: ['10.42.0.50'] });
    await release('one');
    const error = await refused(store.raw, () =>
      acquire(record, 'two', { addresses: ['10.42.0.50'] }),
    );
    expect(error.code).toBe('ADDRESS_IN_USE');
    expect(error.retryAfterMs).toBeGreaterThan(55_000);
    expect(error.retryAfterMs).toBeLessThanOrEqual(60_000);
    const more = { workload: 'vm-one', addresses: ['10.42.0.50'] };
    expect(await acquire(record, 'three', more)).toBe('10.42.0.50');
  });
});

describe('a reservation', () => {
  test('is given to its workload first, and to nobody else', async () => {
    const record = await put(store.ledger, small({ reservations: { 'vm-web': '10.9.0.2' } }));
    const others: string[] = [];
    for (let n = 0; n < 4; n += 1) others.push(await acquire(record, `n${n}`));
    expect(others).toEqual(['10.9.0.3', '10.9.0.4', '10.9.0.5', '10.9.0.6']);
    expect(await refused(store.raw, () => acquire(record, 'full'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
    expect(await acquire(record, 'web', { workload: 'vm-web' })).toBe('10.9.0.2');
  });

  test('may lie outside the pool', async () => {
    const record = await put(store.ledger, {
      ...VOLT0,
      pool: { start: '10.42.0.100', end: '10.42.0.101' },
    });
    expect(await acquire(record, 'web', { workload: 'vm-web' })).toBe('10.42.0.10');
    await release('web');
    expect(await acquire(record, 'other')).toBe('10.42.0.100');
    expect(await acquire(record, 'again', { workload: 'vm-web' })).toBe('10.42.0.10');
  });

  test('leaves the pool to the second attachment of its workload', async () => {
    const record = await put(store.ledger, VOLT0);
    expect(await acquire(record, 'web', { workload: 'vm-web' })).toBe('10.42.0.10');
    expect(await acquire(record, 'web2', { workload: 'vm-web' })).toBe('10.42.0.2');
  });

  test('made of an address that cools down for others waits for it', async () => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'one', { addresses: ['10.42.0.50'] });
    await release('one');
    const changed = await put(
      store.ledger,
      { ...VOLT0, reservations: { 'vm-new': '10.42.0.50' } },
      record.revision,
    );
    const error = await refused(store.raw, () => acquire(changed, 'new', { workload: 'vm-new' }));
    expect(error.code).toBe('ADDRESS_IN_USE');
    expect(error.retryAfterMs).toBeGreaterThan(55_000);
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

describe('order', () => {
  test('is least recently used, after all that was never used', async () => {
    const record = await put(store.ledger, small({ reuseDelaySeconds: 0 }));
    for (const id of ['a', 'b', 'c']) await acquire(record, id);
    for (const id of ['b', 'a', 'c']) {
      await release(id);
      await sleep(3);
    }
    const given: string[] = [];
    for (let n = 0; n < 5; n += 1) given.push(await acquire(record, `n${n}`));
    expect(given).toEqual(['10.9.0.5', '10.9.0.6', '10.9.0.3', '10.9.0.2', '10.9.0.4']);
  });

  test('lets released addresses rest, and says when one will be free', async () => {
    const record = await put(store.ledger, small({ reuseDelaySeconds: 1 }));
    for (let n = 0; n < 5; n += 1) await acquire(record, `n${n}`);
    const full = await refused(store.raw, () => acquire(record, 'new'));
    expect(full.code).toBe('POOL_EXHAUSTED');
    expect(full.retryAfterMs).toBeUndefined();
    await release('n3');
    expect(await usage('small')).toMatchObject({ size: 5, used: 4, free: 0, cooling: 1 });
    const error = await refused(store.raw, () => acquire(record, 'new'));
    expect(error.code).toBe('POOL_EXHAUSTED');
    expect(error.retryAfterMs).toBeGreaterThan(0);
    expect(error.retryAfterMs).toBeLessThanOrEqual(1_000);
    await sleep((error.retryAfterMs ?? 0) + 5);
    expect(await usage('small')).toMatchObject({ used: 4, free: 1, cooling: 0 });
    expect(await acquire(record, 'new')).toBe('10.9.0.5');
  });

  test('gives a workload back what it released, when nothing else is left', async () => {
    const record = await put(store.ledger, small());
    for (let n = 0; n < 5; n += 1) await acquire(record, `n${n}`);
    await release('n1');
    await release('n3');
    expect(await refused(store.raw, () => acquire(record, 'new'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
    expect(await acquire(record, 'back', { workload: 'vm-n3' })).toBe('10.9.0.5');
    expect(
      await refused(store.raw, () => acquire(record, 'more', { workload: 'vm-n3' })),
    ).toMatchObject({ code: 'POOL_EXHAUSTED' });
  });
});

describe('a release', () => {
  test('ends the lease, and repeated finds nothing', async () => {
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one', { ttlSeconds: 5 }));
    await release('one');
    expect(await store.ledger.getLease('one')).toBeNull();
    const again = { id: 'one', generation: lease.generation, host: 'h1', cool: true };
    expect(await store.ledger.release(again)).toBe('absent');
    const left = Object.keys(await holdings(store.raw)).filter((key) =>
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
      store.ledger.release({ id: 'one', generation: lease.generation, host: 'h1', cool: true }),
    );
    expect(error.code).toBe('STALE_GENERATION');
    expect(error.details).toEqual({ id: 'one', generation: lease.generation + 1 });
  });

  test('by another host changes nothing', async () => {
    const record = await put(store.ledger, VOLT0);
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    const error = await refused(store.raw, () =>
      store.ledger.release({ id: 'one', generation: lease.generation, host: 'h2', cool: true }),
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
    const before = await holdings(store.raw);
    await acquire(record, 'undone', more);
    expect(await holdings(store.raw)).not.toEqual(before);
    await release('undone', { cool: false });
    expect(await holdings(store.raw)).toEqual(before);
  });

  test('without cool-down of the last addresses makes whole what was cut', async () => {
    const record = await put(store.ledger, small());
    const before = await holdings(store.raw);
    for (const id of ['a', 'b', 'c', 'd', 'e']) await acquire(record, id);
    for (const id of ['c', 'a', 'e', 'b', 'd']) await release(id, { cool: false });
    expect(await holdings(store.raw)).toEqual(before);
  });
});

describe('dual stack', () => {
  const DUAL = {
    network: 'dual',
    subnet: '10.9.0.0/29',
    gateway: '10.9.0.1',
    ipv6: { subnet: '2001:db8:0:1::/64', gateway: '2001:db8:0:1::1' },
  };

  test('gives one address of each family', async () => {
    const record = await put(store.ledger, DUAL);
    const { lease } = await store.ledger.acquire(askFor(record, 'one'));
    expect(lease.addresses).toEqual(['10.9.0.2/29', '2001:db8:0:1::2/64']);
  });

  test.each([
    ['IPv4', { ...DUAL, pool: { start: '10.9.0.2', end: '10.9.0.2' } }],
    [
      'IPv6',
      {
        ...DUAL,
        ipv6: { ...DUAL.ipv6, pool: { start: '2001:db8:0:1::2', end: '2001:db8:0:1::2' } },
      },
    ],
  ])('gives nothing where %s is exhausted', async (_, keys) => {
    const record = await put(store.ledger, keys);
    await acquire(record, 'one');
    expect(await refused(store.raw, () => acquire(record, 'two'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
  });

  test('gives nothing where one of two asked for is taken', async () => {
    const record = await put(store.ledger, DUAL);
    await acquire(record, 'one', { addresses: ['2001:db8:0:1::aaaa'] });
    expect(
      await refused(store.raw, () =>
        acquire(record, 'two', { addresses: ['10.9.0.5', '2001:db8:0:1::aaaa'] }),
      ),
    ).toMatchObject({ code: 'ADDRESS_IN_USE' });
    expect(await acquire(record, 'three', { addresses: ['2001:db8:0:1:ffff::'] })).toBe(
      '10.9.0.3 2001:db8:0:1:ffff::',
    );
  });

  test('steps over the 32-bit parts of an IPv6 address', async () => {
    const start = '2001:db8:0:1::ffff:fffe';
    const record = await put(store.ledger, {
      network: 'six',
      ipv6: { subnet: '2001:db8:0:1::/64', pool: { start, end: '2001:db8:0:1:0:1:0:2' } },
    });
    const given: string[] = [];
    for (let n = 0; n < 3; n += 1) given.push(await acquire(record, `n${n}`));
    expect(given).toEqual([start, '2001:db8:0:1::ffff:ffff', '2001:db8:0:1:0:1::']);
    expect(await acquire(record, 'far', { addresses: ['2001:db8:0:1:0:1::1'] })).toBe(
      '2001:db8:0:1:0:1:0:1',
    );
    for (const id of ['n1', 'far', 'n0', 'n2']) await release(id, { cool: false });
    expect(await acquire(record, 'again')).toBe(start);
  });

  test('counts pools that are larger than any integer', async () => {
    await put(store.ledger, { network: 'six', ipv6: { subnet: '2001:db8::/32' } });
    const { size = 0, free = 0 } = (await store.ledger.getNetwork('six'))?.usage ?? {};
    expect(size / 2 ** 96).toBeCloseTo(1, 10);
    expect(free).toBe(size);
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
