import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import type { Network } from '#protocol/network.ts';
import { askFor, bare, enrol, put, refused, useStore, owned } from './fixture.ts';

// Cases that the allocators of others answer for, as inputs and results. Those of host-local are of CNI's
// plugins/ipam/host-local/backend/allocator: allocator_test.go, range_test.go and range_set_test.go; the gateway
// is the first usable address there, and said here.

const store = useStore();

const acquire = async (
  record: NetworkRecord,
  id: string,
  addresses?: string[],
): Promise<string> => {
  const more = addresses === undefined ? {} : { addresses };
  return bare((await store.ledger.acquire(askFor(record, id, more))).lease);
};

async function release(id: string): Promise<void> {
  const lease = await store.ledger.getLease(id);
  if (lease === null) throw new Error(`${id} has no lease`);
  await store.ledger.release({ ...owned(lease), cool: true });
}

const gatewayed = (subnet: string, gateway: string): object => ({
  network: 'n',
  reuseDelaySeconds: 0,
  ...(subnet.includes(':') ? { ipv6: { subnet, gateway } } : { subnet, gateway }),
});

describe('host-local: the first address given', () => {
  test.each([
    ['10.0.0.0/29', '10.0.0.1', [], '10.0.0.2'],
    ['2001:db8:1::/64', '2001:db8:1::1', [], '2001:db8:1::2'],
    ['10.0.0.0/30', '10.0.0.1', [], '10.0.0.2'],
    ['10.0.0.0/29', '10.0.0.1', ['10.0.0.2'], '10.0.0.3'],
  ])('%s, gateway %s, taken %j: %s', async (subnet, gateway, taken, expected) => {
    const record = await put(store.ledger, gatewayed(subnet, gateway));
    for (const [n, address] of taken.entries()) await acquire(record, `taken${n}`, [address]);
    expect(await acquire(record, 'one')).toBe(expected);
  });
});

describe('host-local: the next address given, all having been used', () => {
  // There the search goes on behind the last address; here whoever rested longest comes first. Used in turn,
  // that is the same.
  test.each([
    [[], '10.0.0.5', '10.0.0.6'],
    [['10.0.0.4', '10.0.0.5'], '10.0.0.3', '10.0.0.6'],
    [['10.0.0.6'], '10.0.0.5', '10.0.0.2'],
  ])('taken %j, last %s: %s', async (taken, last, expected) => {
    const record = await put(store.ledger, gatewayed('10.0.0.0/29', '10.0.0.1'));
    const addresses = [2, 3, 4, 5, 6].map((n) => `10.0.0.${n}`);
    for (const address of addresses) await acquire(record, address, [address]);
    const from = addresses.indexOf(last) + 1;
    for (const address of [...addresses.slice(from), ...addresses.slice(0, from)]) {
      if (taken.includes(address)) continue;
      await release(address);
      await sleep(2);
    }
    expect(await acquire(record, 'one')).toBe(expected);
  });
});

describe('host-local: refusals', () => {
  test.each([
    ['10.0.0.0/30', '10.0.0.1', 1, 'network n has no IPv4 address left'],
    ['10.0.0.0/29', '10.0.0.1', 5, 'network n has no IPv4 address left'],
    ['2001:db8:1::/126', '2001:db8:1::1', 2, 'network n has no IPv6 address left'],
  ])('%s, all taken: an error that names the pool', async (subnet, gateway, size, message) => {
    const record = await put(store.ledger, gatewayed(subnet, gateway));
    for (let n = 0; n < size; n += 1) await acquire(record, `n${n}`);
    const error = await refused(store.raw, () => acquire(record, 'more'));
    expect(error.code).toBe('POOL_EXHAUSTED');
    expect(error.message).toBe(message);
  });

  test.each(['10.0.0.1', '10.0.0.7', '10.0.0.0'])('%s cannot be asked for', async (address) => {
    const record = await put(store.ledger, gatewayed('10.0.0.0/29', '10.0.0.1'));
    expect(await refused(store.raw, () => acquire(record, 'one', [address]))).toMatchObject({
      code: 'ADDRESS_OUT_OF_RANGE',
    });
  });
});

describe('ranges refused', () => {
  test.each([
    ['host bits', { subnet: '192.0.2.12/24' }, 'subnet', '192.0.2.0/24'],
    ['host bits of a /23', { subnet: '192.168.127.0/23' }, 'subnet', '192.168.126.0/23'],
    [
      'host bits of IPv6',
      { ipv6: { subnet: '2001:db8:24:19ff::/63' } },
      'ipv6.subnet',
      '2001:db8:24:19fe::/63',
    ],
    [
      'a start outside',
      { subnet: '192.0.2.0/24', pool: { start: '192.0.3.0', end: '192.0.2.9' } },
      'pool.start',
      '192.0.2.0/24',
    ],
    [
      'an end outside',
      { subnet: '192.0.2.0/24', pool: { start: '192.0.2.9', end: '192.0.4.0' } },
      'pool.end',
      '192.0.2.0/24',
    ],
    [
      'a start after the end',
      { subnet: '192.0.2.0/24', pool: { start: '192.0.2.50', end: '192.0.2.40' } },
      'pool',
      '192.0.2.40 to 192.0.2.50',
    ],
    [
      'a gateway outside',
      { subnet: '192.0.2.0/24', gateway: '192.0.3.1' },
      'gateway',
      '192.0.2.0/24',
    ],
  ])('%s: %o', async (_, keys, path, named) => {
    const given = { network: 'n', ...keys } as Network;
    const error = await refused(store.raw, () => store.ledger.putNetwork(given));
    expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path } });
    expect(error.message).toContain(named);
  });
});

describe('ranges', () => {
  test.each([
    ['192.0.2.0/24', 254, '192.0.2.1', '192.0.2.254'],
    ['192.0.2.0/25', 126, '192.0.2.1', '192.0.2.126'],
    ['192.0.2.0/30', 2, '192.0.2.1', '192.0.2.2'],
    ['192.0.2.0/31', 2, '192.0.2.0', '192.0.2.1'],
    ['192.0.2.7/32', 1, '192.0.2.7', '192.0.2.7'],
    ['10.0.0.0/8', 2 ** 24 - 2, '10.0.0.1', '10.255.255.254'],
    ['2001:db8::/127', 2, '2001:db8::', '2001:db8::1'],
    ['2001:db8::/126', 3, '2001:db8::1', '2001:db8::3'],
  ])('%s gives %i addresses, %s to %s', async (subnet, size, first, last) => {
    const family = subnet.includes(':') ? { ipv6: { subnet } } : { subnet };
    const record = await put(store.ledger, { network: 'n', reuseDelaySeconds: 0, ...family });
    expect((await store.ledger.getNetwork('n'))?.usage).toMatchObject({ size, free: size });
    expect(await acquire(record, 'first')).toBe(first);
    await release('first');
    expect(await acquire(record, 'last', [last])).toBe(last);
  });

  test('.0 and .255 inside a larger one are given', async () => {
    const record = await put(store.ledger, { network: 'n', subnet: '10.0.0.0/22' });
    expect(await acquire(record, 'a', ['10.0.1.0'])).toBe('10.0.1.0');
    expect(await acquire(record, 'b', ['10.0.1.255'])).toBe('10.0.1.255');
  });

  test.each([
    ['10.0.0.0/20', '10.0.1.0/24', true],
    ['10.0.0.0/25', '10.0.0.128/25', false],
    ['10.0.0.0/8', '2001:db8::/32', false],
    ['2001:db8::/32', '2001:db8:1::/48', true],
  ])('%s and %s overlap, either way: %s', async (a, b, overlap) => {
    const keys = (network: string, subnet: string): object => ({
      network,
      ...(subnet.includes(':') ? { ipv6: { subnet } } : { subnet }),
    });
    for (const [first, second] of [
      [a, b],
      [b, a],
    ] as const) {
      await store.raw.flushall();
      await enrol(store.ledger, 'h1');
      await put(store.ledger, keys('first', first));
      const other = put(store.ledger, keys('second', second)).then(
        () => false,
        () => true,
      );
      expect(await other).toBe(overlap);
    }
  });
});

describe('how others lost or doubled addresses', () => {
  test('a refused grant is not taken for one that was made (whereabouts#141)', async () => {
    const record = await put(store.ledger, gatewayed('10.0.0.0/30', '10.0.0.1'));
    await acquire(record, 'one');
    expect(await refused(store.raw, () => acquire(record, 'two'))).toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
    expect(await store.ledger.getLease('two')).toBeNull();
  });

  test('a late release of a name that was used again frees nothing (whereabouts#176)', async () => {
    const record = await put(store.ledger, gatewayed('10.0.0.0/29', '10.0.0.1'));
    const first = (await store.ledger.acquire(askFor(record, 'web-0'))).lease;
    await store.ledger.release({ ...owned(first), cool: true });
    const second = (await store.ledger.acquire(askFor(record, 'web-0'))).lease;
    expect(
      await refused(store.raw, () => store.ledger.release({ ...owned(first), cool: true })),
    ).toMatchObject({ code: 'STALE_GENERATION' });
    expect(await store.ledger.getLease('web-0')).toEqual(second);
  });

  test('a pool of addresses that all cool down fills up again by itself (whereabouts#182)', async () => {
    const record = await put(store.ledger, {
      ...gatewayed('10.0.0.0/30', '10.0.0.1'),
      reuseDelaySeconds: 1,
    });
    await acquire(record, 'one');
    await release('one');
    const error = await refused(store.raw, () => acquire(record, 'two'));
    expect(error.code).toBe('POOL_EXHAUSTED');
    await sleep((error.retryAfterMs ?? 0) + 5);
    expect(await acquire(record, 'two')).toBe('10.0.0.2');
  });

  test('a lease says which boot it is of (cni#1167, k8s#108121)', async () => {
    const record = await put(store.ledger, gatewayed('10.0.0.0/29', '10.0.0.1'));
    await acquire(record, 'one');
    const { leases } = await store.ledger.listLeases({ host: 'h1' });
    expect(leases).toMatchObject([{ id: 'one', bootId: 'boot-1' }]);
  });
});
