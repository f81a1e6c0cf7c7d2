import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { NamedNamespace } from './workload.ts';

export type Device = NonNullable<Attachment['device']>;

/** What is known of an attach before it is checked. */
export interface KnownOfAttach {
  /** Of a device that is made again (`deviceName` of its record). */
  readonly deviceName?: string | undefined;
  /** What `netns` led to, open for as long as the attach takes. Without it the type opens the path itself. */
  readonly named?: NamedNamespace | undefined;
}

/** What a network type makes of one request in order. It owns what it opened to check it (`using`). */
export interface CheckedAttach extends Disposable {
  /** The name that the host's end will have. */
  readonly deviceName: string;
  /**
   * What the type found and has to put back one day. It is recorded with the intent, before anything is
   * touched, and comes back in `record.before`; only the type reads it.
   */
  readonly before?: AttachmentRecord['before'];
  /**
   * What need not wait for the lease: opening and looking, making nothing. It runs while the ledger works, and
   * what it throws counts once the lease is there.
   */
  prepare(): void;
  /**
   * Makes the device, synchronously and in as few messages as the kernel allows. Each step registers its
   * undo before the next begins; the caller runs them when this throws.
   */
  attach(lease: Lease, undo: DisposableStack): AttachedDevice;
}

export interface AttachmentChange {
  readonly before: Attachment;
  readonly after: Attachment;
  /** As it was when the device was made or changed last. */
  readonly network: Network;
}

export interface AttachedDevice {
  readonly device: Device | null;
  readonly filter: Attachment['filter'];
  /** The workload's namespace, where the type made it. */
  readonly netns?: string;
}

/**
 * One network type. Nothing here talks to Redis or NATS, and nothing is made before `check` has found
 * everything in order.
 */
export interface NetworkType {
  /** Throws VoltError for whatever is wrong or this type and kernel cannot do; touches nothing. */
  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach;
  /**
   * Takes the device of a record, finished or not, out of use at once: its name is free and its traffic
   * has stopped when this returns. Deletes only what is tagged as this attachment's or matches its
   * open intent. Success when nothing is there.
   */
  detach(record: AttachmentRecord): RemovingDevice;
  /** At the start of an agent: notes what has to hold beside the device, for the firewall that is about to load. */
  resume(attachment: Attachment, network: Network): void;
  /**
   * Makes of a live attachment what `after` says, without a packet lost; registers what brings `before` back.
   * PORT_IN_USE and the like, UNSUPPORTED for what this type cannot change.
   */
  update(change: AttachmentChange, undo: DisposableStack): void;
  /** Closes the port of a record whose addresses are another's: no frame passes. Success when it is not there. */
  setDown(record: AttachmentRecord): void;
  /**
   * Sets what is there of an attachment on the host in its place again: its device, under `ifindex`, and what belongs
   * to it. Nothing inside a workload's namespace is touched.
   */
  mend(attachment: Attachment, network: Network): void;
  /** Compares the kernel with the attachment; reads only. Empty when they agree. */
  observe(attachment: Attachment): Difference[];
  /**
   * The descriptors of a VM's device, one per queue, as the attachment describes them; the caller closes
   * them. DEVICE_BUSY while somebody holds one, UNSUPPORTED where a device has none.
   */
  claim(attachment: Attachment): Descriptor[];
}

/** What the network's `filter` makes of an attachment's; undefined where it has no say (isolated, sriov). */
export function filterBy(
  { type, filter }: Pick<Network, 'type' | 'filter'>,
  kind: Attachment['kind'],
): Attachment['filter'] | undefined {
  if (type === 'isolated' || type === 'sriov') return undefined;
  return filter && (type !== 'macvtap' || kind === 'vm') ? 'full' : 'none';
}

/** The types that this agent has. */
export type NetworkTypes = Readonly<Partial<Record<Network['type'], NetworkType>>>;

export interface RemovingDevice {
  /** Resolves when the kernel has confirmed that nothing of the device is left. */
  readonly removed: Promise<void>;
}

/** Refuses by name what a request or a network has and its type cannot do; nothing is ignored. */
export function refuseUnsupported(
  { type }: Pick<Network, 'type'>,
  given: readonly (readonly [path: string, present: boolean])[],
): void {
  for (const [path, present] of given) {
    if (!present) continue;
    throw new VoltError('UNSUPPORTED', `${path}: not supported on ${type} networks`, {
      details: { path },
    });
  }
}

type Changeable = 'ports' | 'bandwidth' | 'filterAddresses';

/** Refuses a change of what a type has not; labels are everybody's. */
export function refuseChanges(
  { before, after, network }: AttachmentChange,
  keys: readonly Changeable[],
): void {
  refuseUnsupported(
    network,
    keys.map((key) => [key, JSON.stringify(before[key]) !== JSON.stringify(after[key])]),
  );
}
