import { describe, expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import type { Network } from '#protocol/network.ts';
import { askFor, contents, network, put, refused, useStore, VOLT0 } from './fixture.ts';
import { codeOf, labels, ODD, refusesAll } from './odd.ts';

// Networks as nobody should write them, through the ledger itself: what it is given was perhaps never parsed.

const store = useStore();

async function held(): Promise<NetworkRecord> {
  const record = await put(store.ledger, VOLT0);
  await store.ledger.acquire(askFor(record, 'held'));
  return record;
}

describe('a network is refused', () => {
  const FAMILIES = [
    ['IPv4', '', '10.42.0', '.', 'fd00::5', '10.43.0.5'],
    ['IPv6', 'ipv6.', 'fd00:', ':', '10.42.0.5', 'fd01::5'],
  ] as const;
  const cases = FAMILIES.flatMap(([family, path, stem, dot, foreign, outside]) => {
    const at = (n: number): string => `${stem}${dot}${n}`;
    const subnet = family === 'IPv4' ? '10.42.0.0/24' : 'fd00::/64';
    const rows: [string, object, string][] = [
      ['a subnet of the other family', { subnet: `${foreign}/32` }, 'subnet'],
      ['a subnet with host bits', { subnet: `${at(5)}/${family === 'IPv4' ? 24 : 64}` }, 'subnet'],
      ['a gateway of the other family', { gateway: foreign }, 'gateway'],
      ['a gateway outside', { gateway: outside }, 'gateway'],
      ['a pool of the other family', { pool: { start: foreign, end: foreign } }, 'pool.start'],
      ['a pool that ends in the other', { pool: { start: at(5), end: foreign } }, 'pool.end'],
      ['a pool that begins outside', { pool: { start: outside, end: at(9) } }, 'pool.start'],
      ['a pool that ends before it starts', { pool: { start: at(9), end: at(5) } }, 'pool'],
      ['half a pool', { pool: { start: at(9) } }, 'pool.end'],
      ['a reservation outside', { reservations: { w: outside } }, 'reservations.w'],
      ['a reservation of the other family', { reservations: { w: foreign } }, 'reservations.w'],
      ['one address reserved twice', { reservations: { v: at(5), w: at(5) } }, 'reservations.w'],
      ['the gateway reserved', { gateway: at(1), reservations: { w: at(1) } }, 'reservations.w'],
      ['a reservation for no workload', { reservations: { 'a b': at(5) } }, 'reservations.a b'],
    ];
    return rows.map(([what, keys, key]): [string, object, string] => {
      const own = { subnet, ...keys };
      return [`${family}: ${what}`, family === 'IPv4' ? own : { ipv6: own }, `${path}${key}`];
    });
  });

  test.each([
    ...cases,
    ['no subnet', {}, 'subnet'],
    ['an unknown key', { subnet: '10.42.0.0/24', colour: 'red' }, 'colour'],
    ['a key of another type', { subnet: '10.42.0.0/24', parent: 'eth0' }, 'parent'],
    ['a type of its own', { subnet: '10.42.0.0/24', type: 'tunnel' }, 'type'],
    ['an exclude that is none', { subnet: '10.42.0.0/24', exclude: ['10.42.0.5/24'] }, 'exclude.0'],
    ['a delay below none', { subnet: '10.42.0.0/24', reuseDelaySeconds: -1 }, 'reuseDelaySeconds'],
    ['a delay of a part', { subnet: '10.42.0.0/24', reuseDelaySeconds: 0.5 }, 'reuseDelaySeconds'],
    ['a delay of NaN', { subnet: '10.42.0.0/24', reuseDelaySeconds: NaN }, 'reuseDelaySeconds'],
    [
      'a reservation of what is excluded',
      { subnet: '10.42.0.0/24', exclude: ['10.42.0.0/28'], reservations: { w: '10.42.0.5' } },
      'reservations.w',
    ],
  ])('%s', async (_, keys, path) => {
    await held();
    const given = { network: 'n', ...keys } as Network;
    const error = await refused(store.raw, () => store.ledger.putNetwork(given));
    expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path } });
    expect(error.message).toContain(path);
  });

  test.each(Object.keys(network(VOLT0)))('every wrong value of %s', async (key) => {
    const record = await held();
    const before = await contents(store.raw);
    for (const [label, value] of Object.entries(ODD)) {
      const fine =
        (key === 'filter' && value === true) ||
        (key === 'reservations' && label === 'a map') ||
        (key === 'reuseDelaySeconds' && label === 'zero');
      if (fine) continue;
      const given = { ...record.network, [key]: value } as Network;
      const code = await codeOf(() => store.ledger.putNetwork(given, record.revision));
      expect([label, code]).toEqual([label, expect.stringMatching(/^INVALID_REQUEST /)]);
      expect(code).toMatch(new RegExp(`^INVALID_REQUEST ${key}`));
    }
    expect(await contents(store.raw)).toEqual(before);
  });

  test('every wrong revision', async () => {
    const record = await held();
    await refusesAll(store.raw, 'revision', labels(), ({ revision }: { revision?: unknown }) =>
      store.ledger.putNetwork({ ...record.network, mtu: 1400 }, revision as number),
    );
  });
});

describe('too much', () => {
  const reservations = (count: number, text = 'vm'): Record<string, string> =>
    Object.fromEntries(
      Array.from({ length: count }, (_, n) => [
        `${text}-${n}`,
        `10.${64 + (n >> 16)}.${(n >> 8) & 255}.${(n & 255) | 1}`,
      ]).filter((_, n) => n % 2 === 1),
    );

  test('a network of 10 MB is refused', { timeout: 30_000 }, async () => {
    await held();
    const given = { network: 'big', subnet: '10.64.0.0/10', reservations: reservations(780_000) };
    expect(JSON.stringify(given).length).toBeGreaterThan(10_000_000);
    const error = await refused(store.raw, () => store.ledger.putNetwork(given as never));
    expect(error.code).toBe('TOO_LARGE');
  });

  test('more excludes than may be are refused', async () => {
    await held();
    const exclude = Array.from({ length: 1_025 }, (_, n) => `10.64.${n >> 8}.${n & 255}`);
    const given = { network: 'big', subnet: '10.64.0.0/10', exclude };
    const error = await refused(store.raw, () => store.ledger.putNetwork(given as never));
    expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path: 'exclude' } });
  });

  test('as many reservations and excludes as may be are done within the time of a call', async () => {
    await store.raw.config('SET', 'slowlog-log-slower-than', '0');
    await store.raw.slowlog('RESET');
    const exclude = Array.from({ length: 1_024 }, (_, n) => `10.127.${n >> 7}.${(n & 127) * 2}`);
    const keys = { network: 'big', subnet: '10.64.0.0/10', exclude };
    const first = { ...keys, reservations: reservations(16_000) };
    expect(JSON.stringify(first).length).toBeGreaterThan(200_000);
    const record = await put(store.ledger, first);
    for (let n = 0; n < 100; n += 1) await store.ledger.acquire(askFor(record, `n${n}`));
    await put(store.ledger, { ...keys, reservations: reservations(15_998) }, record.revision);
    await put(store.ledger, { ...keys, reuseDelaySeconds: 61 }, record.revision + 1);
    const entries = (await store.raw.slowlog('GET', 128)) as [number, number, number, string[]][];
    const slowest = Math.max(...entries.map(([, , microseconds]) => microseconds));
    expect(slowest).toBeLessThan(1_000_000);
  });

  test('megabytes of networks are listed page by page', async () => {
    const exclude = Array.from({ length: 1_024 }, (_, n) => `10.${n >> 8}.${n & 255}.0/24`);
    const names = Array.from({ length: 64 }, (_, n) => `n${n}`);
    for (const [n, name] of names.entries()) {
      await put(store.ledger, { network: name, subnet: `10.128.${n}.0/24`, exclude });
    }
    const seen: string[] = [];
    let cursor: string | undefined;
    let bytes = 0;
    do {
      const page = await store.ledger.listNetworks({ cursor });
      const size = JSON.stringify(page).length;
      expect(size).toBeLessThan(512 * 1024);
      bytes += size;
      seen.push(...page.networks.map((one) => one.network.network));
      ({ cursor } = page);
    } while (cursor !== undefined);
    expect(bytes).toBeGreaterThan(1_000_000);
    expect(seen).toEqual(names.toSorted());
  });
});
