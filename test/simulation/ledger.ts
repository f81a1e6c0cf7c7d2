import type {
  Beat,
  Identity,
  Ledger,
  Lease,
  LeaseRequest,
  NetworkRecord,
  Pulse,
} from '#ipam-store/ledger.ts';
import { deriveMac } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import { type Clock, type Life, NEVER } from './clock.ts';

/** What may be wrong with the ledger, to see that a simulation finds it. */
export type LedgerMistake = 'no-owner' | 'address-twice' | 'generation-back';

const EPOCH = '1';
const ADDRESSES = 8;

interface Member {
  readonly machineId: string;
  bootId: string;
  seenMs: number;
  suspect: boolean;
  asserted: boolean;
}

/** The ledger's contract in maps, and the network between it and the agents of a fleet. */
export class ModelLedger {
  readonly leases = new Map<string, Lease>();
  readonly #clock: Clock;
  readonly #record: NetworkRecord;
  readonly #mistake: LedgerMistake | undefined;
  /** When each address was released, and by which workload. */
  readonly #rests = new Map<string, { readonly atMs: number; readonly by: string }>();
  readonly #members = new Map<string, Member>();
  #generation = 2 ** 32;
  /** Hosts that do not reach it. */
  readonly away = new Set<string>();
  /** Of what is sent so much is lost, half of it on the way back. */
  loss = 0;

  constructor(clock: Clock, record: NetworkRecord, mistake?: LedgerMistake) {
    this.#clock = clock;
    this.#record = record;
    this.#mistake = mistake;
  }

  /** The ledger as one agent has it. `onStatus` is told when a host that was away is back. */
  connect(host: string, life: Life): { readonly ledger: Ledger; readonly back: () => void } {
    const listeners: ((status: Ledger['status']) => void)[] = [];
    const status = (): Ledger['status'] =>
      this.away.has(host) ? { state: 'connecting', reason: 'away' } : { state: 'ready' };
    const call = <T>(work: () => T): Promise<T> => this.#call(host, life, work);
    const face: Partial<Pick<Ledger, keyof Ledger>> = {
      start: () => {
        this.#clock.after(5, life, () => listeners.forEach((tell) => tell(status())));
      },
      onStatus: (listener) => void listeners.push(listener),
      close: () => Promise.resolve(),
      getNetwork: () =>
        call(() => ({
          ...this.#record,
          usage: { size: 0, used: 0, free: 0, reserved: 0, cooling: 0, suspect: 0 },
        })),
      listNetworks: () => call(() => ({ networks: [this.#record] })),
      networkChanges: () => call(() => ({ ...UNCHANGED, revision: this.#record.revision })),
      acquire: (request) => call(() => this.#acquire(request)),
      release: (release) => call(() => this.#release(release)),
      getLease: (id) => call(() => this.leases.get(id) ?? null),
      listLeases: ({ host: of }) =>
        call(() => ({
          leases: [...this.leases.values()]
            .filter((lease) => lease.host === of)
            .map((lease) => ({ ...lease, state: 'held' as const })),
        })),
      heartbeat: (beat) => call(() => this.#heartbeat(beat)),
      reassert: (session, { leases }) =>
        call(() => {
          this.#refuseForeign(session);
          const member = this.#members.get(host);
          if (member !== undefined) member.asserted = true;
          return { networks: [], leases: leases.map((lease) => this.#reasserted(lease)) };
        }),
    };
    Object.defineProperty(face, 'status', { get: status });
    return {
      ledger: face as Ledger,
      back: () => listeners.forEach((tell) => tell(status())),
    };
  }

  /** There and back: what is lost before it is done, and what after, looks the same to the caller. */
  #call<T>(host: string, life: Life, work: () => T): Promise<T> {
    if (life.dead) return NEVER;
    const { chance } = this.#clock;
    const unavailable = (sent: boolean): VoltError =>
      new VoltError('STORE_UNAVAILABLE', 'Redis: away', { details: { sent } });
    if (this.away.has(host)) return Promise.reject(unavailable(false));
    return new Promise((resolve, reject) => {
      const lost = chance.happens(this.loss) ? chance.pick(['there', 'back']) : 'nothing';
      this.#clock.after(chance.between(0, 4), this.#clock.world, () => {
        let end = (): void => reject(unavailable(true));
        if (lost !== 'there' && !this.away.has(host)) {
          try {
            const result = work();
            if (lost !== 'back') end = () => resolve(result);
          } catch (error) {
            if (lost !== 'back') end = () => reject(error);
          }
        }
        this.#clock.after(chance.between(0, 4), life, end);
      });
    });
  }

  #acquire(request: LeaseRequest): { lease: Lease; created: boolean } {
    const { id, workload, kind, host, machineId, bootId, network, ttlSeconds } = request;
    const member = this.#members.get(host);
    this.#refuseForeign({ host, machineId });
    if (member?.asserted !== true) {
      throw new VoltError('RECOVERING', `${host} has no session`);
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
    const address = this.#address(workload, nowMs);
    this.#generation += this.#mistake === 'generation-back' ? -1 : 1;
    const lease: Lease = {
      id,
      generation: this.#generation,
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
    this.leases.set(id, lease);
    return { lease, created: true };
  }

  #address(workload: string, nowMs: number): string {
    const delayMs = this.#record.network.reuseDelaySeconds * 1_000;
    const held = new Set([...this.leases.values()].flatMap(({ addresses }) => addresses));
    const free = Array.from({ length: ADDRESSES }, (_, n) => `10.42.0.${n + 2}`)
      .filter((one) => this.#mistake === 'address-twice' || !held.has(`${one}/24`))
      .filter((one) => {
        const rest = this.#rests.get(one);
        return rest === undefined || rest.by === workload || rest.atMs + delayMs <= nowMs;
      })
      .toSorted((a, b) => (this.#rests.get(a)?.atMs ?? 0) - (this.#rests.get(b)?.atMs ?? 0));
    const [address] = free;
    if (address === undefined) throw new VoltError('POOL_EXHAUSTED', 'no address is free');
    return address;
  }

  /** Two machines under one host id: the ledger knows one of them. */
  #refuseForeign({ host, machineId }: Identity): void {
    const known = this.#members.get(host)?.machineId;
    if (known === undefined || known === machineId) return;
    throw new VoltError('HOST_CONFLICT', `another machine, ${known}, calls itself host ${host}`);
  }

  #release({ id, generation, cool, ...by }: Parameters<Ledger['release']>[0]) {
    this.#refuseForeign(by);
    const { host } = by;
    const lease = this.leases.get(id);
    if (lease === undefined) return 'absent';
    if (lease.host !== host) throw new VoltError('WRONG_HOST', `${id} is on ${lease.host}`);
    if (lease.generation !== generation) throw new VoltError('STALE_GENERATION', `${id} is later`);
    this.leases.delete(id);
    for (const address of cool ? lease.addresses : []) {
      const rest = { atMs: this.#clock.dateMs, by: lease.workload };
      this.#rests.set(address.replace('/24', ''), rest);
    }
    return 'released';
  }

  #heartbeat({ host, machineId, bootId, suspectAfterSeconds }: Beat): Pulse {
    this.#refuseForeign({ host, machineId });
    const nowMs = this.#clock.dateMs;
    const known = this.#members.get(host);
    const rebooted = known !== undefined && known.bootId !== bootId;
    const fallen: string[] = [];
    const before = known === undefined ? null : known.suspect ? 'suspect' : 'live';
    const member = known ?? { machineId, bootId, seenMs: nowMs, suspect: false, asserted: false };
    Object.assign(member, { bootId, seenMs: nowMs, suspect: false });
    if (rebooted) member.asserted = false;
    this.#members.set(host, member);
    for (const [name, other] of this.#members) {
      if (other.suspect || nowMs - other.seenMs <= suspectAfterSeconds * 1_000) continue;
      other.suspect = true;
      fallen.push(name);
    }
    return {
      state: 'armed',
      nowMs,
      mayAcquire: member.asserted,
      reassert: !member.asserted,
      epoch: EPOCH,
      before,
      rebooted,
      began: false,
      ended: false,
      missed: [],
      awaiting: [],
      fallen,
      reclaimed: [],
      due: [...this.leases.values()]
        .filter((one) => one.host === host && Date.parse(one.expiresAt ?? '') <= nowMs)
        .map(({ id, generation }) => ({ id, generation })),
      seen: { generation: this.#generation, revision: this.#record.revision, roster: 0 },
    };
  }

  #reasserted({ id, generation }: Lease) {
    const held = this.leases.get(id);
    if (held?.generation === generation) return { id, generation, outcome: 'kept' as const };
    // A ledger that has lost nothing knows what has ended.
    return { id, generation, outcome: 'fenced' as const };
  }
}

const UNCHANGED = { changed: [], gone: [], more: false, whole: false } as const;
