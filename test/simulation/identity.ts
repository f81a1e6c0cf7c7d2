import type { Beat, Identity } from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';

/** What may be wrong with how machines are told apart, to see that a simulation finds it. */
export type IdentityMistake = 'clones-believed';

/** When another boot than the host's was heard, and the host meanwhile. */
interface Rival {
  readonly first: number;
  last: number;
  ownFirst?: number;
  ownLast?: number;
}

/** Of the time in which a boot that has ended falls silent: for so long one is heard that goes on. */
const GOES_ON = 1 / 4;

const conflict = (message: string, retryAfterMs?: number): VoltError =>
  new VoltError('HOST_CONFLICT', message, { retryAfterMs });

/** Whose one host is, as the ledger knows it: one machine, one agent of it, and one boot at a time. */
export class ModelIdentity {
  readonly #mistake: string | undefined;
  #machineId: string | undefined;
  #agentId: string | undefined;
  #bootId: string | undefined;
  #seenMs = 0;
  /** Boots that were the host's before. */
  readonly #older = new Set<string>();
  /** Boots of machines that an operator has decided against. */
  readonly #ousted = new Set<string>();
  readonly #rivals = new Map<string, Rival>();
  /** Two machines call themselves the host, and nobody has decided which of them is. */
  #disputed = false;

  constructor(mistake: string | undefined) {
    this.#mistake = mistake;
  }

  get isDisputed(): boolean {
    return this.#disputed;
  }

  /** What was known has vanished. */
  forget(): void {
    this.#machineId = undefined;
    this.#agentId = undefined;
    this.#bootId = undefined;
    this.#disputed = false;
    for (const boots of [this.#older, this.#ousted, this.#rivals]) boots.clear();
  }

  /** Refuses what another than the host's own agent, in its present boot, asks for in its name. */
  refuseForeign({ host, machineId, agentId, bootId }: Identity): void {
    if (this.#disputed) throw conflict(`two machines call themselves host ${host}`);
    const is = (known: string | undefined, said: string | undefined): boolean =>
      known === undefined || said === undefined || known === said;
    if (is(this.#machineId, machineId) && is(this.#agentId, agentId) && is(this.#bootId, bootId)) {
      return;
    }
    if (this.#mistake === 'clones-believed' && is(this.#machineId, machineId)) return;
    throw conflict(`another machine, agent or boot is host ${host}`);
  }

  /** A heartbeat. Throws where it is not the host's; answers whether it is of another boot than the one before. */
  hear(beat: Beat, nowMs: number): boolean {
    const { host, machineId, agentId, bootId, heartbeatSeconds = 0 } = beat;
    if (this.#mistake !== 'clones-believed') {
      this.#refuseOther(beat);
      const silence = 2_000 * heartbeatSeconds;
      if (this.#bootId === bootId && this.#goesOnBeside(nowMs, silence)) this.#dispute(host);
      if (this.#bootId !== undefined && this.#bootId !== bootId) {
        this.#refuseRival(beat, nowMs, silence);
        this.#older.add(this.#bootId);
        this.#rivals.clear();
      }
    }
    const rebooted = this.#bootId !== undefined && this.#bootId !== bootId;
    this.#machineId = machineId;
    this.#agentId = agentId;
    this.#bootId = bootId;
    this.#seenMs = nowMs;
    return rebooted;
  }

  /** An operator says that this one is the host. */
  settle({ agentId, bootId }: Identity): void {
    for (const boot of [...this.#older, this.#bootId, ...this.#rivals.keys()]) {
      if (boot !== undefined && boot !== bootId) this.#ousted.add(boot);
    }
    this.#disputed = false;
    this.#agentId = agentId;
    this.#bootId = bootId;
    this.#older.clear();
    this.#rivals.clear();
  }

  #refuseOther({ host, machineId, agentId, bootId }: Beat): void {
    if (this.#disputed) this.#dispute(host);
    if (this.#machineId === undefined) return;
    if (this.#machineId !== machineId) throw conflict(`another machine is host ${host}`);
    if (this.#agentId !== agentId && this.#bootId !== bootId) {
      throw conflict(`another agent is host ${host}`);
    }
    if (this.#ousted.has(bootId)) throw conflict(`an operator has decided about host ${host}`);
  }

  #dispute(host: string): never {
    this.#disputed = true;
    throw conflict(`two machines with one machine id call themselves host ${host}`);
  }

  /** A boot does not come back, and one that has ended is silent soon. */
  #refuseRival({ host, bootId }: Beat, nowMs: number, silence: number): void {
    const isOlder = this.#older.has(bootId);
    const silent = nowMs - this.#seenMs;
    if (!isOlder && silent >= silence) return;
    const rival = this.#rivals.get(bootId) ?? { first: nowMs, last: nowMs };
    rival.last = nowMs;
    this.#rivals.set(bootId, rival);
    const span = silence * GOES_ON;
    const { first, ownFirst = nowMs, ownLast = nowMs } = rival;
    if (nowMs - first >= span && (isOlder || ownLast - ownFirst >= span)) this.#dispute(host);
    const wait = isOlder ? span : Math.max(silence - silent, 1);
    throw conflict(`host ${host} was heard from another boot`, Math.ceil(wait));
  }

  #goesOnBeside(nowMs: number, silence: number): boolean {
    const span = silence * GOES_ON;
    let found = false;
    for (const [boot, rival] of this.#rivals) {
      if (nowMs - rival.last > 2 * silence) {
        this.#rivals.delete(boot);
        continue;
      }
      rival.ownFirst ??= nowMs;
      rival.ownLast = nowMs;
      found ||= rival.last - rival.first >= span && nowMs - rival.ownFirst >= span;
    }
    return found;
  }
}
