import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';

/** What may be wrong with a pool, to see that a simulation finds it. */
export type PoolMistake = 'address-twice' | 'held-believed' | 'pool-anew' | 'stranded';

/** The keys of a network in Redis that may vanish one by one. */
export const POOL_KEYS = ['held', 'free', 'last', 'network'] as const;
export type PoolKey = (typeof POOL_KEYS)[number];

export interface Rest {
  readonly atMs: number;
  readonly by: string;
}

export interface Wish {
  readonly id: string;
  readonly workload: string;
  /** Without its prefix length; undefined for any. */
  readonly address: string | undefined;
}

/** All that a network may give out. */
export const ADDRESSES = Array.from({ length: 8 }, (_, n) => `10.42.0.${n + 2}`);

/** The ledger says: one index contradicts another. Nothing is granted until that was repaired. */
const contradiction = (why: string): VoltError => new VoltError('RECOVERING', why);

/**
 * The addresses of a network, in the keys of the ledger: who holds which, which are free, who had them last, and how many
 * are held, kept elsewhere. No address is granted on the word of one of them.
 */
export class ModelPool {
  /** Undefined once it has vanished. */
  record: NetworkRecord | undefined;
  readonly held = new Map<string, string>();
  /** Used before, in the order of their release. */
  readonly #free = new Set<string>();
  readonly #last = new Map<string, Rest>();
  /** Never used. */
  readonly #fresh = new Set(ADDRESSES);
  /** Of a server that has lost its counts they are as what they count. */
  #counted: number | undefined = 0;
  /** Made again from what was left, and not looked at since. */
  #unchecked = false;
  readonly #mistake: string | undefined;

  constructor(record: NetworkRecord, mistake: string | undefined) {
    this.record = record;
    this.#mistake = mistake;
  }

  /** A key vanishes. */
  lose(key: PoolKey | 'counts'): void {
    if (key === 'held') this.held.clear();
    else if (key === 'free') this.#free.clear();
    else if (key === 'last') this.#last.clear();
    else if (key === 'counts') this.#counted = undefined;
    else this.record = undefined;
  }

  /** Its definition, where it grants. */
  open(): NetworkRecord {
    if (this.record === undefined) throw contradiction('the definition has vanished');
    if (this.#unchecked) throw contradiction('parts of the network have vanished');
    return this.record;
  }

  /** Which address is granted next; throws where there is none, or none that is beyond doubt. */
  pick({ address: named, workload }: Wish, nowMs: number): string {
    const delayMs = this.open().network.reuseDelaySeconds * 1_000;
    const rests = (one: string): boolean => {
      const rest = this.#last.get(one);
      return rest !== undefined && rest.by !== workload && rest.atMs + delayMs > nowMs;
    };
    if (named !== undefined) return this.#named(named, rests);
    const [fresh] = this.#fresh;
    if (fresh !== undefined) return this.#believed(fresh, 'fresh');
    this.#compareCount();
    const free = [...this.#free]
      .filter((one) => !rests(one))
      .toSorted((a, b) => (this.#last.get(a)?.atMs ?? 0) - (this.#last.get(b)?.atMs ?? 0));
    const [oldest] = free;
    if (oldest === undefined) throw new VoltError('POOL_EXHAUSTED', 'no address is free');
    return this.#believed(oldest, 'free');
  }

  #named(address: string, rests: (address: string) => boolean): string {
    this.#compareCount();
    const holder = this.held.get(address);
    if (holder !== undefined && this.#mistake !== 'address-twice') {
      throw new VoltError('ADDRESS_IN_USE', `${address} is held by ${holder}`);
    }
    if (rests(address)) throw new VoltError('ADDRESS_IN_USE', `${address} is cooling down`);
    if (this.#fresh.has(address)) return address;
    if (this.#free.has(address)) return this.#believed(address, 'free');
    const isAllowed = this.#allowed().includes(address);
    if (isAllowed && this.#last.get(address) === undefined && !this.#believesAll) {
      throw contradiction(`${address} is neither free nor held`);
    }
    if (!isAllowed) throw new VoltError('ADDRESS_OUT_OF_RANGE', `${address} is excluded`);
    return address;
  }

  get #believesAll(): boolean {
    return this.#mistake === 'held-believed' || this.#mistake === 'address-twice';
  }

  #compareCount(): void {
    if (this.#believesAll || this.held.size >= (this.#counted ?? 0)) return;
    throw contradiction(`${this.held.size} of ${this.#counted} held addresses`);
  }

  #believed(address: string, index: 'fresh' | 'free'): string {
    if (this.#believesAll) return address;
    const holder = this.held.get(address);
    if (holder !== undefined) throw contradiction(`${address} is ${index} and held by ${holder}`);
    if (index === 'free' && !this.#last.has(address)) {
      throw contradiction(`${address} is free, and nobody has released it`);
    }
    return address;
  }

  /** Answers what the address was before. */
  take(address: string, id: string): Rest | undefined {
    const before = this.#last.get(address);
    const step = this.held.has(address) ? 0 : 1;
    this.held.set(address, id);
    this.#count(step);
    this.#last.delete(address);
    this.#free.delete(address);
    if (this.#mistake !== 'address-twice') this.#fresh.delete(address);
    return before;
  }

  /** Keeps how many are held. What was not counted before begins with what is there. */
  #count(step: number): void {
    this.#counted = this.#counted === undefined ? this.held.size : this.#counted + step;
  }

  /** A lease that is there is found again by its address. It was counted when it was granted. */
  find(address: string, id: string): void {
    if (!this.held.has(address)) this.held.set(address, id);
  }

  /** `rest`: who has used it now, or before a lease that nobody used; undefined for an address that nobody has used. */
  give(address: string, rest: Rest | undefined): void {
    this.#count(this.held.delete(address) ? -1 : 0);
    const isAllowed = this.#allowed().includes(address);
    if (rest !== undefined) this.#last.set(address, rest);
    if (isAllowed) (rest === undefined ? this.#fresh : this.#free).add(address);
  }

  /** As `volt1_network_put`; NETWORK_IN_USE where a lease would be stranded. */
  put(record: NetworkRecord): void {
    const anew = this.#mistake === 'pool-anew' && this.record === undefined;
    if (!anew) this.#compareCount();
    const stranded = [...this.held.keys()].find((one) => !allowedBy(record).includes(one));
    if (stranded !== undefined && this.#mistake !== 'stranded') {
      throw new VoltError('NETWORK_IN_USE', `the lease on ${stranded} would be stranded`);
    }
    this.restore(record);
  }

  /** As it is re-asserted, or put. What has vanished is made again from what is left, and stays closed until it is checked. */
  restore(record: NetworkRecord): void {
    const vanished = this.record === undefined;
    this.record = record;
    if (vanished && this.#mistake === 'pool-anew') {
      for (const index of [this.held, this.#free, this.#last]) index.clear();
      this.#counted = undefined;
    } else if (vanished) this.#unchecked = true;
    this.#arrange();
  }

  /** Every allowed address is fresh, free or held. */
  #arrange(): void {
    const allowed = this.#allowed();
    for (const index of [this.#fresh, this.#free]) {
      for (const one of index) if (!allowed.includes(one) || this.held.has(one)) index.delete(one);
    }
    for (const one of allowed) {
      if (this.held.has(one)) continue;
      (this.#last.has(one) ? this.#free : this.#fresh).add(one);
    }
    for (const one of this.#free) this.#fresh.delete(one);
  }

  /** As `ledger check --repair`: from the leases that are there, by address. */
  repair(leases: ReadonlyMap<string, string>, nowMs: number): void {
    this.held.clear();
    for (const [address, id] of leases) this.held.set(address, id);
    this.#counted = this.held.size;
    for (const one of this.#free) {
      if (!this.#last.has(one)) this.#last.set(one, { atMs: nowMs, by: '-' });
    }
    this.#unchecked = false;
    this.#arrange();
  }

  #allowed(): readonly string[] {
    return this.record === undefined ? ADDRESSES : allowedBy(this.record);
  }
}

/** What of the pool a definition gives out. */
export const allowedBy = ({ network }: NetworkRecord): readonly string[] =>
  ADDRESSES.filter((one) => !(network.exclude ?? []).includes(one));
