import type { FoundDifference } from '#protocol/differences.ts';
import type { RepairAction } from '#protocol/events.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { atOnce } from '#native/steps.ts';
import type { Config } from '../../config.ts';
import type { Detaches } from '../../attachments/detaches.ts';
import type { EventLog } from '../../storage/events.ts';
import type { HostLeases } from '../../attachments/host-leases.ts';
import type { Journal } from '../../storage/journal.ts';
import type { Log } from '../../log.ts';
import { type NetworkTypes } from '../networks/network-type.ts';
import type { HostAttachments } from '../host-attachments.ts';
import type { HostNetwork } from '../networks/types.ts';
import type { Session } from '../../fleet/session.ts';
import type { IdLocks } from '../../schedule/id-lock.ts';
import type { TableDifference } from '../firewall/contents.ts';
import type { HostDevices } from './host-devices.ts';
import { type Action, holderOf, plan, type Plan } from './plan.ts';
import { remake } from './remake.ts';
import { isStray, taggedId } from '../ownership.ts';
import { type RequestTrace, tracedRequest } from '../../trace.ts';

export interface RepairsOptions {
  readonly host: string;
  readonly bootId: string;
  readonly onReboot: Config['onReboot'];
  readonly journal: Journal;
  readonly ledger: Ledger;
  readonly events: EventLog;
  readonly networkTypes: NetworkTypes;
  readonly attachments: HostAttachments;
  readonly devices: HostDevices;
  readonly bridges: HostNetwork['bridges'];
  readonly locks: IdLocks;
  readonly detaches: Detaches;
  readonly hostLeases: Pick<HostLeases, 'release'>;
  /** The ledger is asked only while the session is open. */
  readonly session: () => Pick<Session, 'status' | 'reassert'>;
  readonly log: Log;
}

/** Carries out the actions of a plan, each in the turn of its attachment, so that it races no request. */
export class Repairs {
  readonly #options: RepairsOptions;

  constructor(options: RepairsOptions) {
    this.#options = options;
  }

  /** Carries out one action; rejects if that fails. `suspects` are those of the plan. */
  async repair(action: Action, suspects: Plan['suspects']): Promise<void> {
    const { id, kind } = action;
    const about = kind === 'network' ? 'volt.network' : 'volt.attachment.id';
    const trace: RequestTrace = {
      name: `repair ${kind}`,
      role: 'internal',
      attributes: { 'volt.host': this.#options.host, [about]: id },
    };
    await tracedRequest(trace, async () => {
      // `hostLeases.release` takes the turn itself.
      if (action.kind === 'release') await this.#release(action);
      else if (action.kind === 'network') this.#repairNetwork(action, trace);
      else {
        const { locks } = this.#options;
        await locks.take(id, Infinity, () => this.#inTurn(action, suspects, trace));
      }
    });
  }

  /** Plans again, since requests may have changed the attachment since, and carries out the new plan. */
  async #inTurn(planned: Action, suspects: Plan['suspects'], trace: RequestTrace): Promise<void> {
    const { journal, devices, detaches, networkTypes, attachments, log } = this.#options;
    const { id } = planned;
    const record = journal.get(id);
    if (planned.kind === 'remove') {
      const { link } = planned;
      const tagged = journal.get(taggedId(link.alias) ?? '');
      if (
        isStray(
          link,
          tagged && holderOf(tagged, attachments.describe),
          journal.namesDevice(link.name),
        )
      )
        await this.#removeStray(planned);
      return;
    }
    if (record === undefined) return;
    if (planned.kind === 'reassert') {
      if (record.state === 'attached') await this.#reassert(planned);
      return;
    }
    const observed = atOnce(devices.lookUp([record]));
    const { bootId, onReboot } = this.#options;
    const now = performance.now();
    const { describe } = attachments;
    const known = { describe, suspects, bootId, onReboot, now };
    const anew = plan({ records: [record], observed, ...known });
    const [action] = atOnce(anew).actions;
    if (action === undefined) return;
    const { kind, differences } = action;
    const type = networkTypes[record.networkType];
    const { attachment, network } = record;
    if (type === undefined || attachment === undefined) return;
    if (kind === 'close') {
      type.setDown(record);
      log.warn({ id, differences }, 'a fenced device was open: closed again');
    } else if (kind === 'detach') {
      log.warn({ id, reason: action.reason, differences }, 'its workload is gone: detached');
      detaches.begin(record, {
        reason: action.reason,
        requestId: `${action.reason}-${id}-${attachment.generation}`,
        startedAt: new Date().toISOString(),
      });
    } else if (network !== undefined && (kind === 'mend' || kind === 'remake')) {
      if (kind === 'remake') {
        await remake(this.#options, type, { ...record, attachment, network });
      } else {
        attachments.mend({ ...record, attachment, network });
        if (record.bootId !== bootId) journal.put({ ...record, bootId });
      }
      tellRepaired(this.#options, id, kind, differences, trace);
    }
  }

  /**
   * Sets a device down for good, since its holder harms others again and again. It stays down until it is detached or
   * attached anew.
   */
  async close(id: string, difference: FoundDifference): Promise<void> {
    const { journal, networkTypes, locks, log } = this.#options;
    await locks.take(id, Infinity, async () => {
      const record = journal.get(id);
      if (record?.state !== 'attached') return;
      networkTypes[record.networkType]?.setDown(record);
      journal.putAnyway({ ...record, state: 'fenced', closed: difference });
      log.error(
        { id, difference },
        'its MAC was changed again and again: closed until it is detached',
      );
      tellRepaired(this.#options, id, 'close', [difference]);
    });
  }

  /** Stores the event that the nftables were loaded again. Its id is the host: no single attachment has the tables. */
  toldFirewall(found: readonly TableDifference[]): void {
    const { events, host } = this.#options;
    const differences = found.map(({ what, ...counts }) => ({
      id: host,
      what: `nftables ${what}`,
      ...counts,
    }));
    events.add({
      type: 'repaired',
      network: '-',
      subject: host,
      operation: 'repair',
      requestId: `repaired-${host}-${Date.now()}`,
      trace: {},
      body: { host, differences, action: 'firewall' },
    });
  }

  #repairNetwork(
    { id: network, differences }: Action & { kind: 'network' },
    trace: RequestTrace,
  ): void {
    const { bridges, events, host, log } = this.#options;
    bridges.repair(network);
    log.warn(
      { network, differences },
      'repaired the bridge and settings of this network on the host',
    );
    events.add({
      type: 'repaired',
      network,
      subject: network,
      operation: 'repair',
      requestId: `repaired-network-${network}-${Date.now()}`,
      trace,
      body: { host, network, action: 'network', differences },
    });
  }

  /** If the ledger says that the lease is another's by now, the attachment is fenced. */
  async #reassert({ id, differences }: Action & { kind: 'reassert' }): Promise<void> {
    const { session, log } = this.#options;
    await session().reassert(id);
    log.warn({ id, differences }, 'the ledger has no lease of this generation: told of it');
  }

  async #release({ id, lease }: Action & { kind: 'release' }): Promise<void> {
    const { hostLeases, log } = this.#options;
    if (!(await hostLeases.release(lease))) return;
    log.warn(
      { id, generation: lease.generation },
      'released a lease that no attachment of this host has',
    );
  }

  /** A device with a lease and no record is left alone: the record was lost, and the workload may still run. */
  async #removeStray({ id, link }: Action & { kind: 'remove' }): Promise<void> {
    const { ledger, devices, journal, host, log } = this.#options;
    const tagged = taggedId(link.alias) !== undefined;
    if (tagged && journal.get(id) === undefined && (await ledger.getLease(id))?.host === host) {
      log.error({ id, device: link.name }, 'a device and a lease without a record: left alone');
      return;
    }
    await devices.remove(link);
    log.warn(
      { id, device: link.name },
      'removed a device that belongs to no attachment of this host',
    );
  }
}

/** Stores the event of a repair, after the events of the attachment that are still to be published. */
export function tellRepaired(
  {
    journal,
    events,
    host,
    log,
  }: Pick<RepairsOptions, 'journal' | 'events' | 'host'> & { readonly log: Pick<Log, 'warn'> },
  id: string,
  action: Exclude<RepairAction, 'network' | 'firewall'>,
  differences: readonly FoundDifference[],
  trace: Pick<RequestTrace, 'traceparent' | 'tracestate'> = {},
): void {
  const attachment = journal.get(id)?.attachment;
  if (attachment === undefined) return;
  const { generation, workload, network, device } = attachment;
  log.warn({ id, action, differences }, 'repaired');
  events.add({
    type: 'repaired',
    network,
    subject: id,
    operation: 'repair',
    requestId: `repaired-${id}-${generation}-${Date.now()}`,
    trace,
    body: { id, generation, workload, network, host, device, action, differences },
  });
}
