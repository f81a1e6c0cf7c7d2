import assert from 'node:assert/strict';
import { expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { definitionOf } from '#ipam-store/network.ts';
import { actionsOn, askFor, network, owned, put, ROOT, useStore } from './fixture.ts';
import { fleetOf, forgetMemory } from './member.ts';

// Networks that name thousands of addresses one by one: what they say gets into the ledger a part at a time, and nothing
// is granted before all of it is there.

const store = useStore();
const { acquire, release, usage } = actionsOn(store);

const addressOf = (place: number): string => `10.70.${place >>> 8}.${place & 255}`;

/** A network of a /18, with a reservation of each of these places: workload and place. */
const reserving = (places: Iterable<readonly [string, number]>, keys: object = {}): object => ({
  network: 'many',
  subnet: '10.70.0.0/18',
  reservations: Object.fromEntries([...places].map(([name, place]) => [name, addressOf(place)])),
  ...keys,
});
const everySecond = (count: number, from = 10): (readonly [string, number])[] =>
  Array.from({ length: count }, (_, n) => [`w${n}`, from + 2 * n] as const);

async function once(name: string, ask: object, ...more: readonly string[]): Promise<boolean> {
  const reply = await store.raw.call('FCALL', name, '1', ROOT, JSON.stringify(ask), ...more);
  const answer = JSON.parse(String(reply)) as { error?: unknown; more?: boolean };
  assert.equal(answer.error, undefined, String(reply));
  return answer.more === true;
}

/** What an agent does that ends after some calls. */
async function putSome(definition: object, calls: number, revision?: number): Promise<void> {
  const { network: text, ...rest } = definitionOf(network(definition));
  let more = await once('volt1_network_put', { ...rest, revision }, text);
  for (let n = 1; more && n < calls; n += 1)
    more = await once('volt1_network_finish', { name: 'many' });
}

async function recordNow(): Promise<NetworkRecord> {
  const record = await store.ledger.getNetwork('many');
  assert(record !== null);
  return record;
}

async function differences(repair = false): Promise<string[]> {
  const found: string[] = [];
  for await (const one of store.ledger.audit()) {
    found.push(one.what);
    if (repair) await store.ledger.repair(one);
  }
  return found;
}

/** All that the ledger has of the network is as the definition says. */
async function expectPlaced(definition: object): Promise<void> {
  const rules = definitionOf(network(definition)).families['4'];
  const zset = (part: string): Promise<string[]> =>
    store.raw.zrange(`${ROOT}:net:many:4:${part}`, '0', '-1');
  expect(await zset('reserved')).toEqual(rules?.reserved);
  expect(await zset('allowed')).toEqual(rules?.allowed);
  expect(await differences()).toEqual([]);
  expect(await store.raw.hkeys(`${ROOT}:net:many`)).not.toContain('unfinished');
}

test('what thousands of reservations say is there when the put has returned', async () => {
  const definition = reserving(everySecond(3_000), { exclude: ['10.70.40.0', '10.70.40.2'] });
  const record = await put(store.ledger, definition);
  await expectPlaced(definition);
  expect(await usage('many')).toMatchObject({ size: 16_380, reserved: 3_000, free: 13_380 });
  expect(await acquire(record, 'a', { workload: 'w7' })).toBe(addressOf(24));
  expect(await acquire(record, 'b')).toBe('10.70.0.1');
  await expect(
    store.ledger.acquire(askFor(record, 'c', { addresses: [addressOf(26)] })),
  ).rejects.toMatchObject({ code: 'ADDRESS_IN_USE' });
  expect(await usage('many')).toMatchObject({ used: 2, reserved: 2_999, free: 13_379 });
});

test('a put that is cut is finished by whoever asks next: for an address, another put, a deletion, a repair', async () => {
  const definition = reserving(everySecond(1_500));
  const asked = async (): Promise<string> => {
    const record = await recordNow();
    for (;;) {
      const answer = await acquire(record, 'a').catch((error: unknown) => error);
      if (typeof answer === 'string') return answer;
      expect(answer).toMatchObject({ code: 'RECOVERING' });
    }
  };
  await putSome(definition, 2);
  expect(await asked()).toBe('10.70.0.1');
  await expectPlaced(definition);
  await release('a');

  const other = reserving(everySecond(1_500, 11));
  await putSome(other, 2, (await recordNow()).revision);
  const third = reserving(everySecond(1_400, 200));
  await put(store.ledger, third, (await recordNow()).revision);
  await expectPlaced(third);

  await putSome(other, 3, (await recordNow()).revision);
  expect(await differences(true)).toEqual(['network unfinished']);
  await expectPlaced(other);

  await putSome(definition, 4, (await recordNow()).revision);
  expect(await store.ledger.deleteNetwork('many')).toEqual({ deleted: true });
  expect(await store.raw.keys('*many*')).toEqual([]);
});

test('a family that goes while its lists are put off leaves nothing behind', async () => {
  const keys = { ipv6: { subnet: 'fd00:70::/64' } };
  await putSome(reserving(everySecond(1_500), keys), 2);
  const { revision } = await recordNow();
  const {
    subnet: _subnet,
    reservations: _reservations,
    ...rest
  } = reserving([]) as Record<string, unknown>;
  await put(store.ledger, { ...rest, ...keys }, revision);
  expect(await store.raw.keys('*many:4*')).toEqual([]);
  expect(await differences()).toEqual([]);
});

test('lists of any length become those of any others, whoever comes and goes on the way', async () => {
  let seed = 7;
  const below = (limit: number): number => {
    seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
    return (seed >>> 8) % limit;
  };
  let definition = reserving([]);
  await put(store.ledger, definition);
  for (let round = 0; round < 4; round += 1) {
    const record = await recordNow();
    const held: string[] = [];
    for (let n = 0; n < 40; n += 1) {
      const address = addressOf(10 + below(8_000));
      const own = record.network.reservations ?? {};
      const workload = Object.keys(own).find((name) => own[name] === address) ?? `x${n}`;
      const asked = { workload, addresses: [address] };
      const answer = await store.ledger.acquire(askFor(record, `r${n}`, asked)).catch(String);
      if (typeof answer !== 'string') held.push(answer.lease.id);
    }
    // Some have addresses that are reserved for others next.
    const stays = new Set((await leasesNow()).map(({ addresses }) => addresses[0]?.split('/')[0]));
    const density = 1 + below(4);
    const places = Array.from({ length: 8_000 }, (_, n) => n + 10)
      .filter((place) => below(density + 1) === 0 && !stays.has(addressOf(place)))
      .map((place) => [`w${below(2) === 0 ? place : 20_000 - place}`, place] as const);
    definition = reserving(places.slice(0, below(6_000)));
    await putSome(definition, below(20), record.revision);
    for (const id of held) await release(id, { cool: below(2) === 0 });
    if (below(3) === 0) while (await once('volt1_network_finish', { name: 'many' }));
    await put(store.ledger, definition);
    await expectPlaced(definition);
  }
});

const leasesNow = async () => (await store.ledger.listLeases({ network: 'many' })).leases;

test('a server that was emptied has the reservations again before the leases', async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const [one, two] = await fleetOf(store.ledger, ['h1', 'h2']);
  assert(one !== undefined && two !== undefined);
  const definition = reserving(everySecond(1_500));
  const record = await one.put(put(store.ledger, definition));
  await one.acquire(record, 'a', { workload: 'w3' });
  await two.acquire(record, 'b');
  const before = await leasesNow();
  await store.raw.flushall();
  await one.turn();
  await two.turn();
  expect(await one.turn()).toMatchObject({ state: 'armed' });
  expect(await leasesNow()).toEqual(before);
  while (await once('volt1_network_finish', { name: 'many' }));
  await expectPlaced(definition);
});

test('an agent of before that re-asserts has a network whole, and so its leases', async () => {
  const definition = reserving(everySecond(1_500));
  const record = await put(store.ledger, definition);
  const { lease } = await store.ledger.acquire(askFor(record, 'a', { workload: 'w3' }));
  await store.ledger.release({ ...owned(lease), cool: false });
  await putSome(reserving(everySecond(1_501)), 2, record.revision);
  const { epoch } = await store.ledger.heartbeat({
    ...{ host: 'h1', machineId: 'machine-h1', bootId: 'boot-1', newFleet: false },
    ...{ suspectAfterSeconds: 20, recoveryWindowSeconds: null },
    seen: { generation: 0, revision: 0, roster: 0, hosts: [] },
  });
  const session = { host: 'h1', machineId: 'machine-h1', epoch };
  const answer = await store.ledger.reassert(session, { networks: [], leases: [lease] });
  expect(answer.leases).toMatchObject([{ outcome: 'restored' }]);
  await release('a');
});

test('an agent of before puts it in one call: it would not finish what is put off', async () => {
  const definition = reserving(everySecond(1_500));
  const { network: text, families, ...rest } = definitionOf(network(definition));
  const { '4': rules } = families;
  assert(rules !== undefined);
  const { flat: _flat, ...others } = rules;
  const of = (entry: string): string[] => entry.split(/[- ]/);
  const elder = {
    ...others,
    allowed: rules.allowed.map(of),
    reserved: Object.fromEntries(rules.reserved.map(of)),
    forbidden: rules.forbidden.map(of),
  };
  expect(await once('volt1_network_put', { ...rest, families: { '4': elder } }, text)).toBe(false);
  await expectPlaced(definition);
});
