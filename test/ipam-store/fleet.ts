import type { Redis } from 'ioredis';
import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import {
  type Ledger,
  type NetworkRecord,
  type NetworkUsage,
  RevisionChanged,
} from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';
import { type Damage, damage, mend } from './damage.ts';
import { beatOf, openLedger, type Store, owned } from './fixture.ts';
import { fleetOf, forgetMemory, type Member, snapshotOf } from './member.ts';
import { type Answer, Model, type Op, type Rest } from './model.ts';
import { fromHex } from '#ipam-store/pool.ts';
import { clockedLibrary, setClock } from './clocked.ts';
import type { Patch } from './mutants.ts';
import { librarySource } from '#ipam-store/library.ts';

// Hosts of a fleet, each with a connection of its own, before one redis-server, and the model beside it.

/** Begins in 2027, and stands still unless it is told. */
const START_MS = 1_800_000_000_000;

/** Everything that Redis holds, in one call: a line for each key. */
const DUMP = `
local keys = redis.call('KEYS', '*')
table.sort(keys)
local lines = {}
for index, key in ipairs(keys) do
  local parts = { key }
  if redis.call('TYPE', key).ok == 'zset' then
    parts = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif redis.call('TYPE', key).ok == 'hash' then
    parts = redis.call('HKEYS', key)
    table.sort(parts)
    for place, field in ipairs(parts) do
      parts[place] = field .. '=' .. redis.call('HGET', key, field)
    end
  end
  lines[index] = key .. ' ' .. table.concat(parts, ' ')
end
return lines`;

/**
 * What rested in networks that are gone is forgotten with a heartbeat after it has rested. The model does not know when
 * that is: here nothing is forgotten; clock.test.ts tries that it is.
 */
const REMEMBERS: Patch = ['if rests_until and rests_until <= now then', 'if false then'];

export class Fleet {
  readonly model = new Model();
  readonly #raw: Redis;
  readonly #dumpSha: string;
  readonly #clients: ReadonlyMap<string, Ledger>;
  /** What each host has read of each network, newest last. */
  readonly #known = new Map<string, NetworkRecord[]>();
  readonly #transcript: string[] = [];
  readonly #members: readonly Member[];
  readonly #library: string;
  #steps = 0;
  #serverMs = START_MS;
  /** Puts back what Redis held when it was copied. */
  #turnBack: (() => Promise<void>) | undefined;
  /** All that Redis holds, until something is done. */
  #seen: readonly string[] | undefined;
  #usages = new Map<string, NetworkUsage>();

  private constructor(options: {
    raw: Redis;
    clients: ReadonlyMap<string, Ledger>;
    dumpSha: string;
    library: string;
    members: readonly Member[];
  }) {
    this.#raw = options.raw;
    this.#dumpSha = options.dumpSha;
    this.#clients = options.clients;
    this.#library = options.library;
    this.#members = options.members;
    this.model.nowMs = START_MS;
  }

  /** `mistakes` are put into the library. */
  static async open(
    { server, raw }: Store,
    hosts: readonly string[],
    mistakes: readonly Patch[] = [],
  ): Promise<Fleets> {
    const library = clockedLibrary([REMEMBERS, ...mistakes]);
    const dumpSha = String(await raw.script('LOAD', DUMP));
    const clients = new Map<string, Ledger>();
    for (const host of hosts) clients.set(host, await openLedger(server.url));
    const [first] = clients.values();
    return {
      begin: async () => {
        await raw.flushall();
        await raw.call('FUNCTION', 'LOAD', 'REPLACE', library);
        await setClock(raw, START_MS);
        assert(first !== undefined);
        const members = await fleetOf(first, hosts);
        return new Fleet({ raw, clients, dumpSha, library, members });
      },
      close: async () => {
        for (const client of clients.values()) await client.close();
        await raw.call('FUNCTION', 'LOAD', 'REPLACE', librarySource());
      },
    };
  }

  /** What has happened so far, a line each. */
  get transcript(): string {
    return this.#transcript.join('\n');
  }

  say(line: string): void {
    this.#steps += 1;
    this.#transcript.push(`${String(this.#steps).padStart(3)}. ${line}`);
  }

  /** What a host knows of a network: read anew when it has changed, or an old definition if it is to be stale. */
  async known(host: string, name: string, stale: boolean): Promise<NetworkRecord | undefined> {
    const key = `${host} ${name}`;
    const seen = this.#known.get(key) ?? [];
    const expected = this.model.networks.get(name);
    if (stale && seen.length > 0) return seen[0];
    if (seen.at(-1) === expected) return expected;
    const found = await this.#client(host).getNetwork(name);
    assert.deepEqual(found?.network, expected?.network);
    assert.equal(found?.revision, expected?.revision);
    if (expected !== undefined) this.#known.set(key, [...seen, expected].slice(-2));
    return expected ?? seen.at(-1);
  }

  /** One operation. Where it is refused, Redis holds what it held, unless nobody is to look. */
  async do(op: Op, { watched = true }: { watched?: boolean } = {}): Promise<void> {
    const before = watched ? (this.#seen ?? (await this.#dump())) : [];
    this.#seen = undefined;
    const answer = await this.#perform(op);
    this.say(`${describe(op)} → ${result(answer)}`);
    this.model.apply(op, answer);
    if (!watched || !('error' in answer)) return;
    const after = await this.#dump();
    const changed = after.filter((line) => !before.includes(line));
    assert.equal(changed.join('\n'), '', 'refused, and changed all the same');
    assert.equal(after.length, before.length, 'refused, and removed something');
    this.#seen = after;
  }

  /** Each on its own connection, at once. */
  async doAll(ops: readonly Op[]): Promise<void> {
    this.#seen = undefined;
    const answers = await Promise.all(ops.map(async (op) => this.#perform(op)));
    const done = ops.map((op, index): [Op, Answer] => [op, answers[index] ?? { error: 'NONE' }]);
    this.say('at once:');
    for (const [op, answer] of done)
      this.#transcript.push(`       ${describe(op)} → ${result(answer)}`);
    this.model.applyAll(done);
  }

  async elapse(seconds: number): Promise<void> {
    this.say(`${seconds} s pass`);
    this.#seen = undefined;
    await this.#pass(seconds, this.#members);
  }

  /** The server's clock is set, ahead or back: to the ledger one is time that passes, and the other is none. */
  async setClock(seconds: number): Promise<void> {
    this.say(`the clock is set by ${seconds} s`);
    this.#seen = undefined;
    await this.#pass(seconds, this.#members);
  }

  /** Time in which these hosts are heard. Of time that is ahead of the server's clock, a tenth is made good. */
  async #pass(seconds: number, members: readonly Member[]): Promise<void> {
    const ms = seconds * 1_000;
    const before = this.model.nowMs;
    this.#serverMs += ms;
    await setClock(this.#raw, this.#serverMs);
    for (const member of members) this.model.nowMs = (await member.turn()).nowMs;
    const least = before + (ms > 60_000 ? 0 : Math.max(0, ms * 0.9));
    const { nowMs } = this.model;
    assert(Math.abs(nowMs - Math.max(this.#serverMs, least)) <= 1, `it is ${nowMs}, not ${least}`);
    assert(nowMs >= before, 'time goes back');
  }

  /** What Redis holds now may come back. */
  async copy(): Promise<void> {
    this.say('Redis is copied');
    this.#turnBack = await snapshotOf(this.#raw, this.#library);
  }

  /**
   * Redis is emptied, or has old data, or has only restarted. Nothing is granted until the hosts, in this order, have
   * said what they hold; then everything is as it was.
   */
  async lose(how: 'emptied' | 'turned back' | 'restarted', first: number): Promise<void> {
    this.say(`Redis is ${how}`);
    this.#seen = undefined;
    for (const member of this.#members) this.#remind(member);
    if (how === 'turned back') await this.#turnBack?.();
    else if (how === 'emptied') await this.#raw.flushall();
    await forgetMemory(this.#raw, this.#library);
    await setClock(this.#raw, this.#serverMs);
    const [record] = this.model.networks.values();
    const order = this.#members.map((_, n, all) => all[(n + first) % all.length]);
    for (let round = 1; round <= 3; round += 1) {
      for (const member of order) {
        if (round === 1 && record !== undefined) await this.#refusesAll(record);
        if (member !== undefined) this.model.nowMs = (await member.turn()).nowMs;
      }
    }
    // What nobody holds any more, its host gives back: an old Redis may have it still.
    for (const { host } of this.#members) {
      const client = this.#client(host);
      for (const { id, generation } of (await client.listLeases({ host })).leases) {
        if (this.model.leases.get(id)?.lease.generation === generation) continue;
        await client.release({ ...owned({ id, generation, host }), cool: true });
      }
    }
    this.model.recovered(await this.#stored());
    this.#known.clear();
  }

  /**
   * Something of the ledger is gone, and hosts go on. Whatever they are granted nobody else has; when an operator has
   * repaired the ledger, and hosts have said what they hold, everything is as it was.
   */
  async damage(which: Damage, meanwhile: readonly Op[]): Promise<void> {
    this.#seen = undefined;
    for (const member of this.#members) this.#remind(member);
    // Hosts are asked again for what is lost again when they were asked more than a minute ago.
    for (const seconds of [59, 59]) await this.#pass(seconds, this.#members);
    const gone = await damage(this.#raw, which);
    this.say(`gone: ${gone}`);
    for (const op of meanwhile) {
      // The one index of an id: to another host or network it is one that was never there.
      const held = 'id' in op ? this.model.leases.get(op.id)?.lease : undefined;
      const moves =
        op.do === 'acquire' &&
        `${op.host} ${op.record.network.network}` !== `${held?.host} ${held?.network}`;
      if (gone.endsWith(`:leases ${held?.id}`) && moves) continue;
      const answer = await this.#perform(op);
      this.say(`${describe(op)} → ${result(answer)}`);
      this.model.meanwhile(answer);
    }
    for (const member of this.#members) this.#remind(member);
    const left = await mend(this.#client('h1'), this.#members);
    // Nobody knows what has rested; it is missing until it would have rested.
    assert.deepEqual(
      left.filter((what) => what !== 'gone missing'),
      [],
      'not repaired',
    );
    this.model.nowMs = (await this.#members[0]?.beat())?.nowMs ?? 0;
    this.model.recovered(await this.#stored());
    this.#known.clear();
  }

  /**
   * A host falls silent and is forgotten; others do something; it comes back with what it had, and keeps what
   * nobody else was given.
   */
  async forget(host: string, meanwhile: () => Promise<void>): Promise<void> {
    this.say(`${host} is silent`);
    this.#seen = undefined;
    const member = this.#members.find((one) => one.host === host);
    const others = this.#members.filter((one) => one !== member);
    assert(member !== undefined);
    this.#remind(member);
    for (const seconds of [5, 5, 5, 5, 5]) await this.#pass(seconds, others);
    const held = this.model.leasesOf(host);
    const { forgotten, released } = await this.#client('h1').forgetHost(host);
    assert.deepEqual({ forgotten, released }, { forgotten: true, released: held.length });
    this.say(`${host} is forgotten with ${held.map(({ id }) => id).join(', ') || 'nothing'}`);
    this.model.forgotten(host);
    await meanwhile();
    this.#seen = undefined;
    const { epoch, reassert } = await member.beat();
    assert(reassert, `${host} is not asked what it holds`);
    for (const network of this.model.networks.values()) {
      member.networks.set(network.network.network, network);
    }
    const { leases } = await member.reassert(epoch);
    for (const lease of held) {
      const outcome = leases.find(({ id }) => id === lease.id)?.outcome;
      this.say(`${host} is back with ${lease.id}: ${outcome}`);
      assert.equal(outcome, this.model.returned(lease));
    }
    for (const one of [...this.#members, ...this.#members]) await one.turn();
  }

  /** What a host has in its records. */
  #remind(member: Member): void {
    member.leases.clear();
    member.networks.clear();
    for (const lease of this.model.leasesOf(member.host)) member.leases.set(lease.id, lease);
    for (const record of this.model.networks.values()) {
      member.networks.set(record.network.network, record);
    }
    const { highestGeneration, highestRevision } = this.model;
    const generation = Math.max(member.seen.generation, highestGeneration);
    const revision = Math.max(member.seen.revision, highestRevision);
    member.seen = { ...member.seen, generation, revision };
  }

  /** No address is given out, from any source. */
  async #refusesAll(record: NetworkRecord): Promise<void> {
    const ask = {
      do: 'acquire',
      host: 'h1',
      id: 'thief',
      workload: 'thief',
      addresses: [],
    } as const;
    const answer = await this.#perform({ ...ask, record });
    assert.equal('error' in answer && answer.error, 'RECOVERING', 'granted before it recovered');
  }

  /** What the store says of leases, networks and rests, read past its functions where these do not tell. */
  async #stored(): Promise<Parameters<Model['recovered']>[0]> {
    const client = this.#client('h1');
    const { leases } = await client.listLeases({});
    const { networks } = await client.listNetworks();
    const rests = new Map<string, Rest>();
    for (const key of await this.#raw.keys('*')) {
      if (!/:(last|gone:[46])$/.test(key)) continue;
      for (const entry of await this.#raw.zrange(key, '0', '-1')) {
        const [hex = '', atMs, by = ''] = entry.split(' ');
        rests.set(fromHex(hex).toString(), { atMs: Number(atMs), by });
      }
    }
    const withBefore = leases.map(async ({ state: _state, ...lease }) => {
      const text = (await this.#raw.hget('volt:{ledger}:leases', lease.id)) ?? '{}';
      const { before, hex } = JSON.parse(text) as Record<string, Record<string, string>>;
      const past = Object.entries(before ?? {}).map(([family, rest]): [string, Rest] => {
        const [atMs, by = ''] = rest.split(' ');
        return [fromHex(hex?.[family] ?? '').toString(), { atMs: Number(atMs), by }];
      });
      return { ...lease, before: new Map(past) };
    });
    return { leases: await Promise.all(withBefore), networks, rests };
  }

  async beat(host: string): Promise<void> {
    this.#seen = undefined;
    const { due, nowMs } = await this.#client(host).heartbeat(beatOf(host));
    this.say(
      `${host} beats → ${due.map(({ id }) => `${id} is due`).join(', ') || 'nothing is due'}`,
    );
    assert.equal(nowMs, this.model.nowMs);
    assert.deepEqual(due.map(({ id }) => id).toSorted(), this.model.due(host).toSorted());
  }

  /**
   * What the ledger says it holds is what the model holds: all leases, and the usage of the networks for which
   * it should have changed, and of one other, in turn.
   */
  async compare(): Promise<void> {
    const client = this.#client('h1');
    const names = [...this.model.networks.keys()];
    const usages = new Map(names.map((name) => [name, this.model.usage(name)]));
    const doubtful = names.filter(
      (name, index) =>
        index === this.#steps % names.length ||
        !isDeepStrictEqual(usages.get(name), this.#usages.get(name)),
    );
    this.#usages = usages;
    const [seen, { leases }, ...networks] = await Promise.all([
      this.#seen ?? this.#dump(),
      client.listLeases({}),
      ...doubtful.map((name) => client.getNetwork(name)),
    ]);
    this.#seen = seen;
    const byId = (a: { id: string }, b: { id: string }): number => (a.id < b.id ? -1 : 1);
    const expected = [...this.model.leases.values()].map(({ lease }) => ({
      ...lease,
      state: Date.parse(lease.expiresAt ?? '9999') <= this.model.nowMs ? 'expired' : 'held',
    }));
    assert.deepEqual(leases.toSorted(byId), expected.toSorted(byId));
    for (const [index, name] of doubtful.entries()) {
      assert.deepEqual(networks[index]?.usage, usages.get(name), `usage of ${name}`);
    }
  }

  #client(host: string): Ledger {
    const client = this.#clients.get(host);
    assert(client !== undefined);
    return client;
  }

  async #dump(): Promise<readonly string[]> {
    return (await this.#raw.evalsha(this.#dumpSha, 0)) as string[];
  }

  async #perform(op: Op): Promise<Answer> {
    try {
      return await this.#call(op);
    } catch (error) {
      if (error instanceof RevisionChanged) return { error: error.code };
      if (!(error instanceof VoltError)) throw error;
      return { error: error.code, retryAfterMs: error.retryAfterMs };
    }
  }

  async #call(op: Op): Promise<Answer> {
    switch (op.do) {
      case 'acquire': {
        const { do: _, record, ...rest } = op;
        const machineId = `machine-${op.host}`;
        const who = { machineId, kind: 'vm', bootId: 'boot-1' } as const;
        return this.#client(op.host).acquire({ ...rest, ...record, ...who });
      }
      case 'release': {
        const { do: _, ...rest } = op;
        return { released: (await this.#client(op.host).release(owned(rest))) === 'released' };
      }
      case 'put': {
        const { revision, created } = await this.#client('h1').putNetwork(op.network, op.revision);
        return { revision, created };
      }
      case 'delete':
        return this.#client('h2').deleteNetwork(op.name);
    }
  }
}

export interface Fleets {
  /** An empty Redis, and hosts that know nothing. */
  begin(): Promise<Fleet>;
  close(): Promise<void>;
}

function describe(op: Op): string {
  switch (op.do) {
    case 'acquire': {
      const { host, id, workload, record, addresses, mac, ttlSeconds } = op;
      const extras = [
        ...addresses,
        ...(mac === undefined ? [] : [mac]),
        ...(ttlSeconds === undefined ? [] : [`for ${ttlSeconds} s`]),
      ];
      const asked = extras.length === 0 ? '' : `: ${extras.join(', ')}`;
      return `${host} acquires ${id} (${workload}) in ${record.network.network}@${record.revision}${asked}`;
    }
    case 'release':
      return `${op.host} releases ${op.id}#${op.generation % 2 ** 32}${op.cool ? '' : ', never used'}`;
    case 'put': {
      const {
        network,
        type: _type,
        filter: _filter,
        linkLocal: _local,
        bridge: _,
        ...rest
      } = op.network;
      return `put ${network}@${op.revision ?? 'new'} ${JSON.stringify(rest)}`;
    }
    case 'delete':
      return `delete ${op.name}`;
  }
}

function result(answer: Answer): string {
  if ('error' in answer) {
    return answer.retryAfterMs === undefined
      ? answer.error
      : `${answer.error}, ${answer.retryAfterMs} ms`;
  }
  if ('lease' in answer) {
    const { lease, created } = answer;
    return `${created ? '' : 'found '}${lease.addresses.join(' ')}#${lease.generation % 2 ** 32}`;
  }
  return JSON.stringify(answer);
}
