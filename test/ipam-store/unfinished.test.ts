import assert from 'node:assert/strict';
import { expect, test } from 'vitest';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { definitionOf } from '#ipam-store/network.ts';
import { actionsOn, askFor, beatOf, network, owned, put, ROOT, useStore } from './fixture.ts';

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
  const granted = await store.ledger.acquireMany(asks);
  const leases = granted.map((one) => {
    assert('lease' in one, JSON.stringify(one));
    return one.lease;
  });
  const ended = leases.filter((_, n) => n % 10 !== 0 || n < 300);
  await store.ledger.releaseMany(ended.map((lease) => ({ ...owned(lease), cool: true })));
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
  await store.ledger.releaseMany(leases.map((lease) => ({ ...owned(lease), cool: true })));
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
