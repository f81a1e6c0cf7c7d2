import { IpAddress, type IpPrefix } from '#protocol/address.ts';
import type { Attachment } from '#protocol/attachment.ts';
import { type Network, subnetsOf } from '#protocol/network.ts';
import { ARRIVED, BRIDGED, bridgedFrameFacts, isolatedArrivalFacts } from './port-filter.ts';
import { elementsOf, type Fact, type Ruleset } from './ruleset.ts';

// What the host routes: host-only networks (masquerade outward, port maps inward), what is forwarded between networks
// and other devices, and the routed half of portIsolation. Port maps are elements of nftables maps, so a packet costs
// the same with one port map and with ten thousand.

/** net/netfilter and netinet/in.h: protocol numbers. */
const PROTOCOLS = { tcp: 6, udp: 17, sctp: 132 } as const;

export const HOST_NAT = {
  family: 'inet',
  sets: {
    /** Bridges of host-only networks. */
    bridges: { key: ['ifname'] },
    /** A bridge twice: packets that come in and leave by the same bridge. */
    inside: { key: ['ifname', 'ifname'] },
    /** A bridge twice, of networks with `portIsolation`. */
    isolated: { key: ['ifname', 'ifname'] },
    /** Bridges that we made for bridged networks: nothing is routed to them or from them. */
    closed: { key: ['ifname'] },
    /** Those bridges of `closed` that have an uplink: masqueraded packets of host-only networks may leave by them. */
    segments: { key: ['ifname'] },
    /** Bridges of networks that say `routed`. */
    routed: { key: ['ifname'] },
    /** Protocols whose forwarding this agent has switched on. */
    shut: { key: ['ether_type'] },
    /** Devices on which an operator had switched on forwarding of the protocol before. */
    opened: { key: ['ether_type', 'ifname'] },
    /** Subnets of host-only networks, and the bridge behind which each of them lies. */
    pool4: { key: ['ipv4_addr'], interval: true },
    pool6: { key: ['ipv6_addr'], interval: true },
    own4: { key: ['ifname', 'ipv4_addr'], interval: true },
    own6: { key: ['ifname', 'ipv6_addr'], interval: true },
    /** Subnets that are masqueraded. */
    nat4: { key: ['ipv4_addr'], interval: true },
    nat6: { key: ['ipv6_addr'], interval: true },
    /** Port maps for every address of the host (`any`), and for one given address (`one`). */
    any4: { key: ['inet_proto', 'inet_service'], data: ['ipv4_addr', 'inet_service'] },
    any6: { key: ['inet_proto', 'inet_service'], data: ['ipv6_addr', 'inet_service'] },
    one4: { key: ['ipv4_addr', 'inet_proto', 'inet_service'], data: ['ipv4_addr', 'inet_service'] },
    one6: { key: ['ipv6_addr', 'inet_proto', 'inet_service'], data: ['ipv6_addr', 'inet_service'] },
  },
  chains: {
    // Keeps a neighbour that uses this host as a gateway out of host-only subnets. Bridges have route_localnet, so a
    // rule must keep 127.0.0.0/8 on loopback.
    raw_prerouting: {
      hook: 'type filter hook prerouting priority raw; policy accept;',
      rules: [
        'iifname "lo" return',
        'iifname @bridges ip daddr 127.0.0.0/8 counter drop',
        'iifname @bridges ip saddr 127.0.0.0/8 counter drop',
        'ip daddr @pool4 iifname . ip daddr != @own4 counter drop',
        'ip6 daddr @pool6 iifname . ip6 daddr != @own6 counter drop',
      ],
    },
    portmaps: {
      rules: [
        // `fib daddr type local` also for a given address: while the host does not have the address, it is another
        // machine's.
        'fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @one4',
        'fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @one6',
        'fib daddr type local dnat ip to meta l4proto . th dport map @any4',
        'fib daddr type local dnat ip6 to meta l4proto . th dport map @any6',
      ],
    },
    nat_prerouting: {
      hook: 'type nat hook prerouting priority dstnat; policy accept;',
      rules: ['goto portmaps'],
    },
    nat_output: {
      hook: 'type nat hook output priority -100; policy accept;',
      rules: ['goto portmaps'],
    },
    // A mapped connection from loopback or from a workload gets the host's address, so that its replies come back
    // through the host.
    nat_postrouting: {
      hook: 'type nat hook postrouting priority srcnat; policy accept;',
      rules: [
        'oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade',
        'oifname @bridges ct status dnat ip6 saddr ::1 masquerade',
        'oifname @bridges ct status dnat ip saddr @pool4 masquerade',
        'oifname @bridges ct status dnat ip6 saddr @pool6 masquerade',
        'oifname != @bridges ip saddr @nat4 masquerade',
        'oifname != @bridges ip6 saddr @nat6 masquerade',
      ],
    },
    forward: {
      hook: 'type filter hook forward priority filter; policy accept;',
      rules: [
        'iifname @bridges ct status dnat accept',
        'oifname @bridges ct status dnat accept',
        `meta mark and ${ARRIVED} != 0 iifname . oifname @isolated counter drop`,
        'iifname . oifname @inside accept',
        'oifname @bridges ct state established,related accept',
        'oifname @bridges counter drop',
        'oifname @closed oifname != @segments counter drop',
        'iifname @bridges ip saddr @nat4 accept',
        'iifname @bridges ip6 saddr @nat6 accept',
        'iifname @bridges counter drop',
        'iifname @closed counter drop',
        'oifname @closed counter drop',
        'iifname @routed accept',
        'oifname @routed accept',
        // From here on, the rules see only packets between two devices that belong to none of our networks.
        `meta mark and ${BRIDGED} != 0 accept`,
        'meta protocol . iifname @opened accept',
        'meta protocol @shut counter drop',
      ],
    },
  },
} as const satisfies Ruleset;

const nat = elementsOf(HOST_NAT);

/** Whether a host-only network is masqueraded: IPv4 unless `nat` is false, IPv6 only if `nat.ipv6` is true. */
export const isMasqueraded = ({ nat: asked }: Network, family: 4 | 6): boolean => {
  if (typeof asked === 'object') return family === 4 || asked.ipv6 === true;
  return family === 4 && asked !== false;
};

const range = ({ first, last }: IpPrefix): { key: [IpAddress]; end: [IpAddress] } => ({
  key: [first],
  end: [last],
});

/** The facts of a host-only network, for its bridge. */
export function hostOnlyFacts(network: Network): Fact[] {
  const { bridge } = network;
  return [
    nat('bridges', { key: [bridge] }),
    nat('inside', { key: [bridge, bridge] }),
    ...subnetsOf(network).flatMap((subnet) => {
      const { first, last, family } = subnet;
      const [pool, own, masqueraded] =
        family === 4 ? (['pool4', 'own4', 'nat4'] as const) : (['pool6', 'own6', 'nat6'] as const);
      return [
        nat(pool, range(subnet)),
        nat(own, { key: [bridge, first], end: [bridge, last] }),
        ...(isMasqueraded(network, family) ? [nat(masqueraded, range(subnet))] : []),
      ];
    }),
  ];
}

/**
 * What the host may forward for a bridged network. `made` is false for an adopted bridge: unless the network is routed,
 * the agent treats it like any other device of the host.
 */
export function routingFacts(
  { bridge, routed, uplink }: Pick<Network, 'bridge' | 'routed' | 'uplink'>,
  made: boolean,
): Fact[] {
  const within = nat('inside', { key: [bridge, bridge] });
  if (routed === true) return [within, nat('routed', { key: [bridge] })];
  if (!made) return [];
  return [
    within,
    nat('closed', { key: [bridge] }),
    ...(uplink === undefined ? [] : [nat('segments', { key: [bridge] })]),
  ];
}

/** linux/if_ether.h: ETH_P_IP and ETH_P_IPV6. */
const ETHER_TYPES = { 4: 0x0800, 6: 0x86dd } as const;

/**
 * Drops packets of these families that are forwarded between two devices that are not ours. `opened`: devices for which
 * an operator has switched IPv4 forwarding on; packets that come in by them still pass.
 */
export const foreignForwardingFacts = (
  families: readonly (4 | 6)[],
  opened: readonly string[],
): Fact[] => [
  ...families
    .map((family) => ETHER_TYPES[family])
    .flatMap((type) => [nat('shut', { key: [type] }), ...bridgedFrameFacts(type)]),
  ...opened.map((name) => nat('opened', { key: [ETHER_TYPES[4], name] })),
];

/** Keeps the ports of a bridge apart also for packets that are routed through the gateway. */
export const isolatedFacts = ({ bridge }: Pick<Network, 'bridge'>): Fact[] => [
  nat('isolated', { key: [bridge, bridge] }),
  ...isolatedArrivalFacts(bridge),
];

/**
 * The port maps of an attachment, one to each of its addresses. A map of a given host address leads only to addresses
 * of the same family.
 */
export function portMapFacts({
  ports,
  addresses,
}: Pick<Attachment, 'ports' | 'addresses'>): Fact[] {
  const targets = addresses.map(({ address }) => IpAddress.parse(address.split('/')[0] ?? address));
  return ports.flatMap(({ protocol, hostPort, port, hostAddress }) => {
    const number = PROTOCOLS[protocol];
    const host = hostAddress === undefined ? undefined : IpAddress.parse(hostAddress);
    return targets
      .filter(({ family }) => host === undefined || host.family === family)
      .map((target) => {
        const data = [target, port];
        // 0.0.0.0 and :: are every address of their family.
        if (host === undefined || host.value === 0n) {
          const map = target.family === 4 ? 'any4' : 'any6';
          return nat(map, { key: [number, hostPort], data });
        }
        return nat(host.family === 4 ? 'one4' : 'one6', { key: [host, number, hostPort], data });
      });
  });
}
