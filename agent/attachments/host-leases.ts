import { toErrorBody, VoltError } from '#protocol/errors.ts';
import type { Ledger, Lease, LeaseOutcome, Self } from '#ipam-store/ledger.ts';
import type { Steps } from '#native/steps.ts';
import type { Config } from '../config.ts';
import type { Detaches } from './detaches.ts';
import { endedLease, type EventLog } from '../storage/events.ts';
import type { AttachmentRecord, Journal } from '../storage/journal.ts';
import type { Log } from '../log.ts';
import type { NetworkTypes } from '../host/networks/network-type.ts';
import { leaseOf } from '../host/reconcile/remake.ts';
import { nobodyWaits, type Slices } from '../schedule/slices.ts';
import type { IdLocks } from '../schedule/id-lock.ts';

export interface HostLeasesOptions {
  readonly self: Self;
  readonly onReboot: Config['onReboot'];
  readonly ledger: Ledger;
  readonly journal: Journal;
  readonly events: EventLog;
  readonly networkTypes: NetworkTypes;
  /** Names of all devices of ours on this host, by attachment id. */
  readonly taggedDevices: () => Steps<ReadonlyMap<string, string>>;
  readonly slices: Slices;
  readonly locks: IdLocks;
  readonly detaches: Detaches;
  readonly log: Log;
}

/** Ids of leases, of which an event names so many. */
const MAX_NAMED = 100;

/** Ids of leases of before a reboot that stay, and of those that end, or have been found without a record. */
export interface Settled {
  readonly kept: readonly string[];
  readonly released: readonly string[];
}

/** What is fenced and was not closed by this agent is another's. */
const hasLostLease = ({ state, closed }: AttachmentRecord): boolean =>
  state === 'fenced' && closed === undefined;

/**
 * What this host holds in the ledger, where records and leases have to be brought together: after a loss, a reboot,
 * an expiry, or when somebody else has been given what this host believes its own.
 */
export class HostLeases {
  readonly #options: HostLeasesOptions;
  /** Ids that wait for their turn to expire. */
  readonly #expiring = new Set<string>();

  constructor(options: HostLeasesOptions) {
    this.#options = options;
  }

  /**
   * The leases of all records whose lease is not another's by now, also of those that are being detached, as long as
   * they have a device. One that is being given back would be there again, if the ledger heard of it after that.
   */
  leases(): Lease[] {
    return this.#options.journal.values().flatMap(({ id }) => this.lease(id) ?? []);
  }

  /** The same of one. */
  lease(id: string): Lease | undefined {
    const record = this.#options.journal.get(id);
    if (record?.attachment === undefined || hasLostLease(record)) return undefined;
    if (this.#options.detaches.isReleasing(id)) return undefined;
    return leaseOf(record.attachment, record);
  }

  /** Detaches what is held beyond its `leaseTtlSeconds`, unless a repeated attach has extended it since. */
  async expire({ id, nowMs }: { id: string; nowMs: number }): Promise<void> {
    const { journal, ledger, locks, detaches } = this.#options;
    if (this.#expiring.has(id)) return;
    this.#expiring.add(id);
    const turn = locks.take(id, Infinity, async () => {
      const record = journal.get(id);
      if (record === undefined || !['attached', 'fenced'].includes(record.state)) return;
      if (hasLostLease(record)) return;
      const lease = await ledger.getLease(id);
      if (lease?.expiresAt === undefined || Date.parse(lease.expiresAt) > nowMs) return;
      detaches.begin(record, {
        reason: 'expired',
        requestId: `expired-${id}-${lease.generation}`,
        startedAt: new Date().toISOString(),
      });
    });
    await turn.finally(() => this.#expiring.delete(id));
  }

  /**
   * Sets an attachment down whose lease has ended without this host: the operator forgot the host, or its lease was
   * reclaimed, and its address or id may be another's. It stays like that until it is detached or attached anew.
   */
  async fence({ id, generation, holder }: LeaseOutcome): Promise<void> {
    const { journal, networkTypes, locks, events, log } = this.#options;
    await locks.take(id, Infinity, async () => {
      const record = journal.get(id);
      if (record?.state !== 'attached' || record.generation !== generation) return;
      networkTypes[record.networkType]?.setDown(record);
      journal.putAnyway({ ...record, state: 'fenced' });
      const by = holder === undefined ? '' : `: ${holder.id} on host ${holder.host} has it now`;
      const error = new VoltError('STALE_GENERATION', `${id} is fenced${by}`, {
        details: { id, generation, ...(holder !== undefined && { holder: { ...holder } }) },
      });
      log.error({ id, generation, holder }, 'fenced: its device is down');
      events.add({
        type: 'failed',
        network: record.request.network,
        subject: id,
        operation: 'fence',
        requestId: `fenced-${id}-${generation}`,
        trace: {},
        body: { ...toErrorBody(error), operation: 'fence', request: record.request },
      });
    });
  }

  /**
   * Leases of this host without a record are of before a reboot, or leaked. Those of containers end, since their
   * namespaces are gone; those of VMs that a reboot interrupted stay, unless `onReboot` says otherwise. Where a device
   * of ours stands all the same, the record was lost and the workload may live: then nothing is touched. `rebooted`: this
   * host has just come back from a reboot, and the VMs that it has records of are named, too.
   */
  async settle({ rebooted: afterReboot }: { rebooted: boolean }): Promise<Settled> {
    const { self, onReboot, ledger, journal, taggedDevices, slices, log } = this.#options;
    const { host, bootId } = self;
    let devices: ReadonlyMap<string, string> | undefined;
    // Those with a record reconcile makes again, or detaches.
    const before = afterReboot ? journal.ofEarlierBoot : [];
    const kept = onReboot === 'recreate' ? [...before] : [];
    const released = onReboot === 'recreate' ? [] : [...before];
    let cursor: string | undefined;
    do {
      const page = await ledger.listLeases({ host, ...(cursor !== undefined && { cursor }) });
      for (const lease of page.leases) {
        const { id, kind } = lease;
        if (journal.get(id) !== undefined) continue;
        devices ??= await slices.run(taggedDevices());
        const device = devices.get(id);
        if (device !== undefined) {
          log.error({ id, device }, 'a device and a lease without a record: left alone');
          continue;
        }
        const rebooted = lease.bootId !== bootId;
        if (rebooted && kind === 'vm' && onReboot === 'recreate') {
          kept.push(id);
          continue;
        }
        if (await this.release(lease)) released.push(id);
      }
      ({ cursor } = page);
    } while (cursor !== undefined);
    return { kept: kept.slice(0, MAX_NAMED), released: released.slice(0, MAX_NAMED) };
  }

  /** Ends a lease that has no record, in its turn; false where it has one by now, or has ended. */
  async release(lease: Lease): Promise<boolean> {
    const { self, ledger, journal, locks } = this.#options;
    const { id, generation } = lease;
    const ended = await locks.take(id, Infinity, async () => {
      if (journal.get(id) !== undefined) return false;
      const ending = { ...self, id, generation, cool: true };
      return (await ledger.release(ending)) === 'released';
    });
    if (ended) this.tellEnd(lease, lease.bootId === self.bootId ? 'interrupted' : 'reboot');
    return ended;
  }

  /** All leases of this host, by id; DEADLINE_EXCEEDED once nobody waits for them. */
  async listed(signal?: AbortSignal): Promise<Map<string, Lease>> {
    const { ledger } = this.#options;
    const { host } = this.#options.self;
    const leases = new Map<string, Lease>();
    let cursor: string | undefined;
    do {
      if (signal?.aborted === true) throw nobodyWaits();
      const page = await ledger.listLeases({ host, ...(cursor !== undefined && { cursor }) });
      for (const lease of page.leases) leases.set(lease.id, lease);
      ({ cursor } = page);
    } while (cursor !== undefined);
    return leases;
  }

  /** The `detached` event of a lease that ended without an attachment of this host. */
  tellEnd(lease: Lease, reason: 'reboot' | 'interrupted' | 'reclaimed'): void {
    const { id, generation, network } = lease;
    this.#options.events.add({
      type: 'detached',
      network,
      subject: id,
      operation: 'detach',
      requestId: `${reason}-${id}-${generation}`,
      trace: {},
      body: endedLease(lease, reason),
    });
  }
}
