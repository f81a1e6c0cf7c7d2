import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { namespaceIdentity } from '#native/namespace.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { HostAttachments, OnNetwork } from '../host-attachments.ts';
import type { NetworkType } from '../networks/network-type.ts';

/**
 * Makes the device of a record again, with the same name and addresses. The lease stays, and the ledger is not asked.
 * When this resolves, the record has the new device; when it rejects, nothing was made.
 */
export async function remake(
  {
    journal,
    bootId,
    attachments,
  }: {
    readonly journal: Journal;
    readonly bootId: string;
    readonly attachments: Pick<HostAttachments, 'resume' | 'hasLeftover'>;
  },
  type: NetworkType,
  record: OnNetwork,
): Promise<Attachment> {
  const { attachment, network, deviceName } = record;
  const { inside, device } = type.describe(record);
  // A namespace that was made for the device alone is used again if it still exists.
  const own = inside?.madeAgain === true ? inside.netns : undefined;
  const stands = own !== undefined && namespaceIdentity(own) !== undefined;
  const request = requestOf(record.request, attachment, stands ? own : undefined);
  // `detach` finds the limits and the namespace of the old device by that device, so it runs before the record changes.
  const beside = Object.keys(attachment.bandwidth).length > 0 || own !== undefined;
  // A device that has the name already is one that an agent has made before it died.
  const leftover = attachments.hasLeftover(record);
  // So may be one that lies in the workload's namespace, which only its type finds.
  const isInside = device === undefined && own === undefined;
  if (leftover || isInside || (beside && !stands)) await type.detach(record).removed;
  using checked = type.check(request, network, { deviceName });
  checked.prepare();
  using undo = new DisposableStack();
  const made = checked.attach(leaseOf(attachment, record), undo);
  const place = made.netns === undefined ? {} : { netns: made.netns };
  const remade = { ...attachment, device: made.device, ...place };
  const after = { ...record, bootId, attachment: remade };
  // Lets through the addresses that an update has added to the filter.
  if (attachment.filterAddresses !== undefined) attachments.resume(after);
  journal.put(after);
  undo.move();
  return remade;
}

/** The request, with the changes of later updates. `netns`: the namespace that was made for it and still exists. */
function requestOf(
  request: AttachRequest,
  attachment: Attachment,
  netns: string | undefined,
): AttachRequest {
  const { ports: _ports, bandwidth: _bandwidth, ...rest } = request;
  const { ports, bandwidth, device } = attachment;
  return {
    ...rest,
    ...(netns !== undefined && { netns }),
    ...(ports.length > 0 && { ports }),
    ...(Object.keys(bandwidth).length > 0 && { bandwidth }),
    ...(device !== null && { mtu: device.mtu }),
  };
}

/** The lease, as far as the record contains it. */
export function leaseOf(
  attachment: Attachment,
  { request, bootId }: Pick<AttachmentRecord, 'request' | 'bootId'>,
): Lease {
  const { id, generation, network, workload, kind, host, mac, addresses, lease } = attachment;
  return {
    id,
    generation,
    network,
    workload,
    kind,
    host,
    bootId,
    ...(request.hostname !== undefined && { hostname: request.hostname }),
    mac,
    addresses: addresses.map(({ address }) => address),
    grantedAt: lease.grantedAt,
    ...(lease.expiresAt !== undefined && { expiresAt: lease.expiresAt }),
  };
}
