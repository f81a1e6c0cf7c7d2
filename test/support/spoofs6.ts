import {
  discovery,
  fragmented,
  icmpv6,
  options,
  PROTOCOL,
  routerAlert,
  routing,
  udp,
  type Way,
} from './frames.ts';
import {
  advertise,
  ALL_NODES,
  ALL_ROUTERS,
  type Case,
  cut,
  MLD_REPORTS,
  OVERRIDE,
  NA,
  RA,
  ping6,
  type Segment,
  solicit,
  token,
  v6,
} from './packets.ts';

// The part of IPv6 in what a workload must not send.

export function internet6({ self, other, gateway }: Segment): Case[] {
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

export function routers({ self, gateway }: Segment): Case[] {
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
