import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, test } from 'vitest';
import type { Lease, NetworkRecord } from '#ipam-store/ledger.ts';
import {
  askFor,
  bare,
  beatOf,
  contents,
  put,
  refused,
  small,
  useStore,
  VOLT0,
  owned,
} from './fixture.ts';
import { fleetOf, forgetMemory, heard, Member, snapshotOf, silentFor } from './member.ts';

// A server that has lost what it was told, and how the ledger finds that before it gives anything to anybody.

const store = useStore();

let one: Member;
let two: Member;
let record: NetworkRecord;

beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const [first, second] = await fleetOf(store.ledger, ['h1', 'h2']);
  assert(first !== undefined && second !== undefined);
  [one, two] = [first, second];
  record = await one.put(put(store.ledger, VOLT0));
});

const RECOVERING = { code: 'RECOVERING', retryable: true };

/** Everything that changes the ledger is refused, and changes nothing. */
async function grantsNothing(): Promise<void> {
  const lease = { id: 'any', generation: 1, host: 'h1', machineId: 'machine-h1', cool: true };
  for (const call of [
    () => store.ledger.acquire(askFor(record, 'new')),
    () => store.ledger.acquire(askFor(record, 'asked', { addresses: ['10.42.0.99'] })),
    () => store.ledger.acquire(askFor(record, 'reserved', { workload: 'vm-web' })),
    () => store.ledger.release(lease),
    () => put(store.ledger, { network: 'other', subnet: '10.43.0.0/24' }),
    () => store.ledger.deleteNetwork('volt0'),
  ]) {
    expect(await refused(store.raw, call)).toMatchObject(RECOVERING);
  }
}

describe('a server that restarted with all it had', () => {
  test('grants when every live host was heard, and not before', async () => {
    const lease = await one.acquire(record, 'a');
    await forgetMemory(store.raw);
    await grantsNothing();
    expect(await one.beat()).toMatchObject({
      state: 'arming',
      awaiting: ['h2'],
      mayAcquire: false,
    });
    await grantsNothing();
    expect(await two.beat()).toMatchObject({ state: 'armed', mayAcquire: true, reassert: false });
    // Without another heartbeat of its own.
    const next = await one.acquire(record, 'b');
    expect(next.generation).toBe(lease.generation + 1);
  });

  test('does not wait for a suspect host', async () => {
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const hosts = ['h1', 'h2', 'h3'];
    const [first, second] = await fleetOf(store.ledger, hosts, { suspectAfterSeconds: 0.3 });
    assert(first !== undefined && second !== undefined);
    const pulses = await heard([first, second], 2_000);
    expect(pulses.flatMap(({ fallen }) => fallen)).toEqual(['h3']);
    await forgetMemory(store.raw);
    await first.beat();
    expect(await second.beat()).toMatchObject({ state: 'armed', missed: [] });
  });

  test('waits no longer than recoveryWindowSeconds, and then not for that host again', async () => {
    await forgetMemory(store.raw);
    expect(await one.beat({ recoveryWindowSeconds: 0.05 })).toMatchObject({ state: 'arming' });
    await sleep(60);
    expect(await one.beat({ recoveryWindowSeconds: 0.05 })).toMatchObject({
      state: 'armed',
      missed: ['h2'],
    });
    const { hosts } = await store.ledger.listHosts();
    expect(hosts).toMatchObject([
      { host: 'h1', state: 'live' },
      { host: 'h2', state: 'suspect' },
    ]);
    expect(await two.beat()).toMatchObject({ before: 'suspect', state: 'armed' });
  });

  test('waits for no host that was forgotten meanwhile', async () => {
    await two.acquire(record, 'lost');
    await forgetMemory(store.raw);
    await one.beat();
    const { hosts, state } = await store.ledger.listHosts();
    expect({ hosts, state }).toMatchObject({ state: 'arming', hosts: [{}, { state: 'awaited' }] });
    expect(await store.ledger.forgetHost('h2')).toEqual({ forgotten: true, released: 1 });
    expect(await one.beat()).toMatchObject({ state: 'armed' });
    expect((await store.ledger.getNetwork('volt0'))?.usage).toMatchObject({ used: 0, cooling: 1 });
  });
});

describe('a server that was emptied', () => {
  const held = async (): Promise<string[]> =>
    (await store.ledger.listLeases({})).leases.map((lease) => `${lease.id} ${bare(lease)}`);

  test('without a restart is found by the next grant, which changes nothing', async () => {
    await one.acquire(record, 'a');
    await store.raw.flushall();
    await grantsNothing();
    expect(await contents(store.raw)).toEqual({});
  });

  test('has nothing to say to a host that has seen nothing', async () => {
    await store.raw.flushall();
    const fresh = new Member(store.ledger, 'h9');
    expect(await fresh.beat()).toMatchObject({ state: 'unclaimed', mayAcquire: false });
    expect(await contents(store.raw)).toEqual({});
    expect(await refused(store.raw, () => store.ledger.getNetwork('volt0'))).toMatchObject(
      RECOVERING,
    );
  });

  test('is filled by its hosts in any order, and gives nothing away before', async () => {
    const leases: Lease[] = [];
    for (const [member, id] of [
      [one, 'a'],
      [two, 'b'],
      [one, 'c'],
    ] as const) {
      leases.push(await member.acquire(record, id));
    }
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const begun = await two.turn();
    expect(begun).toMatchObject({ state: 'recovering', awaiting: ['h1'] });
    await grantsNothing();
    const ended = await one.turn();
    expect(ended).toMatchObject({ state: 'armed', mayAcquire: true });
    expect(await held()).toEqual(['a 10.42.0.2', 'c 10.42.0.4', 'b 10.42.0.3']);
    const next = await two.acquire(record, 'd');
    expect(bare(next)).toBe('10.42.0.5');
    expect(next.generation).toBeGreaterThan(
      Math.max(...leases.map(({ generation }) => generation)),
    );
    expect(next.generation).toBeGreaterThan(2 ** 33);
    // Revisions are not given again either.
    const other = await put(store.ledger, { network: 'other', subnet: '10.43.0.0/24' });
    expect(other.revision).toBeGreaterThan(record.revision);
  });

  test('tells when the recovery begins and ends, once each', async () => {
    await one.acquire(record, 'a');
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const told: string[] = [];
    for (const member of [one, two, one, two, one, two]) {
      const pulse = await member.beat();
      const { began, ended, epoch, reassert } = pulse;
      await member.tell(pulse);
      if (began) told.push(`began ${epoch}`);
      if (ended) told.push(`ended ${epoch}`);
      if (reassert) await member.reassert(epoch);
    }
    expect(told).toEqual(['began 2', 'ended 2']);
  });

  test('waits for a host that only one that was waited for knows', async () => {
    const three = new Member(store.ledger, 'h3');
    await three.turn();
    // h2 has seen h3, h1 has not.
    const before = one.seen;
    await two.turn();
    await three.turn();
    await three.acquire(record, 'of-h3');
    one.seen = before;
    await store.raw.flushall();
    await forgetMemory(store.raw);
    expect(await one.turn()).toMatchObject({ state: 'recovering', awaiting: ['h2'] });
    expect(await two.turn()).toMatchObject({ state: 'recovering', awaiting: ['h3'] });
    await grantsNothing();
    expect(await three.turn()).toMatchObject({ state: 'armed' });
    expect(await held()).toContain('of-h3 10.42.0.2');
  });

  test('that a fresh host called a new fleet’s is found out by the next old one', async () => {
    const lease = await one.acquire(record, 'old');
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const fresh = new Member(store.ledger, 'h9');
    await fresh.turn({ newFleet: true });
    const mine = await fresh.put(put(store.ledger, VOLT0));
    await fresh.acquire(mine, 'young');
    expect(await one.beat()).toMatchObject({ state: 'recovering', began: true });
    await grantsNothing();
    for (const member of [one, two, fresh, one]) await member.turn();
    // The old one’s generation is higher than any of the first epoch again: the young one is told.
    const winner = await store.ledger.getLease('old');
    expect(winner === null || winner.generation === lease.generation).toBe(true);
    const holders = (await held()).filter((text) => text.endsWith(' 10.42.0.2'));
    expect(holders).toHaveLength(1);
  });
});

describe('a server with old data', () => {
  test('is found by a lease that it does not know', async () => {
    await one.acquire(record, 'a');
    const turnBack = await snapshotOf(store.raw);
    const b = await two.acquire(record, 'b');
    await turnBack();
    expect(await one.turn()).toMatchObject({ state: 'arming' });
    expect(await two.beat()).toMatchObject({
      state: 'recovering',
      began: true,
      awaiting: ['h1', 'h2'],
    });
    await two.turn();
    await one.turn();
    expect(await store.ledger.getLease('b')).toMatchObject({ generation: b.generation });
    expect(bare(await one.acquire(record, 'c'))).toBe('10.42.0.4');
  });

  test('is found by a network that it does not know, or knows as it was', async () => {
    const turnBack = await snapshotOf(store.raw);
    const changed = await one.put(put(store.ledger, { ...VOLT0, mtu: 1400 }, record.revision));
    await one.put(put(store.ledger, { network: 'new', subnet: '10.43.0.0/24' }));
    await turnBack();
    for (const member of [two, one, two, one]) await member.turn();
    expect(await store.ledger.getNetwork('volt0')).toMatchObject({
      revision: changed.revision,
      network: { mtu: 1400 },
    });
    expect(await store.ledger.getNetwork('new')).not.toBeNull();
  });

  test('forgets what it believes to be held, where its host holds something later', async () => {
    // An address goes from one host to another after the copy was made.
    const net = await one.put(put(store.ledger, small({ reuseDelaySeconds: 0 })));
    const old = await one.acquire(net, 'a', { addresses: ['10.9.0.3'] });
    const turnBack = await snapshotOf(store.raw);
    await store.ledger.release({ ...owned(old), cool: true });
    one.leases.delete('a');
    const later = await two.acquire(net, 'b', { addresses: ['10.9.0.3'] });
    await turnBack();
    for (const member of [one, two, one, two]) await member.turn();
    expect(await store.ledger.getLease('b')).toMatchObject({ generation: later.generation });
    expect(await store.ledger.getLease('a')).toBeNull();
  });

  test('gives way to a network that changed since, also where it believes in a lease', async () => {
    const net = await one.put(put(store.ledger, small({ reuseDelaySeconds: 0 })));
    const gone = await one.acquire(net, 'gone', { addresses: ['10.9.0.3'] });
    const turnBack = await snapshotOf(store.raw);
    await store.ledger.release({ ...owned(gone), cool: true });
    one.leases.delete('gone');
    const reservations = { 'vm-other': '10.9.0.3' };
    const changed = await two.put(put(store.ledger, small({ reservations }), net.revision));
    await turnBack();
    for (const member of [one, two, one, two]) await member.turn();
    expect((await store.ledger.getNetwork('small'))?.revision).toBe(changed.revision);
    expect(await store.ledger.getLease('gone')).toBeNull();
  });

  test('gives way to a network in the place of one that was deleted since', async () => {
    const old = await one.put(put(store.ledger, { network: 'old', subnet: '10.50.0.0/16' }));
    const gone = await one.acquire(old, 'gone');
    const turnBack = await snapshotOf(store.raw);
    await store.ledger.release({ ...owned(gone), cool: true });
    await store.ledger.deleteNetwork('old');
    one.leases.delete('gone');
    one.networks.delete('old');
    const heir = await two.put(put(store.ledger, { network: 'heir', subnet: '10.50.7.0/24' }));
    const lease = await two.acquire(heir, 'held');
    await turnBack();
    for (const member of [one, two, one, two]) await member.turn();
    expect(await store.ledger.getNetwork('old')).toBeNull();
    expect((await store.ledger.getNetwork('heir'))?.revision).toBe(heir.revision);
    expect(await store.ledger.getLease('held')).toMatchObject({ generation: lease.generation });
    const differences = [];
    for await (const difference of store.ledger.audit()) differences.push(difference);
    expect(differences).toEqual([]);
  });

  test('of a master that was deposed and came back is found by its next grant', async () => {
    await one.acquire(record, 'a');
    // Another has granted meanwhile, and this one has its data now, but its own memory still.
    const generation = Number(await store.raw.hget('volt:{ledger}:leases', '#generation'));
    await store.raw.hset('volt:{ledger}:leases', '#generation', String(generation + 3));
    expect(await refused(store.raw, () => one.acquire(record, 'b'))).toMatchObject(RECOVERING);
    await one.beat();
    await two.beat();
    expect((await one.acquire(record, 'b')).generation).toBe(generation + 4);
  });
});

describe('what a host re-asserts', () => {
  /** Both hosts believe to hold one address; the later lease is h2's. */
  async function disputed(): Promise<{ earlier: Lease; later: Lease; net: NetworkRecord }> {
    const net = await one.put(put(store.ledger, small({ reuseDelaySeconds: 0 })));
    const earlier = await one.acquire(net, 'a', { addresses: ['10.9.0.3'] });
    await store.ledger.release({ ...owned(earlier), cool: true });
    const later = await two.acquire(net, 'b', { addresses: ['10.9.0.3'] });
    await store.raw.flushall();
    await forgetMemory(store.raw);
    return { earlier, later, net };
  }

  test.each([
    ['the earlier first', (): Member[] => [one, two, one, two]],
    ['the later first', (): Member[] => [two, one, two, one]],
  ])(
    'gives an address to the later lease, %s, and the other host hears of it',
    async (_, order) => {
      const { earlier, later } = await disputed();
      const fenced: unknown[] = [];
      for (const member of order()) {
        const { reassert, epoch } = await member.beat();
        if (!reassert) continue;
        const { leases } = await member.reassert(epoch);
        fenced.push(...leases.filter(({ outcome }) => outcome === 'fenced'));
      }
      expect(fenced).toEqual([
        {
          id: 'a',
          generation: earlier.generation,
          outcome: 'fenced',
          holder: { id: 'b', host: 'h2', generation: later.generation },
        },
      ]);
      expect((await store.ledger.listLeases({})).leases).toMatchObject([{ id: 'b' }]);
    },
  );

  test('may be said twice, a hundred and more at a time', async () => {
    const wide = await one.put(put(store.ledger, { network: 'wide', subnet: '10.50.0.0/20' }));
    for (let n = 0; n < 250; n += 1) await one.acquire(wide, `n${n}`);
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const { epoch } = await one.beat();
    const first = await one.reassert(epoch);
    expect(new Set(first.leases.map(({ outcome }) => outcome))).toEqual(new Set(['restored']));
    const before = await contents(store.raw);
    const second = await one.reassert(epoch);
    expect(new Set(second.leases.map(({ outcome }) => outcome))).toEqual(new Set(['kept']));
    expect(await contents(store.raw)).toEqual(before);
    await two.turn();
    await one.turn();
    expect((await store.ledger.getNetwork('wide'))?.usage.used).toBe(250);
    expect(bare(await one.acquire(wide, 'next'))).toBe('10.50.0.251');
  });

  test('is named where it has no place: no network, an address outside', async () => {
    await one.acquire(record, 'a');
    await one.acquire(record, 'b');
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const { epoch } = await one.beat();
    one.networks.clear();
    const { leases } = await one.reassert(epoch);
    expect(leases).toMatchObject([
      { id: 'a', outcome: 'misplaced', reason: 'UNKNOWN_NETWORK' },
      { id: 'b', outcome: 'misplaced', reason: 'UNKNOWN_NETWORK' },
    ]);
  });

  test.each([
    ['the gateway', { gateway: '10.42.0.9' }, 'ADDRESS_OUT_OF_RANGE'],
    ['excluded', { exclude: ['10.42.0.8/31'] }, 'ADDRESS_OUT_OF_RANGE'],
    ['reserved for another', { reservations: { other: '10.42.0.9' } }, 'ADDRESS_IN_USE'],
  ])('whose address is %s by now is not restored', async (_, change, reason) => {
    const { revision } = record;
    const ask = { addresses: ['10.42.0.9'] };
    await two.acquire(record, 'a', ask);
    await forgetMemory(store.raw);
    await one.beat();
    await store.ledger.forgetHost('h2');
    await one.turn();
    await put(store.ledger, { ...record.network, ...change }, revision);
    const { epoch } = await two.beat();
    const { leases } = await two.reassert(epoch);
    expect(leases).toMatchObject([{ id: 'a', outcome: 'misplaced', reason }]);
    expect((await store.ledger.listLeases({})).leases).toEqual([]);
  });

  test('is not taken from a host, or for an epoch, that is not heard', async () => {
    const session = { host: 'h1', machineId: 'machine-h1', epoch: '1' };
    const nothing = { networks: [], leases: [] };
    const other = (): Promise<unknown> =>
      store.ledger.reassert({ ...session, machineId: 'other' }, nothing);
    expect(await refused(store.raw, other)).toMatchObject({
      code: 'HOST_CONFLICT',
      details: { host: 'h1', machineId: 'machine-h1' },
    });
    for (const wrong of [{ host: 'h9' }, { epoch: '2' }]) {
      const call = (): Promise<unknown> => store.ledger.reassert({ ...session, ...wrong }, nothing);
      expect(await refused(store.raw, call)).toMatchObject(RECOVERING);
    }
    const lease = await one.acquire(record, 'a');
    const tooNew = { networks: [], leases: [{ ...lease, generation: lease.generation + 1 }] };
    const call = (): Promise<unknown> => store.ledger.reassert(session, tooNew);
    expect(await refused(store.raw, call)).toMatchObject(RECOVERING);
  });

  test('leaves a network alone whose subnet another has by now', async () => {
    await store.raw.flushall();
    await forgetMemory(store.raw);
    const { epoch } = await one.beat();
    two.networks.set('rival', {
      network: { ...record.network, network: 'rival', bridge: 'rival' },
      revision: record.revision,
    });
    await one.reassert(epoch);
    await two.beat();
    expect((await two.reassert(epoch)).networks).toMatchObject([
      { network: 'rival', outcome: 'refused', reason: 'subnet overlaps that of network volt0' },
    ]);
  });
});

describe('a host that joins', () => {
  test('may acquire when another has seen it, and not before', async () => {
    const three = new Member(store.ledger, 'h3');
    expect(await three.turn()).toMatchObject({
      before: 'live',
      mayAcquire: false,
      reassert: false,
    });
    const { hosts } = await store.ledger.listHosts();
    expect(hosts.at(-1)).toMatchObject({ host: 'h3', state: 'joining' });
    const call = (): Promise<unknown> => three.acquire(record, 'a');
    expect(await refused(store.raw, call)).toMatchObject(RECOVERING);
    // h1 learns of it, and says so with its next heartbeat.
    await one.beat();
    expect(one.seen.hosts.toSorted()).toEqual(['h1', 'h2', 'h3']);
    expect((await three.beat()).mayAcquire).toBe(false);
    await one.beat();
    expect((await three.beat()).mayAcquire).toBe(true);
    await three.acquire(record, 'a');
  });

  test('is not vouched for by another that joins', async () => {
    const [three, four] = [new Member(store.ledger, 'h3'), new Member(store.ledger, 'h4')];
    for (const member of [three, four, three, four, three, four]) {
      expect((await member.turn()).mayAcquire).toBe(false);
    }
  });
});

describe('one name', () => {
  test('is not for two machines: not at a heartbeat, not at a grant', async () => {
    const call = (): Promise<unknown> =>
      store.ledger.heartbeat(beatOf('h1', { machineId: 'second' }));
    expect(await refused(store.raw, call)).toMatchObject({ code: 'HOST_CONFLICT' });
    const grant = (): Promise<unknown> =>
      store.ledger.acquire(askFor(record, 'a', { machineId: 'second' }));
    expect(await refused(store.raw, grant)).toMatchObject({
      code: 'HOST_CONFLICT',
      details: { host: 'h1', machineId: 'machine-h1' },
    });
  });

  test('is for another machine when the first is silent and holds nothing', async () => {
    await two.acquire(record, 'a');
    await one.beat({ suspectAfterSeconds: 0.01 });
    await two.beat({ suspectAfterSeconds: 0.01 });
    await sleep(20);
    const heir = beatOf('h1', { machineId: 'second', newFleet: false });
    expect(await store.ledger.heartbeat(heir)).toMatchObject({ reassert: true, mayAcquire: false });
    const call = (): Promise<unknown> => store.ledger.heartbeat({ ...heir, host: 'h2' });
    expect(await refused(store.raw, call)).toMatchObject({ code: 'HOST_CONFLICT' });
    expect(await store.ledger.forgetHost('h2')).toEqual({ forgotten: true, released: 1 });
    expect(await store.ledger.heartbeat({ ...heir, host: 'h2' })).toMatchObject({ before: null });
  });

  test('is not forgotten while its host lives', async () => {
    await one.acquire(record, 'a');
    const call = (): Promise<unknown> => store.ledger.forgetHost('h1');
    expect(await refused(store.raw, call)).toMatchObject({ code: 'HOST_ALIVE', retryable: false });
    expect(await store.ledger.forgetHost('nobody')).toEqual({ forgotten: false, released: 0 });
  });

  test('of a host with hundreds of leases is forgotten with all of them', async () => {
    const wide = await two.put(put(store.ledger, { network: 'wide', subnet: '10.50.0.0/20' }));
    for (let n = 0; n < 250; n += 1) await two.acquire(wide, `n${n}`);
    await one.acquire(wide, 'stays');
    await two.beat({ suspectAfterSeconds: 0.01 });
    await sleep(20);
    expect(await store.ledger.forgetHost('h2')).toEqual({ forgotten: true, released: 250 });
    expect((await store.ledger.listLeases({})).leases.map(({ id }) => id)).toEqual(['stays']);
    const differences = [];
    for await (const difference of store.ledger.audit()) differences.push(difference);
    expect(differences).toEqual([]);
    // It comes back: what nobody has it has again.
    expect(await two.turn()).toMatchObject({ mayAcquire: false });
    await one.turn();
    await one.turn();
    expect((await two.turn()).mayAcquire).toBe(true);
    expect((await store.ledger.getNetwork('wide'))?.usage.used).toBe(251);
  });

  test('keeps its leases over a reboot, of which the heartbeat tells', async () => {
    const lease = await one.acquire(record, 'a');
    await silentFor(store.raw, one.host, 60);
    expect(await one.beat({ bootId: 'boot-2' })).toMatchObject({ rebooted: true, reassert: false });
    expect(await one.beat({ bootId: 'boot-2' })).toMatchObject({ rebooted: false });
    expect(await store.ledger.getLease('a')).toEqual(lease);
  });
});

describe('silence', () => {
  let members: Member[];

  beforeEach(async () => {
    await store.raw.flushall();
    await forgetMemory(store.raw);
    members = await fleetOf(store.ledger, ['h1', 'h2'], { suspectAfterSeconds: 0.3 });
  });

  test('makes a host suspect; its leases stay until it is back', async () => {
    const [first, second] = members;
    assert(first !== undefined && second !== undefined);
    const net = await first.put(put(store.ledger, small({ reuseDelaySeconds: 0 })));
    await second.acquire(net, 'a', { addresses: ['10.9.0.3'] });
    const pulses = await heard([first], 2_000);
    expect(pulses.flatMap(({ fallen }) => fallen)).toEqual(['h2']);
    expect((await store.ledger.listLeases({})).leases).toMatchObject([
      { id: 'a', state: 'suspect' },
    ]);
    expect((await store.ledger.getNetwork('small'))?.usage).toMatchObject({ used: 1, suspect: 1 });
    const thief = (): Promise<unknown> => first.acquire(net, 'b', { addresses: ['10.9.0.3'] });
    expect(await refused(store.raw, thief)).toMatchObject({ code: 'ADDRESS_IN_USE' });
    // It has been away, and says so before it gets anything.
    const call = (): Promise<unknown> => second.acquire(net, 'c');
    expect(await refused(store.raw, call)).toMatchObject(RECOVERING);
    expect(await second.turn()).toMatchObject({ state: 'armed' });
    await first.turn();
    expect(await second.beat()).toMatchObject({ mayAcquire: true, reassert: false });
    expect((await store.ledger.listLeases({})).leases).toMatchObject([{ id: 'a', state: 'held' }]);
  });

  test('gives leases back where a network says so, and the host hears of it', async () => {
    const [first, second] = members;
    assert(first !== undefined && second !== undefined);
    const keys = { reuseDelaySeconds: 0, reclaimAfterSeconds: 1 };
    const net = await first.put(put(store.ledger, small(keys)));
    const kept = await second.acquire(await first.put(put(store.ledger, VOLT0)), 'kept');
    const lost = await second.acquire(net, 'lost', { addresses: ['10.9.0.3'] });
    const pulses = await heard([first], 4_000);
    expect(pulses.flatMap(({ reclaimed }) => reclaimed)).toEqual([lost]);
    await first.acquire(net, 'heir', { addresses: ['10.9.0.3'] });
    const { reassert, epoch } = await second.beat();
    expect(reassert).toBe(true);
    expect((await second.reassert(epoch)).leases).toMatchObject([
      { id: 'kept', outcome: 'kept', generation: kept.generation },
      { id: 'lost', outcome: 'fenced', holder: { id: 'heir', host: 'h1' } },
    ]);
  });

  test('of everybody, as when Redis hangs, makes nobody suspect', async () => {
    const [first, second] = members;
    assert(first !== undefined && second !== undefined);
    await heard(members, 1_200);
    store.server.pause();
    await sleep(1_000);
    store.server.resume();
    // h2 takes a while to come back, as the others did.
    const pulses = await heard([first], 200);
    await second.beat();
    expect(pulses.flatMap(({ fallen }) => fallen)).toEqual([]);
  });
});
