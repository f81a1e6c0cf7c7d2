import { describe, expect, test } from 'vitest';
import { actionsOn, hostLeases, put, refused, ROOT, useStore, VOLT0, owned } from './fixture.ts';

const store = useStore();
const { acquire, release, usage } = actionsOn(store);

describe('a change that would strand a lease is refused by its name', () => {
  test.each([
    ['a smaller subnet', { subnet: '10.42.0.0/27', pool: undefined }, 'subnet'],
    [
      'another subnet',
      { ...VOLT0, subnet: '10.50.0.0/24', gateway: '10.50.0.1', pool: undefined, reservations: {} },
      'subnet',
    ],
    ['an exclude', { exclude: ['10.42.0.200', '10.42.0.32/27'] }, 'exclude.1'],
    ['the gateway', { gateway: '10.42.0.50' }, 'gateway'],
    ['a reservation', { reservations: { 'vm-new': '10.42.0.50' } }, 'reservations.vm-new'],
    ['the type', { type: 'isolated' }, 'type'],
  ])('%s', async (_, keys, path) => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'held', { addresses: ['10.42.0.50'] });
    const error = await refused(store.raw, () =>
      put(store.ledger, { ...VOLT0, ...keys }, record.revision),
    );
    expect(error.code).toBe('NETWORK_IN_USE');
    expect(error.details).toMatchObject({ id: 'held', path });
    expect(error.message).toMatch(path === 'type' ? /held/ : /held.*10\.42\.0\.50/);
    await release('held');
    await put(store.ledger, { ...VOLT0, ...keys }, record.revision);
  });

  test('no IPv6 any more', async () => {
    const dual = { ...VOLT0, ipv6: { subnet: '2001:db8::/64' } };
    const record = await put(store.ledger, dual);
    await acquire(record, 'held');
    const error = await refused(store.raw, () => put(store.ledger, VOLT0, record.revision));
    expect(error.code).toBe('NETWORK_IN_USE');
    expect(error.details).toEqual({ id: 'held', path: 'ipv6.subnet', address: '2001:db8::1' });
  });

  test('but not one that leaves it where it is', async () => {
    const record = await put(store.ledger, VOLT0);
    await acquire(record, 'held', { addresses: ['10.42.0.50'] });
    const changed = await put(
      store.ledger,
      {
        ...VOLT0,
        pool: { start: '10.42.0.60', end: '10.42.0.69' },
        reservations: { 'vm-held': '10.42.0.50' },
      },
      record.revision,
    );
    expect(await acquire(changed, 'new')).toBe('10.42.0.60');
  });
});

describe('a changed pool', () => {
  const NET = {
    network: 'n',
    subnet: '10.9.0.0/24',
    pool: { start: '10.9.0.10', end: '10.9.0.19' },
  };

  test('gives what was added, and keeps what was used in its order', async () => {
    const record = await put(store.ledger, { ...NET, reuseDelaySeconds: 0 });
    for (const id of ['a', 'b']) await acquire(record, id);
    await release('a');
    const pool = { start: '10.9.0.9', end: '10.9.0.20' };
    const grown = await put(store.ledger, { ...NET, pool, reuseDelaySeconds: 0 }, record.revision);
    expect(await usage('n')).toMatchObject({
      size: 12,
      used: 1,
      free: 11,
    });
    const given: string[] = [];
    for (let n = 0; n < 11; n += 1) given.push(await acquire(grown, `n${n}`));
    expect(given[0]).toBe('10.9.0.9');
    expect(given.at(-2)).toBe('10.9.0.20');
    expect(given.at(-1)).toBe('10.9.0.10');
  });

  test('grown over what is held outside it does not give that again', async () => {
    const reservations = { 'vm-r': '10.9.0.21' };
    const record = await put(store.ledger, { ...NET, reservations });
    await acquire(record, 'asked', { addresses: ['10.9.0.20'] });
    await acquire(record, 'r');
    await acquire(record, 'gone', { addresses: ['10.9.0.22'] });
    await release('gone');
    const pool = { start: '10.9.0.20', end: '10.9.0.23' };
    const grown = await put(store.ledger, { ...NET, pool }, record.revision);
    expect(await usage('n')).toMatchObject({
      size: 4,
      used: 2,
      free: 1,
      cooling: 1,
    });
    expect(await acquire(grown, 'a')).toBe('10.9.0.23');
    expect(await refused(store.raw, () => acquire(grown, 'b'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
  });

  test('that shrinks around a lease gives nothing outside it, and grown again misses nothing', async () => {
    const record = await put(store.ledger, NET);
    await acquire(record, 'a');
    await acquire(record, 'b');
    await release('b');
    const pool = { start: '10.9.0.15', end: '10.9.0.15' };
    const shrunk = await put(store.ledger, { ...NET, pool }, record.revision);
    expect(await usage('n')).toMatchObject({
      size: 1,
      used: 1,
      free: 1,
    });
    expect(await acquire(shrunk, 'c')).toBe('10.9.0.15');
    expect(await refused(store.raw, () => acquire(shrunk, 'd'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
    await release('a');
    expect(await refused(store.raw, () => acquire(shrunk, 'd'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
    await put(store.ledger, NET, shrunk.revision);
    expect(await usage('n')).toMatchObject({
      size: 10,
      used: 1,
      free: 7,
      cooling: 2,
    });
  });

  test('goes and comes back as it was', async () => {
    const record = await put(store.ledger, NET);
    for (const id of ['a', 'b', 'c']) await acquire(record, id);
    await release('b');
    const pools = async (): Promise<object> =>
      Object.fromEntries(
        Object.entries(await hostLeases(store.raw)).filter(([key]) => key.includes(':n:4:')),
      );
    const before = await pools();
    const exclude = ['10.9.0.14/31', '10.9.0.16/30', '10.9.0.128/25'];
    const cut = await put(store.ledger, { ...NET, exclude }, record.revision);
    expect(await pools()).not.toEqual(before);
    await put(store.ledger, NET, cut.revision);
    expect(await pools()).toEqual(before);
  });

  test('loses none of many addresses when it goes and comes back', async () => {
    const large = { network: 'large', subnet: '10.16.0.0/12' };
    let record = await put(store.ledger, large);
    const ids = Array.from({ length: 1_300 }, (_, n) => `n${n}`);
    await Promise.all(ids.map((id) => acquire(record, id)));
    await Promise.all(ids.slice(0, 1_200).map((id) => release(id)));
    const size = 2 ** 20 - 2;
    expect(await usage('large')).toMatchObject({
      size,
      used: 100,
      cooling: 1_200,
      free: size - 1_300,
    });
    const exclude = ['10.16.0.0/22'];
    const held = (await store.ledger.listLeases({})).leases;
    for (const lease of held) await store.ledger.release({ ...owned(lease), cool: true });
    record = await put(store.ledger, { ...large, exclude }, record.revision);
    expect(await usage('large')).toMatchObject({
      size: size - 1_023,
      used: 0,
      cooling: 1_300 - 1_023,
      free: size - 1_300,
    });
    await put(store.ledger, large, record.revision);
    expect(await usage('large')).toMatchObject({
      size,
      used: 0,
      cooling: 1_300,
      free: size - 1_300,
    });
    await store.ledger.deleteNetwork('large');
    expect(await store.raw.zcard(`${ROOT}:gone:4`)).toBe(1_300);
  });

  test('has no address left out or in twice, whatever its holes', async () => {
    const exclude = [
      '10.9.0.10',
      '10.9.0.12/30',
      '10.9.0.12',
      '10.9.0.14',
      '10.9.0.19',
      '0.0.0.0/9',
    ];
    const record = await put(store.ledger, {
      ...NET,
      gateway: '10.9.0.11',
      reservations: { w: '10.9.0.18', x: '10.9.0.30' },
      exclude,
    });
    expect(await usage('n')).toMatchObject({
      size: 4,
      free: 2,
      reserved: 2,
    });
    expect(await acquire(record, 'a')).toBe('10.9.0.16');
    expect(await acquire(record, 'b')).toBe('10.9.0.17');
    expect(await refused(store.raw, () => acquire(record, 'c'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
  });
});
