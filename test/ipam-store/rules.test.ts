import { expect, test } from 'vitest';
import { definitionOf } from '#ipam-store/network.ts';
import type { Lease, Reasserted } from '#ipam-store/ledger.ts';
import {
  actionsOn,
  askFor,
  contents,
  enrol,
  network,
  owned,
  put,
  ROOT,
  useStore,
} from './fixture.ts';

// What a definition says of single addresses is found by the address, whoever has put it, in whichever form.

const store = useStore();
const { acquire, usage } = actionsOn(store);
const RULED = {
  network: 'ruled',
  subnet: '10.61.0.0/24',
  gateway: '10.61.0.9',
  // One within the other, two that touch, one of another subnet.
  exclude: ['10.61.0.8/29', '10.61.0.16/30', '10.61.0.20', '10.99.0.0/16'],
  reservations: { 'vm-one': '10.61.0.40', 'vm-two': '10.61.0.42' },
};

/** The definition as agents before library 1.7 send it. */
function oldForm(definition: object): object {
  const { families, ...rest } = definitionOf(network(definition));
  const pairs = (text: string): string[] => text.split(/[- ]/);
  const old = Object.entries(families).map(([family, rules]) => [
    family,
    {
      ...rules,
      flat: undefined,
      allowed: rules.allowed.map(pairs),
      reserved: Object.fromEntries(rules.reserved.map((entry) => entry.split(' '))),
      forbidden: rules.forbidden.map(pairs),
    },
  ]);
  return { ...rest, families: Object.fromEntries(old) };
}

async function putOld(definition: object): Promise<void> {
  await store.raw.call(
    'FCALL',
    'volt1_network_put',
    '1',
    ROOT,
    JSON.stringify(oldForm(definition)),
  );
}

/** Makes the rules those that library 1.6 has left: in one JSON, without keys of their own. */
async function storeAs16(): Promise<void> {
  const [rules] = Object.values(definitionOf(network(RULED)).families);
  const { first, last, size, poolSize, reserved = [], forbidden = [] } = rules ?? {};
  const old = {
    ...{ first, last, size, poolSize },
    reserved: reserved.map((entry) => entry.split(' ')[0]),
    owners: reserved.map((entry) => entry.split(' ')[1]),
    forbidden: forbidden.map((entry) => entry.split(/[- ]/).slice(0, 2)),
  };
  await store.raw.hset(`${ROOT}:net:ruled`, 'family:4', JSON.stringify(old));
  await store.raw.del(`${ROOT}:net:ruled:4:reserved`, `${ROOT}:net:ruled:4:closed`);
}

/** What the ledger says to a host that holds such an address, of a generation that it has not given. */
async function reasserted(address: string, workload = 'vm-other'): Promise<string> {
  const record = await store.ledger.getNetwork('ruled');
  if (record === null) throw new Error('no network');
  const { lease } = await store.ledger.acquire(askFor(record, 'lost'));
  await store.ledger.release({ ...owned(lease), cool: false });
  const lost: Lease = { ...lease, workload, addresses: [`${address}/24`] };
  const session = { host: 'h1', machineId: 'machine-h1', epoch: '1' };
  const { leases }: Reasserted = await store.ledger.reassert(session, {
    networks: [],
    leases: [lost],
  });
  const [outcome] = leases;
  if (outcome?.outcome === 'restored') {
    await store.ledger.release({ ...owned(lease), cool: false });
  }
  return String(outcome?.outcome === 'misplaced' ? outcome.reason : outcome?.outcome);
}

async function differences(): Promise<string[]> {
  const found: string[] = [];
  for await (const one of store.ledger.audit()) found.push(one.what);
  return found;
}

test('an agent of an earlier version puts the same', async () => {
  await putOld(RULED);
  const old = await contents(store.raw);
  await store.raw.flushall();
  await enrol(store.ledger, 'h1', 'h2', 'h3');
  await put(store.ledger, RULED);
  const now = await contents(store.raw);
  const keys = Object.keys(now).filter((key) => key.includes(':net:') && !key.endsWith(':log'));
  expect(keys).toContain(`${ROOT}:net:ruled:4:closed`);
  for (const key of keys) expect(old[key]).toEqual(now[key]);
});

const CASES: readonly [address: string, workload: string, outcome: string][] = [
  ['10.61.0.0', 'vm-x', 'ADDRESS_OUT_OF_RANGE'],
  ['10.61.0.7', 'vm-x', 'restored'],
  ...['10.61.0.8', '10.61.0.9', '10.61.0.15', '10.61.0.16', '10.61.0.20'].map(
    (address): [string, string, string] => [address, 'vm-x', 'ADDRESS_OUT_OF_RANGE'],
  ),
  ['10.61.0.21', 'vm-x', 'restored'],
  ['10.61.0.40', 'vm-x', 'ADDRESS_IN_USE'],
  ['10.61.0.40', 'vm-one', 'restored'],
  ['10.61.0.41', 'vm-x', 'restored'],
  ['10.61.0.255', 'vm-x', 'ADDRESS_OUT_OF_RANGE'],
  ['10.62.0.1', 'vm-x', 'ADDRESS_OUT_OF_RANGE'],
];

test.each([
  ['put now', async (): Promise<unknown> => put(store.ledger, RULED)],
  ['put by an agent before 1.7', (): Promise<unknown> => putOld(RULED)],
  [
    'stored by library 1.6',
    async (): Promise<void> => {
      await put(store.ledger, RULED);
      await storeAs16();
    },
  ],
])('rules %s say who may have an address again', async (_, given) => {
  await given();
  for (const [address, workload, outcome] of CASES) {
    expect([address, await reasserted(address, workload)]).toEqual([address, outcome]);
  }
  expect(await usage('ruled')).toMatchObject({ reserved: 2, used: 0, size: 241 });
  const record = await store.ledger.getNetwork('ruled');
  if (record === null) throw new Error('no network');
  await acquire(record, 'one');
  expect(await usage('ruled')).toMatchObject({ reserved: 1, used: 1 });
  expect(await differences()).toEqual([]);
  // The next put leaves them in the form of this version.
  await put(store.ledger, { ...RULED, reuseDelaySeconds: 5 }, record.revision);
  expect(await usage('ruled')).toMatchObject({ reserved: 1, used: 1 });
  expect(await store.raw.zcard(`${ROOT}:net:ruled:4:reserved`)).toBe(2);
  expect(await differences()).toEqual([]);
});

test('a reservation of an address that another workload holds is refused by its name', async () => {
  const record = await put(store.ledger, { network: 'few', subnet: '10.62.0.0/28' });
  expect(await acquire(record, 'a')).toBe('10.62.0.1');
  const wanted = (count: number): object => ({
    network: 'few',
    subnet: '10.62.0.0/28',
    reservations: Object.fromEntries(
      Array.from({ length: count }, (_, n) => [`w${n}`, `10.62.0.${n + 1}`]),
    ),
  });
  // Fewer reservations than leases, and more: each is looked for among the others.
  for (const count of [1, 8]) {
    await expect(put(store.ledger, wanted(count), record.revision)).rejects.toMatchObject({
      code: 'NETWORK_IN_USE',
      details: { id: 'a', path: 'reservations.w0' },
    });
  }
  await acquire(record, 'b');
  await acquire(record, 'c');
  await expect(put(store.ledger, wanted(1), record.revision)).rejects.toMatchObject({
    code: 'NETWORK_IN_USE',
  });
});
