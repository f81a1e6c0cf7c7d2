import { describe, expect, test } from 'vitest';
import {
  actionsOn,
  contents,
  hostLeases,
  network,
  put,
  refused,
  ROOT,
  useStore,
  VOLT0,
} from './fixture.ts';

const store = useStore();
const { acquire, release } = actionsOn(store);

describe('a network put', () => {
  test('for the first time is made', async () => {
    const made = await store.ledger.putNetwork(network(VOLT0));
    expect(made).toEqual({ network: network(VOLT0), revision: 1, created: true });
    expect(await store.ledger.getNetwork('volt0')).toEqual({
      network: network(VOLT0),
      revision: 1,
      usage: { size: 253, used: 0, free: 251, reserved: 2, cooling: 0, suspect: 0 },
    });
  });

  test('again changes nothing, in whatever order its keys are', async () => {
    await put(store.ledger, VOLT0);
    const before = await contents(store.raw);
    const reservations = { 'container-db': '10.42.0.20', 'vm-web': '10.42.0.10' };
    const again = await store.ledger.putNetwork(network({ ...VOLT0, reservations }));
    expect(again).toMatchObject({ revision: 1, created: false });
    expect((await store.ledger.putNetwork(network(VOLT0), 77)).revision).toBe(1);
    expect(await contents(store.raw)).toEqual(before);
  });

  test('with other content needs the revision that it replaces', async () => {
    const { revision } = await put(store.ledger, VOLT0);
    const other = { ...VOLT0, mtu: 1400 };
    const error = await refused(store.raw, () => put(store.ledger, other));
    expect(error.code).toBe('NETWORK_CONFLICT');
    expect(error.details).toEqual({ network: 'volt0', revision });
    const changed = await store.ledger.putNetwork(network(other), revision);
    expect(changed).toMatchObject({ created: false, network: { mtu: 1400 } });
    expect(changed.revision).toBeGreaterThan(revision);
    expect(await refused(store.raw, () => put(store.ledger, VOLT0, revision))).toMatchObject({
      code: 'NETWORK_CONFLICT',
    });
  });

  test('with a revision of nothing is refused', async () => {
    expect(await refused(store.raw, () => put(store.ledger, VOLT0, 3))).toMatchObject({
      code: 'UNKNOWN_NETWORK',
    });
  });

  test.each([
    ['the same', '10.42.0.0/24'],
    ['inside', '10.42.0.128/25'],
    ['around', '10.40.0.0/13'],
  ])('whose subnet overlaps that of another is refused: %s', async (_, subnet) => {
    await put(store.ledger, VOLT0);
    await put(store.ledger, { network: 'low', subnet: '10.8.0.0/24' });
    await put(store.ledger, { network: 'high', subnet: '10.200.0.0/24' });
    const error = await refused(store.raw, () => put(store.ledger, { network: 'other', subnet }));
    expect(error.code).toBe('NETWORK_CONFLICT');
    expect(error.details).toEqual({ network: 'volt0', path: 'subnet' });
  });

  test('whose IPv6 subnet overlaps is refused, and one beside it is not', async () => {
    await put(store.ledger, { network: 'six', ipv6: { subnet: '2001:db8::/64' } });
    const error = await refused(store.raw, () =>
      put(store.ledger, {
        network: 'both',
        subnet: '10.1.0.0/24',
        ipv6: { subnet: '2001:db8::/48' },
      }),
    );
    expect(error.code).toBe('NETWORK_CONFLICT');
    expect(error.details).toEqual({ network: 'six', path: 'ipv6.subnet' });
    await put(store.ledger, { network: 'beside', ipv6: { subnet: '2001:db8:0:1::/64' } });
  });

  test('with a reservation that is never given out is refused', async () => {
    const error = await refused(store.raw, () =>
      put(store.ledger, { ...VOLT0, exclude: ['10.42.0.16/28'] }),
    );
    expect(error.code).toBe('INVALID_REQUEST');
    expect(error.details).toEqual({ path: 'reservations.container-db' });
  });

  test('that is too large is refused', async () => {
    const reservations = Object.fromEntries(
      Array.from({ length: 6_000 }, (_, n) => [
        `${'w'.repeat(40)}${n}`,
        `10.64.${n >> 8}.${n & 255}`,
      ]),
    );
    const { '10.64.0.0': _, ...rest } = reservations;
    delete rest[`${'w'.repeat(40)}0`];
    expect(
      await refused(store.raw, () =>
        put(store.ledger, { network: 'big', subnet: '10.64.0.0/16', reservations: rest }),
      ),
    ).toMatchObject({ code: 'TOO_LARGE' });
  });
});

describe('a network deleted', () => {
  test('is gone, and deleted again was not there', async () => {
    await put(store.ledger, VOLT0);
    expect(await store.ledger.deleteNetwork('volt0')).toEqual({ deleted: true });
    expect(await store.ledger.deleteNetwork('volt0')).toEqual({ deleted: false });
    expect(await store.ledger.getNetwork('volt0')).toBeNull();
    expect(await hostLeases(store.raw)).toEqual({});
  });

  test('while leases exist is refused by their names', async () => {
    const record = await put(store.ledger, VOLT0);
    await put(store.ledger, { network: 'volt00', subnet: '10.43.0.0/24' });
    for (let n = 0; n < 20; n += 1) await acquire(record, `n${n}`);
    const error = await refused(store.raw, () => store.ledger.deleteNetwork('volt0'));
    expect(error.code).toBe('NETWORK_IN_USE');
    expect(error.details).toMatchObject({ network: 'volt0' });
    expect(error.details?.['ids']).toHaveLength(16);
    expect(await store.ledger.deleteNetwork('volt00')).toEqual({ deleted: true });
  });

  test('and made anew under any name lets its addresses cool down', async () => {
    const { gateway: _, ...keys } = VOLT0;
    const first = await put(store.ledger, keys);
    await acquire(first, 'a', { addresses: ['10.42.0.2'] });
    await release('a');
    await store.ledger.deleteNetwork('volt0');
    expect(Object.keys(await hostLeases(store.raw))).toEqual([`${ROOT}:gone:4`]);
    // Not by the server's clock, which may be set.
    expect(await store.raw.pttl(`${ROOT}:gone:4`)).toBeGreaterThan(365 * 86_400_000);
    const other = await put(store.ledger, {
      network: 'other',
      subnet: '10.42.0.0/30',
      reuseDelaySeconds: 60,
    });
    expect(await acquire(other, 'b')).toBe('10.42.0.1');
    const error = await refused(store.raw, () => acquire(other, 'c'));
    expect(error.code).toBe('POOL_EXHAUSTED');
    expect(error.retryAfterMs).toBeGreaterThan(55_000);
  });

  test('and made anew with more addresses has all of them, those that rest too', async () => {
    const before = { network: 'b', subnet: '10.9.0.8/30', reuseDelaySeconds: 60 };
    const record = await put(store.ledger, before);
    await acquire(record, 'a');
    await release('a');
    await store.ledger.deleteNetwork('b');
    await put(store.ledger, { ...before, subnet: '10.9.0.8/29' });
    const usage = (await store.ledger.getNetwork('b'))?.usage;
    expect(usage).toMatchObject({ size: 6, free: 5, cooling: 1 });
    for await (const difference of store.ledger.audit())
      throw new Error(JSON.stringify(difference));
  });

  test('never gives its revision to another', async () => {
    const first = await put(store.ledger, VOLT0);
    await store.ledger.deleteNetwork('volt0');
    const second = await put(store.ledger, { ...VOLT0, reuseDelaySeconds: 1 });
    expect(second.revision).toBeGreaterThan(first.revision);
    expect(await refused(store.raw, () => acquire(first, 'a'))).toMatchObject({
      code: 'REVISION_CHANGED',
    });
  });
});

describe('networks', () => {
  test('are listed by name, page by page', async () => {
    for (let n = 0; n < 7; n += 1) {
      await put(store.ledger, { network: `n${n}`, subnet: `10.${n}.0.0/24` });
    }
    const first = await store.ledger.listNetworks({ limit: 3 });
    expect(first.networks.map((one) => one.network.network)).toEqual(['n0', 'n1', 'n2']);
    expect(first.networks[1]).toMatchObject({ revision: 2, network: { subnet: '10.1.0.0/24' } });
    const rest = await store.ledger.listNetworks({ cursor: first.cursor });
    expect(rest.networks.map((one) => one.network.network)).toEqual(['n3', 'n4', 'n5', 'n6']);
    expect(rest.cursor).toBeUndefined();
  });

  test('of a newer version are not used', async () => {
    await put(store.ledger, VOLT0);
    const newer = JSON.stringify({ ...VOLT0, fromTheFuture: true });
    await store.raw.hset(`${ROOT}:net:volt0`, 'network', newer);
    expect(await refused(store.raw, () => store.ledger.getNetwork('volt0'))).toMatchObject({
      code: 'UNSUPPORTED',
    });
  });

  test('that are large come in pages that fit a reply', async () => {
    const reservations = (n: number): object =>
      Object.fromEntries(
        Array.from({ length: 2_000 }, (_, w) => [
          `${'w'.repeat(50)}${w}`,
          `10.${n}.${(w >> 8) + 1}.${w & 255}`,
        ]),
      );
    for (let n = 1; n <= 5; n += 1) {
      await put(store.ledger, {
        network: `n${n}`,
        subnet: `10.${n}.0.0/16`,
        reservations: reservations(n),
      });
    }
    const names: string[] = [];
    let pages = 0;
    let cursor: string | undefined;
    do {
      const page = await store.ledger.listNetworks({ cursor });
      expect(JSON.stringify(page).length).toBeLessThan(512 * 1024);
      names.push(...page.networks.map((one) => one.network.network));
      pages += 1;
      ({ cursor } = page);
    } while (cursor !== undefined);
    expect(names).toEqual(['n1', 'n2', 'n3', 'n4', 'n5']);
    expect(pages).toBeGreaterThan(1);
  });
});
