import { InterfaceAddress, IpPrefix } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { AssignedAddress } from '#native/address.ts';
import { isKernelError } from '#native/errors.ts';
import { UnansweredError } from '#native/namespace.ts';
import { writeSysctl } from '#native/sysctl.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Attachment } from '#protocol/attachment.ts';
import type { DescribedInside } from '../description.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { Kernel } from '../kernel.ts';
import {
  mainRoutes,
  nextOrder,
  ownTable,
  routeChanges,
  type Routing,
  ruleRemovals,
  subnetMetric,
} from './interface-routes.ts';
import { openToIpv6, setIpv6 } from './ipv6.ts';
import { openIfThere, type WorkloadNamespace } from './workload.ts';

// A container's interface inside its namespace: addresses, routes, settings and announcements.

const LOOPBACK = { index: 1, name: 'lo' };
const ANNOUNCE_AFTER_MS = 50;

/**
 * Sets up a workload's interface inside its namespace: addresses, `lo` and the interface up, default routes and the
 * network's further routes. An interface that is not the first one there also gets a routing table of its own.
 * UNSUPPORTED: the interface should get IPv6 addresses, but cannot have any.
 */
export function configureInterface(
  link: { readonly index: number; readonly name: string },
  order: {
    readonly namespace: WorkloadNamespace;
    readonly lease: Pick<Lease, 'addresses'>;
    readonly network: Routing;
  },
  undo: DisposableStack,
): void {
  const { namespace, lease, network } = order;
  const { index, name } = link;
  const inside = namespace.kernel;
  const addresses = lease.addresses.map((text) => InterfaceAddress.parse(text));
  namespace.handle.run(() => prepareIpv6(name, addresses));
  const others = addressesBeside(inside, index);
  const place = others.length === 0 ? 0 : nextOrder(inside.routes.list());
  if (place > 0) {
    undo.defer(() => inside.batch(ruleRemovals(addresses)));
    namespace.handle.run(() => answerApart(inside, link, addresses, others));
  }
  inside.batch([
    ...addresses.map((address) => {
      const metric = subnetMetric(address, place);
      return inside.addresses.addition({ ifindex: index, address, noDad: true, metric });
    }),
    inside.links.change(LOOPBACK, { up: true }),
    inside.links.change(link, { up: true }),
    ...mainRoutes(index, network, place).map((route) => ({
      ...inside.routes.addition(route),
      // A default route that exists although no interface has an address is somebody else's, and stays.
      ...(route.to === undefined && { accept: 'EEXIST' as const }),
    })),
    ...(place > 0 ? ownTable(inside, index, addresses, network) : []),
  ]);
  announceLater(namespace, name, addresses);
}

/**
 * The addresses of other interfaces, of which a container usually has none. A container that is not set up yet has no
 * address at all.
 */
function addressesBeside({ addresses }: Kernel, index: number): AssignedAddress[] {
  if (addresses.count() === 0) return [];
  return addresses.list().filter(({ ifindex }) => ![LOOPBACK.index, index].includes(ifindex));
}

/**
 * Nobody who sends router advertisements on this segment may become the workload's gateway. Container runtimes switch
 * IPv6 off for all interfaces (`all.disable_ipv6`); on a network with IPv6, this interface has it.
 */
function prepareIpv6(name: string, addresses: readonly InterfaceAddress[]): void {
  setIpv6(name, 'accept_ra', '0');
  if (addresses.every(({ address }) => address.family === 4) || openToIpv6(name)) return;
  throw new VoltError(
    'UNSUPPORTED',
    `${name} can have no IPv6 address: the kernel has no IPv6 for it`,
  );
}

/**
 * Of several interfaces on one segment, each answers ARP only for addresses whose packets leave by it. By default each
 * interface answers for all addresses, and neighbours send to the wrong one.
 */
function answerApart(
  { links }: Kernel,
  link: { readonly index: number; readonly name: string },
  addresses: readonly InterfaceAddress[],
  others: readonly AssignedAddress[],
): void {
  const subnets = addresses.map(({ address, prefixLength }) =>
    IpPrefix.around(address, prefixLength),
  );
  const beside = others.filter(({ address: { address } }) =>
    subnets.some((subnet) => subnet.family === address.family && subnet.contains(address)),
  );
  if (!beside.some(({ address: { address } }) => address.family === 4)) return;
  const names = [link.name, ...new Set(beside.map(({ ifindex }) => links.nameOf(ifindex)))];
  for (const name of names) {
    if (name !== null) writeSysctl(['net', 'ipv4', 'conf', name, 'arp_filter'], '1');
  }
}

/**
 * Removes the rules for a container's addresses, which do not go with its interface. If the namespace cannot be opened
 * now, the rules stay: they lead to an empty table, and harm nobody.
 */
export function withdrawRules({ attachment, namespaceIdentity: identity }: AttachmentRecord): void {
  const { kind, netns, addresses = [] } = attachment ?? {};
  if (kind !== 'container' || netns === undefined || addresses.length === 0) return;
  try {
    const handle = openIfThere(netns);
    if (handle === null) return;
    using _handle = handle;
    if (identity !== undefined && handle.identity !== identity) return;
    using inside = new Kernel(handle);
    inside.batch(ruleRemovals(addresses.map(({ address }) => InterfaceAddress.parse(address))));
  } catch (error) {
    if (!isKernelError(error) && !(error instanceof UnansweredError)) throw error;
  }
}

/**
 * Gives a container's interface the routes that its network has now, instead of those that it had; the workload's own
 * routes stay. If the workload has made a route impossible, for example by taking the interface down, it is skipped.
 */
export function reviseRoutes(
  place: {
    readonly netns: string;
    readonly identity: string | undefined;
    readonly ifindex: number;
  },
  before: NonNullable<Network['routes']>,
  after: NonNullable<Network['routes']>,
): void {
  const handle = openIfThere(place.netns);
  if (handle === null) return;
  using _handle = handle;
  if (place.identity !== undefined && handle.identity !== place.identity) return;
  using inside = new Kernel(handle);
  const found = inside.routes.list();
  const { removed, added } = routeChanges(place.ifindex, { found, before, after });
  for (const route of removed) unlessRefused(() => inside.routes.remove(route), 'ESRCH');
  for (const route of added) {
    unlessRefused(() => inside.routes.add(route), 'EEXIST', 'ENETUNREACH', 'ENETDOWN');
  }
}

function unlessRefused(work: () => void, ...codes: readonly string[]): void {
  try {
    work();
  } catch (error) {
    if (!isKernelError(error, ...codes, 'ENODEV')) throw error;
  }
}

/**
 * Lets an interface announce its addresses (gratuitous ARP, unsolicited neighbour advertisement), so that neighbours
 * forget the earlier holder. Not at once: a bridge passes nothing until it has seen the carrier of its port.
 */
function announceLater(
  { path, handle: { identity } }: WorkloadNamespace,
  name: string,
  addresses: readonly InterfaceAddress[],
): void {
  const families = new Set(addresses.map(({ address }) => address.family));
  const announce = (): void => {
    const handle = openIfThere(path);
    if (handle === null) return;
    using _handle = handle;
    if (handle.identity !== identity) return;
    using kernel = new Kernel(handle);
    const link = kernel.links.get(name);
    if (link?.mac === undefined) return;
    handle.run(() => {
      if (families.has(4)) writeSysctl(['net', 'ipv4', 'conf', name, 'arp_notify'], '1');
      if (families.has(6)) writeSysctl(['net', 'ipv6', 'conf', name, 'ndisc_notify'], '1');
    });
    // Sets the MAC that the link has already: the kernel announces every MAC that is set.
    kernel.links.set(link, { mac: link.mac });
  };
  setTimeout(() => {
    try {
      announce();
    } catch (error) {
      // The workload may be gone, or may have changed its interface. Neighbours also learn by asking.
      if (!isKernelError(error) && !(error instanceof UnansweredError)) throw error;
    }
  }, ANNOUNCE_AFTER_MS).unref();
}

/** The description of a container's interface in its namespace; the container may change the interface. */
export const describedInside = (
  {
    addresses,
    device,
    identity,
  }: Pick<Attachment, 'addresses' | 'device'> & {
    readonly identity?: string | undefined;
  },
  {
    netns,
    ...link
  }: {
    readonly what: 'device' | 'device.peer';
    readonly name: string;
    readonly mac: string;
    readonly netns: string;
  },
): DescribedInside => ({
  netns,
  ...(identity !== undefined && { identity }),
  madeAgain: false,
  loopback: false,
  link: { what: link.what, name: link.name, mac: link.mac, mtu: device?.mtu ?? 0 },
  addresses: addresses.map(({ address }) => InterfaceAddress.parse(address).toString()),
});
