import assert from 'node:assert/strict';
import { expect, test } from 'vitest';
import { type Lease, NOTHING_SEEN, type Seen } from '#ipam-store/ledger.ts';
import { parseNetwork } from '#protocol/network.ts';
import {
  askFor,
  beatOf,
  enrol,
  openLedger,
  owned,
  put,
  refused,
  ROOT,
  useStore,
  VOLT0,
  seenAfter,
} from './fixture.ts';
import { forgetMemory, silentFor } from './member.ts';
import { libraryOf, loadedVersion, VERSION } from './opening.ts';

// Who changes something says which machine it is, and the ledger compares that with what it knows of the host.

const store = useStore();

const SECOND = { host: 'h1', machineId: 'machine-second' };

async function held(id = 'a'): Promise<Lease> {
  const record = await put(store.ledger, VOLT0);
  return (await store.ledger.acquire(askFor(record, id))).lease;
}

const conflict = (error: object): void => {
  expect(error).toMatchObject({
    code: 'HOST_CONFLICT',
    retryable: false,
    details: { host: 'h1', machineId: 'machine-h1' },
  });
};

test.each([
  ['heartbeat', () => store.ledger.heartbeat(beatOf('h1', SECOND))],
  ['grant', async () => store.ledger.acquire(askFor(await volt0(), 'b', SECOND))],
  ['preview', async () => store.ledger.preview(askFor(await volt0(), 'b', SECOND))],
  ['release', async () => store.ledger.release({ ...(await lease('a')), ...SECOND, cool: true })],
  [
    're-assertion',
    () => store.ledger.reassert({ ...SECOND, epoch: '1' }, { networks: [], leases: [] }),
  ],
  [
    'network',
    () =>
      store.ledger.putNetwork(
        parseNetwork({ network: 'n', subnet: '10.9.0.0/24' }),
        undefined,
        SECOND,
      ),
  ],
  ['deletion of a network', () => store.ledger.deleteNetwork('empty', SECOND)],
])('no %s of another machine under the host id of one that the ledger knows', async (_, call) => {
  await held();
  await put(store.ledger, { network: 'empty', subnet: '10.8.0.0/24' });
  conflict(await refused(store.raw, call));
});

const volt0 = async () => (await store.ledger.getNetwork('volt0')) ?? assert.fail();
const lease = async (id: string) => (await store.ledger.getLease(id)) ?? assert.fail();

test('a machine whose session has yet to be opened is told apart, too', async () => {
  const record = await put(store.ledger, VOLT0);
  await store.ledger.heartbeat(beatOf('joins'));
  const ask = askFor(record, 'b', { host: 'joins', machineId: 'machine-second' });
  expect(await refused(store.raw, () => store.ledger.acquire(ask))).toMatchObject({
    code: 'HOST_CONFLICT',
    details: { host: 'joins', machineId: 'machine-joins' },
  });
});

test('the machine itself ends leases of its earlier boots', async () => {
  const earlier = await held();
  await silentFor(store.raw, 'h1', 60);
  await store.ledger.heartbeat(beatOf('h1', { bootId: 'boot-2' }));
  await store.raw.hdel(`${ROOT}:host:h1`, 'sureMs');
  expect(await store.ledger.release({ ...owned(earlier), cool: true })).toBe('released');
});

test('a release of an agent before 1.5, which does not say which machine it is on, goes on', async () => {
  const { id, generation } = await held();
  const release = (host: string): Promise<unknown> =>
    store.raw.fcall('volt1_release', 1, ROOT, host, `${id} ${generation} 1`);
  expect(await release('h2')).toContain('WRONG_HOST');
  expect(await release('h1')).toBe('{"released":true,"network":"volt0"}');
  expect(await store.ledger.getLease(id)).toBeNull();
});

test('a release that finds the library of before loads its own within the call', async () => {
  const lent = await held();
  const registered = /^redis\.register_function\(\{ function_name = 'volt1_give_back'.*\n/m;
  const before = libraryOf('1.4');
  assert.match(before, registered);
  await store.raw.function('LOAD', 'REPLACE', before.replace(registered, ''));
  // The memory of who may be granted went with the library.
  const other = await openLedger(store.server.url).catch(() => assert.fail());
  await other.close();
  expect(await loadedVersion(store.raw)).toBe(VERSION);
  await store.raw.function('LOAD', 'REPLACE', before.replace(registered, ''));
  await expect(store.ledger.release({ ...owned(lent), cool: true })).rejects.toMatchObject({
    code: 'RECOVERING',
  });
  expect(await loadedVersion(store.raw)).toBe(VERSION);
  await enrol(store.ledger, 'h1', 'h2', 'h3');
  expect(await store.ledger.release({ ...owned(lent), cool: true })).toBe('released');
});

test('any agent may say that a host is gone; then its name is free for the other machine', async () => {
  const record = await put(store.ledger, VOLT0);
  await store.ledger.heartbeat(beatOf('gone', { suspectAfterSeconds: 0.02 }));
  await new Promise((resolve) => setTimeout(resolve, 40));
  expect(await store.ledger.forgetHost('gone')).toMatchObject({ forgotten: true });
  const heir = { host: 'gone', machineId: 'machine-heir' };
  expect((await store.ledger.heartbeat(beatOf('gone', heir))).before).toBeNull();
  const ended = { id: 'any', generation: 1, ...heir, cool: true };
  expect(await store.ledger.release(ended)).toBe('absent');
  const late = { ...ended, machineId: 'machine-gone' };
  expect(await refused(store.raw, () => store.ledger.release(late))).toMatchObject({
    code: 'HOST_CONFLICT',
  });
  expect(record.revision).toBeGreaterThan(0);
});

test('a machine that was refused is not the quicker one where a server has lost who the host was', async () => {
  const seen = await seenByAll();
  const beat = (more: object): Promise<unknown> =>
    store.ledger.heartbeat(beatOf('h1', { newFleet: false, ...more }));
  const { details } = await refused(store.raw, () => beat(SECOND));
  await store.raw.flushall();
  await forgetMemory(store.raw);
  // Another host has told of the loss, and that there was h1.
  await store.ledger.heartbeat(beatOf('h2', { seen }));
  const late = { ...SECOND, yieldsTo: String(details?.['machineId']) };
  conflict(await refused(store.raw, () => beat(late)));
  expect(await beat({ seen })).toMatchObject({ state: 'recovering' });
  // Of a host that nobody knows of, when all is told, it is the first to ask.
  await store.ledger.tellHosts(beatOf('h2'), seen);
  const fresh = { ...late, host: 'h9' };
  expect(await store.ledger.heartbeat(beatOf('h9', fresh))).toMatchObject({ before: null });
});

async function seenByAll(): Promise<Seen> {
  const first = await store.ledger.heartbeat(beatOf('h2'));
  return seenAfter(store.ledger, NOTHING_SEEN, first);
}
