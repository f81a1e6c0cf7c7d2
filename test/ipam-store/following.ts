import assert from 'node:assert/strict';
import fc from 'fast-check';
import type { Redis } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import {
  type Lease,
  type Ledger,
  type LogPage,
  type NetworkRecord,
  RevisionChanged,
  type SnapshotPage,
} from '#ipam-store/ledger.ts';
import { librarySource } from '#ipam-store/library.ts';
import { type Ask, type Difference, Replay } from '#ipam-store/replay.ts';
import { askFor, openLedger, owned, put, ROOT, type Store } from './fixture.ts';
import { type Happening, happening, HOSTS, NETWORKS } from './happenings.ts';
import { fleetOf, forgetMemory, type Member, snapshotOf } from './member.ts';
import { mutated, type Patch } from './mutants.ts';
import { acquireMany } from './bulk.ts';

// Followers of two networks, before one redis-server in which everything happens that may: each ends with what the ledger
// has, whatever it has missed, in whatever order it hears of it.

/** More than a page of the log, and of a snapshot. */
const MANY = 130;

/** A follower as its steps: an answer may arrive long after it was given. */
interface Seat {
  network: string;
  replay: Replay;
  /** What those would have who take in changes alone. */
  mirror: Map<string, Lease>;
  answer: { readonly ask: Ask; readonly page: SnapshotPage | LogPage } | undefined;
}

const seated = (network: string): Seat => ({
  network,
  replay: new Replay(),
  mirror: new Map(),
  answer: undefined,
});

class World {
  readonly #raw: Redis;
  readonly #ledger: Ledger;
  /** Connected as a user who has no right to logs. */
  readonly #unlogged: Ledger;
  readonly #library: string;
  readonly #members: readonly Member[];
  readonly #records = new Map<string, NetworkRecord>();
  readonly #seats = [seated('n0'), seated('n1'), seated('n0')];
  #older: (() => Promise<void>) | undefined;
  #named = 0;

  constructor(options: {
    raw: Redis;
    ledger: Ledger;
    unlogged: Ledger;
    library: string;
    members: readonly Member[];
  }) {
    this.#raw = options.raw;
    this.#ledger = options.ledger;
    this.#unlogged = options.unlogged;
    this.#library = options.library;
    this.#members = options.members;
  }

  async begin(): Promise<void> {
    for (const name of NETWORKS) await this.#put(name);
  }

  /** Refusals are as good an outcome as any. */
  async run(what: Happening): Promise<void> {
    try {
      await this.#run(what);
    } catch (error) {
      if (!(error instanceof VoltError) && !(error instanceof RevisionChanged)) throw error;
      assert.notEqual(error.code, 'INTERNAL', error.message);
    }
  }

  async #run(what: Happening): Promise<void> {
    switch (what.kind) {
      case 'acquire':
        return this.#acquire(what, what.unlogged ? this.#unlogged : this.#ledger);
      case 'rename':
        return this.#acquire(what, this.#ledger);
      case 'release':
        return this.#release(what.id, what.unlogged ? this.#unlogged : this.#ledger);
      case 'many':
        return this.#many(what.network, what.host);
      case 'edit':
        return this.#put(what.network, this.#records.get(what.network)?.revision);
      case 'remake':
        return this.#remake(what.network, what.again);
      case 'forget':
        return this.#forget(what.host);
      case 'beats':
        return this.#beats();
      case 'log':
        return this.#harmLog(what.network, what.harm);
      case 'server':
        return this.#harmServer(what.harm);
      case 'nudge':
        return this.#seat(what.follower).replay.nudge();
      case 'ask':
        return this.#ask(this.#seat(what.follower));
      case 'take':
        return this.#take(this.#seat(what.follower));
      case 'drive':
        return this.#drive(this.#seat(what.follower));
      case 'kill':
        this.#seats[what.follower] = seated(what.network);
    }
  }

  #seat(at: number): Seat {
    const seat = this.#seats[at];
    assert(seat !== undefined);
    return seat;
  }

  #member(name: string): Member {
    const member = this.#members.find((one) => one.host === name);
    assert(member !== undefined);
    return member;
  }

  async #acquire(
    what: { network: string; host: string; id: string; hostname?: string },
    ledger: Ledger,
  ): Promise<void> {
    const record = this.#records.get(what.network);
    if (record === undefined) return;
    const { hostname } = what;
    const more = { host: what.host, ...(hostname !== undefined && { hostname }) };
    const { lease } = await ledger.acquire(askFor(record, what.id, more));
    this.#holds(lease);
  }

  /** As an agent that has written it down. */
  #holds(lease: Lease): void {
    const member = this.#member(lease.host);
    member.leases.set(lease.id, lease);
    const generation = Math.max(member.seen.generation, lease.generation);
    member.seen = { ...member.seen, generation };
  }

  async #release(name: string, ledger: Ledger): Promise<void> {
    for (const { leases } of this.#members) {
      const lease = leases.get(name);
      if (lease === undefined) continue;
      await ledger.release({ ...owned(lease), cool: false });
      leases.delete(name);
    }
  }

  async #many(name: string, by: string): Promise<void> {
    const record = this.#records.get(name);
    if (record === undefined) return;
    this.#named += 1;
    const ids = Array.from({ length: MANY }, (_, n) => `many${this.#named}-${n}`);
    const asked = ids.map((one) => askFor(record, one, { host: by }));
    for (const outcome of await acquireMany(this.#ledger, asked)) {
      if ('lease' in outcome) this.#holds(outcome.lease);
    }
  }

  async #put(name: string, revision?: number): Promise<void> {
    this.#named += 1;
    const subnet = name === 'n0' ? '10.1.0.0/20' : '10.2.0.0/20';
    const keys = { network: name, subnet, reuseDelaySeconds: this.#named % 100 };
    const record = await put(this.#ledger, keys, revision);
    this.#records.set(name, record);
    for (const member of this.#members) await member.put(Promise.resolve(record));
  }

  async #remake(name: string, again: boolean): Promise<void> {
    const held = this.#members.flatMap(({ leases }) => [...leases.values()]);
    for (const lease of held.filter((one) => one.network === name)) {
      await this.#release(lease.id, this.#ledger);
    }
    await this.#ledger.deleteNetwork(name);
    this.#records.delete(name);
    for (const member of this.#members) member.networks.delete(name);
    if (again) await this.#put(name);
  }

  async #forget(name: string): Promise<void> {
    await this.#raw.zadd(`${ROOT}:hosts`, 'XX', 1, name);
    await this.#ledger.forgetHost(name);
  }

  /** What agents do once a period, until nothing more is asked of them. */
  async #beats(): Promise<void> {
    for (let round = 0; round < 4; round += 1) {
      for (const member of this.#members) {
        const pulse = await member.beat({ newFleet: true });
        await member.tell(pulse);
        const { reassert, epoch } = pulse;
        if (!reassert) continue;
        const { leases } = await member.reassert(epoch);
        for (const { id: name, outcome } of leases) {
          if (outcome === 'fenced' || outcome === 'misplaced') member.leases.delete(name);
        }
      }
    }
  }

  async #harmLog(name: string, harm: string): Promise<void> {
    const key = `${ROOT}:net:${name}:log`;
    if (harm === 'trim') await this.#raw.xtrim(key, 'MAXLEN', '=', 1).catch(() => 0);
    else await this.#raw.del(key);
    if (harm === 'garbage') await this.#raw.set(key, 'garbage');
  }

  async #harmServer(harm: string): Promise<void> {
    const raw = this.#raw;
    if (harm === 'copy') {
      this.#older = await snapshotOf(raw, this.#library);
      return;
    }
    if (harm === 'older') await this.#older?.();
    if (harm === 'empty') await raw.flushall();
    await forgetMemory(raw, this.#library);
  }

  async #ask(seat: Seat): Promise<void> {
    if (seat.answer !== undefined) return;
    const ask = seat.replay.next();
    if (ask === undefined) return;
    const ledger = this.#ledger;
    const page =
      ask.ask === 'snapshot'
        ? await ledger.snapshot(seat.network, ask.cursor)
        : await ledger.readLog(seat.network, ask.after);
    seat.answer = { ask, page };
  }

  #take(seat: Seat): void {
    const { answer, replay } = seat;
    if (answer === undefined) return;
    seat.answer = undefined;
    const { page } = answer;
    const difference = 'gap' in page ? replay.takeLog(page) : replay.takeSnapshot(page);
    if (difference !== undefined) mirrored(seat.mirror, difference);
  }

  async #drive(seat: Seat): Promise<void> {
    for (let step = 0; seat.replay.isBehind; step += 1) {
      assert(step < 100, 'a follower never comes to an end');
      await this.#ask(seat);
      this.#take(seat);
    }
  }

  /** A period later, with notices lost. */
  async end(): Promise<void> {
    await this.#beats();
    for (const seat of this.#seats) {
      this.#take(seat);
      await this.#drive(seat);
      await this.#heartbeat(seat);
      await this.#drive(seat);
      assert.deepEqual(await this.#heartbeat(seat), [], 'still moved');
      await this.#compare(seat);
    }
  }

  async #heartbeat({ network: name, replay }: Seat): Promise<readonly string[]> {
    const { moved } = await this.#member('h1').beat({ follows: { [name]: replay.position ?? '' } });
    if (moved.includes(name)) replay.nudge();
    return moved;
  }

  async #compare({ network: name, replay, mirror }: Seat): Promise<void> {
    const ledger = this.#ledger;
    const leases: Lease[] = [];
    let cursor: string | undefined;
    do {
      const page = await ledger.listLeases({ network: name, cursor });
      leases.push(...page.leases.map(({ state: _state, ...lease }) => lease));
      ({ cursor } = page);
    } while (cursor !== undefined);
    assert.deepEqual(byId(replay.leases.values()), byId(leases));
    assert.deepEqual(byId(mirror.values()), byId(leases));
    assert.equal(replay.revision, (await ledger.getNetwork(name))?.revision);
  }
}

function mirrored(mirror: Map<string, Lease>, { set, gone }: Difference): void {
  for (const lease of gone) mirror.delete(lease.id);
  for (const lease of set) mirror.set(lease.id, lease);
}

const byId = (leases: Iterable<Lease>): Lease[] =>
  [...leases].toSorted((a, b) => (a.id < b.id ? -1 : 1));

/** Runs random histories; throws the first that fails, made short unless there are `mistakes` in the library. */
export async function checkFollowing(
  store: Store,
  options: {
    histories: number;
    longest: number;
    /** No history begins later: a busy machine tries fewer. */
    withinMs?: number;
    mistakes?: readonly Patch[];
    seed?: number;
    path?: string;
  },
): Promise<void> {
  const { histories, longest, withinMs, mistakes = [], seed, path } = options;
  const library = mistakes.length === 0 ? librarySource() : mutated(mistakes);
  const { raw, server } = store;
  const rights = ['on', 'nopass', '~*', '+@all', '-xadd', '-xread', '-xrange', '-xrevrange'];
  await raw.call('ACL', 'SETUSER', 'unlogged', ...rights);
  // A machine that has much else to do must not be a reason to fail.
  const patient = { commandTimeoutMs: 60_000 };
  const unlogged = await openLedger(server.url, { ...patient, username: 'unlogged' });
  const ledger = await openLedger(server.url, patient);
  const property = fc.asyncProperty(
    fc.array(happening, { maxLength: longest, size: 'max' }),
    async (history) => {
      await raw.flushall();
      await forgetMemory(raw, library);
      const members = await fleetOf(ledger, HOSTS);
      const world = new World({ raw, ledger, unlogged, library, members });
      await world.begin();
      for (const what of history) await world.run(what);
      await world.end();
    },
  );
  try {
    await fc.assert(property, {
      numRuns: histories,
      endOnFailure: mistakes.length > 0,
      ...(withinMs !== undefined && { interruptAfterTimeLimit: withinMs }),
      ...(seed !== undefined && { seed }),
      ...(path !== undefined && { path }),
    });
  } finally {
    await unlogged.close();
    await ledger.close();
    await raw.call('ACL', 'DELUSER', 'unlogged');
    await forgetMemory(raw);
  }
}
