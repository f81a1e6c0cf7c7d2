import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Firewall } from '../firewall/firewall.ts';
import type { Forwarding } from '../networks/forwarding.ts';
import type { FoundDifference } from '#protocol/differences.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { HostLeases } from '../../attachments/host-leases.ts';
import { Rhythm } from '../../schedule/rhythm.ts';
import type { Slices, Wanted } from '../../schedule/slices.ts';
import type { Standing } from '../../fleet/standing.ts';
import { compare, differencesIn, isKept } from './comparison.ts';
import { agrees } from '../comparator.ts';
import type { NetworkDifferences } from '../bridges/bridges.ts';
import { MacChanges } from './mac-changes.ts';
import type { SeenLink } from './observe.ts';
import { type Action, GRACE_MS, type Plan, type PlanOptions } from './plan.ts';
import { Relapses } from './relapses.ts';
import { Repairs, type RepairsOptions } from './repairs.ts';
import { repairs } from '../../measure.ts';
import { isTagOf, taggedId } from '../ownership.ts';

export interface ReconcileOptions extends RepairsOptions {
  readonly periodSeconds: number;
  readonly firewall: Pick<Firewall, 'restore' | 'onRestored'>;
  readonly forwarding: Pick<Forwarding, 'onSwitchedOff'>;
  /** All leases of this host, by id. */
  readonly hostLeases: Pick<HostLeases, 'listed' | 'release'>;
  readonly standing: Pick<Standing, 'refusal'>;
  readonly slices: Slices;
}

/** Changes that come within this time are looked at together. */
const GATHER_MS = 50;
/**
 * With very many attachments a comparison of all takes seconds. Periods in between are left out, so that comparing takes a
 * hundredth of a processor, and ten periods at most. What the kernel reports is looked at in any case.
 */
const REST = { timesBusy: 100, periods: 10 };
/** By then every report of how a device was made has been read. */
const NEW_FOR_MS = 2_000;
/** Actions between two turns of the event loop, so that requests are not kept waiting. */
const ACTIONS_PER_TURN = 16;
const MANY_ACTIONS = 256;
const BACKOFF_FIRST_MS = 1_000;
const BACKOFF_MOST_MS = 300_000;
/**
 * A device that disappears this often is made again only after pauses: the holder of a TAP may end its persistence
 * (TUNSETPERSIST).
 */
const REMAKES = { limit: 3, withinMs: 10_000 };
/** The same for a device that somebody changes again after each repair. */
const MENDS = { limit: 20, withinMs: 10_000 };

/**
 * The result of the last comparison of the whole host. `agrees`: with its records and the ledger. `alone`: with its
 * records; the ledger could not be asked. `differs`: there are differences. `unknown`: nothing was compared yet.
 */
export type Agreement = 'unknown' | 'alone' | 'differs' | 'agrees';

/** The result of a check of records and kernel. */
export interface Preview {
  readonly plan: Plan;
  readonly differences: readonly FoundDifference[];
}

interface Failure {
  readonly action: Action;
  /** It was repaired, and differs again: somebody works against it. */
  readonly again: boolean;
  readonly waitMs: number;
  readonly until: number;
  readonly reason: string;
}

/**
 * Keeps the host as the records say. Compares host and records at the start, when the kernel reports a change of an
 * object of ours, and every period. Repairs what differs, each attachment in its own turn (`IdLocks`).
 */
export class Reconcile {
  readonly #options: ReconcileOptions;
  readonly #repairs: Repairs;
  readonly #dirty = new Set<string>();
  readonly #dirtyNetworks = new Set<string>();
  readonly #failures = new Map<string, Failure>();
  readonly #relapses = { remake: new Relapses(REMAKES), mend: new Relapses(MENDS) };
  readonly #macChanges: MacChanges;
  /** The indexes of devices that the kernel has reported as their records say. */
  readonly #settled = new Set<number>();
  #suspects: Plan['suspects'] = new Map();
  #agreement: Agreement = 'unknown';
  #differing = 0;
  /** Kind and id of each action of the last comparison of the whole host. */
  #done: ReadonlySet<string> = new Set();
  #watch: Disposable | undefined;
  /** Holds events of repairs back while there are so many that publishing them would slow the repairs down. */
  #held: Disposable | undefined;
  readonly #period: Rhythm;
  /** Until then no period begins a comparison: the last one took so long (`REST`). */
  #restUntil = 0;
  #gathering: NodeJS.Timeout | undefined;
  #again: NodeJS.Timeout | undefined;
  #all = false;
  #running: Promise<void> = Promise.resolve();
  readonly #stopping = new AbortController();

  constructor(options: ReconcileOptions) {
    this.#options = options;
    this.#period = new Rhythm({
      periodMs: options.periodSeconds * 1_000,
      run: () => {
        if (performance.now() >= this.#restUntil) this.nudge();
        this.#period.ended('calm');
      },
    });
    this.#repairs = new Repairs(options);
    const close = (id: string, difference: FoundDifference): void => {
      this.#repairs.close(id, difference).catch((error: unknown) => {
        options.log.error(
          { id, difference, error: String(error) },
          'the device could not be closed',
        );
      });
    };
    this.#macChanges = new MacChanges({ ...options, close });
  }

  start(): void {
    const { firewall, forwarding, bridges } = this.#options;
    this.#watchHost();
    // What stands from before is not being made.
    for (const { attachment } of this.#options.journal.values()) {
      const { device } = attachment ?? {};
      if (device) this.#settled.add(device.ifindex);
    }
    firewall.onRestored((found) => {
      repairs.note({ action: 'firewall', result: 'done' });
      this.#repairs.toldFirewall(found);
    });
    forwarding.onSwitchedOff((families) => {
      this.#noteDirtyNetworks(bridges.networksForwarding(families));
    });
    this.#period.start();
  }

  #watchHost(): void {
    this.#watch ??= this.#options.devices.watch({
      onLink: (link, gone) => this.#noteLink(link, gone),
      onAddressGone: (ifindex) => {
        this.#noteDirtyNetworks(this.#options.bridges.networksOn(ifindex));
      },
      onOverrun: () => this.nudge(),
    });
  }

  #stopWatching(): void {
    this.#watch?.[Symbol.dispose]();
    this.#watch = undefined;
  }

  get agreement(): Agreement {
    return this.#agreement;
  }

  /** How many attachments, devices, leases and networks differed in the last comparison of the whole host. */
  get differing(): number {
    return this.#differing;
  }

  /** Why the last repair failed, by attachment id or `network NAME`. */
  get unrepaired(): ReadonlyMap<string, string> {
    return new Map([...this.#failures].map(([id, { reason }]) => [id, reason]));
  }

  /** Compares everything, soon. */
  nudge(): void {
    this.#all = true;
    this.#gather();
  }

  /**
   * The differences, and what would be done about them now, for one attachment or the whole host. Also looks into
   * workloads' namespaces. Changes nothing.
   */
  async preview(id: string | undefined, wanted: Wanted): Promise<Preview> {
    const { journal, devices, bridges, slices, attachments } = this.#options;
    const records =
      id === undefined ? journal.values() : [journal.get(id)].filter((one) => one !== undefined);
    const deep = { deep: true };
    const observing =
      id === undefined ? devices.observe(records, deep) : devices.lookUp(records, deep);
    const suspects = this.#suspects;
    const compared = await compare(this.#options, records, { observing, suspects, wanted });
    const comparing = differencesIn(records, compared, attachments.describe);
    const named = id === undefined ? undefined : records.map(({ request }) => request.network);
    const networks = await slices.run(bridges.compare(named), wanted);
    const { plan } = compared;
    return {
      plan: { ...plan, actions: [...networkActions(networks), ...plan.actions] },
      differences: [
        ...(await slices.run(comparing, wanted)),
        ...networks.flatMap(networkDifferences),
      ],
    };
  }

  /** Resolves when the work under way has ended. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#period.stop();
    clearTimeout(this.#gathering);
    clearTimeout(this.#again);
    await this.#running;
    this.#publishHeld();
    this.#stopWatching();
  }

  /** The kernel also reports changes that this agent makes: a device that agrees with its record needs no look. */
  #noteLink(link: SeenLink, gone: boolean): void {
    this.#noteDirtyNetworks(this.#options.bridges.disturbedBy(link, gone));
    const { journal, attachments } = this.#options;
    const tagged = journal.get(taggedId(link.alias) ?? '');
    const record = this.#retagged(link) ?? tagged;
    if (record === undefined) return;
    if (!gone && record === tagged) this.#macChanges.note(record, link);
    const description = isKept(record) ? attachments.describe(record) : undefined;
    if (description === undefined) return;
    if (gone) this.#settled.delete(link.index);
    else if (agrees(description, link)) {
      this.#settled.add(link.index);
      return;
    } else if (this.#isBeingMade(record, link)) return;
    this.#noteDirty([record.id]);
  }

  /**
   * Each step of making a device is reported, and read when the device is finished and recorded. The report of the last
   * step agrees with the record; what differs after that is somebody else's doing.
   */
  #isBeingMade({ state, createdAt }: AttachmentRecord, { index }: SeenLink): boolean {
    if (state !== 'attached' || this.#settled.has(index)) return false;
    return Date.now() - Date.parse(createdAt) < NEW_FOR_MS;
  }

  /**
   * The record of a device whose alias somebody has removed or replaced. A device that is being made has no alias either,
   * but is down.
   */
  #retagged({ name, up, alias }: SeenLink): AttachmentRecord | undefined {
    const record = up ? this.#options.journal.ofDevice(name) : undefined;
    return record !== undefined && isTagOf(alias, record.id) ? undefined : record;
  }

  /** Compares these attachments alone, soon. */
  #noteDirty(ids: readonly string[]): void {
    for (const id of ids) this.#dirty.add(id);
    if (ids.length > 0) this.#gather();
  }

  #noteDirtyNetworks(names: readonly string[]): void {
    for (const name of names) this.#dirtyNetworks.add(name);
    if (names.length === 0) return;
    this.#tryAgain(new Set(names));
    this.#gather();
  }

  /** The bridge or the uplink of these networks has changed: what has failed need not wait for the end of its pause. */
  #tryAgain(networks: ReadonlySet<string>): void {
    for (const [subject, { action, again }] of this.#failures) {
      const { kind, id } = action;
      const ofNetwork = kind === 'network' ? id : this.#options.journal.get(id)?.request.network;
      if (again || !networks.has(ofNetwork ?? '')) continue;
      this.#failures.delete(subject);
      if (kind !== 'network') this.#dirty.add(id);
    }
  }

  #gather(): void {
    if (this.#stopping.signal.aborted) return;
    this.#gathering ??= setTimeout(() => {
      this.#running = this.#running.then(async () => {
        this.#gathering = undefined;
        try {
          await this.#pass();
        } catch (error) {
          if (this.#stopping.signal.aborted) return;
          this.#options.log.error({ error: String(error) }, 'reconcile: the host cannot be read');
        }
      });
    }, GATHER_MS);
  }

  async #pass(): Promise<void> {
    const { journal, devices, bridges, slices, log } = this.#options;
    const wanted = { signal: this.#stopping.signal };
    const suspects = this.#suspects;
    const all = this.#all;
    const dirty = [...this.#dirty];
    const dirtyNetworks = [...this.#dirtyNetworks];
    const busyBefore = slices.busyMs;
    this.#all = false;
    this.#dirty.clear();
    this.#dirtyNetworks.clear();
    if (!all) {
      const ofNetworks = await slices.run(bridges.compare(dirtyNetworks), wanted);
      await this.#apply(networkActions(ofNetworks));
      const records = dirty.map((id) => journal.get(id)).filter((one) => one !== undefined);
      const observing = devices.lookUp(records);
      const part = await compare(this.#options, records, { observing, suspects, wanted });
      this.#noteDirty(part.changed);
      // Only a comparison of the whole host stores when a suspect was first seen.
      if (part.plan.suspects.size > 0) this.nudge();
      await this.#apply(part.plan.actions);
      this.#lookAgain();
      return;
    }
    // Read before the leases. Attachments that change from here on are left out of this comparison.
    const records = journal.values();
    const leases = await this.#leases();
    this.#restoreFirewall();
    const ofNetworks = networkActions(await slices.run(bridges.compare(), wanted));
    const observing = devices.observe(records);
    const known = { observing, leases, suspects, wanted };
    const { plan: whole, changed } = await compare(this.#options, records, known);
    this.#noteDirty(changed);
    this.#suspects = whole.suspects;
    this.#rest(slices.busyMs - busyBefore);
    const actions = [...ofNetworks, ...whole.actions];
    this.#differing = actions.length + whole.suspects.size;
    const differs = this.#differing > 0;
    const agreement = differs ? 'differs' : leases === undefined ? 'alone' : 'agrees';
    if (agreement !== this.#agreement) {
      log.info({ agreement, attachments: records.length }, 'the host compared with its records');
    }
    this.#agreement = agreement;
    const concerned = new Set(actions.map(subjectOf));
    for (const id of this.#failures.keys()) if (!concerned.has(id)) this.#failures.delete(id);
    if (whole.actions.length > MANY_ACTIONS) {
      // So many changes of our own need no reports by the kernel: everything is compared again afterwards.
      this.#stopWatching();
      this.#held ??= this.#options.events.holdRepairs();
    } else {
      this.#publishHeld();
    }
    const done = await this.#apply(actions, this.#done);
    this.#done = done;
    this.#watchHost();
    // Compares again to see whether the repairs helped.
    if (done.size > 0) this.nudge();
    this.#lookAgain();
  }

  #rest(busyMs: number): void {
    const most = REST.periods * 1_000 * this.#options.periodSeconds;
    this.#restUntil = performance.now() + Math.min(REST.timesBusy * busyMs, most);
  }

  #publishHeld(): void {
    this.#held?.[Symbol.dispose]();
    this.#held = undefined;
  }

  /** Compares again when the first grace period, or the first pause after a failure, is over. */
  #lookAgain(): void {
    clearTimeout(this.#again);
    const now = performance.now();
    const times = [
      ...[...this.#suspects.values()].map((since) => since + GRACE_MS),
      ...[...this.#failures.values()].map(({ until }) => until),
    ];
    const next = Math.min(...times.filter((at) => at > now));
    if (this.#stopping.signal.aborted || next === Infinity) return;
    this.#again = setTimeout(() => this.nudge(), next - now);
  }

  async #leases(): Promise<PlanOptions['leases']> {
    const { session, hostLeases, log } = this.#options;
    if (!session().status.open) return undefined;
    try {
      return await hostLeases.listed();
    } catch (error) {
      log.warn({ error: String(error) }, 'leases cannot be compared now');
      return undefined;
    }
  }

  #restoreFirewall(): void {
    const { firewall, log } = this.#options;
    try {
      firewall.restore();
    } catch (error) {
      log.error({ error: String(error) }, 'nftables cannot be restored');
    }
  }

  /**
   * Returns kind and id of each action that was done. An action that is also in `before` has not helped the last time.
   */
  async #apply(
    actions: readonly Action[],
    before: ReadonlySet<string> = new Set(),
  ): Promise<Set<string>> {
    const done = new Set<string>();
    let tried = 0;
    for (const action of actions) {
      if (this.#stopping.signal.aborted) return done;
      const failure = this.#failures.get(subjectOf(action));
      if (failure !== undefined && performance.now() < failure.until) continue;
      const key = `${action.kind} ${action.id}`;
      try {
        await this.#repairs.repair(action, this.#suspects);
        repairs.note({ action: action.kind, result: 'done' });
        done.add(key);
        const relapses = isRepeatable(action) ? this.#relapses[action.kind] : undefined;
        const again = relapses?.note(action.id, performance.now()) === true;
        if (before.has(key) || again)
          this.#noteFailure(action, 'it differs again after a repair', true);
        else this.#failures.delete(subjectOf(action));
      } catch (error) {
        repairs.note({ action: action.kind, result: 'failed' });
        this.#noteFailure(action, error);
      }
      tried += 1;
      if (tried % ACTIONS_PER_TURN === 0) await nextTurn();
    }
    return done;
  }

  #noteFailure(action: Action, error: unknown, again = false): void {
    const { id, kind, differences } = action;
    const before = this.#failures.get(subjectOf(action))?.waitMs;
    const waitMs = before === undefined ? BACKOFF_FIRST_MS : Math.min(before * 2, BACKOFF_MOST_MS);
    const reason = error instanceof Error ? error.message : String(error);
    const until = performance.now() + waitMs;
    this.#failures.set(subjectOf(action), { action, again, waitMs, until, reason });
    const { log } = this.#options;
    log.warn({ id, action: kind, differences, waitMs, error: String(error) }, 'not repaired yet');
  }
}

const isRepeatable = (action: Action): action is Action & { kind: 'mend' | 'remake' } =>
  action.kind === 'mend' || action.kind === 'remake';

/** A network and an attachment may have the same name. */
const subjectOf = ({ kind, id }: Action): string => (kind === 'network' ? `network ${id}` : id);

/** One action for each network that has repairable differences. */
const networkActions = (found: readonly NetworkDifferences[]): Action[] =>
  found.flatMap((one) => {
    const repairable = one.differences.filter((difference) => difference.repairable);
    if (repairable.length === 0) return [];
    const differences = networkDifferences({ ...one, differences: repairable });
    return [{ kind: 'network', id: one.network, differences }];
  });

const networkDifferences = ({ network, differences }: NetworkDifferences): FoundDifference[] =>
  differences.map(({ what, expected, observed }) => ({ id: network, what, expected, observed }));
