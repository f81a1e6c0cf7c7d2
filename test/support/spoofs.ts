import {
  arp,
  BROADCAST,
  discovery,
  ethernet,
  ETHERTYPE,
  type Fragment,
  fragmented,
  icmp,
  icmpv6,
  innermost,
  ipv4,
  ipv6,
  multicastMac,
  options,
  PROTOCOL,
  routerAlert,
  routing,
  solicitedNode,
  tagged,
  udp,
  type Way,
} from './frames.ts';

// What a workload must not send, and what it may: frames by the name of what they try.

/** Somebody on the segment. */
export interface Station {
  readonly mac: string;
  readonly ip4: string;
  readonly ip6: string;
  readonly linkLocal: string;
}

export interface Segment {
  /** Who sends. */
  readonly self: Station;
  /** Another workload. */
  readonly other: Station;
  readonly gateway: Station;
}

export type Case = readonly [name: string, frames: readonly Buffer[]];

const ALL_NODES = 'ff02::1';
const ALL_ROUTERS = 'ff02::2';
const MLD_REPORTS = 'ff02::16';
const RA = 134;
const NS = 135;
const NA = 136;
/** Flags of an advertisement: solicited, override. */
const OVERRIDE = 0x2000;
const TOKEN = Buffer.from('8f0c6b1de42a9375', 'hex');

/** Drawn anew for each frame that carries one: no frame is taken for another. */
let drawn = 0;
const token = (): Buffer => {
  drawn += 1;
  const bytes = Buffer.alloc(16);
  TOKEN.copy(bytes);
  bytes.writeUInt32BE(drawn, 12);
  return bytes;
};

/** By what a frame is known again, also where the bridge has put its fragments together: what nobody else sends. */
export function markOf(frame: Buffer): Buffer {
  const at = frame.indexOf(TOKEN);
  return at < 0 ? innermost(frame) : frame.subarray(at, at + 16);
}

/** A frame for a group or a station, from a MAC. */
const v6 = (mac: string, way: Way, next: number, inside: Uint8Array, hopLimit = 255): Buffer =>
  ethernet(multicastMac(way.to), mac, ETHERTYPE.ipv6, ipv6(way, next, inside, { hopLimit }));

const v4 = (mac: string, way: Way, protocol: number, inside: Uint8Array, ttl = 64): Buffer =>
  ethernet(BROADCAST, mac, ETHERTYPE.ipv4, ipv4(way, protocol, inside, { ttl }));

export const ping4 = (mac: string, way: Way): Buffer =>
  v4(mac, way, PROTOCOL.icmp, icmp(8, Buffer.concat([Buffer.alloc(4), token()])));

const ping6 = (mac: string, way: Way): Buffer =>
  v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, 128, Buffer.concat([Buffer.alloc(4), token()])));

const solicit = (
  mac: string,
  from: string,
  target: string,
  more: readonly Uint8Array[] = [],
): Buffer => {
  const way = { from, to: solicitedNode(target) };
  return v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, NS, discovery.neighbour(target, more)));
};

const advertise = (
  mac: string,
  from: string,
  target: string,
  more: readonly Uint8Array[] = [],
): Buffer => {
  const way = { from, to: ALL_NODES };
  const body = discovery.neighbour(target, more, OVERRIDE);
  return v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, NA, body));
};

const arpFrom = (mac: string, fields: Parameters<typeof arp>[0]): Buffer =>
  ethernet(BROADCAST, mac, ETHERTYPE.arp, arp(fields));

/** The two parts of what is behind the IPv6 header, cut at a multiple of 8. */
const cut = (id: number, next: number, whole: Buffer, at: number): [Buffer, Buffer] => {
  const part = (fields: Omit<Fragment, 'id'>, inside: Buffer): Buffer =>
    fragmented(next, { id, ...fields }, inside);
  return [
    part({ offset: 0, more: true }, whole.subarray(0, at)),
    part({ offset: at, more: false }, whole.subarray(at)),
  ];
};

/** A frame of each kind that a port must not let through. */
export function spoofs(segment: Segment): Case[] {
  return [
    ...linkLayer(segment),
    ...addressResolution(segment),
    ...internet4(segment),
    ...internet6(segment),
    ...routers(segment),
  ];
}

function linkLayer({ self, other, gateway }: Segment): Case[] {
  const own = { from: self.ip4, to: other.ip4 };
  const own6 = { from: self.ip6, to: other.ip6 };
  const raw = (to: string, type: number, inside: Uint8Array): Buffer =>
    ethernet(to, self.mac, type, inside);
  return [
    ['another MAC with own addresses', [ping4(other.mac, own), ping6(other.mac, own6)]],
    ['the MAC of the gateway', [ping4(gateway.mac, own), ping6(gateway.mac, own6)]],
    ['a tag of 802.1Q', [tagged(ping4(self.mac, own), 7), tagged(ping6(self.mac, own6), 7)]],
    ['a priority tag, VLAN 0', [tagged(ping4(self.mac, own), 0)]],
    ['a tag of 802.1ad', [tagged(ping4(self.mac, own), 7, ETHERTYPE.qinq)]],
    ['two tags', [tagged(tagged(ping4(self.mac, own), 7), 8, ETHERTYPE.qinq)]],
    ['two tags of 802.1Q', [tagged(tagged(ping4(self.mac, own), 7), 8)]],
    ['an unknown ethertype', [raw(BROADCAST, ETHERTYPE.experimental, token())]],
    ['LLDP', [raw('01:80:c2:00:00:0e', ETHERTYPE.lldp, token())]],
    ['RARP', [raw(BROADCAST, ETHERTYPE.rarp, token())]],
    ['802.2 LLC', [raw(BROADCAST, 19, Buffer.concat([Buffer.of(0xaa, 0xaa, 3), token()]))]],
    ['raw 802.3 (IPX)', [raw(BROADCAST, 18, Buffer.concat([Buffer.of(0xff, 0xff), token()]))]],
    [
      'a spanning tree BPDU',
      [raw('01:80:c2:00:00:00', 38, Buffer.concat([Buffer.of(0x42, 0x42, 3), token(), token()]))],
    ],
  ];
}

function addressResolution({ self, other, gateway }: Segment): Case[] {
  const says = (
    mac: string,
    operation: 1 | 2,
    sender: { mac: string; ip: string },
    target: { mac?: string; ip: string },
  ): Buffer => arpFrom(mac, { operation, sender, target });
  const me = { mac: self.mac, ip: self.ip4 };
  return [
    [
      'ARP with the MAC of another',
      [1, 2].map((operation) =>
        says(
          self.mac,
          operation === 1 ? 1 : 2,
          { mac: other.mac, ip: self.ip4 },
          { ip: other.ip4 },
        ),
      ),
    ],
    [
      'ARP with the address of another',
      [1, 2].map((operation) =>
        says(
          self.mac,
          operation === 1 ? 1 : 2,
          { mac: self.mac, ip: other.ip4 },
          { ip: gateway.ip4 },
        ),
      ),
    ],
    [
      'a gratuitous ARP for the gateway',
      [1, 2].map((operation) =>
        says(
          self.mac,
          operation === 1 ? 1 : 2,
          { mac: self.mac, ip: gateway.ip4 },
          { ip: gateway.ip4 },
        ),
      ),
    ],
    ['own ARP with the MAC of another outside', [says(other.mac, 1, me, { ip: other.ip4 })]],
    [
      'an ARP probe with the MAC of another',
      [says(self.mac, 1, { mac: other.mac, ip: '0.0.0.0' }, { ip: other.ip4 })],
    ],
    [
      'an ARP reply without a sender',
      [says(self.mac, 2, { mac: self.mac, ip: '0.0.0.0' }, { ip: other.ip4 })],
    ],
  ];
}

function internet4({ self, other, gateway }: Segment): Case[] {
  const own = { from: self.ip4, to: other.ip4 };
  const bootp = (way: Way, from: number, to: number): Buffer =>
    v4(self.mac, way, PROTOCOL.udp, udp(way, from, to, token()));
  const late = { id: 77, offset: 64, more: false };
  return [
    ['IPv4 from the address of another', [ping4(self.mac, { ...own, from: other.ip4 })]],
    ['IPv4 from the gateway', [ping4(self.mac, { ...own, from: gateway.ip4 })]],
    ['IPv4 from elsewhere', [ping4(self.mac, { ...own, from: '192.0.2.1' })]],
    ['IPv4 from nowhere', [ping4(self.mac, { ...own, from: '0.0.0.0' })]],
    ['IPv4 from loopback', [ping4(self.mac, { ...own, from: '127.0.0.1' })]],
    [
      'a late fragment from another',
      [
        ethernet(
          BROADCAST,
          self.mac,
          ETHERTYPE.ipv4,
          ipv4({ ...own, from: other.ip4 }, PROTOCOL.udp, token(), { fragment: late }),
        ),
      ],
    ],
    ['a DHCP answer', [bootp(own, 67, 68), bootp({ ...own, to: '255.255.255.255' }, 67, 68)]],
    ['a DHCP answer from another port', [bootp({ ...own, to: '255.255.255.255' }, 4711, 68)]],
    [
      'a DHCP answer without an address',
      [bootp({ from: '0.0.0.0', to: '255.255.255.255' }, 67, 68)],
    ],
    [
      'a DHCP answer in fragments',
      ((): Buffer[] => {
        const way = { from: self.ip4, to: '255.255.255.255' };
        const whole = udp(way, 67, 68, Buffer.concat([token(), token()]));
        const fragment = { id: 78, offset: 0, more: true };
        const first = ipv4(way, PROTOCOL.udp, whole.subarray(0, 8), { fragment });
        return [ethernet(BROADCAST, self.mac, ETHERTYPE.ipv4, first)];
      })(),
    ],
    [
      'an IGMP query',
      [
        v4(
          self.mac,
          { from: self.ip4, to: '224.0.0.1' },
          PROTOCOL.igmp,
          icmp(0x11, Buffer.concat([Buffer.alloc(4), token()])),
          1,
        ),
      ],
    ],
  ];
}

function internet6({ self, other, gateway }: Segment): Case[] {
  const own = { from: self.ip6, to: other.ip6 };
  const theirs = discovery.linkLayer(2, other.mac);
  const mine = discovery.linkLayer(2, self.mac);
  const report = icmpv6({ from: other.linkLocal, to: MLD_REPORTS }, 143, token());
  const server = (way: Way, from: number, to: number): Buffer =>
    v6(self.mac, way, PROTOCOL.udp, udp(way, from, to, token()));
  const local = { from: self.linkLocal, to: ALL_NODES };
  return [
    ['IPv6 from the address of another', [ping6(self.mac, { ...own, from: other.ip6 })]],
    ['IPv6 from the gateway', [ping6(self.mac, { ...own, from: gateway.ip6 })]],
    ['IPv6 from elsewhere', [ping6(self.mac, { ...own, from: '2001:db8::1' })]],
    ['IPv6 from nowhere', [ping6(self.mac, { ...own, from: '::' })]],
    ['the link-local address of another', [ping6(self.mac, { ...local, from: other.linkLocal })]],
    [
      'the link-local address of the gateway',
      [ping6(self.mac, { ...local, from: gateway.linkLocal })],
    ],
    [
      'a late fragment from another',
      [
        v6(
          self.mac,
          { ...own, from: other.ip6 },
          PROTOCOL.fragment,
          fragmented(PROTOCOL.udp, { id: 79, offset: 64, more: false }, token()),
        ),
      ],
    ],
    [
      'an advertisement for another',
      [other, gateway].flatMap(({ ip6, linkLocal }) =>
        [ip6, linkLocal].flatMap((target) => [
          advertise(self.mac, self.linkLocal, target),
          advertise(self.mac, self.ip6, target, [mine]),
          advertise(self.mac, self.linkLocal, target, [theirs]),
        ]),
      ),
    ],
    [
      'an own advertisement with the MAC of another',
      [advertise(self.mac, self.ip6, self.ip6, [theirs])],
    ],
    [
      'an own advertisement with the MAC of another second',
      [
        advertise(self.mac, self.ip6, self.ip6, [mine, theirs]),
        advertise(self.mac, self.ip6, self.ip6, [discovery.nonce(token()), theirs]),
      ],
    ],
    [
      'an advertisement for another behind an extension header',
      ((): Buffer[] => {
        const to = ALL_NODES;
        const way = { from: self.linkLocal, to };
        const na = icmpv6(way, NA, discovery.neighbour(gateway.ip6, [mine], OVERRIDE));
        const behind = options(PROTOCOL.icmpv6, na);
        return [
          v6(self.mac, way, PROTOCOL.hopByHop, behind),
          v6(self.mac, way, PROTOCOL.destination, behind),
          v6(
            self.mac,
            way,
            PROTOCOL.fragment,
            fragmented(PROTOCOL.icmpv6, { id: 80, offset: 0, more: false }, na),
          ),
        ];
      })(),
    ],
    [
      'a solicitation with the MAC of another',
      [
        solicit(self.mac, self.ip6, other.ip6, [discovery.linkLayer(1, other.mac)]),
        solicit(self.mac, self.linkLocal, gateway.ip6, [discovery.linkLayer(1, gateway.mac)]),
        solicit(self.mac, self.ip6, other.ip6, [
          discovery.linkLayer(1, self.mac),
          discovery.linkLayer(1, other.mac),
        ]),
      ],
    ],
    [
      'detection of the duplicates of another',
      [
        solicit(self.mac, '::', other.ip6),
        solicit(self.mac, '::', gateway.ip6),
        solicit(self.mac, '::', gateway.linkLocal),
        solicit(self.mac, '::', other.ip6, [discovery.nonce(token())]),
      ],
    ],
    [
      'a router solicitation with the MAC of another',
      ((): Buffer[] => {
        const way = { from: self.linkLocal, to: ALL_ROUTERS };
        const body = discovery.routerSolicitation([discovery.linkLayer(1, other.mac)]);
        return [v6(self.mac, way, PROTOCOL.icmpv6, icmpv6(way, 133, body))];
      })(),
    ],
    [
      'a listener report from another',
      [
        v6(
          self.mac,
          { from: other.linkLocal, to: MLD_REPORTS },
          PROTOCOL.hopByHop,
          routerAlert(PROTOCOL.icmpv6, report),
          1,
        ),
      ],
    ],
    ['a DHCPv6 answer', [server(local, 547, 546), server({ ...local, from: self.ip6 }, 547, 546)]],
    ['a DHCPv6 answer from another port', [server(local, 4711, 546)]],
    [
      'a DHCPv6 answer behind destination options',
      [
        v6(
          self.mac,
          local,
          PROTOCOL.destination,
          options(PROTOCOL.udp, udp(local, 547, 546, token())),
        ),
      ],
    ],
    [
      'a DHCPv6 answer in fragments',
      [
        v6(
          self.mac,
          local,
          PROTOCOL.fragment,
          cut(81, PROTOCOL.udp, udp(local, 547, 546, token()), 8)[0],
        ),
      ],
    ],
  ];
}

function routers({ self, gateway }: Segment): Case[] {
  const local = { from: self.linkLocal, to: ALL_NODES };
  const ra = (way: Way = local): Buffer =>
    icmpv6(way, RA, discovery.routerAdvertisement([discovery.linkLayer(1, self.mac)]));
  const sent = (next: number, inside: Uint8Array, way: Way = local): Buffer =>
    v6(self.mac, way, next, inside);
  const { hopByHop, destination, routing: segments, fragment, icmpv6: last } = PROTOCOL;
  const first = (next: number, whole: Buffer, at: number): Buffer[] => {
    // The second part alone is not dropped: it is nothing without the first.
    const [part] = cut(82, next, whole, at);
    return [sent(fragment, part)];
  };
  return [
    ['a router advertisement', [sent(last, ra())]],
    [
      'a router advertisement from the own global address',
      [sent(last, ra({ ...local, from: self.ip6 }), { ...local, from: self.ip6 })],
    ],
    [
      'a router advertisement from the gateway',
      [
        sent(last, ra({ ...local, from: gateway.linkLocal }), {
          ...local,
          from: gateway.linkLocal,
        }),
      ],
    ],
    ['… behind hop-by-hop options', [sent(hopByHop, options(last, ra()))]],
    ['… behind destination options', [sent(destination, options(last, ra()))]],
    ['… behind long destination options', [sent(destination, options(last, ra(), 30))]],
    ['… behind a routing header', [sent(segments, routing(last, ra()))]],
    [
      '… behind several headers',
      [
        sent(
          hopByHop,
          options(destination, options(segments, routing(destination, options(last, ra())))),
        ),
        sent(destination, options(destination, options(destination, options(last, ra())))),
      ],
    ],
    [
      '… in an atomic fragment',
      [sent(fragment, fragmented(last, { id: 83, offset: 0, more: false }, ra()))],
    ],
    [
      '… in an atomic fragment behind and before options',
      [
        sent(
          hopByHop,
          options(
            fragment,
            fragmented(destination, { id: 84, offset: 0, more: false }, options(last, ra())),
          ),
        ),
      ],
    ],
    ['… in fragments, its type in the first', first(last, ra(), 8)],
    ['… in fragments, behind options in the first', first(destination, options(last, ra()), 8)],
    ['… in fragments, its type beyond the first', first(destination, options(last, ra(), 1), 16)],
    ['… in fragments, the options cut', first(destination, options(last, ra(), 3), 16)],
    [
      '… in fragments, a chain that does not reach it',
      first(destination, options(destination, options(destination, options(last, ra()))), 8),
    ],
    ['… in fragments, a first one of nothing', first(last, ra(), 0)],
    [
      'a redirect',
      [sent(last, icmpv6(local, 137, discovery.redirect(self.linkLocal, gateway.ip6)))],
    ],
    [
      'a listener query',
      [
        v6(
          self.mac,
          local,
          hopByHop,
          routerAlert(last, icmpv6(local, 130, Buffer.concat([Buffer.alloc(20), token()]))),
          1,
        ),
        v6(
          self.mac,
          local,
          last,
          icmpv6(local, 130, Buffer.concat([Buffer.alloc(20), token()])),
          1,
        ),
      ],
    ],
  ];
}

/** What every port lets through. */
export function legitimate({ self, other, gateway }: Segment): Case[] {
  const own = { from: self.ip4, to: other.ip4 };
  const own6 = { from: self.ip6, to: other.ip6 };
  const me = { mac: self.mac, ip: self.ip4 };
  const says = (operation: 1 | 2, sender: { mac: string; ip: string }, ip: string): Buffer =>
    arpFrom(self.mac, { operation, sender, target: { ip } });
  const mine = (option: 1 | 2): Buffer => discovery.linkLayer(option, self.mac);
  return [
    ['ARP', [says(1, me, other.ip4), says(2, me, gateway.ip4)]],
    ['gratuitous ARP', [says(1, me, self.ip4), says(2, me, self.ip4)]],
    ['an ARP probe', [says(1, { mac: self.mac, ip: '0.0.0.0' }, self.ip4)]],
    ['IPv4', [ping4(self.mac, own)]],
    ['IPv6', [ping6(self.mac, own6)]],
    [
      'IPv6 from the link-local address of its MAC',
      [ping6(self.mac, { from: self.linkLocal, to: ALL_NODES })],
    ],
    [
      'duplicate address detection',
      [solicit(self.mac, '::', self.ip6), solicit(self.mac, '::', self.linkLocal)],
    ],
    [
      'duplicate address detection with a nonce',
      [solicit(self.mac, '::', self.ip6, [discovery.nonce(token())])],
    ],
    [
      'neighbour solicitation',
      [
        solicit(self.mac, self.ip6, other.ip6, [mine(1)]),
        solicit(self.mac, self.linkLocal, gateway.ip6),
      ],
    ],
    [
      'neighbour advertisement',
      [
        advertise(self.mac, self.ip6, self.ip6, [mine(2)]),
        advertise(self.mac, self.linkLocal, self.linkLocal, [mine(2)]),
        advertise(self.mac, self.ip6, self.ip6),
      ],
    ],
    ['router solicitation', routerSolicitations(self)],
    ['listener reports', listenerReports(self)],
    ['a DHCP client', dhcpClient(self, gateway)],
    ['fragments of IPv4', fragments4(self, other)],
    ['fragments of IPv6', fragments6(self, other)],
    ...extensions(self, other),
  ];
}

function routerSolicitations({ mac, linkLocal }: Station): Buffer[] {
  const ask = (from: string, more: readonly Uint8Array[]): Buffer => {
    const way = { from, to: ALL_ROUTERS };
    const body = discovery.routerSolicitation(more);
    return v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, 133, body));
  };
  return [ask('::', []), ask(linkLocal, []), ask(linkLocal, [discovery.linkLayer(1, mac)])];
}

function listenerReports({ mac, linkLocal }: Station): Buffer[] {
  // Version 2: no sources, one record: change to exclude none of a group.
  const group = Buffer.from('ff02000000000000000000000000fb00', 'hex');
  const record = Buffer.concat([Buffer.from('0000000104000000', 'hex'), group]);
  return [linkLocal, '::'].map((from) => {
    const way = { from, to: MLD_REPORTS };
    const report = icmpv6(way, 143, record);
    return v6(mac, way, PROTOCOL.hopByHop, routerAlert(PROTOCOL.icmpv6, report), 1);
  });
}

function dhcpClient({ mac, ip4, linkLocal }: Station, gateway: Station): Buffer[] {
  const ask = (way: Way): Buffer => v4(mac, way, PROTOCOL.udp, udp(way, 68, 67, token()));
  const agents = { from: linkLocal, to: 'ff02::1:2' };
  return [
    ask({ from: '0.0.0.0', to: '255.255.255.255' }),
    ask({ from: ip4, to: gateway.ip4 }),
    v6(mac, agents, PROTOCOL.udp, udp(agents, 546, 547, token())),
  ];
}

function fragments4(self: Station, other: Station): Buffer[] {
  const way = { from: self.ip4, to: other.ip4 };
  const whole = udp(way, 4711, 4712, Buffer.concat([token(), token(), token()]));
  const part = (offset: number, end: number | undefined): Buffer => {
    const fragment = { id: 90, offset, more: end !== undefined };
    const inside = whole.subarray(offset, end);
    const packet = ipv4(way, PROTOCOL.udp, inside, { fragment });
    return ethernet(BROADCAST, self.mac, ETHERTYPE.ipv4, packet);
  };
  return [part(0, 32), part(32, undefined)];
}

function fragments6(self: Station, other: Station): Buffer[] {
  const way = { from: self.ip6, to: other.ip6 };
  const whole = udp(way, 4711, 4712, Buffer.concat([token(), token(), token()]));
  return cut(91, PROTOCOL.udp, whole, 32).map((part) => v6(self.mac, way, PROTOCOL.fragment, part));
}

function extensions(self: Station, other: Station): Case[] {
  const way = { from: self.ip6, to: other.ip6 };
  const datagram = (): Buffer => udp(way, 4711, 4712, token());
  const { udp: last } = PROTOCOL;
  return [
    [
      'IPv6 with extension headers',
      [
        v6(self.mac, way, PROTOCOL.destination, options(last, datagram())),
        v6(self.mac, way, PROTOCOL.hopByHop, options(last, datagram())),
        v6(
          self.mac,
          way,
          PROTOCOL.fragment,
          fragmented(last, { id: 92, offset: 0, more: false }, datagram()),
        ),
      ],
    ],
  ];
}
