import { IpAddress, IpPrefix } from '#protocol/address.ts';
import {
  type Attachment,
  contentKey,
  type UpdateAnswer,
  type UpdateRequest,
} from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { type Network, subnetsOf } from '#protocol/network.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { type Call, refuseOtherGeneration } from './attachments.ts';
import type { EventLog } from '../storage/events.ts';
import type { AttachmentRecord, Journal } from '../storage/journal.ts';
import type { HostAttachments } from '../host/host-attachments.ts';
import type { NetworkTypes } from '../host/networks/network-type.ts';
import type { Stretches } from '../schedule/stretches.ts';
import { phases } from '../measure.ts';
import { tracedStepSync } from '../trace.ts';

export interface UpdatesOptions {
  readonly ledger: Ledger;
  readonly journal: Journal;
  readonly events: EventLog;
  readonly networkTypes: NetworkTypes;
  readonly attachments: Pick<HostAttachments, 'update'>;
  readonly stretches: Stretches;
}

/** Changes live attachments. New settings are in force before old ones are removed, so that no packet is lost. */
export class Updates {
  readonly #options: UpdatesOptions;

  constructor(options: UpdatesOptions) {
    this.#options = options;
  }

  /** The caller holds the lock of the id. */
  async update(
    request: UpdateRequest & { readonly requestId: string },
    call: Call,
  ): Promise<UpdateAnswer> {
    const { journal, events, networkTypes, attachments, stretches } = this.#options;
    const record = journal.get(request.id);
    if (record?.attachment === undefined || record.state !== 'attached') {
      throw new VoltError('NOT_FOUND', `${request.id} is not attached on this host`);
    }
    refuseOtherGeneration(record, request.generation);
    const network = record.network ?? (await this.#network(record.request.network));
    if (request.filterAddresses !== undefined) {
      refuseLeasable(request.filterAddresses, await this.#network(network.network));
    }
    const type = networkTypes[record.networkType];
    if (type === undefined) throw new VoltError('UNSUPPORTED', `${record.networkType} networks`);
    const before = record.attachment;
    const after = changed(before, request);
    const kernelMs = await stretches.run(() => {
      const started = performance.now();
      using undo = new DisposableStack();
      tracedStepSync('kernel', () => {
        type.checkChange({ before, after, network });
        const change = {
          before: { ...record, attachment: before, network },
          after: { ...record, attachment: after, network },
        };
        attachments.update(change, undo);
      });
      journal.put(updatedRecord(record, after));
      undo.move();
      return performance.now() - started;
    });
    const { networkType } = record;
    phases.note({
      operation: 'update',
      phase: 'kernel',
      type: networkType,
      result: 'ok',
      ms: kernelMs,
    });
    events.add({
      type: 'updated',
      network: after.network,
      subject: after.id,
      operation: 'update',
      requestId: request.requestId,
      trace: call.trace,
      body: after,
      durationMs: { kernel: kernelMs },
    });
    return { attachment: after };
  }

  async #network(name: string): Promise<Network> {
    const found = await this.#options.ledger.getNetwork(name);
    if (found === null) throw new VoltError('UNKNOWN_NETWORK', `there is no network ${name}`);
    return found.network;
  }
}

function changed(before: Attachment, request: UpdateRequest): Attachment {
  const { ports, bandwidth, labels, filterAddresses } = request;
  return {
    ...before,
    ...(ports !== undefined && { ports }),
    ...(bandwidth !== undefined && { bandwidth }),
    ...(labels !== undefined && { labels }),
    ...(filterAddresses !== undefined && { filterAddresses }),
  };
}

/** From now on an attach is a repeat if it asks for the first content, or for the content after this update. */
function updatedRecord(record: AttachmentRecord, attachment: Attachment): AttachmentRecord {
  const { ports, bandwidth, labels } = attachment;
  const request = { ...record.request, ports, bandwidth, labels };
  const { namespaceIdentity: netns } = record;
  const updatedKey = contentKey(request, netns === undefined ? {} : { netns });
  return { ...record, request, attachment, updatedKey };
}

/**
 * Only its holder may send from an address that the ledger can lease. Addresses in the network's `exclude` are never
 * leased: workloads can share them, for example two routers.
 */
function refuseLeasable(addresses: readonly string[], network: Network): void {
  const subnets = subnetsOf(network);
  const excluded = (network.exclude ?? []).map((text) =>
    text.includes('/')
      ? IpPrefix.parse(text)
      : IpPrefix.around(IpAddress.parse(text), bitsOf(text)),
  );
  for (const [index, text] of addresses.entries()) {
    const address = IpAddress.parse(text);
    const path = `filterAddresses.${index}`;
    const subnet = subnets.find((one) => one.contains(address));
    const given = subnet !== undefined && excluded.some((prefix) => prefix.contains(address));
    const nobodys = subnet !== undefined && neverAWorkloads(address, subnet, network);
    if (given && nobodys === undefined) continue;
    const message =
      nobodys === undefined
        ? `${path}: ${text} is not among the addresses that network ${network.network} excludes`
        : `${path}: ${text} is ${nobodys} of network ${network.network}`;
    throw new VoltError('ADDRESS_OUT_OF_RANGE', message, { details: { path, address: text } });
  }
}

/** Names an address that no workload may send from, even if the network excludes it. */
function neverAWorkloads(
  address: IpAddress,
  subnet: IpPrefix,
  { gateway, ipv6 }: Network,
): string | undefined {
  if ([gateway, ipv6?.gateway].includes(address.toString())) return 'the gateway';
  const { start, end } = subnet.usable();
  if (address.value < start.value) return 'the network address';
  return address.value > end.value ? 'the broadcast address' : undefined;
}

const bitsOf = (address: string): number => (address.includes(':') ? 128 : 32);
