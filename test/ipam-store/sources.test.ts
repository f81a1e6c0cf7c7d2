import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { actionsOn, askFor, put, refused, small, useStore, VOLT0 } from './fixture.ts';

const store = useStore();
const { acquire, release, usage } = actionsOn(store);

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
