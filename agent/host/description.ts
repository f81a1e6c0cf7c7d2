import type { Attachment } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import type { LinkSettings } from '#native/link.ts';
import type { AttachmentRecord } from '../storage/journal.ts';
import type { PortSettings } from './networks/bridge-port.ts';
import { DEVICE_GROUP, deviceTag } from './ownership.ts';

/**
 * What should be on this host for one generation of one attachment, as plain data. The network type returns it
 * (`NetworkType.describe`), the comparator compares it with the kernel, and `HostAttachments` applies it.
 */
export interface Description {
  readonly id: string;
  readonly generation: number;
  /**
   * The attachment is fenced: its lease is another's, or its holder has done harm. The device is down, and no port of a
   * bridge.
   */
  readonly closed?: true;
  /** The device in the host's own namespace. */
  readonly device?: DescribedDevice;
  /** What the firewall lets the workload send. */
  readonly filter?: DescribedFilter;
  /** Host ports that lead to the workload; an empty list if there are none, but the network type has port maps. */
  readonly maps?: DescribedMaps;
  /** What is in the workload's namespace. */
  readonly inside?: DescribedInside;
  /** A virtual function that is not a network device while the workload has it. */
  readonly virtualFunction?: DescribedFunction;
}

export interface DescribedDevice {
  readonly name: string;
  readonly ifindex: number;
  readonly alias: string;
  readonly group: number;
  readonly mac: string;
  readonly mtu: number;
  readonly settings: LinkSettings;
  /** Absent for a device that is no port of a bridge. */
  readonly port?: DescribedPort;
  /** Empty if nothing is limited: then somebody else's queueing discipline on the device is not compared. */
  readonly limits: Attachment['bandwidth'];
}

export interface DescribedPort {
  readonly bridge: string;
  /** All settings of the port; absent for a record of an earlier release, which does not say what network it is of. */
  readonly settings?: PortSettings;
  /**
   * True: the bridge has a fixed forwarding entry for the workload. False: the bridge learns what is behind the port.
   */
  readonly fixed?: boolean;
  /** The workload's MAC. */
  readonly mac: string;
}

export interface DescribedFilter {
  /** The owner of the facts in the firewall. */
  readonly owner: string;
  /** The value of `filter` in answers. */
  readonly filter: Attachment['filter'];
  /** Where frames are filtered: when they enter the bridge, or when they leave the device. */
  readonly on: 'bridge' | 'device';
  readonly device: string;
  readonly ifindex: number;
  readonly mac: string;
  readonly addresses: readonly string[];
  readonly linkLocal: Network['linkLocal'];
  readonly hairpin: boolean;
}

export interface DescribedMaps {
  readonly ports: Attachment['ports'];
  readonly addresses: Attachment['addresses'];
}

/** What is in a workload's namespace. The workload may change it: differences are reported, but not repaired. */
export interface DescribedInside {
  readonly netns: string;
  /** `device:inode` of the namespace; unknown in records of earlier releases. */
  readonly identity?: string;
  /**
   * The namespace was made for the workload, or has nothing else in it: a device that is missing there is made again.
   */
  readonly madeAgain: boolean;
  /** `lo` should be up. */
  readonly loopback: boolean;
  readonly link?: {
    /** The name of the link in a difference. */
    readonly what: 'device' | 'device.peer';
    /**
     * Set if the link is found by its index and alias, since the workload cannot rename it; else it is found by its
     * name.
     */
    readonly ifindex?: number;
    readonly name: string;
    readonly mac: string;
    readonly mtu: number;
  };
  /** Addresses of the link or, without one, of `lo`. */
  readonly addresses: readonly string[];
}

export interface DescribedFunction {
  readonly pciAddress: string;
  readonly driver: string;
  /** The MAC that the physical function `name` enforces for virtual function `number`. */
  readonly parent?: { readonly name: string; readonly number: number; readonly mac: string };
}

/** A record of something that has been attached. */
export type Attached = AttachmentRecord & Required<Pick<AttachmentRecord, 'attachment'>>;

export const isAttached = (record: AttachmentRecord): record is Attached =>
  record.attachment !== undefined;

/** Returns what should be there for a record; undefined if it was never attached, or its network type is not known. */
export type Describe = (record: AttachmentRecord) => Description | undefined;

/** The part of a device description that is the same for all network types. */
export const describedDevice = (
  {
    device,
    ...owner
  }: Pick<Attachment, 'id' | 'generation'> & {
    readonly device: NonNullable<Attachment['device']>;
  },
  more: Pick<DescribedDevice, 'settings' | 'port' | 'limits'>,
): DescribedDevice => ({
  name: device.name,
  ifindex: device.ifindex,
  alias: deviceTag(owner),
  group: DEVICE_GROUP,
  mac: device.mac,
  mtu: device.mtu,
  ...more,
});

/** The description of the same attachment while it is fenced: only its device, closed. */
export const closed = ({ id, generation, device }: Description): Description => ({
  id,
  generation,
  closed: true,
  ...(device !== undefined && { device }),
});
