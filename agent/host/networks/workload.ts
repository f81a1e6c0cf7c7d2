import { InterfaceAddress, IpAddress, IpPrefix } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { Route } from '#native/route.ts';
import { isAbsence, Namespace, namespaceIdentity, UnansweredError } from '#native/namespace.ts';
import { writeSysctl } from '#native/sysctl.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { Kernel } from '../kernel.ts';

// A container's end: its namespace, and what is set up inside.

const LOOPBACK = { index: 1, name: 'lo' };
/** An agent never leaves it. */
const HOST_NAMESPACE = namespaceIdentity('/proc/self/ns/net');

const ANNOUNCE_AFTER_MS = 50;

/** The name of a container's interface where the request has none. */
export const DEFAULT_IFNAME = 'eth0';

/** What of a network a workload's interface needs: its way out. With `ipv6` it accepts no advertised routers. */
export interface Routing extends Pick<Network, 'gateway' | 'routes'> {
  readonly ipv6?: Pick<NonNullable<Network['ipv6']>, 'gateway'> | undefined;
}

/** A workload's namespace, and the kernel's configuration seen from inside. */
export interface WorkloadNamespace {
  readonly handle: Namespace;
  readonly path: string;
  readonly kernel: Kernel;
}

/** What the path of a request led to, looked up once for all that the request needs it for. */
export interface NamedNamespace {
  readonly path: string;
  /** `device:inode`; undefined where there is no such namespace. */
  readonly identity: string | undefined;
  /** Throws the VoltError that refuses the request: there is none, or it is not for workloads. */
  readonly handle: Namespace;
}

/** The namespace of a request: opened by now or at once, a socket inside it by `enter`. */
export class RequestedNamespace implements WorkloadNamespace, Disposable {
  readonly path: string;
  readonly handle: Namespace;
  readonly #own = new DisposableStack();
  #kernel: Kernel | undefined;

  /**
   * `named` stays its finder's. Without it the path is opened here. NAMESPACE_NOT_FOUND: there is none.
   * INVALID_REQUEST: it is the host's own. DEADLINE_EXCEEDED: its file system does not answer.
   */
  constructor(path: string, named?: NamedNamespace) {
    this.path = path;
    if (named !== undefined) {
      this.handle = named.handle;
      return;
    }
    using opening = new DisposableStack();
    this.handle = opening.use(openNamespaceFile(path));
    refuseHostNamespace(path, this.handle.identity);
    this.#own = opening.move();
  }

  /** Throws INTERFACE_EXISTS when the namespace has an interface of that name. */
  enter(ifname: string): void {
    if (this.kernel.links.indexOf(ifname) === null) return;
    throw new VoltError('INTERFACE_EXISTS', `${this.path} has an interface ${ifname} already`, {
      details: { netns: this.path, ifname },
    });
  }

  get kernel(): Kernel {
    this.#kernel ??= new Kernel(this.handle);
    return this.#kernel;
  }

  [Symbol.dispose](): void {
    this.#kernel?.[Symbol.dispose]();
    this.#own.dispose();
  }
}

/**
 * Sets up a workload's interface inside its namespace: addresses, `lo` and the interface up, default routes and
 * the network's further routes.
 */
export function configureInterface(
  link: { readonly index: number; readonly name: string },
  order: { namespace: WorkloadNamespace; lease: Pick<Lease, 'addresses'>; network: Routing },
): void {
  const { namespace, lease, network } = order;
  const { index, name } = link;
  const inside = namespace.kernel;
  // Whoever answers router solicitations on this segment must not become the workload's gateway.
  if (network.ipv6 !== undefined) {
    namespace.handle.run(() => writeSysctl(['net', 'ipv6', 'conf', name, 'accept_ra'], '0'));
  }
  const addresses = lease.addresses.map((text) => InterfaceAddress.parse(text));
  inside.batch([
    ...addresses.map((address) =>
      inside.addresses.addition({ ifindex: index, address, noDad: true }),
    ),
    inside.links.change(LOOPBACK, { up: true }),
    inside.links.change(link, { up: true }),
    ...gatewaysOf(network).map((via) => ({
      ...inside.routes.addition({ via, ifindex: index }),
      // A workload with several interfaces keeps the default route of the first.
      accept: 'EEXIST' as const,
    })),
    ...(network.routes ?? []).map(({ to, via }) =>
      inside.routes.addition({ to: IpPrefix.parse(to), via: IpAddress.parse(via), ifindex: index }),
    ),
  ]);
  announceLater(namespace, name, addresses);
}

/**
 * Gives a container's interface the routes that its network has now, in the place of those that it had; the workload's
 * own stay. What the workload has made impossible, taking the interface down for one, is its own doing.
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
  const routeOf = ({ to, via }: { to: string; via: string }): Route => ({
    to: IpPrefix.parse(to),
    via: IpAddress.parse(via),
    ifindex: place.ifindex,
  });
  const without = (all: typeof before, others: typeof before): typeof before =>
    all.filter(({ to, via }) => !others.some((one) => one.to === to && one.via === via));
  for (const route of without(before, after)) {
    unlessRefused(() => inside.routes.remove(routeOf(route)), 'ESRCH');
  }
  for (const route of without(after, before)) {
    unlessRefused(() => inside.routes.add(routeOf(route)), 'EEXIST', 'ENETUNREACH', 'ENETDOWN');
  }
}

function unlessRefused(work: () => void, ...codes: readonly string[]): void {
  try {
    work();
  } catch (error) {
    if (!isKernelError(error, ...codes, 'ENODEV')) throw error;
  }
}

/** A namespace by its path; null when there is none (any more). UnansweredError where that cannot be told now. */
export function openIfThere(path: string): Namespace | null {
  try {
    return Namespace.open(path);
  } catch (error) {
    if (isAbsence(error) || isKernelError(error, 'EACCES')) return null;
    throw error;
  }
}

/** Asks the file systems of these paths, so that what follows can open each at once; one that hangs takes two seconds. */
export async function askForNamespaces(paths: Iterable<string>): Promise<void> {
  await Promise.allSettled(
    [...paths].map(async (path) => {
      using _found = await Namespace.find(path);
    }),
  );
}

/**
 * Lets an interface tell its neighbours its addresses (gratuitous ARP, unsolicited neighbour advertisement), so that
 * they forget whoever had them before. Not at once: a bridge passes nothing until it has seen its port's carrier.
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
    // The MAC that it has: the kernel announces whatever is set.
    kernel.links.set(link, { mac: link.mac });
  };
  setTimeout(() => {
    try {
      announce();
    } catch (error) {
      // The workload may have gone, or changed its interface, and neighbours learn by asking, too.
      if (!isKernelError(error) && !(error instanceof UnansweredError)) throw error;
    }
  }, ANNOUNCE_AFTER_MS).unref();
}

const gatewaysOf = ({ gateway, ipv6 }: Routing): IpAddress[] =>
  [gateway, ipv6?.gateway].filter((one) => one !== undefined).map((one) => IpAddress.parse(one));

function openNamespaceFile(path: string): Namespace {
  try {
    return Namespace.open(path);
  } catch (error) {
    throw asRefusal(error, path);
  }
}

/** Why a path that a request names cannot be used. What this process lacks (descriptors, memory) is no such reason. */
export function asRefusal(cause: unknown, path: string): unknown {
  if (isKernelError(cause, 'EMFILE', 'ENFILE', 'ENOMEM', 'EINTR', 'ECHILD')) return cause;
  const reason = cause instanceof Error ? cause.message : String(cause);
  const code = cause instanceof UnansweredError ? 'DEADLINE_EXCEEDED' : 'NAMESPACE_NOT_FOUND';
  return new VoltError(code, `netns: ${reason}`, {
    details: { path: 'netns', netns: path },
    cause,
  });
}

export function refuseHostNamespace(path: string, identity: string): void {
  if (identity !== HOST_NAMESPACE) return;
  throw new VoltError('INVALID_REQUEST', `netns: ${path} is the host's own namespace`, {
    details: { path: 'netns' },
  });
}
