import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { namespaceIdentity } from '#native/namespace.ts';
import type { AttachmentRecord } from '../journal.ts';
import type { Kernel } from '../kernel.ts';

export type SeenLink = Pick<
  Link,
  'index' | 'name' | 'up' | 'mtu' | 'group' | 'kind' | 'master' | 'alias'
> & { readonly mac?: string };

/** What is there, as far as it was looked at. */
export interface Observed {
  /** All devices of the host were read: what is not among them is not there. */
  readonly whole: boolean;
  readonly links: ReadonlyMap<number, SeenLink>;
  readonly names: ReadonlyMap<string, SeenLink>;
  /** `10.42.0.1/24` by index, of bridges at least. */
  readonly addresses: ReadonlyMap<number, ReadonlySet<string>>;
  /** `device:inode` of the namespaces that records name, by path; those that are not there are missing. */
  readonly namespaces: ReadonlyMap<string, string>;
}

/**
 * Reads what concerns these records: two dumps, and a stat for each namespace. A table that keeps changing while it is
 * read is looked up device by device instead; nothing can be said of devices without a record then.
 */
export function observeHost(kernel: Kernel, records: readonly AttachmentRecord[]): Observed {
  const namespaces = namespacesOf(records);
  try {
    const addresses = new Map<number, Set<string>>();
    for (const { ifindex, address } of kernel.addresses.list()) {
      const own = addresses.get(ifindex) ?? new Set();
      addresses.set(ifindex, own.add(address.toString()));
    }
    return { whole: true, ...byKey(kernel.links.list()), addresses, namespaces };
  } catch (error) {
    if (!isKernelError(error, 'EINTR')) throw error;
    return lookUp(kernel, records);
  }
}

/** Looks at the devices of these records alone, and the bridges that those are to be on. */
export function lookUp(kernel: Kernel, records: readonly AttachmentRecord[]): Observed {
  const { links } = kernel;
  const found: Link[] = [];
  const bridges = new Set<string>();
  const note = (which: number | string): boolean => {
    // Most that are asked for are there, or are to be made again; the latter costs next to nothing.
    const there = typeof which === 'string' ? links.indexOf(which) : links.nameOf(which);
    const link = there === null ? null : links.get(which);
    if (link !== null) found.push(link);
    return link !== null;
  };
  for (const { attachment, deviceName } of records) {
    const { device } = attachment ?? {};
    if (device === undefined || device === null) continue;
    const named = note(deviceName);
    const there = found.at(-1)?.index === device.ifindex || note(device.ifindex);
    if (device.bridge !== undefined && (named || there)) bridges.add(device.bridge);
  }
  for (const bridge of bridges) note(bridge);
  const addresses = new Map(
    found
      .filter(({ name }) => bridges.has(name))
      .map(({ index }) => [index, addressesOf(kernel, index)] as const),
  );
  return { whole: false, ...byKey(found), addresses, namespaces: namespacesOf(records) };
}

const addressesOf = (kernel: Kernel, ifindex: number): Set<string> =>
  new Set(
    kernel.addresses
      .list({ ifindex })
      .filter((one) => one.ifindex === ifindex)
      .map(({ address }) => address.toString()),
  );

export const seen = ({ mac, ...link }: Link): SeenLink =>
  mac === undefined ? link : { ...link, mac: mac.toString() };

function byKey(links: readonly Link[]): Pick<Observed, 'links' | 'names'> {
  const all = links.map(seen);
  return {
    links: new Map(all.map((link) => [link.index, link])),
    names: new Map(all.map((link) => [link.name, link])),
  };
}

function namespacesOf(records: readonly AttachmentRecord[]): Map<string, string> {
  const found = new Map<string, string>();
  for (const { attachment } of records) {
    const path = attachment?.netns;
    if (path === undefined || found.has(path)) continue;
    const identity = namespaceIdentity(path);
    if (identity !== undefined) found.set(path, identity);
  }
  return found;
}
