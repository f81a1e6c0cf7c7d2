import { IpAddress, MacAddress } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import { elementsOf, type Fact, type Ruleset } from './ruleset.ts';

// What a workload may send, held on its own port: rules that never change, and sets that say which device has
// which MAC and addresses. Tried with raw frames in test/agent/host/spoof.live.test.ts.

/**
 * Bit of the packet mark that says: a rule of ours let this frame into the bridge. It lives from a bridge's
 * prerouting to its port or, on the way to the host, to the ingress of the bridge device, which takes it off.
 */
const PASSED = 0x0010_0000;
const UNMARKED = (~PASSED >>> 0).toString();
/**
 * Bit that says: this packet came to the host by an isolated bridge. Where br_netfilter is on, rules for what is
 * routed see what is bridged, too, from one port to the uplink for one, and with the same devices.
 */
export const ARRIVED = 0x0020_0000;
/**
 * Bit that says: this frame goes from port to port of some bridge of the host, ours or not. Where br_netfilter is on,
 * rules for what is routed see it, too, and must not take it for routed. It lives within that bridge.
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
  /** Targets of neighbour discovery: what a port may answer for and ask about itself. */
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
 * What udhcpc takes for a whole DHCP answer, since it does not look at the fragment's offset: a header without
 * options, and behind it the client's port and a length that fits a packet of Ethernet. Of other data one fragment in
 * two million looks like that.
 */
const DHCP_ANSWER_INSIDE = '@nh,4,4 5 @nh,176,16 68 @nh,192,5 0';
const SOLICITATION =
  'ip6 nexthdr ipv6-icmp ip6 hoplimit 255 icmpv6 type nd-neighbor-solicit icmpv6 code 0';
/** Duplicate address detection (RFC 4862), without and with a nonce (RFC 7527). */
const DETECTIONS = [`${SOLICITATION} ip6 length 24`, `${SOLICITATION} ip6 length 32 @th,192,8 14`];
/** RFC 2710, RFC 3810. */
const LISTENER_REPORTS = ['mld-listener-report', 'mld-listener-done', 'mld2-listener-report'];
/** A neighbour advertisement with the one option that it may have, the target's link-layer address. */
const ADVERTISED = 'ip6 nexthdr ipv6-icmp ip6 length 32 @th,192,16 0x0201';
const TARGET = '@th,64,128';
const LINK_LAYER = '@th,208,48';
/** fe80::/10, and none of the host's own. */
const ANY_LOCAL_TARGET = '@anylocal @th,64,10 0x3fa @th,64,128 != @hosttarget';

/** A name as it is in rules: where frames of a workload come in, or on an egress hook, where they leave. */
type Side = 'iifname' | 'oifname';

/**
 * From `port` on, a frame ends in `ok` or is dropped. Chains, not one long rule list, so that a frame meets the
 * rules of its kind alone. No rule has a set in braces: when rules are loaded again, that set is another, and a frame
 * that is among the old rules at that moment finds nothing in it.
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
  // Of a header that contradicts itself, or is not of IPv4 at all, there is no protocol, and then no match. Clients
  // that read frames themselves (ISC dhclient) take what is in such a packet all the same.
  own_v4: {
    rules: [
      'meta l4proto udp goto udp_v4',
      'igmp type membership-query counter drop',
      'meta l4proto != udp goto ok',
      'counter drop',
    ],
  },
  // Later fragments are nothing without the first.
  udp_v4: {
    rules: [
      `${LATE_FRAGMENT} ${DHCP_ANSWER_INSIDE} counter drop`,
      `${LATE_FRAGMENT} goto ok`,
      // Clients take an answer from any port.
      'udp dport 68 counter drop',
      'udp sport != 67 goto ok',
      'counter drop',
    ],
  },
  port_v6: {
    rules: [
      // Later fragments are taken for such whatever the version says.
      'ip6 version != 6 counter drop',
      'ip6 saddr :: goto unspecified_v6',
      `${side} . ip6 saddr @src6 goto own_v6`,
      `${side} @anylocal ip6 saddr fe80::/10 ip6 saddr != @hostlocal goto own_v6`,
      'counter drop',
    ],
  },
  // Before a host has an address: is it anybody's, who are the routers, which groups are listened to.
  unspecified_v6: {
    rules: [
      ...DETECTIONS.flatMap((detection) => [
        `${detection} ${side} . ${TARGET} @nd6 goto ok`,
        `${detection} ${side} ${ANY_LOCAL_TARGET} goto ok`,
      ]),
      'ip6 nexthdr ipv6-icmp icmpv6 type nd-router-solicit ip6 length 8 goto ok',
      ...LISTENER_REPORTS.map((report) => `ip6 hoplimit 1 icmpv6 type ${report} goto ok`),
      'counter drop',
    ],
  },
  // A header chain that hides what it carries (RFC 7112) is dropped; later fragments carry no header at all, and
  // are nothing without the first.
  own_v6: {
    rules: [
      'frag frag-off != 0 goto ok',
      'meta l4proto ipv6-icmp goto icmp_v6',
      'meta l4proto udp goto udp_v6',
      // Of a chain that cannot be followed to its end there is no protocol, and this no match.
      'meta l4proto != ipv6-icmp goto ok',
      'counter drop',
    ],
  },
  // Two rules: of two ports to differ from, nft 1.0.6 makes a pair to differ from.
  udp_v6: { rules: ['udp dport 546 counter drop', 'udp sport != 547 goto ok', 'counter drop'] },
  icmp_v6: {
    rules: [
      'icmpv6 type mld-listener-query counter drop',
      'icmpv6 type nd-router-advert counter drop',
      'icmpv6 type nd-redirect counter drop',
      'icmpv6 type nd-neighbor-solicit goto neighbour_solicit',
      'icmpv6 type nd-neighbor-advert goto neighbour_advert',
      'icmpv6 type nd-router-solicit goto router_solicit',
      // The same for a type that is not there.
      'icmpv6 type != nd-router-advert goto ok',
      'counter drop',
    ],
  },
  neighbour_solicit: {
    rules: [
      'ip6 nexthdr ipv6-icmp ip6 length 24 goto ok',
      `ip6 nexthdr ipv6-icmp ip6 length 32 @th,192,16 0x0101 ${side} . ${LINK_LAYER} @ndmac goto ok`,
      'counter drop',
    ],
  },
  neighbour_advert: {
    rules: [
      `ip6 nexthdr ipv6-icmp ip6 length 24 ${side} . ${TARGET} @nd6 goto ok`,
      `ip6 nexthdr ipv6-icmp ip6 length 24 ${side} ${ANY_LOCAL_TARGET} goto ok`,
      `${ADVERTISED} ${side} . ${TARGET} @nd6 ${side} . ${LINK_LAYER} @ndmac goto ok`,
      `${ADVERTISED} ${side} . ${LINK_LAYER} @ndmac ${side} ${ANY_LOCAL_TARGET} goto ok`,
      'counter drop',
    ],
  },
  router_solicit: {
    rules: [
      'ip6 nexthdr ipv6-icmp ip6 length 8 goto ok',
      `ip6 nexthdr ipv6-icmp ip6 length 16 @th,64,16 0x0101 ${side} . @th,80,48 @ndmac goto ok`,
      'counter drop',
    ],
  },
});

/** The bridge's side: ports of bridges, and what else may reach them. */
export const BRIDGE_FILTER = {
  family: 'bridge',
  sets: {
    ...PORT_SETS,
    /** Ports without a filter by the network's definition, and uplinks. */
    trusted: { key: ['ifname'] },
    /** Ports in hairpin mode, twice: a frame may leave where it came from if it is for the port's own MAC. */
    hairpin: { key: ['ifname', 'ifname'] },
    /** Protocols whose frames are marked while they go from port to port. */
    marked: { key: ['ether_type'] },
  },
  chains: {
    ...portChains('iifname', [`meta mark set meta mark or ${PASSED}`, 'accept']),
    prerouting: {
      hook: 'type filter hook prerouting priority -300; policy accept;',
      rules: [
        // What a reply of ours has at the bridge's ingress, and nothing else may: see `arrival`.
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
        'iifname . oifname @hairpin iifname . ether daddr != @mac counter drop',
        'iifname @ports accept',
        'iifname @trusted accept',
        'oifname @ports counter drop',
        'oifname @trusted counter drop',
      ],
    },
    postrouting: {
      hook: 'type filter hook postrouting priority 300; policy accept;',
      rules: [`meta mark and ${BRIDGED} != 0 meta mark set meta mark and ${NOT_BRIDGED}`],
    },
  },
} as const satisfies Ruleset;

/** The devices' side: the way from a bridge of ours to the host, and macvtap, whose frames pass no bridge. */
export const DEVICE_FILTER = {
  family: 'netdev',
  sets: {
    ...PORT_SETS,
    /** Bridges of networks whose ports reach the gateway alone. */
    isolated: { key: ['ifname'] },
  },
  egress: true,
  chains: {
    ...portChains('oifname', ['accept']),
    guard: { rules: [`meta mark and ${PASSED} == 0 counter drop`, 'goto arrival'] },
    arrival: {
      rules: [
        // Where br_netfilter is on, a reply to what was mapped from ::1 has its destination back before it leaves
        // the bridge, and IPv6 takes no packet to ::1 from a device that is not loopback. So it goes on there. No
        // workload gets this far with such a packet of its own, for the bridge's prerouting drops it, and no
        // stranger on a bridge that was there, for what he sends has no mark.
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
 * IFLA_BRPORT_GROUP_FWD_MASK of a port under the filter: no group address of IEEE 802.1D is special to it. Else the
 * kernel hands such frames past all hooks to the host, LLDP's at least, and learns from them that any MAC, a
 * neighbour's too, is behind this port. That of pause frames, which nobody ever gets, cannot be among them.
 */
export const FILTERED_GROUPS = 0xfffd;

/** What a port of a network may send from. */
export interface FilteredPort {
  readonly device: string;
  /** The workload's. */
  readonly mac: string;
  /** With or without a prefix length. */
  readonly addresses: readonly string[];
  readonly linkLocal: Network['linkLocal'];
}

/** Holds a bridge's port to its own MAC and addresses. */
export const bridgePortFacts = (port: FilteredPort): Fact[] => portFacts(port, bridge);

/** Holds a macvtap, by the frames that leave it, to its own MAC and addresses. */
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
  return [
    fact('mac', { key: [name, mac] }),
    ...v4.flatMap((address) => [
      fact('arp4', { key: [name, mac, address] }),
      fact('src4', { key: [name, address] }),
    ]),
    ...v6.flatMap((address) => [
      fact('src6', { key: [name, address] }),
      fact('nd6', { key: [name, address] }),
    ]),
    fact('ndmac', { key: [name, mac] }),
    ...(linkLocal === 'any' ? [fact('anylocal', { key: [name] })] : []),
    fact('ports', { key: [name] }),
  ];
}

/** Lets a port of our bridges send what it likes: uplinks, and ports of networks with `filter: false`. */
export const trustedFacts = (name: string): Fact[] => [bridge('trusted', { key: [name] })];

/** A port in hairpin mode. */
export const hairpinFacts = (name: string): Fact[] => [bridge('hairpin', { key: [name, name] })];

/**
 * What no rule of ours let into this bridge does not reach the host through it. For bridges that we made; on one
 * that was there, ports of others are none of our business.
 */
export const guardFacts = (bridgeLink: BridgeLink): Fact[] => [ingress(bridgeLink, 'guard')];

/** The same for a bridge that was there: what its other ports send reaches the host, too. */
export const arrivalFacts = (bridgeLink: BridgeLink): Fact[] => [ingress(bridgeLink, 'arrival')];

/** Marks what comes to the host by a bridge with `portIsolation`. */
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

/** No port takes the link-local address of a bridge, whatever its `linkLocal`. */
export function hostLocalFacts(mac: MacAddress): Fact[] {
  const address = mac.linkLocal();
  return [bridge('hostlocal', { key: [address] }), bridge('hosttarget', { key: [address] })];
}
