import { IpAddress, MacAddress } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import { elementsOf, type Fact, type Ruleset } from './ruleset.ts';

// What a workload may send, enforced at its own port. The rules never change; sets say which device has which MAC and
// addresses. test/agent/host/spoof.live.test.ts tries the rules with raw frames.

/**
 * Bit of the packet mark that says: a rule of ours let this frame into the bridge. It lives from a bridge's
 * prerouting to its port or, on the way to the host, to the ingress of the bridge device, which takes it off.
 */
const PASSED = 0x0010_0000;
const UNMARKED = (~PASSED >>> 0).toString();
/**
 * Bit that says: this packet came to the host by an isolated bridge. Where br_netfilter is on, rules for routed packets
 * also see frames that are bridged, from a port to the uplink for instance, with the same device names.
 */
export const ARRIVED = 0x0020_0000;
/**
 * Bit that says: a bridge of the host, ours or not, passes this frame from port to port. Where br_netfilter is on,
 * rules for routed packets also see such frames, and must not drop them as routed packets. The postrouting chain of the
 * bridge takes the bit off.
 */
export const BRIDGED = 0x0040_0000;
const NOT_BRIDGED = (~BRIDGED >>> 0).toString();

const PORT_SETS = {
  /** Devices under the filter. */
  ports: { key: ['ifname'] },
  mac: { key: ['ifname', 'ether_addr'] },
  arp4: { key: ['ifname', 'ether_addr', 'ipv4_addr'] },
  src4: { key: ['ifname', 'ipv4_addr'] },
  src6: { key: ['ifname', 'ipv6_addr'] },
  /** Targets of neighbour discovery: what a port may advertise, and may probe in duplicate address detection. */
  nd6: { key: ['ifname', 'th,64,128'] },
  /** Link-layer addresses in the options of neighbour discovery. */
  ndmac: { key: ['ifname', 'th,208,48'] },
  /** Devices that may use any link-local address but the host's: `linkLocal: "any"`. */
  anylocal: { key: ['ifname'] },
  hostlocal: { key: ['ipv6_addr'] },
  hosttarget: { key: ['th,64,128'] },
} as const;

const ARP = 'arp htype 1 arp ptype ip arp hlen 6 arp plen 4';
const LATE_FRAGMENT = 'ip frag-off & 0x1fff != 0';
/**
 * A later fragment that udhcpc takes for a whole DHCP answer, since it ignores the fragment offset: an IP header
 * without options, then the port of a DHCP client and a UDP length that fits an Ethernet packet. Of fragments with
 * other data, one in two million looks like that.
 */
const DHCP_ANSWER_INSIDE = '@nh,4,4 5 @nh,176,16 68 @nh,192,5 0';
const SOLICITATION =
  'ip6 nexthdr 58 ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit icmpv6 code 0';
/** Duplicate address detection (RFC 4862), without and with a nonce (RFC 7527). */
const DETECTIONS = [`${SOLICITATION} ip6 length 24`, `${SOLICITATION} ip6 length 32 @th,192,8 14`];
/** RFC 2710, RFC 3810. */
const LISTENER_REPORTS = ['mld-listener-report', 'mld-listener-done', 'mld2-listener-report'];
/** A neighbour advertisement with the one option that it may have, the target's link-layer address. */
const ADVERTISED = 'ip6 nexthdr 58 ip6 length 32 @th,192,16 0x0201';
const TARGET = '@th,64,128';
const LINK_LAYER = '@th,208,48';
/** A target within fe80::/10 that is no link-local address of the host. */
const ANY_LOCAL_TARGET = '@anylocal @th,64,10 0x3fa @th,64,128 != @hosttarget';

/** How rules name the workload's device: frames come in by it, or, at an egress hook, leave by it. */
type Side = 'iifname' | 'oifname';

/**
 * A frame that enters `port` ends in `ok` or is dropped. There are several chains, so that a frame meets only the rules
 * for its own protocol. No rule has a set in braces: loading the rules again replaces that set, and a frame that is in
 * the old rules at that moment would find the set empty.
 */
const portChains = (side: Side, ok: readonly string[]): Ruleset['chains'] => ({
  ok: { rules: ok },
  port: {
    rules: [
      `${side} . ether saddr != @mac counter drop`,
      'ether daddr and ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter drop',
      'ether type arp goto port_arp',
      'ether type ip goto port_v4',
      'ether type ip6 goto port_v6',
      'counter drop',
    ],
  },
  port_arp: {
    rules: [
      `${ARP} ${side} . arp saddr ether . arp saddr ip @arp4 goto ok`,
      // A probe (RFC 5227) has no sender address yet.
      `${ARP} arp operation request arp saddr ip 0.0.0.0 ${side} . arp saddr ether @mac goto ok`,
      'counter drop',
    ],
  },
  port_v4: {
    rules: [
      `${side} . ip saddr @src4 goto own_v4`,
      'ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 goto ok',
      'counter drop',
    ],
  },
  // If the header of a packet contradicts itself, or is not IPv4 at all, nftables knows no protocol for it, and no rule
  // on the protocol matches. Such a packet is dropped, since clients that read raw frames (ISC dhclient) would still
  // take its contents.
  own_v4: {
    rules: [
      'meta l4proto 17 goto udp_v4',
      'igmp type membership-query counter drop',
      'meta l4proto != 17 goto ok',
      'counter drop',
    ],
  },
  // A later fragment carries no UDP header, and is useless to a receiver that did not get the first fragment.
  udp_v4: {
    rules: [
      `${LATE_FRAGMENT} ${DHCP_ANSWER_INSIDE} counter drop`,
      `${LATE_FRAGMENT} goto ok`,
      // DHCP clients accept an answer from any source port.
      'udp dport 68 counter drop',
      'udp sport != 67 goto ok',
      'counter drop',
    ],
  },
  port_v6: {
    rules: [
      // nftables takes a packet for a later fragment whatever the IP version in its header is.
      'ip6 version != 6 counter drop',
      'ip6 saddr :: goto unspecified_v6',
      `${side} . ip6 saddr @src6 goto own_v6`,
      `${side} @anylocal ip6 saddr fe80::/10 ip6 saddr != @hostlocal goto own_v6`,
      'counter drop',
    ],
  },
  // What a host sends before it has an address: duplicate address detection, router solicitations, listener reports.
  unspecified_v6: {
    rules: [
      ...DETECTIONS.flatMap((detection) => [
        `${detection} ${side} . ${TARGET} @nd6 goto ok`,
        `${detection} ${side} ${ANY_LOCAL_TARGET} goto ok`,
      ]),
      'ip6 nexthdr 58 icmpv6 type nd-router-solicit ip6 length 8 goto ok',
      ...LISTENER_REPORTS.map((report) => `ip6 hoplimit 1 icmpv6 type ${report} goto ok`),
      'counter drop',
    ],
  },
  // A packet whose header chain hides its contents (RFC 7112) is dropped. Later fragments carry no such header at all,
  // and are useless without the first fragment.
  own_v6: {
    rules: [
      'frag frag-off != 0 goto ok',
      'meta l4proto 58 goto icmp_v6',
      'meta l4proto 17 goto udp_v6',
      // This rule does not match if the header chain cannot be followed to its end: then nftables knows no protocol.
      'meta l4proto != 58 goto ok',
      'counter drop',
    ],
  },
  // Two rules, because nft 1.0.6 compiles `!=` with two ports to a comparison with their pair.
  udp_v6: { rules: ['udp dport 546 counter drop', 'udp sport != 547 goto ok', 'counter drop'] },
  icmp_v6: {
    rules: [
      'icmpv6 type mld-listener-query counter drop',
      'icmpv6 type nd-router-advert counter drop',
      'icmpv6 type nd-redirect counter drop',
      'icmpv6 type nd-neighbor-solicit goto neighbour_solicit',
      'icmpv6 type nd-neighbor-advert goto neighbour_advert',
      'icmpv6 type nd-router-solicit goto router_solicit',
      // This rule does not match either if the packet has no ICMPv6 type.
      'icmpv6 type != nd-router-advert goto ok',
      'counter drop',
    ],
  },
  neighbour_solicit: {
    rules: [
      'ip6 nexthdr 58 ip6 length 24 goto ok',
      `ip6 nexthdr 58 ip6 length 32 @th,192,16 0x0101 ${side} . ${LINK_LAYER} @ndmac goto ok`,
      'counter drop',
    ],
  },
  neighbour_advert: {
    rules: [
      `ip6 nexthdr 58 ip6 length 24 ${side} . ${TARGET} @nd6 goto ok`,
      `ip6 nexthdr 58 ip6 length 24 ${side} ${ANY_LOCAL_TARGET} goto ok`,
      `${ADVERTISED} ${side} . ${TARGET} @nd6 ${side} . ${LINK_LAYER} @ndmac goto ok`,
      `${ADVERTISED} ${side} . ${LINK_LAYER} @ndmac ${side} ${ANY_LOCAL_TARGET} goto ok`,
      'counter drop',
    ],
  },
  router_solicit: {
    rules: [
      'ip6 nexthdr 58 ip6 length 8 goto ok',
      `ip6 nexthdr 58 ip6 length 16 @th,64,16 0x0101 ${side} . @th,80,48 @ndmac goto ok`,
      'counter drop',
    ],
  },
});

/** Rules at the bridge: for frames that ports send, and for other frames that are sent to the ports. */
export const BRIDGE_FILTER = {
  family: 'bridge',
  sets: {
    ...PORT_SETS,
    /** Uplinks, and ports of networks with `filter: false`. */
    trusted: { key: ['ifname'] },
    /** Ports in hairpin mode, twice: a frame for the port's own MAC may leave by the port that it came in by. */
    hairpin: { key: ['ifname', 'ifname'] },
    /** Uplinks of networks whose hosts serve DHCP or names: each host serves its own workloads alone. */
    serving: { key: ['ifname'] },
    /** Those of networks with DHCP: workloads have servers and routers of their own host alone. */
    leasing: { key: ['ifname'] },
    /** Protocols whose frames are marked while they go from port to port. */
    marked: { key: ['ether_type'] },
  },
  chains: {
    ...portChains('iifname', [`meta mark set meta mark or ${PASSED}`, 'accept']),
    prerouting: {
      hook: 'type filter hook prerouting priority -300; policy accept;',
      rules: [
        // Only a reply to a port map has this destination at the bridge's ingress: see `arrival`.
        'iifname @ports ip6 daddr ::1 counter drop',
        'iifname @trusted ip6 daddr ::1 counter drop',
        'iifname @ports goto port',
        `iifname @trusted meta mark set meta mark or ${PASSED}`,
      ],
    },
    forward: {
      hook: 'type filter hook forward priority -300; policy accept;',
      rules: [
        `meta protocol @marked meta mark set meta mark or ${BRIDGED}`,
        'iifname @leasing jump from_segment',
        'oifname @leasing jump to_segment',
        'iifname . oifname @hairpin iifname . ether daddr != @mac counter drop',
        'iifname @ports accept',
        'iifname @trusted accept',
        'oifname @ports counter drop',
        'oifname @trusted counter drop',
      ],
    },
    // Answers of servers and routers of the segment. As with ports, a packet that nftables cannot read is dropped.
    from_segment: {
      rules: ['ether type ip goto answers_v4', 'ether type ip6 goto answers_v6'],
    },
    answers_v4: {
      rules: [
        `meta l4proto 17 ${LATE_FRAGMENT} ${DHCP_ANSWER_INSIDE} counter drop`,
        'udp dport 68 counter drop',
        'meta l4proto 17 return',
        'meta l4proto != 17 return',
        'counter drop',
      ],
    },
    answers_v6: {
      rules: [
        'ip6 version != 6 counter drop',
        'frag frag-off != 0 return',
        'udp dport 546 counter drop',
        'icmpv6 type nd-router-advert counter drop',
        'meta l4proto 58 return',
        'meta l4proto != 58 return',
        'counter drop',
      ],
    },
    to_segment: {
      rules: [
        'ether type ip udp dport 67 counter drop',
        'ether type ip6 udp dport 547 counter drop',
      ],
    },
    // What the host says to all ports of a bridge, it says to the uplink, too.
    output: {
      hook: 'type filter hook output priority -300; policy accept;',
      rules: ['oifname @leasing goto from_host'],
    },
    from_host: {
      rules: [
        'ether type ip udp dport 68 counter drop',
        'ether type ip6 udp dport 546 counter drop',
        'ether type ip6 icmpv6 type nd-router-advert counter drop',
      ],
    },
    input: {
      hook: 'type filter hook input priority -300; policy accept;',
      rules: ['iifname @serving goto asked_by_segment'],
    },
    asked_by_segment: {
      rules: [
        'udp dport 53 counter drop',
        'tcp dport 53 counter drop',
        'udp dport 67 counter drop',
        'udp dport 547 counter drop',
        'iifname @leasing icmpv6 type nd-router-solicit counter drop',
      ],
    },
    postrouting: {
      hook: 'type filter hook postrouting priority 300; policy accept;',
      rules: [`meta mark and ${BRIDGED} != 0 meta mark set meta mark and ${NOT_BRIDGED}`],
    },
  },
} as const satisfies Ruleset;

/** Rules at single devices: at bridges, for frames to the host, and at macvtaps, whose frames pass no bridge. */
export const DEVICE_FILTER = {
  family: 'netdev',
  sets: {
    ...PORT_SETS,
    /** Bridges of networks with `portIsolation`, whose ports reach only the gateway. */
    isolated: { key: ['ifname'] },
  },
  egress: true,
  chains: {
    ...portChains('oifname', ['accept']),
    guard: { rules: [`meta mark and ${PASSED} == 0 goto unmarked`, 'goto arrival'] },
    // What the host sends to a group comes back to it this way, too: so a lease of DHCPv6 is ended.
    unmarked: {
      rules: ['ip6 daddr ff02::1:2 udp sport 546 udp dport 547 goto arrival', 'counter drop'],
    },
    arrival: {
      rules: [
        // Where br_netfilter is on, the reply to a connection that was mapped from ::1 gets its destination ::1 back
        // while it is still in the bridge. IPv6 takes packets to ::1 from loopback alone, so this rule moves the reply
        // there. A workload cannot send such a packet of its own: the bridge's prerouting drops it. Nor can another
        // port of an adopted bridge: its frames have no mark.
        `meta mark and ${PASSED} != 0 ip6 daddr ::1 meta mark set meta mark and ${UNMARKED} ether daddr set 00:00:00:00:00:00 fwd to "lo"`,
        `meta mark set meta mark and ${UNMARKED}`,
        `iifname @isolated meta mark set meta mark or ${ARRIVED}`,
      ],
    },
  },
} as const satisfies Ruleset;

const bridge = elementsOf(BRIDGE_FILTER);
const device = elementsOf(DEVICE_FILTER);

/**
 * IFLA_BRPORT_GROUP_FWD_MASK of a filtered port: frames to the group addresses of IEEE 802.1D are forwarded like other
 * frames. Without this mask the kernel hands such frames (at least LLDP) to the host past all hooks, and learns from
 * them that any MAC, even a neighbour's, is behind this port. The kernel refuses the bit of pause frames, which it
 * never delivers.
 */
export const FILTERED_GROUPS = 0xfffd;

/** The MAC and addresses that a port may send from. */
export interface FilteredPort {
  readonly device: string;
  /** The workload's MAC. */
  readonly mac: string;
  /** With or without a prefix length. */
  readonly addresses: readonly string[];
  readonly linkLocal: Network['linkLocal'];
}

/** Holds a bridge's port to its own MAC and addresses. */
export const bridgePortFacts = (port: FilteredPort): Fact[] => portFacts(port, bridge);

/** Holds a macvtap, at its egress hook, to its own MAC and addresses. */
export const macvtapFacts = (port: FilteredPort & { readonly ifindex: number }): Fact[] => [
  ...portFacts(port, device),
  {
    kind: 'chain',
    ruleset: DEVICE_FILTER,
    chain: `port_${port.ifindex}`,
    hook: 'egress',
    device: port.device,
    goto: 'port',
  },
];

function portFacts(port: FilteredPort, fact: typeof bridge | typeof device): Fact[] {
  const { device: name, linkLocal } = port;
  const mac = MacAddress.parse(port.mac);
  const addresses = port.addresses.map((text) => IpAddress.parse(text.split('/')[0] ?? text));
  const v4 = addresses.filter(({ family }) => family === 4);
  const v6 = [mac.linkLocal(), ...addresses.filter(({ family }) => family === 6)];
  // The firewall keeps facts: two of them share an element where they can.
  const own = { key: [name, mac] };
  return [
    fact('mac', own),
    ...v4.flatMap((address) => [
      fact('arp4', { key: [name, mac, address] }),
      fact('src4', { key: [name, address] }),
    ]),
    ...v6.flatMap((address) => {
      const source = { key: [name, address] };
      return [fact('src6', source), fact('nd6', source)];
    }),
    fact('ndmac', own),
    ...(linkLocal === 'any' ? [fact('anylocal', { key: [name] })] : []),
    fact('ports', { key: [name] }),
  ];
}

/** Exempts a port of a bridge from the filter: an uplink, or a port of a network with `filter: false`. */
export const trustedFacts = (name: string): Fact[] => [bridge('trusted', { key: [name] })];

/**
 * Keeps DHCP and DNS of a host from the segment behind an uplink. `leasing`: and DHCP and router advertisements of the
 * segment from the workloads.
 */
export const servingFacts = (uplink: string, leasing: boolean): Fact[] => [
  bridge('serving', { key: [uplink] }),
  ...(leasing ? [bridge('leasing', { key: [uplink] })] : []),
];

/** Allows a port in hairpin mode to get its own frames back, if they are for its own MAC. */
export const hairpinFacts = (name: string): Fact[] => [bridge('hairpin', { key: [name, name] })];

/**
 * Drops frames on their way from a bridge to the host unless our rules let them into the bridge. For bridges that the
 * agent made; on an adopted bridge, other ports are its owner's business.
 */
export const guardFacts = (bridgeLink: BridgeLink): Fact[] => [ingress(bridgeLink, 'guard')];

/** For an adopted bridge: takes off our mark, and lets frames of its other ports reach the host. */
export const arrivalFacts = (bridgeLink: BridgeLink): Fact[] => [ingress(bridgeLink, 'arrival')];

/** Marks packets that come to the host by a bridge with `portIsolation`. */
export const isolatedArrivalFacts = (name: string): Fact[] => [device('isolated', { key: [name] })];

/** Marks the frames of a protocol (ETH_P_…) that go from port to port of any bridge. */
export const bridgedFrameFacts = (etherType: number): Fact[] => [
  bridge('marked', { key: [etherType] }),
];

interface BridgeLink {
  readonly name: string;
  readonly index: number;
}

const ingress = ({ name, index }: BridgeLink, goto: 'guard' | 'arrival'): Fact => ({
  kind: 'chain',
  ruleset: DEVICE_FILTER,
  chain: `bridge_${index}`,
  hook: 'ingress',
  device: name,
  goto,
});

/** Keeps all ports from using the link-local address of a bridge, whatever `linkLocal` of their network says. */
export function hostLocalFacts(mac: MacAddress): Fact[] {
  const address = mac.linkLocal();
  return [bridge('hostlocal', { key: [address] }), bridge('hosttarget', { key: [address] })];
}
