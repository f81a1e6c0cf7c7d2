import { deriveMac, InterfaceAddress, IpPrefix, type MacAddress } from '#protocol/address.ts';
import { gatewayHolder, type Network, subnetsOf } from '#protocol/network.ts';
import type { LinkSettings } from '#native/link.ts';

// What a network is to have on a host that it has workloads on, beside the workloads' own devices. Pure, and plain data:
// `comparison` holds it against what is there, `bridges` makes, repairs and removes it.

/** What a type of network needs of the host around its bridge. */
export interface BridgeNeeds {
  /** Of the bridge itself, below `/proc/sys/net/<family>/conf/<bridge>/`. */
  readonly bridgeSettings: LinkSettings;
  /** The address families that the host has to forward. */
  readonly forwards: readonly (4 | 6)[];
  /** Destinations that are this host's own when they come in by the bridge: `::1/128`. */
  readonly localRoutes: readonly string[];
}

/** What a network needs for whose workloads the host is a router: it believes no advertisements of other routers. */
export const routerNeeds = ({
  ipv6,
}: Pick<Network, 'ipv6'>): Pick<BridgeNeeds, 'bridgeSettings' | 'forwards'> => ({
  bridgeSettings: ipv6 === undefined ? {} : { 'ipv6.forwarding': 1 },
  forwards: ipv6 === undefined ? [4] : [4, 6],
});
export const NO_ROUTER = { bridgeSettings: {}, forwards: [] } as const;

/** One network's objects on one host. */
export interface BridgeDescription extends BridgeNeeds {
  readonly network: string;
  readonly bridge: string;
  /** Of a bridge that the agent makes: fixed, so that it does not follow its lowest port. */
  readonly mac: string;
  /** Absent: that of the way out, when the bridge is made. */
  readonly mtu?: number | undefined;
  /** `10.42.0.0/24`. */
  readonly subnets: readonly string[];
  /** `10.42.0.1/24`: those that a bridge of the agent's own has. */
  readonly gateways: readonly string[];
  /** Gateways that an earlier release gave the bridge: where they are they stay, until the network says whose they are. */
  readonly undecided: readonly string[];
  /** `fe80::…/64`, of a bridge that the agent makes for a network with IPv6: there from the first packet on. */
  readonly linkLocal?: string | undefined;
  /** Of a bridge that the agent makes. */
  readonly ownSettings: LinkSettings;
  /** The NIC that is to be a port. */
  readonly uplink?: { readonly device: string; readonly allowDefaultRoute: boolean } | undefined;
}

export function describeBridge(
  network: Network,
  { mac, needs }: { readonly mac: MacAddress; readonly needs: BridgeNeeds },
): BridgeDescription {
  const { uplink, mtu } = network;
  const holder = gatewayHolder(network);
  const addresses = gatewayAddresses(network).map(String);
  return {
    ...needs,
    network: network.network,
    bridge: network.bridge,
    mac: mac.toString(),
    ...(mtu !== undefined && { mtu }),
    subnets: subnetsOf(network).map(String),
    gateways: holder === 'bridge' || holder === 'anycast' ? addresses : [],
    undecided: holder === 'undecided' ? addresses : [],
    ...(network.ipv6 !== undefined && { linkLocal: `${mac.linkLocal().toString()}/64` }),
    // New devices may have IPv6 switched off (`default.disable_ipv6`); a gateway is to have addresses. What workloads
    // advertise is no way for the host.
    ownSettings: {
      ...(network.ipv6 !== undefined && { 'ipv6.disable_ipv6': 0 }),
      'ipv6.accept_ra': 0,
    },
    ...(uplink !== undefined && {
      uplink: { device: uplink.device, allowDefaultRoute: uplink.allowDefaultRoute === true },
    }),
  };
}

/** The gateways with the prefix lengths of their subnets, whoever has them. */
function gatewayAddresses(network: Network): InterfaceAddress[] {
  return [network, network.ipv6].flatMap((family) => {
    if (family?.gateway === undefined || family.subnet === undefined) return [];
    return [InterfaceAddress.parse(`${family.gateway}/${IpPrefix.parse(family.subnet).length}`)];
  });
}

/**
 * The MAC that a bridge is made with: another one on each host, since uplinks may join the bridges of several. A gateway
 * that every host has is one to the workloads, wherever they are: the same on each host.
 */
export const bridgeMac = (host: string, network: Network): MacAddress =>
  gatewayHolder(network) === 'anycast'
    ? anycastMac(network)
    : deriveMac(`bridge ${host} ${network.bridge}`);

export const anycastMac = ({ network }: Pick<Network, 'network'>): MacAddress =>
  deriveMac(`gateway ${network}`);
