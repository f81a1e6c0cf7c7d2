import { MacAddress } from '#protocol/address.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { namespaceIdentity, UnansweredError } from '#native/namespace.ts';
import type { Steps } from '#native/steps.ts';
import { driverOf } from '#native/sriov.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { DescribedFunction, DescribedInside, Describe, Description } from '../description.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { Kernel } from '../kernel.ts';
import { ifbName } from '../networks/bandwidth.ts';
import { LOOPBACK } from '../networks/loopback.ts';
import { standsByNumber } from '../networks/lost-paths.ts';
import { mapsOwner } from '../networks/port-maps.ts';
import { askForNamespaces, openIfThere } from '../networks/workload.ts';
import { isTagged, taggedId } from '../ownership.ts';

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
  | 'forwardDelayMs'
  | 'noArp'
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
  /** What lies in workloads' namespaces, by attachment id. */
  readonly inside: ReadonlyMap<string, SeenInside>;
  /** What the firewall was told to hold, by whose it is; absent where the firewall was not asked. */
  readonly facts?: ReadonlyMap<string, readonly string[]>;
  /** Virtual functions of VMs, by attachment id. */
  readonly functions?: ReadonlyMap<string, SeenFunction>;
  /** Bits a second that may leave a device, by index, and where what comes in by it is handed to. */
  readonly limits: ReadonlyMap<number, number>;
  readonly redirects: ReadonlyMap<number, number>;
  /** Where bridges lead frames to for good, each as `forwardingKey` has it. */
  readonly forwarding: ReadonlySet<string>;
}

export type SeenInside =
  | {
      readonly kind: 'seen';
      readonly identity: string;
      readonly link: SeenLink | null;
      /** `lo` is up, where somebody wants to know. */
      readonly loopback: boolean;
      /** Of the link or, where there is to be none, of `lo`. */
      readonly addresses: ReadonlySet<string>;
    }
  | { readonly kind: 'absent' }
  /** Nothing is known: its file system has not answered, or does not let the agent in. */
  | { readonly kind: 'unanswered'; readonly reason: string };

export interface SeenFunction {
  readonly driver: string | null;
  readonly mac: string | null;
}

/** What looks, and how far. */
export interface Looking {
  readonly kernel: Kernel;
  readonly firewall: Pick<Firewall, 'held'>;
  readonly describe: Describe;
  /** Into workloads' namespaces, too, and at what else only a check tells. */
  readonly deep: boolean;
}

/**
 * Reads what concerns these records: two dumps, a third where ports are filtered, a fourth where there are limits, and
 * a look at the file of each namespace. A table that keeps changing while it is read is looked up device by device
 * instead; nothing can be said of devices without a record then. The socket is its own, since a dump that pauses keeps
 * it.
 */
export function* observeHost(
  looking: Omit<Looking, 'kernel'>,
  records: readonly AttachmentRecord[],
): Steps<Observed> {
  using kernel = new Kernel();
  try {
    const addresses = new Map<number, Set<string>>();
    for (const { ifindex, address } of yield* kernel.addresses.listSteps()) {
      const own = addresses.get(ifindex) ?? new Set();
      addresses.set(ifindex, own.add(address.toString()));
    }
    const limits = records.some(isLimited) ? yield* kernel.traffic.limitsSteps() : NO_LIMITS;
    const forwarding = yield* forwardingOf({ ...looking, kernel }, records);
    const links = yield* kernel.links.pickSteps(seen);
    const rest = yield* beside({ ...looking, kernel }, records);
    return { whole: true, ...(yield* byKey(links)), addresses, limits, forwarding, ...rest };
  } catch (error) {
    if (!isKernelError(error, 'EINTR')) throw error;
    return yield* lookUp({ ...looking, kernel }, records);
  }
}

/** Looks at the devices of these records alone, and the bridges that those are to be on. */
export function* lookUp(looking: Looking, records: readonly AttachmentRecord[]): Steps<Observed> {
  const { kernel, describe } = looking;
  const { links } = kernel;
  const found: SeenLink[] = [];
  const bridges = new Set<string>();
  const note = (which: number | string): boolean => {
    // Most that are asked for are there, or are to be made again; the latter costs next to nothing.
    const there = typeof which === 'string' ? links.indexOf(which) : links.nameOf(which);
    const link = there === null ? null : links.get(which);
    if (link !== null) found.push(seen(link));
    return link !== null;
  };
  for (const record of records) {
    yield;
    const { device } = describe(record) ?? {};
    if (device === undefined) continue;
    if (isLimited(record)) note(ifbName(device.ifindex));
    const named = note(record.deviceName);
    const there = found.at(-1)?.index === device.ifindex || note(device.ifindex);
    if (device.port !== undefined && (named || there)) bridges.add(device.port.bridge);
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
  const forwarding = yield* forwardingOf(looking, records);
  const rest = yield* beside(looking, records);
  return { whole: false, ...(yield* byKey(found)), addresses, limits, forwarding, ...rest };
}

const NO_LIMITS: ReadonlyMap<number, number> = new Map();

/** Frames for the MAC leave by the device of that index. */
export const forwardingKey = ({ ifindex, mac }: { ifindex: number; mac: string }): string =>
  `${ifindex} ${mac}`;

/**
 * Asked for one by one: of a dump the kernel goes through all entries of a bridge for each of its ports, which takes a
 * second for 10,000 attachments.
 */
function* forwardingOf(
  { kernel, describe }: Looking,
  records: readonly AttachmentRecord[],
): Steps<ReadonlySet<string>> {
  const keys = new Set<string>();
  for (const record of records) {
    yield;
    const device = describe(record)?.device;
    if (device?.port?.fixed !== true) continue;
    for (const key of forwardingFor(kernel, device)) keys.add(key);
  }
  return keys;
}

function forwardingFor(kernel: Kernel, device: Description['device']): string[] {
  if (device?.port === undefined) return [];
  const { ifindex, port } = device;
  const { bridge, mac } = port;
  const master = kernel.links.indexOf(bridge);
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

const isLimited = ({ attachment }: AttachmentRecord): boolean =>
  Object.keys(attachment?.bandwidth ?? {}).length > 0;

/** What is in no table of devices. Each record is described when it is its turn: all at once are many megabytes. */
function* beside(
  { kernel, firewall, describe, deep }: Looking,
  records: readonly AttachmentRecord[],
): Steps<
  Pick<Observed, 'namespaces' | 'elsewhere' | 'inside' | 'redirects' | 'facts' | 'functions'>
> {
  const namespaces = new Map<string, string | null>();
  const elsewhere = new Set<string>();
  const inside = new Map<string, SeenInside>();
  const redirects = new Map<number, number>();
  const facts = new Map<string, readonly string[]>();
  const functions = new Map<string, SeenFunction>();
  for (const record of records) {
    yield;
    const description = describe(record);
    const { id, attachment } = record;
    const { netns } = attachment ?? {};
    const identity = netns === undefined ? undefined : knownOf(() => namespaceIdentity(netns));
    if (netns !== undefined && identity !== undefined)
      namespaces.set(netns, identity === UNKNOWN ? null : identity);
    const leads = identity !== undefined && identity === record.namespaceIdentity;
    if (attachment !== undefined && !leads && standsByNumber(kernel, attachment)) elsewhere.add(id);
    if (description === undefined) continue;
    const { device, filter, maps, inside: own, virtualFunction } = description;
    if (own !== undefined && (deep || own.madeAgain))
      inside.set(id, lookInside(id, own, description));
    if (device?.limits.egressBitsPerSecond !== undefined) {
      const target = kernel.traffic.redirectOf(device.ifindex);
      if (target !== null) redirects.set(device.ifindex, target);
    }
    if (filter !== undefined) facts.set(filter.owner, firewall.held(filter.owner));
    if (maps !== undefined) facts.set(mapsOwner(id), firewall.held(mapsOwner(id)));
    if (deep && virtualFunction !== undefined) {
      functions.set(id, lookAtFunction(kernel, virtualFunction));
    }
  }
  return { namespaces, elsewhere, inside, redirects, facts, functions };
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

/**
 * Waits for the file systems that had to be asked for a namespace, and looks there then; after two seconds nothing is known
 * of it.
 */
export async function withAnswers(
  observed: Observed,
  records: readonly AttachmentRecord[],
  describe: Describe,
): Promise<Observed> {
  const namespaces = new Map(observed.namespaces);
  const unknown = [...namespaces].filter(([, identity]) => identity === null).map(([path]) => path);
  if (unknown.length === 0) return observed;
  await askForNamespaces(unknown);
  for (const path of unknown) {
    const identity = knownOf(() => namespaceIdentity(path));
    if (identity === undefined) namespaces.delete(path);
    else if (identity !== UNKNOWN) namespaces.set(path, identity);
  }
  const inside = new Map(observed.inside);
  for (const record of records) {
    if (inside.get(record.id)?.kind !== 'unanswered') continue;
    const description = describe(record);
    const own = description?.inside;
    if (own === undefined || description === undefined) continue;
    inside.set(record.id, lookInside(record.id, own, description));
  }
  return { ...observed, namespaces, inside };
}

function lookInside(
  id: string,
  { netns, link: wanted, loopback, addresses }: DescribedInside,
  { generation }: Pick<Description, 'generation'>,
): SeenInside {
  try {
    const handle = openIfThere(netns);
    if (handle === null) return { kind: 'absent' };
    using _handle = handle;
    using kernel = new Kernel(handle);
    const { links } = kernel;
    const found = wanted === undefined ? null : links.get(wanted.ifindex ?? wanted.name);
    // What the agent has made in a namespace of its own is told by its alias; elsewhere the workload may have another.
    const named =
      wanted?.ifindex === undefined || (found !== null && isTagged(found, { id, generation }));
    const link = found !== null && named ? seen(found) : null;
    const index = wanted === undefined ? LOOPBACK.index : link?.index;
    return {
      kind: 'seen',
      identity: handle.identity,
      link,
      loopback: loopback && links.get(LOOPBACK.index)?.up === true,
      addresses:
        index === undefined || addresses.length === 0 ? new Set() : addressesOf(kernel, index),
    };
  } catch (error) {
    if (!(error instanceof UnansweredError)) throw error;
    return { kind: 'unanswered', reason: error.message };
  }
}

function lookAtFunction(kernel: Kernel, { pciAddress, parent }: DescribedFunction): SeenFunction {
  const link = parent === undefined ? null : kernel.links.getWithVfs(parent.name);
  const own = link?.vfs?.find(({ IFLA_VF_MAC: vf }) => vf?.vf === parent?.number);
  return {
    driver: driverOf(pciAddress) ?? null,
    mac: own?.IFLA_VF_MAC?.mac.toString() ?? null,
  };
}

/** Names of all devices of ours on the host, by attachment id, whether there is a record or not. */
export function* taggedDevices(): Steps<Map<string, string>> {
  // A socket of its own, since a dump that pauses keeps it.
  using kernel = new Kernel();
  const devices = new Map<string, string>();
  for (const { alias, name } of yield* kernel.links.pickSteps(seen)) {
    const id = taggedId(alias);
    if (id !== undefined) devices.set(id, name);
  }
  return devices;
}

const addressesOf = (kernel: Kernel, ifindex: number): Set<string> =>
  new Set(
    kernel.addresses
      .list({ ifindex })
      .filter((one) => one.ifindex === ifindex)
      .map(({ address }) => address.toString()),
  );

/** What of a link is compared: of ten thousand links the rest is megabytes. */
export const seen = ({ mac, tun: _tun, vfs: _vfs, parentDevice: _of, ...link }: Link): SeenLink =>
  mac === undefined ? link : { ...link, mac: mac.toString() };

function* byKey(found: readonly SeenLink[]): Steps<Pick<Observed, 'links' | 'names'>> {
  const links = new Map<number, SeenLink>();
  const names = new Map<string, SeenLink>();
  for (const link of found) {
    yield;
    links.set(link.index, link);
    names.set(link.name, link);
  }
  return { links, names };
}
