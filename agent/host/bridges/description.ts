import { deriveMac, InterfaceAddress, IpPrefix, type MacAddress } from '#protocol/address.ts';
import { gatewayHolder, type Network, subnetsOf } from '#protocol/network.ts';
import type { LinkSettings } from '#native/link.ts';

// What a network needs on a host that has workloads of it, beside the workloads' own devices. Pure functions and plain
// data: `comparison` compares it with the host, `bridges` makes, repairs and removes it.

/** What a network type needs on the host for its bridge. */
export interface BridgeNeeds {
  /** Settings of the bridge itself, below `/proc/sys/net/<family>/conf/<bridge>/`. */
  readonly bridgeSettings: LinkSettings;
  /** The address families that the host has to forward. */
  readonly forwards: readonly (4 | 6)[];
  /** Destinations of packets that the host accepts as its own when they come in by the bridge: `::1/128`. */
  readonly localRoutes: readonly string[];
}

/** Needs of a network whose workloads use this host as a router. */
export const routerNeeds = ({
  ipv6,
}: Pick<Network, 'ipv6'>): Pick<BridgeNeeds, 'bridgeSettings' | 'forwards'> => ({
  bridgeSettings: {},
  forwards: ipv6 === undefined ? [4] : [4, 6],
});
export const NO_ROUTER = { bridgeSettings: {}, forwards: [] } as const;

/** One network's objects on one host. */
export interface BridgeDescription extends BridgeNeeds {
  readonly network: string;
  readonly bridge: string;
  /** MAC of a bridge that the agent makes. It is fixed: otherwise the bridge would take the lowest MAC of its ports. */
  readonly mac: string;
  /**
   * The network's, or that which a bridge of the agent's own was made with: of its uplink or, without one, of the way out.
   * Absent while there is no such bridge.
   */
  readonly mtu?: number | undefined;
  /** `10.42.0.0/24`. */
  readonly subnets: readonly string[];
  /** Gateway addresses that a bridge of the agent's own has: `10.42.0.1/24`. */
  readonly gateways: readonly string[];
  /** Gateways that an earlier release may have given the bridge: left alone until the network says who has them. */
  readonly undecided: readonly string[];
  /**
   * `fe80::…/64`, of a bridge that the agent makes for a network with IPv6. The bridge has it from the first packet on.
   */
  readonly linkLocal?: string | undefined;
  /** The bridge was there before any agent. If it goes, its owner makes it again, and no agent does. */
  readonly adopted?: true | undefined;
  /** Settings of a bridge that the agent makes. */
  readonly ownSettings: LinkSettings;
  /** The NIC that is to be a port. */
  readonly uplink?: { readonly device: string; readonly allowDefaultRoute: boolean } | undefined;
}

export function describeBridge(
  network: Network,
  {
    mac,
    adopted,
    mtu,
    needs,
  }: Pick<BridgeDescription, 'mtu'> & {
    readonly mac: MacAddress;
    readonly adopted: boolean;
    readonly needs: BridgeNeeds;
  },
): BridgeDescription {
  const { uplink } = network;
  const holder = gatewayHolder(network);
  const addresses = gatewayAddresses(network).map(String);
  return {
    ...needs,
    network: network.network,
    bridge: network.bridge,
    mac: mac.toString(),
    ...(adopted && { adopted }),
    ...(mtu !== undefined && { mtu }),
    subnets: subnetsOf(network).map(String),
    gateways: holder === 'bridge' || holder === 'anycast' ? addresses : [],
    undecided: holder === 'undecided' ? addresses : [],
    ...(network.ipv6 !== undefined && { linkLocal: `${mac.linkLocal().toString()}/64` }),
    // New devices may have IPv6 switched off (`default.disable_ipv6`), but a gateway needs IPv6 addresses. The host
    // must not take routes from router advertisements of workloads. Where it routes for them it says so to its
    // neighbours, but not on an adopted bridge: packets are forwarded without, and the host itself may have its address
    // and route by advertisements there, which a router ignores.
    ownSettings: {
      ...(network.ipv6 !== undefined && { 'ipv6.disable_ipv6': 0 }),
      'ipv6.accept_ra': 0,
      ...(needs.forwards.includes(6) && { 'ipv6.forwarding': 1 }),
    },
    ...(uplink !== undefined && {
      uplink: { device: uplink.device, allowDefaultRoute: uplink.allowDefaultRoute === true },
    }),
  };
}

/** The gateways with the prefix lengths of their subnets, no matter who has them. */
function gatewayAddresses(network: Network): InterfaceAddress[] {
  return [network, network.ipv6].flatMap((family) => {
    if (family?.gateway === undefined || family.subnet === undefined) return [];
    return [InterfaceAddress.parse(`${family.gateway}/${IpPrefix.parse(family.subnet).length}`)];
  });
}

/**
 * The MAC that a bridge is made with. It is different on each host, since uplinks may join the bridges of several
 * hosts. An anycast gateway has the same MAC on each host: to the workloads it is one gateway, wherever they are.
 */
export const bridgeMac = (host: string, network: Network): MacAddress =>
  gatewayHolder(network) === 'anycast'
    ? anycastMac(network)
    : deriveMac(`bridge ${host} ${network.bridge}`);

export const anycastMac = ({ network }: Pick<Network, 'network'>): MacAddress =>
  deriveMac(`gateway ${network}`);
