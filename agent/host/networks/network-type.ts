import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { NeedsOfType } from '../bridges/bridges.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import {
  type Attached,
  closed,
  type Describe,
  type Description,
  isAttached,
} from '../description.ts';
import type { NamedNamespace } from './workload.ts';

export type Device = NonNullable<Attachment['device']>;

/** What is known of an attach before it is checked. */
export interface KnownOfAttach {
  /** The name of a device that is made again (`deviceName` of its record). */
  readonly deviceName?: string | undefined;
  /**
   * The namespace that `netns` led to, open for as long as the attach takes. Without it the type opens the path itself.
   */
  readonly named?: NamedNamespace | undefined;
}

/** A request that a network type has found in order. It owns what was opened to check it (`using`). */
export interface CheckedAttach extends Disposable {
  /** The name that the host's end will have. */
  readonly deviceName: string;
  /**
   * What the type found and has to restore later. It is recorded with the intent, before anything is touched, and comes
   * back in `record.before`; only the type reads it.
   */
  readonly before?: AttachmentRecord['before'];
  /**
   * Work that need not wait for the lease: it opens and looks, and makes nothing. It runs while the ledger works; an
   * error that it throws counts once the lease is there.
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
  /** The network as it was when the device was made or changed last. */
  readonly network: Network;
}

export interface AttachedDevice {
  readonly device: Device | null;
  readonly filter: Attachment['filter'];
  /** The workload's namespace, if the type made it. */
  readonly netns?: string;
}

/**
 * One network type. Nothing here talks to Redis or NATS, and nothing is made before `check` has found
 * everything in order.
 */
export interface NetworkType {
  /** Throws VoltError if the request is wrong, or if this type or this kernel cannot do it. Touches nothing. */
  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach;
  /**
   * Takes the device of a record, finished or not, out of use at once: its name is free and its traffic
   * has stopped when this returns. Deletes only what is tagged as this attachment's or matches its
   * open intent. Success when nothing is there.
   */
  detach(record: AttachmentRecord): RemovingDevice;
  /** What should be on the host for the record of something that has been attached. Pure. */
  describe(record: Attached): Description;
  /** How a workload of this network is held to its addresses. */
  filterOf(network: Network, kind: Attachment['kind']): Attachment['filter'];
  /** Refuses a change of a live attachment: PORT_IN_USE and the like, UNSUPPORTED for what this type cannot change. */
  checkChange(change: AttachmentChange): void;
  /** What a network needs of the host around its bridge; absent for types without one. */
  needs?(network: Network): NeedsOfType;
  /** Makes or repairs what a device of the network needs on the host: its bridge, and settings of the host. */
  prepareNetwork?(network: Network): void;
  /** At the start of an agent: gives the firewall, which is about to load, the facts of the network. */
  resumeNetwork?(network: Network): void;
  /** Closes the port of a fenced record: no frame passes. Success if there is no port. */
  setDown(record: AttachmentRecord): void;
  /**
   * The descriptors of a VM's device, one per queue, as the attachment describes them; the caller closes
   * them. DEVICE_BUSY while somebody holds one, UNSUPPORTED where a device has none.
   */
  claim(attachment: Attachment): Descriptor[];
}

/** The types that this agent has. */
export type NetworkTypes = Readonly<Partial<Record<Network['type'], NetworkType>>>;

/** Returns what should be there for a record, by its network type. A fenced record is described as closed. */
export const describeBy =
  (types: NetworkTypes): Describe =>
  (record) => {
    const description = isAttached(record)
      ? types[record.networkType]?.describe(record)
      : undefined;
    return description !== undefined && record.state === 'fenced'
      ? closed(description)
      : description;
  };

export interface RemovingDevice {
  /** Resolves when the kernel has confirmed that nothing of the device is left. */
  readonly removed: Promise<void>;
}

/** Refuses, by its name, each key of a request or a network that the type does not support; nothing is ignored. */
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

/** Refuses a change of keys that a type does not support. Labels can be changed on all types. */
export function refuseChanges(
  { before, after, network }: AttachmentChange,
  keys: readonly Changeable[],
): void {
  refuseUnsupported(
    network,
    keys.map((key) => [key, JSON.stringify(before[key]) !== JSON.stringify(after[key])]),
  );
}
