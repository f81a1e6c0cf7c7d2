import type { Beat, Identity, Pulse } from '#ipam-store/ledger.ts';
import { VoltError } from '#protocol/errors.ts';
import { type IdentityMistake, ModelIdentity } from './identity.ts';

/** What may be wrong with the ledger's knowledge of hosts, to see that a simulation finds it. */
export type SessionMistake = IdentityMistake | 'loss-unnoticed' | 'armed-early';

interface Member {
  readonly identity: ModelIdentity;
  seenMs: number;
  suspect: boolean;
  /** It has said what it holds. */
  asserted: boolean;
}

const EPOCH_UNIT = 2 ** 32;

/** The hosts as the ledger knows them, and the counter of generations, by which it finds out that it has lost something. */
export class ModelSessions {
  readonly #mistake: string | undefined;
  readonly #members = new Map<string, Member>();
  /** 0 once it has vanished. */
  #generation = EPOCH_UNIT;
  /** Something has vanished, and not every host has said yet what it holds. */
  #lost = false;

  constructor(mistake: string | undefined) {
    this.#mistake = mistake;
  }

  get generation(): number {
    return this.#generation;
  }

  get #epoch(): string {
    return String(Math.floor(this.#generation / EPOCH_UNIT));
  }

  nextGeneration(step: number): number {
    this.#generation += step;
    return this.#generation;
  }

  get isArmed(): boolean {
    return !this.#lost && this.#generation > 0;
  }

  refuseUnarmed(): void {
    if (!this.isArmed) throw new VoltError('RECOVERING', 'the ledger has lost something');
  }

  /** Two machines under one host id: the ledger knows one of them, or neither. */
  refuseForeign(who: Identity): void {
    this.#members.get(who.host)?.identity.refuseForeign(who);
  }

  /** `voltnet host settle` on the machine that is the host. It says again what it holds. */
  settle(who: Identity): void {
    this.#members.get(who.host)?.identity.settle(who);
    this.askAgain(who.host);
  }

  refuseStranger(host: string): void {
    if (this.#members.get(host)?.asserted === true) return;
    throw new VoltError('RECOVERING', `${host} has no session`);
  }

  /** Who the host is vanishes; the list of hosts, which names it, is another key. */
  forget(host: string): void {
    const member = this.#members.get(host);
    member?.identity.forget();
    this.askAgain(host);
  }

  /** The counter vanishes, with the leases. */
  loseGeneration(): void {
    this.#generation = this.#mistake === 'loss-unnoticed' ? EPOCH_UNIT : 0;
  }

  /** Every host has to say again what it holds. The epoch grows, so that no generation is there twice. */
  beginRecovery(seen: number = this.#generation): void {
    this.#generation = (Math.floor(Math.max(seen, this.#generation) / EPOCH_UNIT) + 1) * EPOCH_UNIT;
    this.#lost = true;
    for (const host of this.#members.keys()) this.askAgain(host);
  }

  /** A host has to say again what it holds. */
  askAgain(host: string): void {
    const member = this.#members.get(host);
    if (member !== undefined) member.asserted = false;
  }

  /** RECOVERING where the ledger has moved on since the heartbeat that asked for it. */
  refuseOld({ host, epoch }: { host: string; epoch: string }): void {
    if (this.#members.has(host) && epoch === this.#epoch && this.#generation > 0) return;
    throw new VoltError('RECOVERING', `${host} has to send a heartbeat first`);
  }

  noteAsserted(host: string): void {
    const member = this.#members.get(host);
    if (member !== undefined) member.asserted = true;
  }

  /** The answer to a heartbeat, but for what is due. */
  heartbeat(beat: Beat, nowMs: number, revision: number): Pulse {
    const { host, suspectAfterSeconds, seen } = beat;
    const known = this.#members.get(host);
    const identity = known?.identity ?? new ModelIdentity(this.#mistake);
    let rebooted: boolean;
    try {
      rebooted = identity.hear(beat, nowMs);
    } finally {
      // Nobody grants anything before it has said again what it holds.
      if (identity.isDisputed) this.askAgain(host);
    }
    const began = seen.generation > this.#generation && this.#mistake !== 'loss-unnoticed';
    if (began) this.beginRecovery(seen.generation);
    if (this.#generation === 0) return { ...this.#pulse(nowMs, revision), state: 'unclaimed' };
    const before = known === undefined ? null : known.suspect ? 'suspect' : 'live';
    const member = known ?? { identity, seenMs: nowMs, suspect: false, asserted: false };
    Object.assign(member, { seenMs: nowMs, suspect: false });
    if (rebooted) member.asserted = false;
    this.#members.set(host, member);
    const ended = this.#arm();
    const fallen = this.#lost ? [] : this.#fall(nowMs - suspectAfterSeconds * 1_000);
    return {
      ...this.#pulse(nowMs, revision),
      mayAcquire: member.asserted && !this.#lost,
      reassert: !member.asserted,
      before,
      rebooted,
      began,
      ended,
      fallen,
    };
  }

  /** Armed again once every host has said what it holds. Answers whether this has ended the recovery. */
  #arm(): boolean {
    const said = new Set([...this.#members.values()].map(({ asserted }) => asserted));
    const early = this.#mistake === 'armed-early' && said.has(true);
    if (!this.#lost || (said.has(false) && !early)) return false;
    this.#lost = false;
    return true;
  }

  /** Who was silent since then, and was not suspect yet. */
  #fall(sinceMs: number): string[] {
    const fallen = [...this.#members].filter(([, one]) => !one.suspect && one.seenMs < sinceMs);
    for (const [, member] of fallen) member.suspect = true;
    return fallen.map(([name]) => name);
  }

  #pulse(nowMs: number, revision: number): Pulse {
    return {
      state: this.#lost ? 'recovering' : 'armed',
      nowMs,
      mayAcquire: false,
      reassert: false,
      epoch: this.#epoch,
      before: null,
      rebooted: false,
      began: false,
      ended: false,
      moved: [],
      missed: [],
      awaiting: [],
      fallen: [],
      reclaimed: [],
      due: [],
      tell: false,
      vouch: false,
      sweep: false,
      some: [],
      behind: false,
      seen: { generation: this.#generation, revision },
    };
  }
}
