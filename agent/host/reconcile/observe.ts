import { MacAddress } from '#protocol/address.ts';
import type { Attachment } from '#protocol/attachment.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { namespaceIdentity, UnansweredError } from '#native/namespace.ts';
import type { Steps } from '#native/steps.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { Kernel } from '../kernel.ts';
import { ifbName } from '../networks/bandwidth.ts';
import { findByNumber } from '../networks/lost-paths.ts';
import { askForNamespaces, openIfThere } from '../networks/workload.ts';
import { isTagged } from '../ownership.ts';

export type SeenLink = Pick<
  Link,
  | 'index'
  | 'name'
  | 'up'
  | 'mtu'
  | 'group'
  | 'kind'
  | 'master'
  | 'alias'
  | 'settings'
  | 'bridgePort'
> & { readonly mac?: string };

/** What is there, as far as it was looked at. */
export interface Observed {
  /** All devices of the host were read: what is not among them is not there. */
  readonly whole: boolean;
  readonly links: ReadonlyMap<number, SeenLink>;
  readonly names: ReadonlyMap<string, SeenLink>;
  /** `10.42.0.1/24` by index, of bridges at least. */
  readonly addresses: ReadonlyMap<number, ReadonlySet<string>>;
  /**
   * `device:inode` of the namespaces that records name, by path; those that are not there are missing, and of those
   * that are null nothing is known: their file system has not answered.
   */
  readonly namespaces: ReadonlyMap<string, string | null>;
  /** Containers whose interface stands in a namespace that their path does not lead to (any more), by attachment id. */
  readonly elsewhere: ReadonlySet<string>;
  /** TAPs of isolated VMs, each in its namespace, by attachment id; null where it is not there, missing if unknown. */
  readonly inside: ReadonlyMap<string, SeenLink | null>;
  /** Bits a second that may leave a device, by index, and where what comes in by it is handed to. */
  readonly limits: ReadonlyMap<number, number>;
  readonly redirects: ReadonlyMap<number, number>;
  /** Where bridges lead frames to for good, each as `forwardingKey` has it. */
  readonly forwarding: ReadonlySet<string>;
}

/**
 * Reads what concerns these records: two dumps, a third where ports are filtered, a fourth where there are limits, and
 * a look at the file of each namespace. A table that keeps changing while it is read is looked up device by device
 * instead; nothing can be said of devices without a record then. The socket is its own, since a dump that pauses keeps
 * it.
 */
export function* observeHost(records: readonly AttachmentRecord[]): Steps<Observed> {
  using kernel = new Kernel();
  try {
    const addresses = new Map<number, Set<string>>();
    for (const { ifindex, address } of yield* kernel.addresses.listSteps()) {
      const own = addresses.get(ifindex) ?? new Set();
      addresses.set(ifindex, own.add(address.toString()));
    }
    const limits = records.some(isLimited) ? yield* kernel.traffic.limitsSteps() : NO_LIMITS;
    const forwarding = records.some(isForwarded) ? yield* forwardingOf(kernel) : NOWHERE;
    const links = yield* kernel.links.listSteps();
    const rest = yield* beside(kernel, records);
    return { whole: true, ...(yield* byKey(links)), addresses, limits, forwarding, ...rest };
  } catch (error) {
    if (!isKernelError(error, 'EINTR')) throw error;
    return yield* lookUp(kernel, records);
  }
}

/** Looks at the devices of these records alone, and the bridges that those are to be on. */
export function* lookUp(kernel: Kernel, records: readonly AttachmentRecord[]): Steps<Observed> {
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
    yield;
    const { device } = attachment ?? {};
    if (device === undefined || device === null) continue;
    if (attachment !== undefined && isLimited({ attachment })) note(ifbName(device.ifindex));
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
  const limits = new Map<number, number>();
  for (const { index } of records.some(isLimited) ? found : []) {
    yield;
    const limit = kernel.traffic.limitOf(index);
    if (limit !== null) limits.set(index, limit);
  }
  const forwarding = new Set<string>();
  for (const record of records.filter(isForwarded)) {
    yield;
    for (const key of forwardingFor(kernel, record)) forwarding.add(key);
  }
  const rest = yield* beside(kernel, records);
  return { whole: false, ...(yield* byKey(found)), addresses, limits, forwarding, ...rest };
}

type Recorded = Pick<AttachmentRecord, 'attachment'>;

const NO_LIMITS: ReadonlyMap<number, number> = new Map();

const NOWHERE: ReadonlySet<string> = new Set();

/** Frames for the MAC leave by the device of that index. */
export const forwardingKey = ({ ifindex, mac }: { ifindex: number; mac: string }): string =>
  `${ifindex} ${mac}`;

const isForwarded = ({ attachment, network }: AttachmentRecord): boolean =>
  network?.filter === true && attachment?.device?.bridge !== undefined;

function* forwardingOf({ neighbours }: Kernel): Steps<ReadonlySet<string>> {
  const keys = new Set<string>();
  for (const { ifindex, mac, fixed } of yield* neighbours.listForwardingSteps()) {
    yield;
    if (fixed === true) keys.add(forwardingKey({ ifindex, mac: mac.toString() }));
  }
  return keys;
}

function forwardingFor(kernel: Kernel, { attachment, network }: AttachmentRecord): string[] {
  const { mac = '', device } = attachment ?? {};
  const ifindex = device?.ifindex ?? 0;
  const master = kernel.links.indexOf(network?.bridge ?? '');
  if (master === null) return [];
  try {
    const found = kernel.neighbours.findForwarding({ master, mac: MacAddress.parse(mac) });
    const fixed = found?.fixed === true && found.ifindex === ifindex;
    return fixed ? [forwardingKey({ ifindex, mac })] : [];
  } catch (error) {
    // No bridge, or one that is gone by now.
    if (!isKernelError(error, 'ENODEV', 'EINVAL', 'EOPNOTSUPP')) throw error;
    return [];
  }
}

const isLimited = ({ attachment }: Recorded): boolean =>
  attachment !== undefined && Object.keys(attachment.bandwidth).length > 0;

/** What is in no table of devices. */
function* beside(
  kernel: Kernel,
  records: readonly AttachmentRecord[],
): Steps<Pick<Observed, 'namespaces' | 'elsewhere' | 'inside' | 'redirects'>> {
  const namespaces = new Map<string, string | null>();
  const elsewhere = new Set<string>();
  const inside = new Map<string, SeenLink | null>();
  const redirects = new Map<number, number>();
  for (const record of records) {
    yield;
    const { id, attachment, state } = record;
    const { device, netns } = attachment ?? {};
    const identity = netns === undefined ? undefined : knownOf(() => namespaceIdentity(netns));
    if (netns !== undefined && identity !== undefined)
      namespaces.set(netns, identity === UNKNOWN ? null : identity);
    if (attachment === undefined || device === undefined || device === null) continue;
    const leads = identity !== undefined && identity === record.namespaceIdentity;
    if (!leads && findByNumber(kernel, attachment) !== null) elsewhere.add(id);
    if (attachment.type === 'isolated' && state === 'attached') {
      const tap = knownOf(() => tapInside(attachment));
      if (tap !== UNKNOWN) inside.set(id, tap);
    }
    if (attachment.bandwidth.egressBitsPerSecond !== undefined) {
      const target = kernel.traffic.redirectOf(device.ifindex);
      if (target !== null) redirects.set(device.ifindex, target);
    }
  }
  return { namespaces, elsewhere, inside, redirects };
}

/** One attachment's namespace that cannot be looked at is no reason not to look at the others. */
function knownOf<T>(look: () => T): T | typeof UNKNOWN {
  try {
    return look();
  } catch (error) {
    if (error instanceof UnansweredError || isKernelError(error, 'EACCES')) return UNKNOWN;
    throw error;
  }
}

const UNKNOWN = Symbol('unknown');

/** Waits for the file systems that had to be asked for a namespace; after two seconds nothing is known of it. */
export async function withAnswers(observed: Observed): Promise<Observed> {
  const namespaces = new Map(observed.namespaces);
  const unknown = [...namespaces].filter(([, identity]) => identity === null).map(([path]) => path);
  if (unknown.length === 0) return observed;
  await askForNamespaces(unknown);
  for (const path of unknown) {
    const identity = knownOf(() => namespaceIdentity(path));
    if (identity === undefined) namespaces.delete(path);
    else if (identity !== UNKNOWN) namespaces.set(path, identity);
  }
  return { ...observed, namespaces };
}

function tapInside(attachment: Attachment): SeenLink | null {
  const handle = openIfThere(attachment.netns ?? '');
  if (handle === null) return null;
  using _handle = handle;
  using inside = new Kernel(handle);
  const link = inside.links.get(attachment.device?.ifindex ?? 0);
  return link !== null && isTagged(link, attachment) ? seen(link) : null;
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

function* byKey(found: readonly Link[]): Steps<Pick<Observed, 'links' | 'names'>> {
  const links = new Map<number, SeenLink>();
  const names = new Map<string, SeenLink>();
  for (const one of found) {
    yield;
    const link = seen(one);
    links.set(link.index, link);
    names.set(link.name, link);
  }
  return { links, names };
}
