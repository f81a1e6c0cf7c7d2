import type { Attachment } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import type { LinkSettings } from '#native/link.ts';
import type { AttachmentRecord } from '../storage/journal.ts';
import type { PortSettings } from './networks/bridge-port.ts';
import { DEVICE_GROUP, deviceTag } from './ownership.ts';

/**
 * What should be on this host for one attachment: plain data, that of one generation of it. Its network type says it
 * (`NetworkType.describe`); the comparator holds it against the kernel, and `HostAttachments` makes it so.
 */
export interface Description {
  readonly id: string;
  readonly generation: number;
  /** The lease is another's, or the holder has done harm: the device is there, down, and no port of a bridge. */
  readonly closed?: true;
  /** The device in the host's own namespace. */
  readonly device?: DescribedDevice;
  /** What the firewall lets the workload send. */
  readonly filter?: DescribedFilter;
  /** Ports of the host that lead to the workload; an empty list where the network has port maps. */
  readonly maps?: DescribedMaps;
  /** What lies in a namespace. */
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
  /** Empty where nothing is limited: a queue that somebody else has put there is none of our business. */
  readonly limits: Attachment['bandwidth'];
}

export interface DescribedPort {
  readonly bridge: string;
  /** All settings of the port; absent for a record of an earlier release that does not say of which network it is. */
  readonly settings?: PortSettings;
  /** The bridge leads frames for the workload to this port, whatever it hears; it learns what is behind the port else. */
  readonly fixed?: boolean;
  /** The workload's. */
  readonly mac: string;
}

export interface DescribedFilter {
  /** Whose the facts in the firewall are. */
  readonly owner: string;
  /** What an answer calls it. */
  readonly filter: Attachment['filter'];
  /** Frames are looked at where they enter the bridge, or where they leave the device. */
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

/** What lies in a workload's namespace is the workload's to change: it is compared and told, and left to it. */
export interface DescribedInside {
  readonly netns: string;
  /** `device:inode` of the namespace; unknown in records of earlier releases. */
  readonly identity?: string;
  /** The namespace was made for the workload, or has nothing else: a device that is gone from it is made again there. */
  readonly madeAgain: boolean;
  /** `lo` is up. */
  readonly loopback: boolean;
  readonly link?: {
    /** What a difference calls it. */
    readonly what: 'device' | 'device.peer';
    /** Where the workload cannot rename it, it is told by its index and alias, and by its name else. */
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
  /** What the physical function holds it to. */
  readonly parent?: { readonly name: string; readonly number: number; readonly mac: string };
}

/** A record of something that has been attached. */
export type Attached = AttachmentRecord & Required<Pick<AttachmentRecord, 'attachment'>>;

export const isAttached = (record: AttachmentRecord): record is Attached =>
  record.attachment !== undefined;

/** What a record says should be there; undefined for a record of what never was attached, or of a type that is not known. */
export type Describe = (record: AttachmentRecord) => Description | undefined;

/** What of an attachment's device is the same for all types. */
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

/** The same attachment fenced: its device, closed, and nothing that lets anybody reach it. */
export const closed = ({ id, generation, device }: Description): Description => ({
  id,
  generation,
  closed: true,
  ...(device !== undefined && { device }),
});
