import { setTimeout as sleep } from 'node:timers/promises';
import type { Attachment } from '#protocol/attachment.ts';
import type { Link } from '#native/link.ts';
import { namespaceIdentity, UnansweredError } from '#native/namespace.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import { hostAddress, LOOPBACK } from './loopback.ts';
import { openIfThere } from './workload.ts';
import { isTagged } from '../ownership.ts';

// Containers whose namespace is led to by their path no more, and may live all the same: a path is not a namespace.
// `/proc/<pid>/ns/net` ends with its process, while others live on in the namespace. A pair's end on this host proves
// that the other end lives. A macvlan, a function of a NIC, or the addresses of a container that has no device are looked
// for in every namespace that has a number here; each namespace gets one with the first of them that is put there.

const ENDING_AFTER_MS = 20;
const ENDING_TRIES = 50;

/** What lies in a container's namespace, with nothing of it on the host: these devices, or addresses without a device. */
const INSIDE: ReadonlySet<string | undefined> = new Set(['macvlan', 'vf', undefined]);

const isInside = ({ kind, netns, device }: Attachment): boolean =>
  kind === 'container' && netns !== undefined && INSIDE.has(device?.type);

/** Gives the namespace that a container's path leads to a number, for the day on which no path leads there. */
export function numberNamespace(kernel: Kernel, attachment: Attachment): void {
  if (!isInside(attachment)) return;
  try {
    const handle = openIfThere(attachment.netns ?? '');
    if (handle === null) return;
    using _handle = handle;
    kernel.namespaceIds.give(handle);
  } catch (error) {
    if (!(error instanceof UnansweredError)) throw error;
  }
}

/** A container's device that lies in its namespace alone, and that namespace's number; null when there is none. */
export function findByNumber(
  { links, namespaceIds }: Kernel,
  attachment: Attachment,
): { readonly namespaceId: number; readonly link: Link } | null {
  const { device } = attachment;
  if (device === null || !isInside(attachment)) return null;
  for (const namespaceId of namespaceIds.list()) {
    const link = links.getIn(namespaceId, device.ifindex);
    if (link !== null && isOf(attachment, link)) return { namespaceId, link };
  }
  return null;
}

/** Whether what a container has in its namespace alone stands in one that has a number here, without asking any path. */
export function standsByNumber(kernel: Kernel, attachment: Attachment): boolean {
  if (attachment.device !== null) return findByNumber(kernel, attachment) !== null;
  const { addresses, namespaceIds } = kernel;
  const own = attachment.addresses.map(({ address }) => hostAddress(address).toString());
  if (own.length === 0 || !isInside(attachment)) return false;
  return namespaceIds.list().some((namespaceId) => {
    const held = addresses.listIn(namespaceId, LOOPBACK.index);
    const there = new Set(held.map(({ address }) => address.toString()));
    return own.every((one) => there.has(one));
  });
}

/**
 * Whoever owns the namespace can rename a device and take its tag away, but change neither its kind, nor the index of a
 * macvlan, which was drawn at random, nor a function's place on the bus.
 */
function isOf(attachment: Attachment, link: Link): boolean {
  if (isTagged(link, attachment)) return true;
  const { kind, parentDevice } = link;
  const { type, pciAddress } = attachment.device ?? {};
  if (type === 'macvlan') return kind === 'macvlan';
  return pciAddress !== undefined && parentDevice?.name === pciAddress;
}

/**
 * Whether the namespace that a container was attached in has ended, or has let go of its interface, whichever path leads
 * where by now. One that nobody is in any more lives on for a moment, with the sockets that were closed in it; that is
 * waited for. False where it cannot be told.
 */
export async function hasLeft(kernel: Kernel, record: AttachmentRecord): Promise<boolean> {
  const { attachment, namespaceIdentity: identity } = record;
  if (attachment?.kind !== 'container' || identity === undefined) return false;
  for (let tries = 1; ; tries += 1) {
    if (leadsTo(attachment.netns ?? '', identity)) return false;
    if (!isStanding(kernel, attachment)) return true;
    if (tries === ENDING_TRIES) return false;
    await sleep(ENDING_AFTER_MS);
  }
}

function leadsTo(path: string, identity: string): boolean {
  try {
    return namespaceIdentity(path) === identity;
  } catch (error) {
    // It may.
    if (error instanceof UnansweredError) return true;
    throw error;
  }
}

/** Whether a container's interface stands in a namespace that somebody holds. */
function isStanding(kernel: Kernel, attachment: Attachment): boolean {
  if (attachment.device?.type !== 'veth') return standsByNumber(kernel, attachment);
  const link = kernel.links.get(attachment.device.ifindex);
  if (link === null || !isTagged(link, attachment)) return false;
  // The pair of a namespace that nobody holds any more stands until the kernel comes to it.
  return link.linkNamespaceId === undefined || kernel.namespaceIds.has(link.linkNamespaceId);
}
