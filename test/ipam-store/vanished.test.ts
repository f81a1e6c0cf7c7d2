import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { type NetworkRecord, RevisionChanged } from '#ipam-store/ledger.ts';
import { owned, put, ROOT, useStore, VOLT0 } from './fixture.ts';
import { fleetOf, forgetMemory, type Member } from './member.ts';

// Each kind of key of the ledger vanishes, alone, or holds what no function has written: nobody is given what another
// holds, the audit tells, and what leases, hosts and definitions prove is there again.

const store = useStore();
const DUAL = { ...VOLT0, ipv6: { subnet: 'fd00:42::/64', gateway: 'fd00:42::1' } };
/** Each address of its pool was used. */
const WORN = {
  network: 'worn',
  subnet: '10.44.0.0/29',
  pool: { start: '10.44.0.2', end: '10.44.0.5' },
  reuseDelaySeconds: 0,
};

/** The map of keys that heads common.lua, so that a new kind is in this test by itself. */
function kindsOfKeys(): { kind: string; type: string }[] {
  const file = new URL('../../ipam-store/functions/common.lua', import.meta.url);
  const lines = readFileSync(file, 'utf8').matchAll(/^-- {3}<root>:(\S+) +(hash|zset|stream) /gm);
  return [...lines].map(([, kind = '', type = '']) => ({ kind, type }));
}

const KINDS = kindsOfKeys();
/** Of a network most of whose addresses are fresh, and of one where none is. */
const PLACES = ['volt0', 'worn'];

const keysOf = (kind: string): string[] =>
  PLACES.map((network) =>
    `${ROOT}:${kind}`.replace('<f>', '4').replace('<h>', 'h1').replace('<n>', network),
  ).filter((key, index, all) => all.indexOf(key) === index);

/**
 * Whose absence is as good as its presence: newcomers are vouched for by nobody, and soon by others; a log that is not
 * there, or is none, begins with the next change, and its followers anew (follower.test.ts).
 */
const TRANSIENT = new Set(['joining', 'net:<n>:log']);

let members: readonly Member[];
let records: readonly NetworkRecord[];

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  members = await fleetOf(store.ledger, ['h1', 'h2'], { agentId: 'agent-1' });
  const [one, two] = pair();
  records = [await one.put(put(store.ledger, DUAL)), await one.put(put(store.ledger, WORN))];
  await one.put(
    put(store.ledger, { network: 'past', subnet: '10.45.0.0/24', gateway: '10.45.0.1' }),
  );
  await drop(one, await one.acquire(record('past'), 'past'));
  await store.ledger.deleteNetwork('past');
  one.networks.delete('past');
  await one.acquire(record('volt0'), 'a', { ttlSeconds: 600 });
  await two.acquire(record('volt0'), 'b');
  await one.acquire(record('volt0'), 'web', { workload: 'vm-web' });
  await drop(one, await one.acquire(record('volt0'), 'gone'));
  for (const id of ['w1', 'w2', 'w3', 'w4']) await one.acquire(record('worn'), id);
  for (const id of ['w2', 'w4']) await drop(one, one.leases.get(id));
  for (const { network } of records)
    for (const member of members) {
      member.networks.set(network.network, record(network.network));
    }
  for (const member of members) await member.turn();
});

const record = (network: string): NetworkRecord => {
  const [one] = pair();
  const known = one.networks.get(network);
  assert(known !== undefined);
  return known;
};

function pair(): [Member, Member] {
  const [one, two] = members;
  assert(one !== undefined && two !== undefined);
  return [one, two];
}

async function drop(member: Member, lease = member.leases.get('')): Promise<void> {
  assert(lease !== undefined);
  assert.equal(await store.ledger.release({ ...owned(lease), cool: true }), 'released');
  member.leases.delete(lease.id);
}

/** What a call ends with; never INTERNAL, nor an error that is none of the protocol's. */
async function civil(what: string, call: () => Promise<unknown>): Promise<string> {
  try {
    await call();
    return 'done';
  } catch (error) {
    if (error instanceof RevisionChanged) return 'REVISION_CHANGED';
    assert(error instanceof VoltError, `${what}: ${String(error)}`);
    assert.notEqual(error.code, 'INTERNAL', `${what}: ${error.message}`);
    return error.code;
  }
}

let tries = 0;

/** Asks for addresses in each way there is: whatever is granted is nobody else's. */
async function ask(alsoPut: boolean): Promise<string[]> {
  const [one, two] = pair();
  const outcomes: string[] = [];
  for (const { network } of records) {
    const of = record(network.network);
    for (const address of heldIn(network.network)) {
      tries += 1;
      const addresses = [address];
      outcomes.push(await civil('named', () => two.acquire(of, `named${tries}`, { addresses })));
    }
    for (let n = 0; n < 3; n += 1) {
      tries += 1;
      outcomes.push(await civil('any', () => one.acquire(of, `any${tries}`)));
      alone();
    }
    tries += 1;
    await civil('reserved', () => two.acquire(of, `web${tries}`, { workload: 'vm-web' }));
  }
  alone();
  const late = { network: `late${tries}`, subnet: '10.42.0.128/25' };
  if (alsoPut) expect(await civil('put', () => put(store.ledger, late))).not.toBe('done');
  await civil('get', () => store.ledger.getNetwork('volt0'));
  await civil('list', () => store.ledger.listNetworks());
  await civil('changes', () => store.ledger.networkChanges(0));
  await civil('leases', () => store.ledger.listLeases({}));
  return outcomes;
}

const heldIn = (network: string): string[] =>
  members
    .flatMap(({ leases }) => [...leases.values()])
    .filter((lease) => lease.network === network)
    .map(({ addresses: [address = ''] }) => address.replace(/\/.*/, ''));

/** No address and no MAC has two holders, by what the hosts were told. */
function alone(): void {
  const leases = members.flatMap((member) => [...member.leases.values()]);
  const taken = leases.flatMap(({ addresses, mac, network }) => [...addresses, network + mac]);
  const twice = taken.filter((one, index) => taken.indexOf(one) !== index);
  assert.deepEqual(twice, [], `${twice.join(' ')} granted twice`);
}

/** Whoever has heard of no network yet hears of each, or that all have to be read. */
async function tellsAll(): Promise<boolean> {
  const { changed, whole } = await store.ledger.networkChanges(0);
  const names = new Set(changed.map((one) => one.network.network));
  return whole || PLACES.every((name) => names.has(name));
}

async function found(repair: boolean): Promise<string[]> {
  const names: string[] = [];
  for await (const one of store.ledger.audit()) {
    names.push(one.what);
    if (repair) await civil(one.what, () => store.ledger.repair(one));
  }
  return names;
}

/** The ledger tells, to an operator who checks or to a host that beats. */
async function isNoticed(): Promise<string[]> {
  const differences: string[] = [];
  await civil('check', async () => differences.push(...(await found(false))));
  for (const member of members) {
    const outcome = await civil('beat', async () => {
      const { state, reassert } = await member.turn();
      if (state !== 'armed' || reassert) differences.push(state);
    });
    if (outcome !== 'done') differences.push(outcome);
  }
  return differences;
}

/** An operator repairs, hosts answer, until nothing is different. Answers what is left. */
async function mended(): Promise<string[]> {
  let left: string[] = [];
  for (let round = 0; round < 5; round += 1) {
    await civil('check', () => found(true));
    for (const member of [...members, ...members]) {
      // Each has let go of what has changed until now.
      await civil('beat', () => member.turn({ applied: member.seen.revision }));
    }
    await civil('check', async () => {
      left = await found(false);
    });
    if (left.length === 0) break;
  }
  return left;
}

async function everybodyKeepsWhatHeHas(): Promise<void> {
  for (const member of members) {
    for (const lease of member.leases.values()) {
      const stored = await store.ledger.getLease(lease.id);
      assert.deepEqual(stored?.addresses, lease.addresses, `${lease.id} has lost its lease`);
    }
  }
}

async function goesOn(kind: string, isNoticedByItself = true, alsoPut = true): Promise<void> {
  const noticed: string[] = [];
  await civil('check', async () => noticed.push(...(await found(false))));
  await ask(alsoPut);
  noticed.push(...(await isNoticed()));
  if (isNoticedByItself) expect(noticed, 'not noticed').not.toEqual([]);
  const left = await mended();
  // Nobody knows what has rested; nothing is missing any more when it would have rested.
  const mayRest = ['gone:<f>', 'evicted'].includes(kind);
  expect(left).toEqual(mayRest && left.length > 0 ? ['gone missing'] : []);
  alone();
  await everybodyKeepsWhatHeHas();
  expect(await tellsAll()).toBe(true);
  expect((await ask(true)).filter((one) => one === 'RECOVERING')).toEqual([]);
  expect(await civil('grant', () => pair()[0].acquire(record('volt0'), 'last'))).toBe('done');
}

test('the map of keys is read', () => {
  expect(KINDS.map(({ kind }) => kind)).toContain('net:<n>:<f>:held');
  expect(KINDS.length).toBeGreaterThan(15);
});

describe.each(KINDS)('$kind', ({ kind, type }) => {
  for (const key of keysOf(kind)) {
    test(`${key} vanishes`, async () => {
      const was = await store.raw.del(key);
      await goesOn(kind, was === 1 && !TRANSIENT.has(kind));
    });

    test(`${key} is of another type`, async () => {
      const was = await store.raw.del(key);
      await store.raw.set(key, 'garbage');
      await goesOn(kind, was === 1 && !TRANSIENT.has(kind));
    });

    if (type !== 'zset') continue; // Fields of hashes are below; what is in a log is believed by nobody.
    test(`an entry of ${key} is another`, async () => {
      const [entry = 'none'] = await store.raw.zrange(key, '0', '0');
      const was = await store.raw.zrem(key, entry);
      await store.raw.zadd(key, 1, 'garbage');
      // Of the subnets there is one index alone: as many entries as were counted are believed.
      // Who is told another change of the list of hosts finds another digest, and reads all of it.
      await goesOn(
        kind,
        was === 1 && !TRANSIENT.has(kind) && kind !== 'changed',
        kind !== 'subnets:<f>',
      );
    });
  }
});

/** What Redis would take one day, of all that there is, since nothing here is used less than the rest. */
const EVICTED: readonly (readonly string[])[] = [
  ['leases'],
  ['meta'],
  ['net:volt0:4:held'],
  ['net:volt0'],
  ['host:h2', 'net:volt0:4:closed'],
  ['leases', 'hosts', 'host:h2:ids'],
];

test.each(EVICTED)(
  'what Redis evicts is a loss, though its policy was another for a moment only: %s',
  async (...names) => {
    const { raw } = store;
    const set = (setting: string, value: string): Promise<unknown> =>
      raw.config('SET', setting, value);
    const keys = names.map((name) => `volt:{ledger}:${name}`);
    // It takes those alone that have an end.
    for (const key of keys) await raw.expire(key, 3_600);
    await set('maxmemory-policy', 'volatile-random');
    await set('maxmemory', '1');
    while ((await raw.exists(...keys)) > 0) await raw.set('x', 'y').catch(() => {});
    await set('maxmemory', '0');
    await set('maxmemory-policy', 'noeviction');
    await ask(true);
    await sleep(1_100);
    expect(await civil('acquire', () => pair()[0].acquire(record('volt0'), 'late'))).toBe(
      'RECOVERING',
    );
    const beats = [await pair()[0].beat(), await pair()[1].beat()];
    expect(beats.map(({ reassert }) => reassert)).toEqual([true, true]);
    await goesOn('evicted', false);
  },
);

const FIELDS: readonly [string, string][] = [
  ['meta', 'revision'],
  ['meta', 'roster'],
  ['meta', 'clockMs'],
  ['leases', 'a'],
  ['leases', 'w1'],
  ['leases', '#generation'],
  ['meta', 'revisedFrom'],
  ['leases', '#networks'],
  ['leases', '#revised'],
  ['leases', '#held:4:volt0'],
  ['host:h1', 'machineId'],
  ['host:h1', 'agentId'],
  ['host:h1', 'bootId'],
  ['host:h1', 'bootIds'],
  ['host:h1', 'asserted'],
  ...['network', 'revision', 'type', 'delayMs', 'family:4', 'family:6', 'next:4', 'next:6'].map(
    (field): [string, string] => ['net:volt0', field],
  ),
];

describe.each(FIELDS)('the field of %s for %s', (hash, field) => {
  // A count that is not there is begun anew; a host of which it is not known re-asserts. The time is written each second. Who a host is its next heartbeat
  // says again, whose machine is compared.
  const isSaidAgain = ['asserted', 'clockMs', 'agentId', 'bootIds'].includes(field);
  const isBegunAnew =
    isSaidAgain ||
    field === 'bootId' ||
    (hash === 'leases' && /^#(networks|revised|held)/.test(field));

  test('vanishes', async () => {
    expect(await store.raw.hdel(`${ROOT}:${hash}`, field)).toBe(1);
    await goesOn(hash, !isBegunAnew);
  });

  test('is garbage', async () => {
    await store.raw.hset(`${ROOT}:${hash}`, field, 'garbage');
    await goesOn(hash, !isSaidAgain);
  });
});

test('a network that has vanished and was restored grants nothing until its leases were looked for', async () => {
  const [one, two] = pair();
  const { mac } = one.leases.get('a') ?? {};
  assert(mac !== undefined);
  await store.raw.del(`${ROOT}:net:volt0`);
  expect(await civil('put', () => put(store.ledger, DUAL))).toBe('RECOVERING');
  await found(true);
  for (const member of [one, two, one, two]) await member.turn();
  const again = record('volt0');
  const thief = (): Promise<string> => civil('mac', () => one.acquire(again, 'thief', { mac }));
  expect(await thief()).toBe('RECOVERING');
  await found(true);
  expect(await thief()).toBe('MAC_IN_USE');
  expect(await civil('grant', () => one.acquire(again, 'other'))).toBe('done');
  await everybodyKeepsWhatHeHas();
});
