import assert from 'node:assert/strict';
import { beforeEach, describe, expect, test } from 'vitest';
import { NETWORK_PATHS, parseNetwork } from '#protocol/network.ts';
import { fixedOf, NETWORK_EDITS } from '#protocol/network-edits.ts';
import { askFor, bare, owned, put, refused, ROOT, useStore } from './fixture.ts';
import { fleetOf, forgetMemory, type Member, snapshotOf } from './member.ts';

// What hosts may still have of a network's addresses when its definition has changed, and who is waited for.

const store = useStore();
const NET = { network: 'net', subnet: '10.42.0.0/29', gateway: '10.42.0.1', reuseDelaySeconds: 0 };
const MOVED = { ...NET, gateway: '10.42.0.6' };

let one: Member;
let two: Member;

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const [first, second] = await fleetOf(store.ledger, ['h1', 'h2']);
  assert(first !== undefined && second !== undefined);
  [one, two] = [first, second];
});

/** Both hosts have had a workload of the network; the gateway is another now. Its revision. */
async function moveGateway(): Promise<number> {
  const before = await one.put(put(store.ledger, NET));
  for (const member of [one, two]) {
    const lease = await member.acquire(before, `of-${member.host}`);
    await store.ledger.release({ ...owned(lease), cool: true });
    member.leases.clear();
  }
  return (await one.put(put(store.ledger, MOVED, before.revision))).revision;
}

const record = async (name = 'net'): ReturnType<Member['put']> => {
  const found = await store.ledger.getNetwork(name);
  assert(found !== null);
  return found;
};

/** What is granted until nothing is left. */
async function everything(name = 'net'): Promise<string[]> {
  const of = await record(name);
  const given: string[] = [];
  for (;;) {
    const id = `all${given.length}`;
    const granted = await store.ledger.acquire(askFor(of, id)).catch(() => undefined);
    if (granted === undefined) break;
    given.push(bare(granted.lease));
  }
  for (const lease of (await store.ledger.listLeases({ network: name })).leases) {
    await store.ledger.release({ ...owned(lease), cool: false });
  }
  return given.toSorted();
}

describe('the gateway of before', () => {
  test('is given to nobody until each host that has something of the network has let go', async () => {
    const revision = await moveGateway();
    const others = ['10.42.0.2', '10.42.0.3', '10.42.0.4', '10.42.0.5'];
    expect(await everything()).toEqual(others);
    const asked = askFor(await record(), 'asked', { addresses: ['10.42.0.1'] });
    const refusal = await refused(store.raw, () => store.ledger.acquire(asked));
    expect(refusal).toMatchObject({ code: 'ADDRESS_IN_USE', retryAfterMs: 1_000 });
    expect(refusal.message).toMatch(/10\.42\.0\.1 was closed, and not every host has let go/);
    expect(await store.ledger.getNetwork('net')).toMatchObject({ usage: { free: 4, cooling: 1 } });
    await one.beat({ applied: revision });
    await two.beat({ applied: revision - 1 });
    expect(await everything()).toEqual(others);
    await two.beat({ applied: revision });
    expect(await everything()).toEqual(['10.42.0.1', ...others]);
    expect(await store.raw.exists(`${ROOT}:leaving:4`)).toBe(0);
  });

  test('is reserved for a workload, and kept from it as long', async () => {
    const revision = await moveGateway();
    const reserving = { ...MOVED, reservations: { 'vm-web': '10.42.0.1' } };
    await put(store.ledger, reserving, revision);
    const web = askFor(await record(), 'web', { workload: 'vm-web' });
    expect((await refused(store.raw, () => store.ledger.acquire(web))).code).toBe('ADDRESS_IN_USE');
    for (const member of [one, two]) await member.beat({ applied: revision });
    expect(bare((await store.ledger.acquire(web)).lease)).toBe('10.42.0.1');
  });

  test('waits for no host that has nothing of the network, nor for one that was forgotten', async () => {
    const before = await one.put(put(store.ledger, NET));
    await put(store.ledger, MOVED, before.revision);
    expect(await everything()).toHaveLength(5);
    await store.ledger.deleteNetwork('net');
    const revision = await moveGateway();
    await one.beat({ applied: revision });
    expect(await everything()).toHaveLength(4);
    // As if h2 were silent for long.
    await store.raw.zadd(`${ROOT}:hosts`, 1, 'h2');
    expect(await store.ledger.forgetHost('h2')).toMatchObject({ forgotten: true });
    expect(await everything()).toHaveLength(5);
  });

  test('waits in whatever network has the address then', async () => {
    await moveGateway();
    await store.ledger.deleteNetwork('net');
    const { revision } = await put(store.ledger, { ...NET, network: 'next', gateway: '10.42.0.2' });
    const others = ['10.42.0.3', '10.42.0.4', '10.42.0.5'];
    expect(await everything('next')).toEqual(others);
    await one.beat({ applied: revision });
    expect(await everything('next')).toEqual(others);
    await two.beat({ applied: revision });
    expect(await everything('next')).toEqual(['10.42.0.1', ...others, '10.42.0.6']);
    expect(await store.raw.exists(`${ROOT}:net:net:hosts`, `${ROOT}:leaving:4`)).toBe(0);
    expect(await store.raw.hexists(`${ROOT}:leases`, '#hosts:net')).toBe(0);
  });

  test('waits for hosts of before the ledger kept them', async () => {
    const before = await one.put(put(store.ledger, NET));
    await two.acquire(before, 'of-h2');
    await store.raw.del(`${ROOT}:net:net:hosts`);
    await store.raw.hdel(`${ROOT}:leases`, '#hosts:net');
    await expect(store.ledger.deleteNetwork('net')).rejects.toThrow('of-h2');
    await store.ledger.release({
      ...owned({ host: 'h2', id: 'of-h2', generation: 2 ** 32 + 1 }),
      cool: true,
    });
    two.leases.clear();
    const { revision } = await put(store.ledger, MOVED, before.revision);
    await one.beat({ applied: revision });
    expect(await everything()).toHaveLength(4);
    await two.beat({ applied: revision });
    expect(await everything()).toHaveLength(5);
  });
});

test('a single address that is excluded no more is kept while attachments may use it beside theirs', async () => {
  const before = await one.put(put(store.ledger, { ...NET, exclude: ['10.42.0.5'] }));
  await one.acquire(before, 'router');
  const { revision } = await put(store.ledger, NET, before.revision);
  expect(await everything()).not.toContain('10.42.0.5');
  await one.beat({ applied: revision });
  expect(await everything()).toContain('10.42.0.5');
});

describe('which hosts have it', () => {
  async function repairAll(): Promise<string[]> {
    const found: string[] = [];
    for await (const difference of store.ledger.audit()) {
      found.push(difference.what);
      await store.ledger.repair(difference);
    }
    return found;
  }

  test('is not known when they let go, and is supposed later', async () => {
    const revision = await moveGateway();
    await store.raw.del(`${ROOT}:net:net:hosts`);
    for (const member of [one, two]) await member.beat({ applied: revision });
    expect(await everything()).toHaveLength(4);
    expect(await repairAll()).toEqual(['hosts missing']);
    expect(await everything()).toContain('10.42.0.1');
  });

  test('is supposed before one of them lets go', async () => {
    const revision = await moveGateway();
    await store.raw.del(`${ROOT}:net:net:hosts`);
    await one.beat({ applied: revision });
    expect(await repairAll()).toEqual(['hosts missing']);
    expect(await everything()).toHaveLength(4);
    await two.beat({ applied: revision });
    expect(await everything()).toContain('10.42.0.1');
  });

  test('is known, but not what the network has kept closed: its gateway does not move', async () => {
    const before = await one.put(put(store.ledger, NET));
    await store.raw.del(`${ROOT}:net:net:4:closed`);
    const error = await refused(store.raw, () => put(store.ledger, MOVED, before.revision));
    expect(error).toMatchObject({ code: 'RECOVERING' });
    await repairAll();
    await put(store.ledger, MOVED, before.revision);
  });

  test('vanishes of a network that is gone', async () => {
    await moveGateway();
    await store.ledger.deleteNetwork('net');
    const { revision } = await put(store.ledger, { ...NET, network: 'next', gateway: '10.42.0.2' });
    await store.raw.del(`${ROOT}:net:net:hosts`);
    for (const member of [one, two]) await member.beat({ applied: revision });
    expect(await repairAll()).toEqual(['hosts missing']);
    expect(await everything('next')).toContain('10.42.0.1');
    expect(await repairAll()).toEqual([]);
  });
});

test('an older Redis, in which a gateway is where it was, waits for those that have not heard of the change', async () => {
  const before = await one.put(put(store.ledger, NET));
  for (const member of [one, two]) {
    const lease = await member.acquire(before, `of-${member.host}`);
    await store.ledger.release({ ...owned(lease), cool: true });
    member.leases.clear();
    await member.beat({ applied: before.revision });
  }
  const restore = await snapshotOf(store.raw);
  const { revision } = await one.put(put(store.ledger, MOVED, before.revision));
  await restore();
  for (const member of [one, two, one, two]) await member.turn({ applied: before.revision });
  await one.beat({ applied: revision });
  expect(await record()).toMatchObject({ revision });
  expect(await everything()).not.toContain('10.42.0.1');
  await two.beat({ applied: revision });
  expect(await everything()).toContain('10.42.0.1');
});

test('an older Redis, in which another network has the subnet, waits for those that have not heard of it', async () => {
  const before = await one.put(put(store.ledger, NET));
  for (const member of [one, two]) {
    const lease = await member.acquire(before, `of-${member.host}`);
    await store.ledger.release({ ...owned(lease), cool: true });
    member.leases.clear();
    member.networks.clear();
    await member.beat({ applied: before.revision });
  }
  const restore = await snapshotOf(store.raw);
  await store.ledger.deleteNetwork('net');
  const next = { ...MOVED, network: 'next' };
  const { revision } = await one.put(put(store.ledger, next));
  await restore();
  for (const member of [one, two, one, two]) await member.turn({ applied: before.revision });
  await one.beat({ applied: revision });
  expect(await everything('next')).not.toContain('10.42.0.1');
  await two.beat({ applied: revision });
  expect(await everything('next')).toContain('10.42.0.1');
});

test('thousands of addresses that are given free at once hold up nobody', async () => {
  let revision = 0;
  for (const net of [1, 2, 3]) {
    const keys = { network: `net${net}`, subnet: `10.${net}.0.0/16`, gateway: `10.${net}.0.1` };
    const exclude = Array.from(
      { length: 1_024 },
      (_, n) => `10.${net}.${n >> 6}.${2 * (n % 64) + 4}`,
    );
    const before = await put(store.ledger, { ...keys, exclude });
    for (const member of [one, two]) await member.acquire(before, `${net}-of-${member.host}`);
    ({ revision } = await put(store.ledger, keys, before.revision));
  }
  await one.beat({ applied: revision });
  const left = (): Promise<number> => store.raw.zcard(`${ROOT}:leaving:4`);
  for (let beats = 0, before = await left(); beats < 30; beats += 1) {
    await two.beat({ applied: revision });
    await one.beat({ applied: revision });
    const now = await left();
    expect(before - now).toBeLessThanOrEqual(2 * 128);
    before = now;
  }
  expect(await store.raw.exists(`${ROOT}:leaving:4`)).toBe(0);
});

describe('while there are leases', () => {
  const BRIDGED = {
    network: 'net',
    subnet: '10.42.0.0/24',
    gateway: '10.42.0.1',
    ipv6: { subnet: 'fd00::/64', gateway: 'fd00::1' },
  };
  const MACVTAP = { network: 'net', type: 'macvtap', parent: 'eth0', subnet: '10.42.0.0/24' };
  const SRIOV = { ...MACVTAP, type: 'sriov' };
  const HOST_ONLY = { ...BRIDGED, type: 'host-only' };

  test.each([
    ['type', BRIDGED, { type: 'host-only' }],
    ['subnet', BRIDGED, { subnet: '10.42.0.0/23' }],
    ['gateway', BRIDGED, { gateway: '10.42.0.9' }],
    ['gateway', BRIDGED, { gateway: undefined }],
    ['ipv6.subnet', BRIDGED, { ipv6: { subnet: 'fd00::/48', gateway: 'fd00::1' } }],
    ['ipv6.gateway', BRIDGED, { ipv6: { subnet: 'fd00::/64' } }],
    ['bridge', BRIDGED, { bridge: 'br9' }],
    ['mtu', BRIDGED, { mtu: 1400 }],
    ['uplink', BRIDGED, { uplink: { device: 'eth1' } }],
    ['uplink', { ...BRIDGED, uplink: { device: 'eth1' } }, { uplink: { device: 'eth2' } }],
    ['gatewayMode', { ...BRIDGED, uplink: { device: 'eth1' } }, { gatewayMode: 'anycast' }],
    ['dhcp', MACVTAP, { dhcp: true }],
    ['parent', MACVTAP, { parent: 'eth1' }],
    ['mode', MACVTAP, { mode: 'vepa' }],
    ['portIsolation', MACVTAP, { portIsolation: true }],
    ['vlan', SRIOV, { vlan: 7 }],
    ['spoofCheck', SRIOV, { spoofCheck: false }],
    ['trust', SRIOV, { trust: true }],
    ['rate', SRIOV, { rate: { maxMbps: 10 } }],
  ])('a change of %s is refused by its name', async (path, keys, change) => {
    const before = await one.put(put(store.ledger, keys));
    await one.acquire(before, 'held');
    const changed = { ...keys, ...change };
    const error = await refused(store.raw, () => put(store.ledger, changed, before.revision));
    expect(error).toMatchObject({ code: 'NETWORK_IN_USE', details: { id: 'held', path } });
    await store.ledger.release({
      ...owned({ host: 'h1', id: 'held', generation: 2 ** 32 + 1 }),
      cool: true,
    });
    await put(store.ledger, changed, before.revision);
  });

  test.each([
    ['filter', { filter: false }],
    ['linkLocal', { linkLocal: 'any' }],
    ['portIsolation', { portIsolation: true }],
    ['dns', { dns: { servers: ['10.42.0.1'] } }],
    ['dhcp', { dhcp: true }],
    ['routes', { routes: [{ to: '10.9.0.0/16', via: '10.42.0.1' }] }],
    ['nat', { nat: false }],
    ['pool', { pool: { start: '10.42.0.9', end: '10.42.0.10' } }],
    ['reservations', { reservations: { web: '10.42.0.9' } }],
    ['exclude', { exclude: ['10.42.0.9'] }],
    ['reuseDelaySeconds', { reuseDelaySeconds: 1 }],
    ['reclaimAfterSeconds', { reclaimAfterSeconds: 9 }],
  ])('a change of %s is taken', async (path, change) => {
    const before = await one.put(put(store.ledger, HOST_ONLY));
    await one.acquire(before, 'held');
    await put(store.ledger, { ...HOST_ONLY, ...change }, before.revision);
    expect(Object.hasOwn(NETWORK_EDITS, path)).toBe(true);
  });

  test('what an earlier version has put is compared by its definition', async () => {
    const before = await one.put(put(store.ledger, BRIDGED));
    await one.acquire(before, 'held');
    await store.raw.hdel(`${ROOT}:net:net`, 'fixed');
    const error = await refused(store.raw, () =>
      put(store.ledger, { ...BRIDGED, bridge: 'br9' }, before.revision),
    );
    expect(error.details).toMatchObject({ path: 'bridge' });
    await put(store.ledger, { ...BRIDGED, filter: false }, before.revision);
  });
});

test('each key of a network has a place among the edits', () => {
  expect(Object.keys(NETWORK_EDITS).toSorted()).toEqual(NETWORK_PATHS.toSorted());
  const network = parseNetwork({ network: 'net', subnet: '10.42.0.0/24' });
  expect(Object.keys(fixedOf(network))).toContain('bridge');
});
