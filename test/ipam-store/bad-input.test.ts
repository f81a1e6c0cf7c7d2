import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Lease,
  type LeaseRequest,
  type NetworkRecord,
  NOTHING_SEEN,
} from '#ipam-store/ledger.ts';
import { ID_PATTERN } from '#protocol/names.ts';
import {
  askFor,
  beatOf,
  contents,
  hostLeases,
  enrol,
  HOSTS,
  put,
  refused,
  useStore,
  VOLT0,
  owned,
} from './fixture.ts';
import { codeOf, labels, ODD, refusesAll } from './odd.ts';

// Callers of the ledger have types, and their values come from outside all the same. Whatever they are, the
// answer is an error with a stable code and the path of the field, and Redis holds what it held.

const store = useStore();

const TOKENS = ['a path', 'the end of a range', 'all of a range', 'a brace', 'a format'];
const ABOVE_ZERO = ['a fraction'];

async function holding(): Promise<{ record: NetworkRecord; generation: number }> {
  const record = await put(store.ledger, VOLT0);
  const { lease } = await store.ledger.acquire(askFor(record, 'held', { ttlSeconds: 60 }));
  return { record, generation: lease.generation };
}

describe('acquire refuses', () => {
  test.each([
    ['id', labels()],
    ['workload', labels()],
    ['kind', labels()],
    ['revision', labels()],
    ['host', labels()],
    ['bootId', labels(...TOKENS)],
    ['mac', labels()],
    ['addresses', labels()],
    ['hostname', labels()],
    ['ttlSeconds', labels(...ABOVE_ZERO)],
  ])('every wrong %s', async (field, odd) => {
    const { record } = await holding();
    await refusesAll(store.raw, field, odd, (fields) =>
      store.ledger.acquire({ ...askFor(record, 'new'), ...fields }),
    );
    await refusesAll(store.raw, field, odd, (fields) =>
      store.ledger.acquire({ ...askFor(record, 'held'), ...fields }),
    );
  });

  test.each(['id', 'workload', 'kind', 'revision', 'host', 'bootId'] as const)(
    'a request without %s',
    async (field) => {
      const { record } = await holding();
      const { [field]: _, ...rest } = askFor(record, 'new');
      const error = await refused(store.raw, () => store.ledger.acquire(rest as LeaseRequest));
      expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path: field } });
    },
  );

  test('a network that is none', async () => {
    const { record } = await holding();
    const before = await contents(store.raw);
    for (const label of labels()) {
      const given = { ...askFor(record, 'new'), network: ODD[label] } as LeaseRequest;
      expect([label, await codeOf(() => store.ledger.acquire(given))]).toEqual([
        label,
        expect.stringMatching(/^INVALID_REQUEST/),
      ]);
    }
    expect(await contents(store.raw)).toEqual(before);
  });

  test.each([
    ['an address of the other family', ['2001:db8::5'], 'ADDRESS_OUT_OF_RANGE'],
    ['an address of another network', ['10.43.0.5'], 'ADDRESS_OUT_OF_RANGE'],
    ['the network address', ['10.42.0.0'], 'ADDRESS_OUT_OF_RANGE'],
    ['the broadcast address', ['10.42.0.255'], 'ADDRESS_OUT_OF_RANGE'],
    ['the gateway', ['10.42.0.1'], 'ADDRESS_OUT_OF_RANGE'],
    ['an address with a prefix length', ['10.42.0.5/24'], 'INVALID_REQUEST'],
    ['an address in octal', ['10.42.0.010'], 'INVALID_REQUEST'],
    ['an address in hex', ['0x0a2a0005'], 'INVALID_REQUEST'],
    ['a short address', ['10.42.5'], 'INVALID_REQUEST'],
    ['an IPv4 address as IPv6', ['::ffff:10.42.0.5'], 'ADDRESS_OUT_OF_RANGE'],
    ['an address with a zone', ['fe80::1%eth0'], 'INVALID_REQUEST'],
    ['two of one family', ['10.42.0.5', '10.42.0.6'], 'INVALID_REQUEST'],
    ['a hundred thousand addresses', Array<string>(100_000).fill('10.42.0.5'), 'INVALID_REQUEST'],
  ])('%s', async (_, addresses, code) => {
    const { record } = await holding();
    const error = await refused(store.raw, () =>
      store.ledger.acquire(askFor(record, 'new', { addresses })),
    );
    expect(error.code).toBe(code);
    expect(error.message.length).toBeLessThan(300);
  });

  test.each([
    '01:00:5e:00:00:01',
    'ff:ff:ff:ff:ff:ff',
    '00:00:00:00:00:00',
    '02-00',
    '020000000001',
  ])('the MAC %s', async (mac) => {
    const { record } = await holding();
    const error = await refused(store.raw, () =>
      store.ledger.acquire(askFor(record, 'new', { mac })),
    );
    expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path: 'mac' } });
  });
});

describe('the other calls refuse', () => {
  test.each([
    ['id', labels()],
    ['generation', labels()],
    ['host', labels()],
    ['machineId', labels(...TOKENS)],
    ['cool', labels('true')],
  ])('release: every wrong %s', async (field, odd) => {
    const { generation } = await holding();
    const right = { id: 'held', generation, host: 'h1', machineId: 'machine-h1', cool: true };
    await refusesAll(store.raw, field, odd, (fields) =>
      store.ledger.release({ ...right, ...fields }),
    );
  });

  test.each([
    ['host', labels()],
    ['machineId', labels(...TOKENS)],
    ['bootId', labels(...TOKENS)],
    ['suspectAfterSeconds', labels(...ABOVE_ZERO)],
    ['newFleet', labels('true')],
  ])('heartbeat: every wrong %s', async (field, odd) => {
    await holding();
    await refusesAll(store.raw, field, odd, (fields) =>
      store.ledger.heartbeat(beatOf('h1', fields)),
    );
  });

  test.each([
    { generation: -1 },
    { generation: 0.5 },
    { revision: Number.NaN },
    { roster: '1' },
    { hosts: ['a b'] },
    { hosts: 'h1' },
    { hosts: [1] },
  ])('heartbeat: to have seen what cannot be, %j', async (wrong) => {
    const seen = { ...NOTHING_SEEN, ...wrong };
    const call = (): Promise<unknown> =>
      store.ledger.heartbeat({ ...beatOf('h1'), seen: seen as typeof NOTHING_SEEN });
    expect(await refused(store.raw, call)).toMatchObject({ details: { path: 'seen' } });
  });

  test.each([0, -1, Number.NaN, '5'])('heartbeat: a recovery window of %j', async (seconds) => {
    const beat = { ...beatOf('h1'), recoveryWindowSeconds: seconds as number };
    const error = await refused(store.raw, () => store.ledger.heartbeat(beat));
    expect(error).toMatchObject({ details: { path: 'recoveryWindowSeconds' } });
  });

  test.each([
    ['host', { host: 'a b' }, {}],
    ['machineId', { machineId: '' }, {}],
    ['epoch', { epoch: 'two' }, {}],
    ['host', {}, { host: 'h2' }],
    ['id', {}, { id: 'a b' }],
    ['mac', {}, { mac: undefined }],
    ['addresses', {}, { addresses: ['10.42.0.300/24'] }],
    ['generation', {}, { generation: 0 }],
    ['grantedAt', {}, { grantedAt: 'yesterday' }],
    ['expiresAt', {}, { expiresAt: 'soon' }],
  ])('re-assert: a wrong %s', async (path, session, wrong) => {
    await holding();
    const lease = await store.ledger.getLease('held');
    const right = { host: 'h1', machineId: 'machine-h1', epoch: '1' };
    const leases = [{ ...lease, ...wrong } as Lease];
    const call = (): Promise<unknown> =>
      store.ledger.reassert({ ...right, ...session }, { networks: [], leases });
    expect(await refused(store.raw, call)).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path },
    });
  });

  test('forget: every wrong host', async () => {
    await holding();
    await refusesAll(store.raw, 'host', labels(), (fields) =>
      store.ledger.forgetHost(Object.values(fields)[0] as string),
    );
  });

  test('reads: every wrong name, cursor and limit', async () => {
    await holding();
    const only = (fields: object): string => Object.values(fields)[0] as string;
    await refusesAll(store.raw, 'id', labels(), (fields) => store.ledger.getLease(only(fields)));
    await refusesAll(store.raw, 'network', labels(), (fields) =>
      store.ledger.getNetwork(only(fields)),
    );
    await refusesAll(store.raw, 'network', labels(), (fields) =>
      store.ledger.deleteNetwork(only(fields)),
    );
    await refusesAll(store.raw, 'network', labels(), (fields) => store.ledger.listLeases(fields));
    await refusesAll(store.raw, 'host', labels(), (fields) => store.ledger.listLeases(fields));
    const printable = Object.keys(ODD).filter((label) => {
      const value = ODD[label];
      return typeof value === 'string' && /^[ -~]{1,160}$/.test(value);
    });
    const limits = labels('zero', 'minus one');
    for (const list of [
      (fields: object) => store.ledger.listLeases(fields),
      (fields: object) => store.ledger.listNetworks(fields),
    ]) {
      await refusesAll(store.raw, 'cursor', labels(...printable), list);
      await refusesAll(store.raw, 'limit', limits, list);
      for (const label of printable) await list({ cursor: ODD[label] });
    }
  });

  test.each(['volt0:macs', 'volt0:4:held', 'volt0:4', 'volt0 held'])(
    'the name of another key, %s, as that of a network',
    async (name) => {
      await holding();
      for (const call of ['getNetwork', 'deleteNetwork'] as const) {
        const error = await refused(store.raw, () => store.ledger[call](name));
        expect(error).toMatchObject({ code: 'INVALID_REQUEST', details: { path: 'network' } });
      }
    },
  );
});

describe('names of any Unicode', () => {
  const anyText = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 70 }),
    fc.string({ unit: 'grapheme', maxLength: 70 }),
    fc.array(fc.nat(0xffff), { maxLength: 8 }).map((units) => String.fromCharCode(...units)),
    fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,70}$/),
  );

  test('are ids, and come back as they were, or are refused', async () => {
    const record = await put(store.ledger, { network: 'n', subnet: '10.16.0.0/12' });
    const before = await hostLeases(store.raw);
    const property = fc.asyncProperty(anyText, anyText, async (id, workload) => {
      const good = ID_PATTERN.test(id) && ID_PATTERN.test(workload);
      const code = await codeOf(async () => {
        const { lease } = await store.ledger.acquire(askFor(record, id, { workload }));
        expect(lease).toMatchObject({ id, workload });
        expect(await store.ledger.getLease(id)).toEqual(lease);
        const { leases } = await store.ledger.listLeases({ host: 'h1', network: 'n' });
        expect(leases).toEqual([{ ...lease, state: 'held' }]);
        expect(await store.ledger.release({ ...owned(lease), cool: false })).toBe('released');
      });
      expect(code).toMatch(good ? /^accepted$/ : /^INVALID_REQUEST (id|workload)$/);
    });
    await fc.assert(property, { numRuns: 300 });
    expect(await hostLeases(store.raw)).toEqual(before);
  });

  // Names that mean something to Lua, JSON, JavaScript or Redis.
  test.each(['0', '007', '1e5', '0x1F', 'nan', 'inf', 'null', 'true', 'constructor', 'toString'])(
    'the id and workload %s is one like others',
    async (id) => {
      await enrol(store.ledger, id);
      await enrol(store.ledger, ...HOSTS, id);
      const record = await put(store.ledger, VOLT0);
      const { lease } = await store.ledger.acquire(askFor(record, id, { workload: id, host: id }));
      expect(lease).toMatchObject({ id, workload: id, host: id, addresses: ['10.42.0.2/24'] });
      expect(await store.ledger.getLease(id)).toEqual(lease);
      expect((await store.ledger.listLeases({ host: id })).leases).toMatchObject([lease]);
      expect(await store.ledger.release({ ...owned(lease), cool: true })).toBe('released');
    },
  );

  test('that differ in their case alone are two', async () => {
    const record = await put(store.ledger, VOLT0);
    for (const id of ['vm', 'VM', 'Vm']) await store.ledger.acquire(askFor(record, id));
    const { leases } = await store.ledger.listLeases({});
    expect(leases.map(({ id }) => id)).toEqual(['VM', 'Vm', 'vm']);
  });
});
