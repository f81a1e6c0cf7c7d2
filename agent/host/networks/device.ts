import type { Attachment } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { openTap } from '#native/tun.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import { type Device, type RemovingDevice } from './network-type.ts';
import type { Removal } from './removal.ts';
import { isDeviceOf, isMadeFor, putAwayName, tagPutAway } from '../ownership.ts';

// What network types share for the one device that an attachment has in the namespace of the host.

export const NOTHING_TO_REMOVE: RemovingDevice = { removed: Promise.resolve() };

/**
 * The device of a record, if it is ours: by its index if that is known, otherwise by the name of its open intent. The
 * record of a device that is being made again has an old index and a name; the new index is not known yet.
 */
export function linkOfRecord(kernel: Kernel, record: AttachmentRecord): Link | null {
  const { attachment, id, deviceName } = record;
  if (attachment?.device !== undefined && attachment.device !== null) {
    const { device, ...owner } = attachment;
    const link = kernel.links.get(device.ifindex);
    if (link !== null && isDeviceOf({ ...owner, device }, link)) return link;
  }
  const link = kernel.links.get(deviceName);
  return link !== null && isMadeFor(id, link) ? link : null;
}

/** Takes a device out of use: sets it down and frees its name; `removal` deletes it. Success if it is gone already. */
export function retire(
  kernel: Kernel,
  removal: Removal,
  link: Link,
  record: AttachmentRecord,
): RemovingDevice {
  if (!putAway(kernel, link, record)) return NOTHING_TO_REMOVE;
  return {
    removed: removal.delete({ index: link.index, alias: tagPutAway(link, ownerOf(record)) }),
  };
}

/**
 * The first half of `retire`; false if the device is gone already. A device without a tag is tagged now: without name
 * and tag, nobody would recognize it if this agent died, too. Kernels before 6.2 rename only a device that is down.
 */
export function putAway(kernel: Kernel, link: Link, record: AttachmentRecord): boolean {
  const alias = tagPutAway(link, ownerOf(record));
  try {
    kernel.links.set(link, { up: false, alias });
    kernel.links.set(link, { name: putAwayName(link) });
    return true;
  } catch (error) {
    if (!isKernelError(error, 'ENODEV')) throw error;
    return false;
  }
}

const ownerOf = ({ id, generation = 0 }: AttachmentRecord): { id: string; generation: number } => ({
  id,
  generation,
});

/** Sets a device down, if it is there; `leave`: also takes it out of its bridge. */
export function setLinkDown(
  kernel: Kernel,
  link: Link | null,
  { leave = false }: { readonly leave?: boolean } = {},
): void {
  if (link === null) return;
  const { links } = kernel;
  const leaving = leave && link.master !== undefined ? [links.change(link, { master: null })] : [];
  try {
    // Down first: a device that is up and no port would pass frames to the host itself.
    kernel.batch([links.change(link, { up: false }), ...leaving]);
  } catch (error) {
    if (!isKernelError(error, 'ENODEV')) throw error;
  }
}

/**
 * Opens all queues of an attachment's TAP. DEVICE_BUSY while one is held: the kernel refuses a second holder of
 * a single-queue TAP, but to a multi-queue one it would add a queue.
 */
export function claimTap(kernel: Kernel, { id, device }: Attachment): Descriptor[] {
  if (device?.type !== 'tap') throw noDescriptor(id, device);
  const { ifindex, name, queues = 1, vnetHdr = true } = device;
  const link = kernel.links.get(ifindex);
  if (link === null) throw new VoltError('NOT_FOUND', `${id}: its device is gone`);
  const held = link.tun?.queues ?? 0;
  if (held > 0) {
    throw new VoltError('DEVICE_BUSY', `${id}: ${held} queues of ${link.name} are held`, {
      details: { name: link.name, queues: held },
    });
  }
  return openTap({ name, queues, vnetHdr });
}

/** The error for a claim of a device that has no descriptor. */
export const noDescriptor = (id: string, device: Device | null): VoltError =>
  new VoltError('UNSUPPORTED', `${id} is a ${device?.type ?? 'container'}: no descriptor`);
