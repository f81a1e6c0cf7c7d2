import {
  BROADCAST,
  discovery,
  ethernet,
  ETHERTYPE,
  fragmented,
  icmpv6,
  ipv4,
  options,
  PROTOCOL,
  routerAlert,
  udp,
  type Way,
} from './frames.ts';
import {
  advertise,
  ALL_NODES,
  ALL_ROUTERS,
  arpFrom,
  type Case,
  cut,
  MLD_REPORTS,
  ping4,
  ping6,
  type Segment,
  solicit,
  type Station,
  token,
  v4,
  v6,
} from './packets.ts';

// What every port lets through.

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
