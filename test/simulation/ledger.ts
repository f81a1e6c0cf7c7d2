import type {
  Identity,
  Ledger,
  Lease,
  LeaseOutcome,
  LeaseRequest,
  NetworkChanges,
  NetworkRecord,
  Pulse,
} from '#ipam-store/ledger.ts';
import { RevisionChanged } from '#ipam-store/ledger.ts';
import { RecoveryWait } from '#ipam-store/recovery-wait.ts';
import { deriveMac } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { Clock, Life } from './clock.ts';
import { Lines } from './line.ts';
import { ADDRESSES, allowedBy, ModelPool, POOL_KEYS, type PoolMistake, type Rest } from './pool.ts';
import { ModelSessions, type SessionMistake } from './sessions.ts';

/** What may be wrong with the ledger, to see that a simulation finds it. */
export type LedgerMistake =
  | PoolMistake
  | SessionMistake
  | 'no-owner'
  | 'generation-back'
  | 'revision-believed'
  | 'edit-untold';

/** Keys that may vanish, one by one. */
export const KEYS = [...POOL_KEYS, 'leases', 'session'] as const;

const addressOf = ({ addresses: [address = ''] }: Pick<Lease, 'addresses'>): string =>
  address.replace(/\/.*/, '');

/** The ledger's contract in maps, and the network between it and the agents of a fleet. */
export class ModelLedger {
  readonly leases = new Map<string, Lease>();
  /** What the address of each lease was before. */
  readonly #before = new Map<string, Rest | undefined>();
  readonly #clock: Clock;
  readonly #pool: ModelPool;
  readonly #mistake: LedgerMistake | undefined;
  readonly #sessions: ModelSessions;
  readonly lines: Lines;
  /** Of the last change of the network. */
  revision: number;
  /** The generation by then: what is granted later is as the network is now. */
  editedAt = 0;

  constructor(clock: Clock, record: NetworkRecord, mistake?: LedgerMistake) {
    this.#clock = clock;
    this.#mistake = mistake;
    this.#pool = new ModelPool(record, mistake);
    this.#sessions = new ModelSessions(mistake);
    this.lines = new Lines(clock);
    this.revision = record.revision;
  }

  /** The network as it is defined now; undefined once the definition has vanished. */
  get network(): NetworkRecord | undefined {
    return this.#pool.record;
  }

  /** What may be in use: an edit that was lost with the definition binds nobody. */
  get allowed(): readonly string[] {
    const { record } = this.#pool;
    return record === undefined || record.revision < this.revision ? ADDRESSES : allowedBy(record);
  }

  /** The ledger as one agent has it. `onStatus` is told when a host that was away is back. */
  connect(place: string, life: Life): { readonly ledger: Ledger; readonly back: () => void } {
    const listeners: ((status: Ledger['status']) => void)[] = [];
    const status = (): Ledger['status'] =>
      this.lines.away.has(place) ? { state: 'connecting', reason: 'away' } : { state: 'ready' };
    const call = this.lines.connect(place, life);
    const recovery = new RecoveryWait();
    const face: Partial<Pick<Ledger, keyof Ledger>> = {
      start: () => {
        this.#clock.after(5, life, () => listeners.forEach((tell) => tell(status())));
      },
      onChange: () => {},
      beatWith: (beat) => recovery.beatWith(beat),
      onStatus: (listener) => void listeners.push(listener),
      close: () => Promise.resolve(),
      getNetwork: (_name, wait) =>
        recovery.retry(wait, () =>
          call(() => ({
            ...this.#defined(),
            usage: { size: 0, used: 0, free: 0, reserved: 0, cooling: 0, suspect: 0 },
          })),
        ),
      listNetworks: () => call(() => ({ networks: [this.#defined()] })),
      networkChanges: (since) => call(() => this.#changesSince(since)),
      acquire: (request, wait) => recovery.retry(wait, () => call(() => this.#acquire(request))),
      release: (release) => call(() => this.#release(release)),
      getLease: (id) => call(() => this.leases.get(id) ?? null),
      listLeases: ({ host: of }) =>
        call(() => ({
          leases: [...this.leases.values()]
            .filter((lease) => lease.host === of)
            .map((lease) => ({ ...lease, state: 'held' as const })),
        })),
      heartbeat: async (beat) => {
        let isOpen = false;
        try {
          const pulse = await call(() => this.#heartbeat(beat));
          isOpen = pulse.mayAcquire;
          return pulse;
        } finally {
          recovery.note(isOpen);
        }
      },
      reassert: (session, hostLeases) => call(() => this.#reassert(session, hostLeases)),
    };
    Object.defineProperty(face, 'status', { get: status });
    return {
      ledger: face as Ledger,
      back: () => listeners.forEach((tell) => tell(status())),
    };
  }

  // What befalls it, and what an operator does.

  /** One of its keys vanishes: evicted, or deleted by hand. */
  lose(key: (typeof KEYS)[number], host: string): void {
    if (key === 'session') this.#sessions.forget(host);
    else if (key !== 'leases') this.#pool.lose(key);
    else {
      this.leases.clear();
      this.#before.clear();
      this.#pool.lose('counts');
      this.#sessions.loseGeneration();
    }
  }

  /** Changes the network, or puts it again after it has vanished. Answers the code of a refusal. */
  edit(change: (network: Network) => Network, last: Network): string {
    try {
      this.#sessions.refuseUnarmed();
      const record = {
        network: change(this.network?.network ?? last),
        revision: this.revision + 1,
      };
      this.#pool.put(record);
      this.revision += 1;
      this.editedAt = this.#sessions.generation;
      return `revision ${this.revision}`;
    } catch (error) {
      if (error instanceof VoltError) return error.code;
      throw error;
    }
  }

  /** An operator says which machine is a host. */
  settle(who: Identity): void {
    this.#sessions.settle(who);
  }

  /** `ledger check --repair`; false while hosts have yet to say what they hold. */
  repair(): boolean {
    if (!this.#sessions.isArmed) return false;
    if (this.network === undefined) {
      this.#sessions.beginRecovery();
      return false;
    }
    const leases = [...this.leases.values()].map((lease) => [addressOf(lease), lease.id] as const);
    this.#pool.repair(new Map(leases), this.#clock.dateMs);
    return true;
  }

  // What agents ask of it.

  #defined(): NetworkRecord {
    if (this.network !== undefined) return this.network;
    throw new VoltError('RECOVERING', 'the definition has vanished');
  }

  #changesSince(since: number): NetworkChanges {
    this.#sessions.refuseUnarmed();
    const record = this.#defined();
    const changed = record.revision > since ? [record] : [];
    return { changed, gone: [], revision: this.revision, more: false, whole: false, letGo: [] };
  }

  #acquire(request: LeaseRequest): { lease: Lease; created: boolean } {
    const { id, workload, kind, host, bootId, network, ttlSeconds } = request;
    this.#sessions.refuseUnarmed();
    this.#sessions.refuseForeign(request);
    this.#sessions.refuseStranger(host);
    const { revision } = this.#pool.open();
    if (revision !== request.revision && this.#mistake !== 'revision-believed') {
      throw new RevisionChanged();
    }
    const nowMs = this.#clock.dateMs;
    const ending =
      ttlSeconds === undefined
        ? {}
        : { expiresAt: new Date(nowMs + ttlSeconds * 1_000).toISOString() };
    const held = this.leases.get(id);
    if (held !== undefined) {
      if (held.host !== host && this.#mistake !== 'no-owner') {
        throw new VoltError('WRONG_HOST', `${id} is on ${held.host}`, {
          details: { host: held.host },
        });
      }
      if (held.workload !== workload) throw new VoltError('ALREADY_ATTACHED', `${id} is another's`);
      const lease = { ...held, host, bootId, ...ending };
      this.leases.set(id, lease);
      return { lease, created: false };
    }
    const address = this.#pool.pick({ id, workload, address: request.addresses?.[0] }, nowMs);
    const lease: Lease = {
      id,
      generation: this.#sessions.nextGeneration(this.#mistake === 'generation-back' ? -1 : 1),
      network: network.network,
      workload,
      kind,
      host,
      bootId,
      mac: deriveMac(id).toString(),
      addresses: [`${address}/24`],
      grantedAt: new Date(nowMs).toISOString(),
      ...ending,
    };
    this.#keep(lease);
    return { lease, created: true };
  }

  #keep(lease: Lease): void {
    this.leases.set(lease.id, lease);
    this.#before.set(lease.id, this.#pool.take(addressOf(lease), lease.id));
  }

  #end(lease: Lease, cool: boolean): void {
    this.leases.delete(lease.id);
    const rest = cool
      ? { atMs: this.#clock.dateMs, by: lease.workload }
      : this.#before.get(lease.id);
    this.#pool.give(addressOf(lease), rest);
  }

  #release({ id, generation, cool, ...by }: Parameters<Ledger['release']>[0]) {
    this.#sessions.refuseUnarmed();
    this.#sessions.refuseForeign(by);
    const { host } = by;
    const lease = this.leases.get(id);
    if (lease === undefined) return 'absent';
    if (lease.host !== host) throw new VoltError('WRONG_HOST', `${id} is on ${lease.host}`);
    if (lease.generation !== generation) throw new VoltError('STALE_GENERATION', `${id} is later`);
    this.#end(lease, cool);
    return 'released';
  }

  #heartbeat(beat: Parameters<Ledger['heartbeat']>[0]): Pulse {
    const nowMs = this.#clock.dateMs;
    const revision = this.#mistake === 'edit-untold' ? 1 : this.revision;
    const due = [...this.leases.values()]
      .filter((one) => one.host === beat.host && Date.parse(one.expiresAt ?? '') <= nowMs)
      .map(({ id, generation }) => ({ id, generation }));
    return { ...this.#sessions.heartbeat(beat, nowMs, revision), due };
  }

  #reassert(
    session: Parameters<Ledger['reassert']>[0],
    { networks, leases, some }: Parameters<Ledger['reassert']>[1],
  ) {
    this.#sessions.refuseForeign(session);
    this.#sessions.refuseOld(session);
    for (const record of networks) {
      if ((this.network?.revision ?? 0) >= record.revision) continue;
      this.#pool.restore(record);
      this.editedAt = this.#sessions.generation;
    }
    const outcomes = Array.from(leases, (lease) => this.#reasserted(lease));
    if (some !== true) this.#sessions.noteAsserted(session.host);
    return { networks: [], leases: outcomes };
  }

  /** Of two leases the one with the higher generation is the later: it stays. */
  #reasserted(lease: Lease): LeaseOutcome {
    const { id, generation } = lease;
    const address = addressOf(lease);
    const others = [
      this.leases.get(id),
      this.leases.get(this.#pool.held.get(address) ?? ''),
    ].filter((one) => one !== undefined);
    for (const other of others) {
      if (other.id === id && other.generation === generation && other.host === lease.host) {
        this.#pool.find(address, id);
        return { id, generation, outcome: 'kept' };
      }
      if (other.generation >= generation) {
        return { id, generation, outcome: 'fenced', holder: other };
      }
    }
    if (this.network === undefined) {
      return { id, generation, outcome: 'misplaced', reason: 'UNKNOWN_NETWORK' };
    }
    for (const other of others) {
      this.#end(other, true);
      if (other.host !== lease.host) this.#sessions.askAgain(other.host);
    }
    this.#keep(lease);
    return { id, generation, outcome: 'restored' };
  }
}
