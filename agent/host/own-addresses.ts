import { type IpAddress, IpPrefix } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import { type Network, subnetsOf } from '#protocol/network.ts';
import type { AssignedAddress } from '#native/address.ts';
import type { Kernel } from './kernel.ts';

// What this host itself has that a network could take from it: its addresses, and its ways to other hosts.

/** The main table; others are for packets that rules choose. */
const MAIN_TABLE = 254;
/** Workloads reach nobody's loopback addresses, and fe80::/10 is each segment's own. */
const NOBODYS = ['127.0.0.0/8', '::1/128', 'fe80::/10'].map((text) => IpPrefix.parse(text));

/** Kinds of devices that are on the segment of the device that they stand on; a VLAN is another segment. */
const ON_PARENT: ReadonlySet<string> = new Set(['macvlan', 'macvtap', 'ipvlan']);

/** Something of the host within a subnet: `192.168.50.5/24` on `eth0`, or a route out of it. */
export interface Overlap {
  readonly subnet: string;
  readonly device: string;
  readonly ifindex: number;
  readonly has: string;
}

/**
 * The first address or route of the host that lies in a subnet of this network or around it. A default route is around
 * everything, and does not count; nor does what the host has on the network's own segment: on its bridge, its uplink, its
 * parent, or on what stands on that.
 */
export function overlapWithHost(kernel: Kernel, network: Network): Overlap | undefined {
  const { links } = kernel;
  const subnets = subnetsOf(network);
  const { bridge, uplink, parent } = network;
  const names = [bridge, uplink?.device, parent].filter((name) => name !== undefined);
  const segment = new Set(names.map((name) => links.indexOf(name)));
  const isMeant = (ifindex: number): boolean => {
    if (segment.has(ifindex)) return true;
    const { kind = '', linkIndex } = links.get(ifindex) ?? {};
    return ON_PARENT.has(kind) && linkIndex !== undefined && segment.has(linkIndex);
  };
  const found = (prefix: IpPrefix, ifindex: number, has: string): Overlap | undefined => {
    if (NOBODYS.some((one) => one.contains(prefix))) return undefined;
    const subnet = subnets.find((one) => one.family === prefix.family && one.overlaps(prefix));
    if (subnet === undefined || isMeant(ifindex)) return undefined;
    const device = kernel.links.nameOf(ifindex) ?? `#${ifindex}`;
    return { subnet: subnet.toString(), device, ifindex, has };
  };
  for (const { ifindex, address } of kernel.addresses.list()) {
    const prefix = IpPrefix.around(address.address, address.prefixLength);
    const overlap = found(prefix, ifindex, address.toString());
    if (overlap !== undefined) return overlap;
  }
  for (const { to, ifindex, nexthops = [] } of kernel.routes.list({ table: MAIN_TABLE })) {
    if (to === undefined || to.length === 0) continue;
    for (const index of ifindex === undefined ? nexthops : [ifindex]) {
      const overlap = found(to, index, `a route to ${to.toString()}`);
      if (overlap !== undefined) return overlap;
    }
  }
  return undefined;
}

/** NETWORK_CONFLICT: the host would lose the way to others, or others to it. */
export const conflictOf = ({ network }: Network, { subnet, device, has }: Overlap): VoltError =>
  new VoltError(
    'NETWORK_CONFLICT',
    `network ${network}: subnet ${subnet} overlaps what this host has on ${device}: ${has}`,
    { details: { network, subnet, device, has } },
  );

/**
 * The addresses of this host in the subnets of a network, without prefix lengths, each with the device that has it:
 * nobody else may be given them.
 */
export function ownAddresses(
  kernel: Kernel,
  network: Network,
  held: readonly AssignedAddress[] = kernel.addresses.list(),
): ReadonlyMap<string, string> {
  const subnets = subnetsOf(network);
  const isWithin = (address: IpAddress): boolean =>
    subnets.some((one) => one.family === address.family && one.contains(address));
  const own = held
    .map(({ address: { address }, ifindex }) => ({ address, ifindex }))
    .filter(({ address }) => isWithin(address));
  return new Map(
    own.map(({ address, ifindex }) => [
      address.toString(),
      kernel.links.nameOf(ifindex) ?? `#${ifindex}`,
    ]),
  );
}
