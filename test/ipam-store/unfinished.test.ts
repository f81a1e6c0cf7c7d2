import assert from 'node:assert/strict';
import { describe, expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { definitionOf } from '#ipam-store/network.ts';
import {
  actionsOn,
  askFor,
  beatOf,
  enrol,
  HOSTS,
  network,
  owned,
  put,
  ROOT,
  useStore,
} from './fixture.ts';
import { acquireMany, releaseMany } from './bulk.ts';

// A change of a network of which more was used than one call may look at: what its maker leaves half done, whoever
// comes next finishes, and nothing is granted on the way that could not be granted at the end.

const store = useStore();
const { acquire, release, usage } = actionsOn(store);
const USED = 1_200;
const WORN = { network: 'worn', subnet: '10.60.0.0/20', reuseDelaySeconds: 3_600 };
const SMALLER = { ...WORN, pool: { start: '10.60.4.0', end: '10.60.15.254' } };

/** A network of which addresses .0.1 to .4.176 were used; one of ten is held still. */
async function worn(): Promise<NetworkRecord> {
  const record = await put(store.ledger, WORN);
  const asks = Array.from({ length: USED }, (_, n) => askFor(record, `id${n}`));
  const granted = await acquireMany(store.ledger, asks);
  const leases = granted.map((one) => {
    assert('lease' in one, JSON.stringify(one));
    return one.lease;
  });
  const ended = leases.filter((_, n) => n % 10 !== 0 || n < 300);
  await releaseMany(
    store.ledger,
    ended.map((lease) => ({ ...owned(lease), cool: true })),
  );
  return record;
}

/** One call of a function, as an agent makes it that ends right afterwards. */
async function once(name: string, ask: object, ...more: readonly string[]): Promise<boolean> {
  const reply = await store.raw.call('FCALL', name, '1', ROOT, JSON.stringify(ask), ...more);
  const answer = JSON.parse(String(reply)) as { error?: unknown; more?: boolean };
  assert.equal(answer.error, undefined, String(reply));
  return answer.more === true;
}

function putOnce(definition: object, revision?: number): Promise<boolean> {
  const { network: text, ...rest } = definitionOf(network(definition));
  return once('volt1_network_put', { ...rest, revision }, text);
}

async function differences(repair: boolean): Promise<string[]> {
  const found: string[] = [];
  for await (const one of store.ledger.audit()) {
    found.push(one.what);
    if (repair) expect(await store.ledger.repair(one)).toBe(true);
  }
  return found;
}

test('a pool made smaller and larger again has all that it had', async () => {
  const record = await worn();
  const before = await usage('worn');
  const smaller = await put(store.ledger, SMALLER, record.revision);
  expect(await differences(false)).toEqual([]);
  expect(await acquire(smaller, 'new')).toBe('10.60.4.177');
  await release('new', { cool: false });
  await put(store.ledger, WORN, smaller.revision);
  expect(await differences(false)).toEqual([]);
  expect(await usage('worn')).toEqual(before);
});

test('a change that is cut is finished by those who ask for addresses, one of them after the other', async () => {
  const record = await worn();
  expect(await putOnce(SMALLER, record.revision)).toBe(true);
  const changed = (await store.ledger.getNetwork('worn')) ?? record;
  // A preview changes nothing, so that it can only say so.
  const preview = store.ledger.preview(askFor(changed, 'new'));
  await expect(preview).rejects.toMatchObject({ code: 'RECOVERING', retryAfterMs: 250 });
  const answers: string[] = [];
  for (let n = 0; n < 20 && answers.at(-1)?.startsWith('10.') !== true; n += 1) {
    answers.push(
      await acquire(changed, 'new').catch((error: unknown) => {
        assert(error instanceof Error && 'code' in error);
        return String(error.code);
      }),
    );
  }
  // The lowest that the pool gives out now and nobody has used.
  expect(answers.at(-1)).toBe('10.60.4.177');
  expect(new Set(answers.slice(0, -1))).toEqual(new Set(['RECOVERING']));
  expect(await differences(false)).toEqual([]);
});

test('a change that is cut is found by the check, and finished by a repair', async () => {
  const record = await worn();
  expect(await putOnce(SMALLER, record.revision)).toBe(true);
  expect(await differences(true)).toEqual(['network unfinished']);
  expect(await differences(false)).toEqual([]);
});

test('a change that is cut, and changed once more, ends as the last one says', async () => {
  const record = await worn();
  const before = await usage('worn');
  expect(await putOnce(SMALLER, record.revision)).toBe(true);
  const { revision } = (await store.ledger.getNetwork('worn')) ?? record;
  await put(store.ledger, WORN, revision);
  expect(await usage('worn')).toEqual(before);
  expect(await differences(false)).toEqual([]);
});

test('leases come and go while a change is unfinished', async () => {
  const record = await worn();
  expect(await putOnce(SMALLER, record.revision)).toBe(true);
  for (const id of ['id300', 'id700', 'id1190']) await release(id);
  await release('id1000', { cool: false });
  const { revision } = await put(store.ledger, SMALLER);
  expect(await differences(false)).toEqual([]);
  const changed = await put(store.ledger, WORN, revision);
  expect(await differences(false)).toEqual([]);
  // Given back as if it had never been granted.
  expect(await acquire(changed, 'new')).toBe('10.60.3.233');
});

async function emptied(): Promise<void> {
  await worn();
  const { leases } = await store.ledger.listLeases({ network: 'worn' });
  await releaseMany(
    store.ledger,
    leases.map((lease) => ({ ...owned(lease), cool: true })),
  );
}

test('a network whose deletion is cut is not there, and what rested in it rests on', async () => {
  await emptied();
  expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
  expect(await store.ledger.getNetwork('worn')).toBeNull();
  expect((await store.ledger.listNetworks()).networks).toEqual([]);
  const record = { network: network(WORN), revision: 1 };
  await expect(acquire(record, 'late')).rejects.toMatchObject({ code: 'UNKNOWN_NETWORK' });
  // Another one has the subnet: what is left of the first is done before.
  const other = await put(store.ledger, { ...WORN, network: 'other' });
  expect(await store.raw.keys('*worn*')).toEqual([]);
  expect(await usage('other')).toMatchObject({ cooling: USED, free: 4_094 - USED });
  expect(await acquire(other, 'new')).toBe('10.60.4.177');
  expect(await differences(false)).toEqual([]);
});

test('a deletion that is cut is finished by the next one, a put of the name, and a repair', async () => {
  await emptied();
  expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
  expect(await store.ledger.deleteNetwork('worn')).toEqual({ deleted: true });
  expect(await store.ledger.deleteNetwork('worn')).toEqual({ deleted: false });
  expect(await store.raw.keys('*worn*')).toEqual([]);

  await emptied();
  expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
  await put(store.ledger, WORN);
  expect(await usage('worn')).toMatchObject({ cooling: 2 * USED });

  expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
  expect(await differences(true)).toEqual(['network unfinished']);
  expect(await differences(false)).toEqual([]);
  expect(await store.raw.keys('*worn*')).toEqual([]);
});

test('what a host says that it holds is not released by a deletion of before', async () => {
  const record = await worn();
  const last = await store.ledger.getLease('id1190');
  assert(last !== null);
  let cursor: string | undefined;
  do {
    const page = await store.ledger.listLeases({ network: 'worn', cursor });
    for (const lease of page.leases) await store.ledger.release({ ...owned(lease), cool: true });
    ({ cursor } = page);
  } while (cursor !== undefined);
  await store.ledger.deleteNetwork('worn');
  const { epoch } = await store.ledger.heartbeat(beatOf('h1'));
  const session = { host: 'h1', machineId: 'machine-h1', epoch };
  await store.ledger.reassert(session, { networks: [record], leases: [last] });
  while (await once('volt1_network_finish', { name: 'worn' }));
  expect(await differences(false)).toEqual([]);
});

describe('a deletion that is cut', () => {
  const KEY = `${ROOT}:net:worn`;
  const OTHER = { ...WORN, network: 'other' };

  /** Nobody is given what rests; the deletion is found, and done, by those who ask and by repairs. */
  async function isDone(): Promise<void> {
    const granted: string[] = [];
    let code: string | undefined;
    for (let round = 0; round < 8 && granted.length === 0; round += 1) {
      const error: unknown = await put(store.ledger, OTHER)
        .then(async (other) => void granted.push(await acquire(other, 'new')))
        .catch((cause: unknown) => cause);
      if (error instanceof Error && 'code' in error) code = String(error.code);
      if (granted.length > 0) break;
      const found: string[] = [];
      for await (const one of store.ledger.audit()) {
        found.push(one.what);
        await store.ledger.repair(one).catch(() => {});
      }
      expect(found, code).not.toEqual([]);
      await enrol(store.ledger, ...HOSTS);
    }
    // The lowest that nobody has used.
    expect(granted).toEqual(['10.60.4.177']);
    expect(await usage('other')).toMatchObject({ cooling: USED });
    expect(await store.raw.keys('*worn*')).toEqual([]);
    expect(await differences(false)).toEqual([]);
  }

  const FIELDS = ['unfinished', 'delayMs', 'family:4', 'type', 'fixed', 'next:4'];
  test.each(FIELDS)('and has lost `%s`', async (field) => {
    await emptied();
    expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
    expect(await store.raw.hdel(KEY, field)).toBe(1);
    await isDone();
  });

  test.each(FIELDS)('and has something else as `%s`', async (field) => {
    await emptied();
    expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
    await store.raw.hset(KEY, field, 'garbage');
    await isDone();
  });

  test.each([KEY, `${ROOT}:subnets:4`, `${KEY}:4:by`, `${KEY}:4:free`, `${KEY}:4:allowed`])(
    'and has lost %s',
    async (key) => {
      await emptied();
      expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
      expect(await store.raw.del(key)).toBe(1);
      await isDone();
    },
  );

  test('and has an entry that nobody has made', async () => {
    await emptied();
    expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
    await store.raw.zadd(`${KEY}:4:last`, 0, 'garbage', 0, '0a3c0400 garbage');
    await isDone();
  });

  test('is as done by a put of its name, without what says that it was begun', async () => {
    await emptied();
    expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
    await store.raw.hdel(KEY, 'unfinished');
    await put(store.ledger, { ...WORN, reuseDelaySeconds: 3_600 });
    expect(await usage('worn')).toMatchObject({ cooling: USED });
    expect(await differences(false)).toEqual([]);
  });

  test('is beside another: who wants the subnets of both waits, and hears of no network that is gone', async () => {
    await emptied();
    const second = await put(store.ledger, { ...WORN, network: 'second', subnet: '10.60.16.0/20' });
    const asks = Array.from({ length: USED }, (_, n) => askFor(second, `second${n}`));
    const granted = await acquireMany(store.ledger, asks);
    const leases = granted.flatMap((one) => ('lease' in one ? [one.lease] : []));
    await releaseMany(
      store.ledger,
      leases.map((lease) => ({ ...owned(lease), cool: true })),
    );
    for (const name of ['worn', 'second']) {
      expect(await once('volt1_network_delete', { name })).toBe(true);
    }
    const { network: text, ...rest } = definitionOf(network({ ...OTHER, subnet: '10.60.0.0/19' }));
    const answers: unknown[] = [];
    for (let n = 0; n < 20; n += 1) {
      const reply = await store.raw.call(
        'FCALL',
        'volt1_network_put',
        '1',
        ROOT,
        JSON.stringify(rest),
        text,
      );
      const { error } = JSON.parse(String(reply)) as { error?: { code: string } };
      if (error === undefined) break;
      answers.push(error.code);
      expect(error).toMatchObject({ code: 'RECOVERING', retryAfterMs: 250 });
    }
    expect(answers.length).toBeGreaterThan(2);
    await put(store.ledger, { ...OTHER, subnet: '10.60.0.0/19' });
    expect(await usage('other')).toMatchObject({ cooling: 2 * USED });
  });

  test('is beside another: an agent that puts waits for both', async () => {
    await emptied();
    await put(store.ledger, { ...WORN, network: 'second', subnet: '10.60.16.0/20' });
    expect(await once('volt1_network_delete', { name: 'worn' })).toBe(true);
    await store.ledger.deleteNetwork('second');
    await store.raw.hset(`${ROOT}:net:second`, 'unfinished', 'deleting', 'delayMs', '0');
    await store.raw.hset(
      `${ROOT}:net:second`,
      'family:4',
      '{"first":"0a3c1000","last":"0a3c1fff"}',
    );
    await store.raw.zadd(`${ROOT}:subnets:4`, 0, '0a3c1000-0a3c1fff second');
    await put(store.ledger, { ...OTHER, subnet: '10.60.0.0/19' });
    expect(await usage('other')).toMatchObject({ cooling: USED });
  });
});

describe('a change of the pool that is cut', () => {
  test('and does not say so any more is found by the check', async () => {
    const record = await worn();
    expect(await putOnce(SMALLER, record.revision)).toBe(true);
    expect(await store.raw.hdel(`${ROOT}:net:worn`, 'unfinished')).toBe(1);
    expect(await differences(true)).toEqual(['network unfinished']);
    expect(await differences(false)).toEqual([]);
  });

  test('and does not say so any more, of addresses that rest from another network', async () => {
    await emptied();
    await store.ledger.deleteNetwork('worn');
    expect(await putOnce({ ...WORN, network: 'other' })).toBe(true);
    expect(await store.raw.hdel(`${ROOT}:net:other`, 'unfinished')).toBe(1);
    expect(await differences(true)).toContain('network unfinished');
    expect(await usage('other')).toMatchObject({ cooling: USED });
    expect(await differences(false)).toEqual([]);
  });
});
