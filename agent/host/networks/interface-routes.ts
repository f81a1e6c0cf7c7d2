import { type InterfaceAddress, IpAddress, IpPrefix } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import type { Request } from '#native/netlink.ts';
import type { Route } from '#native/route.ts';
import { ruleAddition, ruleRemoval } from '#native/rule.ts';
import type { Kernel } from '../kernel.ts';

// The routes of a container's interfaces. The first interface has plain routes. Each further interface has larger
// metrics than those before it, so that the first keeps the default route and the next one takes over when the first is
// gone. Packets from an address of a further interface leave by that interface: a rule for each address leads to a
// routing table of the interface's own.

/** The part of a network that a workload's interface needs: its way out. */
export interface Routing extends Pick<Network, 'gateway' | 'routes'> {
  readonly ipv6?: Pick<NonNullable<Network['ipv6']>, 'gateway'> | undefined;
}

type Routes = NonNullable<Network['routes']>;

const MAIN_TABLE = 254;
/** Before the main table's rule (32766), and after all rules that the workload's owner has set. */
const RULE_PRIORITY = 32_700;
/** The number of an interface's own table is this plus its index: far from the numbers that people choose. */
const FIRST_TABLE = 0x4000_0000;
const MAX_INDEX = 0x3fff_ffff;
/** IPv6 metrics if nobody names one: of routes that are added, and of routes that the kernel makes itself. */
const IPV6_METRIC = 1024;
const IPV6_KERNEL_METRIC = 256;
/** A route with a larger metric is somebody's last resort, and may come after ours. */
const MAX_ORDER = 0x4000_0000;
const LINK_LOCAL = IpPrefix.parse('fe80::/64');

/** The order of an interface that comes after all interfaces with these routes; the first interface has 0. */
export function nextOrder(routes: readonly Route[]): number {
  const orders = routes.filter(({ table }) => table === MAIN_TABLE).map(orderOf);
  return Math.max(0, ...orders.filter((order) => order < MAX_ORDER)) + 1;
}

function orderOf({ to, via, metric = 0 }: Route): number {
  if ((to?.family ?? via?.family ?? 4) === 4) return metric;
  const base = metric < IPV6_METRIC ? IPV6_KERNEL_METRIC : IPV6_METRIC;
  return Math.max(0, metric - base);
}

/** The metric of the subnet route that the kernel makes for an address. */
export function subnetMetric({ address }: InterfaceAddress, order: number): number | undefined {
  if (order === 0) return undefined;
  return order + (address.family === 4 ? 0 : IPV6_KERNEL_METRIC);
}

/**
 * Default routes and the network's further routes in the main table. The interface must be up and have its addresses.
 */
export function mainRoutes(ifindex: number, network: Routing, order: number): Route[] {
  return waysOut(network).map((route) => ({ ...route, ifindex, metric: metricOf(route, order) }));
}

function metricOf({ via }: Pick<Route, 'via'>, order: number): number | undefined {
  if (order === 0) return undefined;
  return order + (via?.family === 6 ? IPV6_METRIC : 0);
}

/** What a further interface needs beside its routes in the main table: its own table, and rules that lead there. */
export function ownTable(
  { routes }: Kernel,
  ifindex: number,
  addresses: readonly InterfaceAddress[],
  network: Routing,
): Request[] {
  const table = tableOf(ifindex);
  const subnets = addresses.flatMap(({ address, prefixLength }) => [
    IpPrefix.around(address, prefixLength),
    ...(address.family === 6 ? [LINK_LOCAL] : []),
  ]);
  const all = [...subnets.map((to): Route => ({ to })), ...waysOut(network)];
  return [
    ...all.map((route) => ({
      ...routes.addition({ ...route, ifindex, table }),
      // Two addresses of one subnet need the same route.
      accept: 'EEXIST' as const,
    })),
    ...addresses.map(({ address: from }) => ({
      ...ruleAddition({ from, table, priority: RULE_PRIORITY }),
      accept: 'EEXIST' as const,
    })),
  ];
}

/** Removes the rules that `ownTable` has made. The routes end with the interface. */
export const ruleRemovals = (addresses: readonly InterfaceAddress[]): Request[] =>
  addresses.map(({ address: from }) => ({
    ...ruleRemoval({ from, priority: RULE_PRIORITY }),
    accept: 'ENOENT' as const,
  }));

/** The routes to remove and to add so that an interface has the routes `after` instead of `before`. */
export function routeChanges(
  ifindex: number,
  { found, before, after }: { found: readonly Route[]; before: Routes; after: Routes },
): { readonly removed: readonly Route[]; readonly added: readonly Route[] } {
  const own = found.filter((route) => route.ifindex === ifindex);
  const inMain = own.filter(({ table }) => table === MAIN_TABLE);
  // The kernel's subnet route has the smallest metric and tells the order, whatever the workload's owner has added.
  const order = inMain.length === 0 ? 0 : Math.min(...inMain.map(orderOf));
  const table = tableOf(ifindex);
  const tables = own.some((route) => route.table === table) ? [MAIN_TABLE, table] : [MAIN_TABLE];
  const without = (all: Routes, others: Routes): Route[] =>
    all
      .filter(({ to, via }) => !others.some((one) => one.to === to && one.via === via))
      .map((one) => ({ ...routeTo(one), ifindex }));
  return {
    removed: without(before, after).flatMap((route) =>
      tables.map((one) => ({ ...route, table: one })),
    ),
    added: without(after, before).flatMap((route) =>
      tables.map((one) => ({
        ...route,
        table: one,
        ...(one === MAIN_TABLE && { metric: metricOf(route, order) }),
      })),
    ),
  };
}

/** The indices of macvlans are random numbers, and may be larger than a table number can hold. */
const tableOf = (ifindex: number): number => FIRST_TABLE + (ifindex & MAX_INDEX);

function waysOut({ gateway, ipv6, routes = [] }: Routing): Route[] {
  const gateways = [gateway, ipv6?.gateway].filter((one) => one !== undefined);
  return [...gateways.map((via) => ({ via: IpAddress.parse(via) })), ...routes.map(routeTo)];
}

const routeTo = ({ to, via }: Routes[number]): Route => ({
  to: IpPrefix.parse(to),
  via: IpAddress.parse(via),
});
