import { expect, test } from 'vitest';
import { definitionOf } from '#ipam-store/network.ts';
import { type NetworkRecord, NOTHING_SEEN } from '#ipam-store/ledger.ts';
import { actionsOn, beatOf, network, put, refused, ROOT, useStore } from './fixture.ts';

// Who has the gateway's address of a network with an uplink: said by each put of this version, and by none before it.

const store = useStore();
const { acquire, release } = actionsOn(store);

const LAN = {
  network: 'lan',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  uplink: { device: 'eth1' },
};

/** As an earlier version does it, which does not know the mode. */
async function putBefore(keys: object, revision?: number): Promise<NetworkRecord> {
  const { network: text, fixed, ...rest } = definitionOf(network(keys));
  const paths: Record<string, unknown> = { ...(JSON.parse(fixed) as object) };
  delete paths['gatewayMode'];
  const asked = JSON.stringify({ ...rest, fixed: JSON.stringify(paths), revision });
  await store.raw.fcall('volt1_network_put', 1, ROOT, asked, text);
  return stored();
}

async function stored(): Promise<NetworkRecord> {
  const found = await store.ledger.getNetwork('lan');
  if (found === null) throw new Error('lan was not put');
  return { network: found.network, revision: found.revision };
}

test.each([
  ['nothing is said of it', LAN, 'router'],
  ['a router is', { ...LAN, gatewayMode: 'router' }, 'router'],
  ['anycast is', { ...LAN, gatewayMode: 'anycast' }, 'anycast'],
  ['there is no uplink', { ...LAN, uplink: undefined }, undefined],
])('a put stores the mode where %s', async (_, keys, mode) => {
  const record = await put(store.ledger, keys);
  expect(record.network.gatewayMode).toBe(mode);
  expect(await stored()).toEqual({ network: record.network, revision: record.revision });
  // Said or not, it is the same content.
  expect((await put(store.ledger, keys)).revision).toBe(record.revision);
  expect((await put(store.ledger, record.network)).revision).toBe(record.revision);
});

test('what an earlier version has put is read as it is, and the same content again leaves it so', async () => {
  const before = await putBefore(LAN);
  expect(before.network.gatewayMode).toBeUndefined();
  expect(await put(store.ledger, LAN)).toMatchObject(before);
  expect(await put(store.ledger, LAN, before.revision)).toMatchObject(before);
  expect(await stored()).toEqual(before);
});

test('what an earlier version has put is decided by name while it has leases', async () => {
  const before = await putBefore(LAN);
  await acquire(before, 'held');
  const edited = { ...LAN, dns: { servers: ['10.42.0.1'] } };
  const error = await refused(store.raw, () => put(store.ledger, edited, before.revision));
  expect(error).toMatchObject({
    code: 'NETWORK_IN_USE',
    details: { id: 'held', path: 'gatewayMode' },
  });
  const anycast = await put(store.ledger, { ...edited, gatewayMode: 'anycast' }, before.revision);
  expect(anycast.network).toMatchObject({ gatewayMode: 'anycast' });
  // From then on it is as fixed as the gateway.
  for (const keys of [edited, { ...edited, gatewayMode: 'router' }]) {
    expect(await refused(store.raw, () => put(store.ledger, keys, anycast.revision))).toMatchObject(
      { code: 'NETWORK_IN_USE', details: { id: 'held', path: 'gatewayMode' } },
    );
  }
  await release('held');
  const router = await put(store.ledger, edited, anycast.revision);
  expect(router.network.gatewayMode).toBe('router');
});

test('what an earlier version has put, and nobody has a lease in, becomes a router with the next change', async () => {
  const before = await putBefore(LAN);
  const after = await put(store.ledger, { ...LAN, mtu: 1_400 }, before.revision);
  expect(after.network).toMatchObject({ mtu: 1_400, gatewayMode: 'router' });
});

test('what an earlier version has put is re-asserted as it was', async () => {
  const before = await putBefore(LAN);
  await store.raw.flushall();
  const seen = { ...NOTHING_SEEN, generation: 2 ** 32, revision: before.revision };
  const beat = beatOf('h1', { seen, newFleet: false });
  const { epoch } = await store.ledger.heartbeat(beat);
  const session = { host: 'h1', machineId: beat.machineId, epoch };
  const { networks } = await store.ledger.reassert(session, { networks: [before], leases: [] });
  expect(networks).toEqual([{ network: 'lan', outcome: 'restored' }]);
  expect(await stored()).toEqual(before);
});
