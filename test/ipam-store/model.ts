import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import type { Lease, NetworkRecord, NetworkUsage } from '#ipam-store/ledger.ts';
import { IpPrefix } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import { fixedOf } from '#protocol/network-edits.ts';
import { type FamilyView, familyOf, viewsOf } from './addresses.ts';

// The ledger as a plain program would keep it: maps, and every address by itself. It is told what the ledger
// answered, refuses what may not be, and goes on from there.

export type Op =
  | {
      readonly do: 'acquire';
      readonly host: string;
      readonly id: string;
      readonly workload: string;
      /** The definition that the host goes by; perhaps an old one. */
      readonly record: NetworkRecord;
      readonly addresses: readonly string[];
      readonly mac?: string;
      readonly ttlSeconds?: number;
    }
  | {
      readonly do: 'release';
      readonly host: string;
      readonly id: string;
      readonly generation: number;
      readonly cool: boolean;
    }
  | { readonly do: 'put'; readonly network: Network; readonly revision: number | undefined }
  | { readonly do: 'delete'; readonly name: string };

export type Acquire = Extract<Op, { do: 'acquire' }>;

export type Answer =
  | { readonly error: string; readonly retryAfterMs?: number | undefined }
  | { readonly lease: Lease; readonly created: boolean }
  | { readonly released: boolean }
  | { readonly revision: number; readonly created: boolean }
  | { readonly deleted: boolean };

interface Held {
  readonly lease: Lease;
  readonly expiresAtMs: number | undefined;
  /** Who had released each address when it was given, and when; none for one never used. */
  readonly before: ReadonlyMap<string, Rest>;
}

export interface Rest {
  readonly atMs: number;
  readonly by: string;
}

/** What one family may give: one of these addresses, or one of these errors. */
interface Choice {
  readonly oneOf: readonly string[];
  readonly errors: readonly { readonly code: string; readonly retryAfterMs?: number | undefined }[];
}

const NONE: Choice = { oneOf: [], errors: [] };
const refusal = (code: string, retryAfterMs?: number): Choice => ({
  oneOf: [],
  errors: [{ code, retryAfterMs }],
});

export class Model {
  nowMs = 0;
  networks = new Map<string, NetworkRecord>();
  leases = new Map<string, Held>();
  /** Address → its last release. What is in neither map was never used. */
  rests = new Map<string, Rest>();
  highestGeneration = 0;
  highestRevision = 0;

  clone(): Model {
    const copy = new Model();
    copy.become(this);
    return copy;
  }

  become(other: Model): void {
    this.nowMs = other.nowMs;
    this.networks = new Map(other.networks);
    this.leases = new Map(other.leases);
    this.rests = new Map(other.rests);
    this.highestGeneration = other.highestGeneration;
    this.highestRevision = other.highestRevision;
  }

  /** Throws an AssertionError where the ledger may not have answered this. */
  apply(op: Op, answer: Answer): void {
    switch (op.do) {
      case 'acquire':
        return this.#acquired(op, answer);
      case 'release':
        return this.#released(op, answer);
      case 'put':
        return this.#put(op.network, op.revision, answer);
      case 'delete':
        return this.#deleted(op.name, answer);
    }
  }

  /** The same for what was done at once: in some order it must fit. */
  applyAll(done: readonly (readonly [Op, Answer])[]): void {
    const failures: string[] = [];
    for (const order of permutations(done)) {
      const copy = this.clone();
      try {
        for (const [op, answer] of order) copy.apply(op, answer);
        this.become(copy);
        return;
      } catch (error) {
        if (!(error instanceof assert.AssertionError)) throw error;
        failures.push(error.message);
      }
    }
    assert.fail(`fits in no order: ${[...new Set(failures)].join('; ')}`);
  }

  /** Something of the ledger is gone: it may refuse, and choose as it never would, but not what somebody holds. */
  meanwhile(answer: Answer): void {
    if ('error' in answer) return assert.notEqual(answer.error, 'INTERNAL');
    if (!('lease' in answer)) return;
    const { lease, created } = answer;
    const held = this.leases.get(lease.id);
    assert.equal(created, held === undefined, `${lease.id} has been forgotten`);
    if (held !== undefined) return assert.deepEqual(lease.addresses, held.lease.addresses);
    for (const address of bareAddresses(lease))
      assert(!this.#isHeld(address), `${address} is held`);
    assert(!this.#macHolder(lease.network, lease.mac), `${lease.mac} is held twice`);
    assert(lease.generation > this.highestGeneration, `generation ${lease.generation} goes back`);
    this.highestGeneration = lease.generation;
    const expiresAtMs = lease.expiresAt === undefined ? undefined : Date.parse(lease.expiresAt);
    this.leases.set(lease.id, { lease, before: new Map(), expiresAtMs });
  }

  /** A host that was forgotten holds nothing any more. */
  forgotten(host: string): void {
    for (const lease of this.leasesOf(host)) {
      this.leases.delete(lease.id);
      for (const address of bareAddresses(lease)) {
        this.rests.set(address, { atMs: this.nowMs, by: lease.workload });
      }
    }
  }

  /** It is back with a lease: what becomes of that. */
  returned(lease: Lease): 'restored' | 'fenced' | 'misplaced' {
    const addresses = bareAddresses(lease);
    const taken =
      this.leases.has(lease.id) ||
      addresses.some((address) => this.#isHeld(address)) ||
      this.#macHolder(lease.network, lease.mac);
    if (taken) return 'fenced';
    const record = this.networks.get(lease.network);
    const views = record === undefined ? [] : viewsOf(record.network);
    const placed = addresses.every((address) =>
      views.some(
        ({ assignable, reserved }) =>
          assignable.includes(address) &&
          (reserved.get(address) ?? lease.workload) === lease.workload,
      ),
    );
    if (record === undefined || !placed) return 'misplaced';
    for (const address of addresses) this.rests.delete(address);
    const expiresAtMs = lease.expiresAt === undefined ? undefined : Date.parse(lease.expiresAt);
    this.leases.set(lease.id, { lease, before: new Map(), expiresAtMs });
    return 'restored';
  }

  /**
   * After a loss every lease must be there as it was, and no other. What an address was before, who rests, when a
   * lease expires, and whether a network that was deleted is there again, is the store's word then.
   */
  recovered(store: {
    readonly leases: readonly (Lease & { readonly before: ReadonlyMap<string, Rest> })[];
    readonly networks: readonly NetworkRecord[];
    readonly rests: ReadonlyMap<string, Rest>;
  }): void {
    const known = (lease: Lease): object => {
      const { id, generation, host, workload, network, mac, addresses } = lease;
      return { id, generation, host, workload, network, mac, addresses };
    };
    const byId = (a: { id: string }, b: { id: string }): number => (a.id < b.id ? -1 : 1);
    const held = [...this.leases.values()].map(({ lease }) => lease).toSorted(byId);
    assert.deepEqual(store.leases.toSorted(byId).map(known), held.map(known), 'not as it was');
    for (const [name, record] of this.networks) {
      const found = store.networks.find(({ network }) => network.network === name);
      assert.deepEqual(found, record, `network ${name} is not as it was`);
    }
    for (const { before, ...lease } of store.leases) {
      const expiresAtMs = lease.expiresAt === undefined ? undefined : Date.parse(lease.expiresAt);
      this.leases.set(lease.id, { lease, before, expiresAtMs });
    }
    for (const record of store.networks) {
      const { network: name } = record.network;
      if (!this.networks.has(name)) this.networks.set(name, record);
    }
    this.rests = new Map(store.rests);
  }

  leasesOf(host: string): Lease[] {
    return [...this.leases.values()].map(({ lease }) => lease).filter((one) => one.host === host);
  }

  /** Ids of the host's leases that have expired. */
  due(host: string): string[] {
    return [...this.leases.values()]
      .filter(
        ({ lease, expiresAtMs = Infinity }) => lease.host === host && expiresAtMs <= this.nowMs,
      )
      .map(({ lease }) => lease.id);
  }

  usage(name: string): NetworkUsage {
    const network = this.#network(name);
    const [view] = viewsOf(network);
    if (view === undefined) {
      return { size: 0, used: 0, free: 0, reserved: 0, cooling: 0, suspect: 0 };
    }
    const open = view.pool.filter((address) => !this.#isHeld(address));
    const cooling = open.filter((address) => this.#restMs(network, address) > 0).length;
    return {
      size: view.pool.length + view.reserved.size,
      used: view.all.filter((address) => this.#isHeld(address)).length,
      free: open.length - cooling,
      reserved: [...view.reserved.keys()].filter((address) => !this.#isHeld(address)).length,
      cooling,
      suspect: 0,
    };
  }

  #acquired(op: Acquire, answer: Answer): void {
    const held = this.leases.get(op.id);
    const wrong = this.#refusals(op, held);
    const errors = wrong.map(({ code }) => code);
    if ('error' in answer) {
      assert(
        errors.includes(answer.error),
        `${answer.error}, not ${errors.join(' or ') || 'granted'}`,
      );
      const waits = wrong.filter(({ code }) => code === answer.error);
      const expected = waits.map(({ retryAfterMs }) => retryAfterMs);
      assert(
        expected.includes(answer.retryAfterMs),
        `to wait ${answer.retryAfterMs} ms, not ${expected.join()}`,
      );
      return;
    }
    assert('lease' in answer);
    assert.equal(errors.length, 0, `granted, not ${errors.join(' or ')}`);
    const { lease, created } = answer;
    const { id, host, workload, record, ttlSeconds } = op;
    assert.deepEqual([lease.id, lease.host, lease.workload], [id, host, workload]);
    assert.equal(created, held === undefined, 'made and found are not the same');
    const expiresAtMs =
      ttlSeconds === undefined ? held?.expiresAtMs : this.nowMs + ttlSeconds * 1_000;
    const expiresAt = expiresAtMs === undefined ? undefined : new Date(expiresAtMs).toISOString();
    assert.equal(lease.expiresAt, expiresAt, 'expires at another time');
    if (held !== undefined) {
      assert.deepEqual(lease.addresses, held.lease.addresses, `${id} has other addresses now`);
      assert.equal(lease.generation, held.lease.generation, `${id} has another generation now`);
      this.leases.set(id, { ...held, lease, expiresAtMs });
      return;
    }
    this.#grant(op, lease, expiresAtMs);
    assert.equal(lease.network, record.network.network);
  }

  #grant(op: Acquire, lease: Lease, expiresAtMs: number | undefined): void {
    const views = viewsOf(op.record.network);
    assert.equal(lease.addresses.length, views.length, 'one address for each family');
    assert(lease.generation > this.highestGeneration, `generation ${lease.generation} goes back`);
    this.highestGeneration = lease.generation;
    assert.equal(Date.parse(lease.grantedAt), this.nowMs, 'granted at another time');
    const before = new Map<string, Rest>();
    for (const [index, view] of views.entries()) {
      const [address = '', length = ''] = (lease.addresses[index] ?? '').split('/');
      const { oneOf } = this.#choice(op, view);
      assert(oneOf.includes(address), `${address} was given, not ${oneOf.join(' or ')}`);
      assert.equal(length, String(IpPrefix.parse(view.subnet).length));
      const rest = this.rests.get(address);
      if (rest !== undefined) before.set(address, rest);
      this.rests.delete(address);
    }
    if (op.mac !== undefined) assert.equal(lease.mac, op.mac);
    assert(!this.#macHolder(lease.network, lease.mac), `${lease.mac} is held twice`);
    this.leases.set(op.id, { lease, before, expiresAtMs });
  }

  /** Every reason to refuse; the ledger may name any of them. */
  #refusals(op: Acquire, held: Held | undefined): Choice['errors'] {
    const { network, revision } = op.record;
    const views = viewsOf(network);
    // The caller's own check, against the definition that it has.
    for (const address of op.addresses) {
      const view = views.find(({ family }) => family === familyOf(address));
      if (view?.assignable.includes(address) !== true) return [{ code: 'ADDRESS_OUT_OF_RANGE' }];
      const owner = view.reserved.get(address) ?? op.workload;
      if (owner !== op.workload) return [{ code: 'ADDRESS_IN_USE' }];
    }
    if (held !== undefined) return this.#refusalsToFind(op, held.lease);
    const now = this.networks.get(network.network);
    if (now === undefined) return [{ code: 'UNKNOWN_NETWORK' }];
    if (now.revision !== revision) return [{ code: 'REVISION_CHANGED' }];
    const mac = op.mac !== undefined && this.#macHolder(network.network, op.mac);
    return [
      ...views.flatMap((view) => this.#choice(op, view).errors),
      ...(mac ? [{ code: 'MAC_IN_USE' }] : []),
    ];
  }

  #refusalsToFind(op: Acquire, lease: Lease): Choice['errors'] {
    if (lease.host !== op.host) return [{ code: 'WRONG_HOST' }];
    const same =
      lease.workload === op.workload &&
      lease.network === op.record.network.network &&
      (op.mac ?? lease.mac) === lease.mac &&
      op.addresses.every((asked) => lease.addresses.some((one) => one.startsWith(`${asked}/`)));
    return same ? [] : [{ code: 'ALREADY_ATTACHED' }];
  }

  #choice({ record, workload, addresses }: Acquire, view: FamilyView): Choice {
    const { network } = record;
    const asked = addresses.find((address) => familyOf(address) === view.family);
    const reserved = view.reservedFor(workload);
    const named =
      asked ?? (reserved !== undefined && !this.#isHeld(reserved) ? reserved : undefined);
    if (named === undefined) return this.#fromPool(network, workload, view);
    if (this.#isHeld(named)) return refusal('ADDRESS_IN_USE');
    const restMs = this.#restMs(network, named);
    const own = this.rests.get(named)?.by === workload;
    return restMs > 0 && !own ? refusal('ADDRESS_IN_USE', restMs) : { ...NONE, oneOf: [named] };
  }

  #fromPool(network: Network, workload: string, view: FamilyView): Choice {
    const open = view.pool.filter((address) => !this.#isHeld(address));
    const fresh = open.find((address) => !this.rests.has(address));
    if (fresh !== undefined) return { ...NONE, oneOf: [fresh] };
    // Least recently used; of those released in one millisecond, any.
    const at = (address: string): number => this.rests.get(address)?.atMs ?? 0;
    const oldest = Math.min(...open.map(at));
    const restMs = oldest + network.reuseDelaySeconds * 1_000 - this.nowMs;
    if (restMs <= 0) return { ...NONE, oneOf: open.filter((address) => at(address) === oldest) };
    const own = open.filter((address) => this.rests.get(address)?.by === workload);
    if (own.length > 0) return { ...NONE, oneOf: own };
    return refusal('POOL_EXHAUSTED', open.length === 0 ? undefined : restMs);
  }

  #released(op: Extract<Op, { do: 'release' }>, answer: Answer): void {
    const held = this.leases.get(op.id);
    if (held === undefined) return assert.deepEqual(answer, { released: false });
    const { lease, before } = held;
    if (lease.host !== op.host) return expectError(answer, ['WRONG_HOST']);
    if (lease.generation !== op.generation) return expectError(answer, ['STALE_GENERATION']);
    assert.deepEqual(answer, { released: true });
    this.leases.delete(op.id);
    for (const text of lease.addresses) {
      const address = text.replace(/\/.*/, '');
      const rest = op.cool ? { atMs: this.nowMs, by: lease.workload } : before.get(address);
      if (rest !== undefined) this.rests.set(address, rest);
    }
  }

  #put(network: Network, revision: number | undefined, answer: Answer): void {
    const name = network.network;
    const now = this.networks.get(name);
    if (now !== undefined && isDeepStrictEqual(now.network, network)) {
      return assert.deepEqual(answer, { revision: now.revision, created: false });
    }
    if (now === undefined && revision !== undefined)
      return expectError(answer, ['UNKNOWN_NETWORK']);
    const errors = [
      ...(now?.revision === revision ? [] : ['NETWORK_CONFLICT']),
      ...(this.#overlaps(network) ? ['NETWORK_CONFLICT'] : []),
      ...(this.#strands(network) || this.#changesWhatIsFixed(now, network)
        ? ['NETWORK_IN_USE']
        : []),
    ];
    if (errors.length > 0) return expectError(answer, errors);
    assert('revision' in answer, `${JSON.stringify(answer)}, not put`);
    assert.equal(answer.created, now === undefined);
    assert(answer.revision > this.highestRevision, `revision ${answer.revision} goes back`);
    this.highestRevision = answer.revision;
    this.#bury(now, network);
    this.networks.set(name, { network, revision: answer.revision });
  }

  #isLeased(name: string): boolean {
    return [...this.leases.values()].some(({ lease }) => lease.network === name);
  }

  #changesWhatIsFixed(before: NetworkRecord | undefined, after: Network): boolean {
    if (before === undefined || !this.#isLeased(after.network)) return false;
    return !isDeepStrictEqual(fixedOf(before.network), fixedOf(after));
  }

  #deleted(name: string, answer: Answer): void {
    if (this.#isLeased(name)) return expectError(answer, ['NETWORK_IN_USE']);
    const now = this.networks.get(name);
    assert.deepEqual(answer, { deleted: now !== undefined });
    this.#bury(now, undefined);
    this.networks.delete(name);
  }

  #overlaps(network: Network): boolean {
    const prefixes = (one: Network): IpPrefix[] =>
      viewsOf(one).map(({ subnet }) => IpPrefix.parse(subnet));
    return [...this.networks.values()].some(
      (other) =>
        other.network.network !== network.network &&
        prefixes(other.network).some((one) =>
          prefixes(network).some((two) => one.family === two.family && one.overlaps(two)),
        ),
    );
  }

  #strands(network: Network): boolean {
    const views = viewsOf(network);
    return [...this.leases.values()].some(({ lease }) => {
      if (lease.network !== network.network) return false;
      return lease.addresses.some((text) => {
        const address = text.replace(/\/.*/, '');
        const view = views.find(({ family }) => family === familyOf(address));
        const owner = view?.reserved.get(address) ?? lease.workload;
        return view?.assignable.includes(address) !== true || owner !== lease.workload;
      });
    });
  }

  /** What leaves a network is remembered while it rests. */
  #bury(before: NetworkRecord | undefined, after: Network | undefined): void {
    if (before === undefined) return;
    const kept = new Set(after === undefined ? [] : viewsOf(after).flatMap(({ all }) => all));
    for (const address of viewsOf(before.network).flatMap(({ all }) => all)) {
      if (kept.has(address) || this.#restMs(before.network, address) > 0) continue;
      this.rests.delete(address);
    }
  }

  #network(name: string): Network {
    const record = this.networks.get(name);
    assert(record !== undefined);
    return record.network;
  }

  /** How long an address still has to rest. */
  #restMs(network: Network, address: string): number {
    const rest = this.rests.get(address);
    if (rest === undefined) return 0;
    return Math.max(0, rest.atMs + network.reuseDelaySeconds * 1_000 - this.nowMs);
  }

  #isHeld(address: string): boolean {
    return [...this.leases.values()].some(({ lease }) =>
      lease.addresses.some((one) => one.startsWith(`${address}/`)),
    );
  }

  #macHolder(network: string, mac: string): boolean {
    return [...this.leases.values()].some(
      ({ lease }) => lease.network === network && lease.mac === mac,
    );
  }
}

const bareAddresses = ({ addresses }: Lease): string[] =>
  addresses.map((text) => text.replace(/\/.*/, ''));

function expectError(answer: Answer, codes: readonly string[]): void {
  const got = 'error' in answer ? answer.error : 'done';
  assert(codes.includes(got), `${got}, not ${codes.join(' or ')}`);
}

function* permutations<T>(items: readonly T[]): Generator<readonly T[]> {
  if (items.length <= 1) return yield items;
  for (const [index, first] of items.entries()) {
    for (const rest of permutations(items.toSpliced(index, 1))) yield [first, ...rest];
  }
}
