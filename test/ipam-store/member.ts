import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import {
  type Beat,
  type Lease,
  type Ledger,
  type LeaseRequest,
  type NetworkRecord,
  NOTHING_SEEN,
  type Pulse,
  type Reasserted,
  type Seen,
} from '#ipam-store/ledger.ts';
import { librarySource } from '#ipam-store/library.ts';
import { askFor, beatOf, ROOT, seenAfter } from './fixture.ts';

/** A host as its agent plays it towards the ledger, with nothing of an agent but what it has to remember. */
export class Member {
  readonly host: string;
  readonly networks = new Map<string, NetworkRecord>();
  readonly leases = new Map<string, Lease>();
  /** Networks of whose bridges it has one, with the gateway. */
  readonly bridges = new Set<string>();
  readonly #ledger: Ledger;
  readonly #more: Partial<Beat>;
  seen: Seen = NOTHING_SEEN;

  constructor(ledger: Ledger, host: string, more: Partial<Beat> = {}) {
    this.#ledger = ledger;
    this.host = host;
    this.#more = more;
  }

  async beat(more: Partial<Beat> = {}): Promise<Pulse> {
    const beat = beatOf(this.host, { newFleet: false, ...this.#more, seen: this.seen, ...more });
    const pulse = await this.#ledger.heartbeat(beat);
    this.seen = await seenAfter(this.#ledger, this.seen, pulse);
    return pulse;
  }

  /** Tells the hosts it knows of, where it is asked to. */
  async tell({ tell }: Pulse): Promise<void> {
    const { machineId, suspectAfterSeconds } = beatOf(this.host, this.#more);
    if (tell)
      await this.#ledger.tellHosts({ host: this.host, machineId, suspectAfterSeconds }, this.seen);
  }

  /** Says all that it holds and knows. */
  reassert(epoch: string): Promise<Reasserted> {
    const { machineId } = beatOf(this.host, this.#more);
    return this.#ledger.reassert(
      { host: this.host, machineId, epoch },
      {
        networks: [...this.networks.values()],
        leases: [...this.leases.values()],
        bridges: [...this.bridges],
      },
    );
  }

  /** Beats, re-asserts where it is asked to, and beats again: what an agent does at once. */
  async turn(more: Partial<Beat> = {}): Promise<Pulse> {
    const first = await this.beat(more);
    await this.tell(first);
    if (first.reassert) await this.reassert(first.epoch);
    const hasNews = first.list !== undefined || first.behind;
    return first.reassert || first.tell || hasNews ? this.beat(more) : first;
  }

  async put(record: Promise<NetworkRecord>): Promise<NetworkRecord> {
    const stored = await record;
    this.networks.set(stored.network.network, stored);
    this.seen = { ...this.seen, revision: Math.max(this.seen.revision, stored.revision) };
    return stored;
  }

  async acquire(
    record: NetworkRecord,
    id: string,
    more: Partial<LeaseRequest> = {},
  ): Promise<Lease> {
    const { lease } = await this.#ledger.acquire(askFor(record, id, { host: this.host, ...more }));
    this.leases.set(id, lease);
    this.networks.set(record.network.network, record);
    this.seen = {
      ...this.seen,
      generation: Math.max(this.seen.generation, lease.generation),
      revision: Math.max(this.seen.revision, record.revision),
    };
    return lease;
  }
}

/** Members of a new fleet, each of which may acquire. */
export async function fleetOf(
  ledger: Ledger,
  hosts: readonly string[],
  more: Partial<Beat> = {},
): Promise<Member[]> {
  const members = hosts.map((host) => new Member(ledger, host, more));
  for (const member of members) await member.turn({ newFleet: true });
  for (const member of members) await member.turn();
  return members;
}

/** Time in which these hosts are heard, and others are not. */
export async function heard(members: readonly Member[], ms: number): Promise<Pulse[]> {
  const pulses: Pulse[] = [];
  for (const end = Date.now() + ms; Date.now() < end;) {
    for (const member of members) pulses.push(await member.beat());
    await sleep(20);
  }
  return pulses;
}

/** All that a server holds; to be put back later, the memory of the library being gone then. */
export async function snapshotOf(
  raw: Redis,
  library = librarySource(),
): Promise<() => Promise<void>> {
  const kept: [string, Buffer][] = [];
  for (const key of await raw.keys('*')) {
    const dump = await raw.dumpBuffer(key);
    if (dump !== null) kept.push([key, dump]);
  }
  return async () => {
    await raw.flushall();
    for (const [key, dump] of kept) await raw.restore(key, 0, dump);
    await forgetMemory(raw, library);
  };
}

/** What a restart does to the library: its memory is gone. */
export async function forgetMemory(raw: Redis, library = librarySource()): Promise<void> {
  await raw.call('FUNCTION', 'LOAD', 'REPLACE', library);
}

/** Makes believe that a host was heard last so many seconds earlier than it was: that is how a boot ends. */
export async function silentFor(raw: Redis, host: string, seconds: number): Promise<void> {
  const session = `${ROOT}:host:${host}`;
  const seenMs = Number(await raw.hget(session, 'seenMs'));
  await raw.hset(session, 'seenMs', String(seenMs - seconds * 1_000));
}
