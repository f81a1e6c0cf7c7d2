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

/** The most lease ids that one event names. */
const MAX_NAMED = 100;

/** Lease ids from before a reboot that stay (`kept`) or end (`released`), and leases without a record that ended. */
export interface Settled {
  readonly kept: readonly string[];
  readonly released: readonly string[];
}

/** A fenced attachment that this agent has not closed itself has lost its lease. */
const hasLostLease = ({ state, closed }: AttachmentRecord): boolean =>
  state === 'fenced' && closed === undefined;

/**
 * The leases of this host in the ledger, where they may differ from its records: after a loss of data, a reboot or an
 * expiry, or when the ledger has given a lease of this host to another.
 */
export class HostLeases {
  readonly #options: HostLeasesOptions;
  /** Ids whose `expire` is under way. */
  readonly #expiring = new Set<string>();

  constructor(options: HostLeasesOptions) {
    this.#options = options;
  }

  /**
   * The leases of all records that still hold theirs, also of those that are being detached, as long as they have a
   * device. A lease that is being released is left out: if the ledger heard of it afterwards, it would come back.
   */
  leases(): Lease[] {
    return this.#options.journal.values().flatMap(({ id }) => this.lease(id) ?? []);
  }

  /** As `leases`, for one id. */
  lease(id: string): Lease | undefined {
    const record = this.#options.journal.get(id);
    if (record?.attachment === undefined || hasLostLease(record)) return undefined;
    if (this.#options.detaches.isReleasing(id)) return undefined;
    return leaseOf(record.attachment, record);
  }

  /** Detaches an attachment whose `leaseTtlSeconds` are over, unless a repeated attach has extended its lease. */
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
   * Sets the device of an attachment down when its lease has ended without this host: the operator forgot the host, or
   * the lease was reclaimed, and another may hold its address or id. The device stays down until the attachment is
   * detached or attached again.
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
   * Settles the leases of this host that have no record: they are from before a reboot, or leaked. Leases of containers
   * end, since their namespaces are gone. Leases of VMs that a reboot interrupted stay, unless `onReboot` says
   * otherwise. If a device of ours with that id exists, the record was lost and the workload may live: then nothing is
   * touched. `rebooted`: this host has just rebooted, so the VMs with records are named, too.
   */
  async settle({ rebooted: afterReboot }: { rebooted: boolean }): Promise<Settled> {
    const { self, onReboot, ledger, journal, taggedDevices, slices, log } = this.#options;
    const { host, bootId } = self;
    let devices: ReadonlyMap<string, string> | undefined;
    // VMs with a record: reconcile makes their devices again, or detaches them.
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

  /** Releases a lease without a record, under the lock of its id. False if it has a record now, or has ended. */
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

  /** All leases of this host, by id. Throws DEADLINE_EXCEEDED once `signal` says that nobody waits for them. */
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

  /** Stores the `detached` event of a lease that ended without an attachment of this host. */
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
