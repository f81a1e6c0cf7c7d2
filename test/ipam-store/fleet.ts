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
import { beatOf, enrol, openLedger, type Store } from './fixture.ts';
import { type Answer, Model, type Op } from './model.ts';
import { mutated, type Patch } from './mutants.ts';
import { librarySource } from '#ipam-store/library.ts';

// Hosts of a fleet, each with a connection of its own, before one redis-server, and the model beside it.

/** Begins in 2027, and stands still unless it is told. */
const START_MS = 1_800_000_000_000;
const CLOCK = 'test:clock';

/** The library, the server's clock in it replaced by a key: histories of days pass in no time. */
const clockedLibrary = (mistakes: readonly Patch[]): string =>
  mutated([
    [
      "local time = redis.call('TIME')",
      `local at = tonumber(redis.call('GET', '${CLOCK}'))
  local time = { math.floor(at / 1000), at % 1000 * 1000 }`,
    ],
    ...mistakes,
  ]);

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

export class Fleet {
  readonly model = new Model();
  readonly #raw: Redis;
  readonly #dumpSha: string;
  readonly #clients: ReadonlyMap<string, Ledger>;
  /** What each host has read of each network, newest last. */
  readonly #known = new Map<string, NetworkRecord[]>();
  readonly #transcript: string[] = [];
  #steps = 0;
  /** All that Redis holds, until something is done. */
  #seen: readonly string[] | undefined;
  #usages = new Map<string, NetworkUsage>();

  private constructor(raw: Redis, clients: ReadonlyMap<string, Ledger>, dumpSha: string) {
    this.#raw = raw;
    this.#dumpSha = dumpSha;
    this.#clients = clients;
    this.model.nowMs = START_MS;
  }

  /** `mistakes` are put into the library. */
  static async open(
    { server, raw }: Store,
    hosts: readonly string[],
    mistakes: readonly Patch[] = [],
  ): Promise<Fleets> {
    const library = clockedLibrary(mistakes);
    const dumpSha = String(await raw.script('LOAD', DUMP));
    const clients = new Map<string, Ledger>();
    for (const host of hosts) clients.set(host, await openLedger(server.url));
    const [first] = clients.values();
    return {
      begin: async () => {
        await raw.flushall();
        await raw.call('FUNCTION', 'LOAD', 'REPLACE', library);
        await raw.set(CLOCK, START_MS);
        if (first !== undefined) await enrol(first, ...hosts);
        return new Fleet(raw, clients, dumpSha);
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
    this.model.nowMs += seconds * 1_000;
    await this.#raw.set(CLOCK, this.model.nowMs);
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
        return { released: (await this.#client(op.host).release(rest)) === 'released' };
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
