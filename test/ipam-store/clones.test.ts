import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import {
  type Beat,
  type Identity,
  NOTHING_SEEN,
  type Pulse,
  type Self,
} from '#ipam-store/ledger.ts';
import { askFor, beatOf, enrol, put, refused, ROOT, useStore, VOLT0 } from './fixture.ts';
import { fleetOf, forgetMemory, silentFor } from './member.ts';

// Machines of one image: the same machine id, and the same state folder or none. They differ in their boots.

const store = useStore();

/** Two of these are a boot's silence; half of one is how long two must be heard beside each other. */
const heartbeatSeconds = 0.4;

type Who = Identity & { readonly bootId: string };

const who = (boot: number, agentId = 'agent-h1'): Self => ({
  host: 'h1',
  machineId: 'machine-h1',
  agentId,
  bootId: `boot-${boot}`,
});
const FIRST = who(1);
const SECOND = who(2);

const beat = (by: Who, more: Partial<Beat> = {}): Promise<Pulse> =>
  store.ledger.heartbeat(beatOf('h1', { heartbeatSeconds, newFleet: false, ...by, ...more }));

async function conflict(call: Promise<unknown>): Promise<VoltError> {
  const error: unknown = await call.catch((cause: unknown) => cause);
  assert(error instanceof VoltError, 'not refused');
  expect(error).toMatchObject({ code: 'HOST_CONFLICT', retryable: false });
  return error;
}

const isClone = ({ details }: VoltError): boolean => details?.['clones'] !== undefined;

/** Both are heard, as agents that know of nothing, until both are refused. */
async function untilBothAreRefused(...all: readonly Who[]): Promise<void> {
  for (let tries = 0; tries < 500; tries += 1) {
    const outcomes = [];
    for (const one of all) outcomes.push(await beat(one).catch((error: unknown) => error));
    if (outcomes.every((one) => one instanceof VoltError && isClone(one))) return;
    await sleep(10);
  }
  assert.fail('one of them is still taken for the host');
}

async function held(by: Who, id: string): Promise<{ id: string; generation: number }> {
  const record = await put(store.ledger, VOLT0);
  const ask = askFor(record, id, { ...by, kind: 'container' });
  return (await store.ledger.acquire(ask)).lease;
}

const release = (by: Identity, lease: { id: string; generation: number }): Promise<string> =>
  store.ledger.release({ ...lease, ...by, cool: true });

test('a boot beside the one that is heard is refused, and changes nothing', async () => {
  await beat(FIRST);
  const lease = await held(FIRST, 'a');
  const refusal = await refused(store.raw, () => beat(SECOND));
  expect(refusal).toMatchObject({ code: 'HOST_CONFLICT', details: { bootId: 'boot-1' } });
  expect(refusal.retryAfterMs).toBeGreaterThan(0);
  await conflict(release(SECOND, lease));
  await conflict(held(SECOND, 'b'));
  await conflict(store.ledger.putNetwork(VOLT0 as never, undefined, SECOND));
  await beat(FIRST);
  expect(await release(FIRST, lease)).toBe('released');
});

test('two that go on are both refused, nothing of theirs ends, and the host counts as one that lives', async () => {
  await beat(FIRST);
  const lease = await held(FIRST, 'a');
  await untilBothAreRefused(FIRST, SECOND);
  for (const one of [FIRST, SECOND]) {
    await conflict(release(one, lease));
    await conflict(held(one, 'b'));
    await conflict(store.ledger.reassert({ ...one, epoch: '1' }, { networks: [], leases: [] }));
  }
  const { hosts } = await store.ledger.listHosts();
  expect(hosts.find(({ host }) => host === 'h1')).toMatchObject({
    state: 'live',
    clones: expect.toSatisfy((boots: string[]) => boots.toSorted().join() === 'boot-1,boot-2'),
    leases: 1,
  });
  await expect(store.ledger.forgetHost('h1')).rejects.toMatchObject({ code: 'HOST_ALIVE' });
  // Nor after the server has restarted, or one of them.
  await forgetMemory(store.raw);
  await enrol(store.ledger, 'h2', 'h3').catch(() => {});
  for (const one of [SECOND, FIRST, who(3)]) expect(isClone(await conflict(beat(one)))).toBe(true);
  expect(await store.ledger.getLease('a')).not.toBeNull();
});

test('three that start at the same instant', async () => {
  await store.raw.flushall();
  await fleetOf(store.ledger, ['h2']);
  const all = [who(1), who(2), who(3)];
  await Promise.all(all.map((one) => beat(one).catch(() => {})));
  await untilBothAreRefused(...all);
});

test('an operator decides: the other is refused for ever, what the host holds stays', async () => {
  await beat(FIRST);
  const lease = await held(FIRST, 'a');
  await untilBothAreRefused(FIRST, SECOND);
  expect(await store.ledger.settleHost(FIRST)).toBe(true);
  const pulse = await beat(FIRST);
  expect(pulse).toMatchObject({ reassert: true, rebooted: false });
  for (let n = 0; n < 3; n += 1) {
    const { details } = await conflict(beat(SECOND));
    expect(details).toMatchObject({ yieldsTo: 'boot-1' });
    await sleep(heartbeatSeconds * 500);
    await beat(FIRST);
  }
  await store.ledger.reassert({ ...FIRST, epoch: pulse.epoch }, { networks: [], leases: [] });
  expect((await beat(FIRST)).mayAcquire).toBe(true);
  expect(await release(FIRST, lease)).toBe('released');
  // It boots again, with the folder of the first: that is the same question once more.
  await untilBothAreRefused(FIRST, who(4));
});

test('only a machine of this id may be settled on, and none where nobody disputes', async () => {
  await beat(FIRST);
  await conflict(store.ledger.settleHost({ ...SECOND, machineId: 'other' }));
  await expect(store.ledger.settleHost(SECOND)).rejects.toMatchObject({ code: 'HOST_ALIVE' });
  expect(await store.ledger.settleHost({ ...SECOND, host: 'h9' })).toBe(false);
  expect(await store.ledger.settleHost(FIRST)).toBe(true);
});

test('a reboot is taken when the boot before it is silent; until that is certain it ends nothing of before', async () => {
  await beat(FIRST);
  const earlier = await held(FIRST, 'a');
  await conflict(beat(SECOND));
  await silentFor(store.raw, 'h1', 2 * heartbeatSeconds);
  expect(await beat(SECOND)).toMatchObject({ rebooted: true, before: 'live' });
  const own = await held(SECOND, 'b');
  await expect(release(SECOND, earlier)).rejects.toMatchObject({ code: 'RECOVERING' });
  expect(await release(SECOND, own)).toBe('released');
  await sleep(2_000 * heartbeatSeconds);
  expect(await release(SECOND, earlier)).toBe('released');
});

test('what a reboot has left on its way, heard at one time, makes no clone of it', async () => {
  await beat(FIRST);
  await silentFor(store.raw, 'h1', 60);
  await beat(SECOND);
  for (let n = 0; n < 3; n += 1) expect(isClone(await conflict(beat(FIRST)))).toBe(false);
  await sleep(600 * heartbeatSeconds);
  for (let n = 0; n < 3; n += 1) await beat(SECOND);
});

test('the first comes back while the second is known as the host, which was taken for its reboot', async () => {
  await beat(FIRST);
  const lease = await held(FIRST, 'a');
  await silentFor(store.raw, 'h1', 60);
  await beat(SECOND);
  await conflict(beat(FIRST));
  await expect(release(SECOND, lease)).rejects.toMatchObject({ code: 'RECOVERING' });
  await untilBothAreRefused(SECOND, FIRST);
  // Also where the second is off by then: a boot does not come back.
  await store.raw.hdel(`${ROOT}:host:h1`, 'clones');
  await forgetMemory(store.raw);
  await enrol(store.ledger, 'h2', 'h3').catch(() => {});
  await silentFor(store.raw, 'h1', 60);
  await untilBothAreRefused(FIRST);
});

test('an agent restarts within its boot', async () => {
  await beat(FIRST);
  for (let n = 0; n < 3; n += 1) expect(await beat(FIRST)).toMatchObject({ rebooted: false });
});

test('a machine of the same image with a state folder of its own is the second, and refused alone', async () => {
  await beat(FIRST);
  await held(FIRST, 'a');
  const fresh = who(2, 'agent-fresh');
  for (let n = 0; n < 3; n += 1) {
    const { details } = await conflict(beat(fresh));
    expect(details).toMatchObject({ yieldsTo: 'agent-h1' });
    await sleep(heartbeatSeconds * 500);
    await beat(FIRST);
  }
});

test('a machine that has lost its state folder goes on in its boot; after another one an operator says that it is it', async () => {
  await beat(FIRST);
  const lease = await held(FIRST, 'a');
  const again = who(1, 'agent-again');
  expect(await beat(again)).toMatchObject({ before: 'live', rebooted: false });
  await conflict(release(FIRST, lease));
  const late = who(2, 'agent-late');
  await beat(again, { suspectAfterSeconds: 0.01 });
  await silentFor(store.raw, 'h1', 60);
  await sleep(20);
  const { message } = await conflict(beat(late));
  expect(message).toMatch(/holds 1 leases .*voltnet host settle/);
  expect(await store.ledger.settleHost(late)).toBe(true);
  await beat(late);
  await conflict(beat(again));
  expect(await store.ledger.getLease('a')).not.toBeNull();
});

test('one that holds nothing and is silent gives its name to another', async () => {
  await beat(FIRST, { suspectAfterSeconds: 0.01 });
  await sleep(20);
  const other = { ...who(7, 'agent-7'), machineId: 'machine-7' };
  await beat(other);
  expect(await store.raw.hgetall(`${ROOT}:host:h1`)).toMatchObject({
    machineId: 'machine-7',
    agentId: 'agent-7',
    bootIds: 'boot-7',
  });
});

test('an agent before 1.7 says neither: it goes on beside the others, and its successor is known by both', async () => {
  const { agentId: _, ...old } = FIRST;
  await beat(old);
  const record = await put(store.ledger, VOLT0);
  const { lease } = await store.ledger.acquire(askFor(record, 'a'));
  expect(await release({ host: 'h1', machineId: 'machine-h1' }, lease)).toBe('released');
  await beat(FIRST);
  await beat(old);
  expect(await release(FIRST, await held(FIRST, 'b'))).toBe('released');
  await conflict(release({ ...FIRST, agentId: 'other' }, lease));
});

test('after a loss, what two machines of one host hold is waited for until an operator decides', async () => {
  await store.raw.flushall();
  const [h2] = await fleetOf(store.ledger, ['h2']);
  assert(h2 !== undefined);
  await beat(FIRST);
  await h2.turn();
  await untilBothAreRefused(FIRST, SECOND);
  await store.raw.flushall();
  await forgetMemory(store.raw);
  await h2.turn();
  const { details } = await conflict(beat(SECOND, { yieldsTo: 'machine-h1' }));
  expect(details).toMatchObject({ yieldsTo: 'machine-h1' });
  await conflict(beat(FIRST, { yieldsTo: 'machine-h1' }));
  expect(await h2.turn()).toMatchObject({ state: 'recovering', awaiting: ['h1'] });
  await store.ledger.settleHost(SECOND);
  const { epoch } = await beat(SECOND, { seen: NOTHING_SEEN });
  await store.ledger.reassert({ ...SECOND, epoch }, { networks: [], leases: [] });
  expect(await h2.turn()).toMatchObject({ state: 'armed' });
});
