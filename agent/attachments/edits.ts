import { isDeepStrictEqual } from 'node:util';
import type { Attachment } from '#protocol/attachment.ts';
import { workloadDns } from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';
import type { LetGo, NetworkRecord } from '#ipam-store/ledger.ts';
import { withoutAddresses } from './attachments.ts';
import type { EventLog } from '../storage/events.ts';
import type { AttachmentRecord, Journal } from '../storage/journal.ts';
import type { Log } from '../log.ts';
import type { HostAttachments } from '../host/host-attachments.ts';
import type { NetworkTypes } from '../host/networks/network-type.ts';
import type { HostNetwork } from '../host/networks/types.ts';
import { reviseRoutes } from '../host/networks/interface.ts';
import type { IdLocks } from '../schedule/id-lock.ts';

export interface EditsOptions {
  readonly journal: Journal;
  readonly locks: IdLocks;
  readonly networkTypes: NetworkTypes;
  readonly attachments: Pick<HostAttachments, 'mend'>;
  readonly bridges: Pick<HostNetwork['bridges'], 'revise'>;
  readonly events: EventLog;
  readonly log: Log;
}

/** Applies changed network definitions to the attachments and bridges of this host. */
export class Edits {
  readonly #options: EditsOptions;

  constructor(options: EditsOptions) {
    this.#options = options;
  }

  /** Rejects if a part of the change cannot be applied now. The next call applies the rest. */
  async apply(networks: readonly NetworkRecord[], letGo: readonly LetGo[]): Promise<void> {
    const { journal, bridges, locks } = this.#options;
    const known = new Map(networks.map((one) => [one.network.network, one]));
    // Networks that the ledger has lost: a network with attachments cannot be deleted.
    const unknown = new Set<string>();
    for (const { id, request } of journal.values()) {
      const record = known.get(request.network);
      if (record === undefined) unknown.add(request.network);
      // The record may be of an attach under way. It has ended when the lock of the id is free.
      if (record === undefined || !this.#isBehind(id, record, letGo)) continue;
      await locks.take(id, Infinity, async () => this.#revise(id, record, letGo));
    }
    const definitions = new Map([...known].map(([name, { network }]) => [name, network]));
    bridges.revise(definitions, letGo, unknown);
  }

  #isBehind(id: string, { network, revision }: NetworkRecord, letGo: readonly LetGo[]): boolean {
    const record = this.#options.journal.get(id);
    if (record === undefined) return false;
    const own = record.attachment?.filterAddresses ?? [];
    const name = network.network;
    const lets = letGo.some((one) => one.network === name && own.includes(one.address));
    return record.revision !== revision || lets;
  }

  /** The caller holds the lock of the id. */
  #revise(id: string, { network, revision }: NetworkRecord, letGo: readonly LetGo[]): void {
    const { journal, networkTypes, attachments, log } = this.#options;
    const record = journal.get(id);
    const { attachment: before, network: was } = record ?? {};
    if (record?.state !== 'attached' || before === undefined || was === undefined) return;
    const now = withoutAddresses(network);
    const filter = networkTypes[record.networkType]?.filterOf(now, before.kind) ?? before.filter;
    const after = { ...revised(before, now, letGo), filter };
    if (!isDeepStrictEqual(was, now) || !isDeepStrictEqual(before, after)) {
      attachments.mend({ ...record, attachment: after, network: now });
      changeRoutes(record, before, { was, now });
    }
    journal.put({ ...record, attachment: after, network: now, revision });
    if (isDeepStrictEqual(before, after)) return;
    log.info({ id, revision }, 'attachment updated to the revision of its network');
    this.#options.events.add({
      type: 'updated',
      network: network.network,
      subject: id,
      operation: 'update',
      requestId: `revision-${revision}-${id}-${after.generation}`,
      trace: {},
      body: after,
    });
  }
}

/** The attachment with the network's current routes and DNS, without filter addresses that the network let go. */
function revised(before: Attachment, network: Network, letGo: readonly LetGo[]): Attachment {
  const { filterAddresses, ...rest } = before;
  const isLeft = (address: string): boolean =>
    letGo.some((one) => one.network === network.network && one.address === address);
  const kept = filterAddresses?.filter((address) => !isLeft(address)) ?? [];
  return {
    ...rest,
    routes: network.routes ?? [],
    dns: workloadDns(network),
    ...(kept.length > 0 && { filterAddresses: kept }),
  };
}

/** Only for containers with a device: a VM's guest sets its own routes, and an isolated container has none of ours. */
function changeRoutes(
  { namespaceIdentity: identity }: AttachmentRecord,
  { kind, netns, device }: Attachment,
  { was, now }: { readonly was: Network; readonly now: Network },
): void {
  if (kind !== 'container' || netns === undefined || device === null) return;
  const ifindex = device.peer?.ifindex ?? device.ifindex;
  reviseRoutes({ netns, identity, ifindex }, was.routes ?? [], now.routes ?? []);
}
