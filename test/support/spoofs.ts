import {
  BROADCAST,
  ethernet,
  ETHERTYPE,
  icmp,
  ipv4,
  PROTOCOL,
  tagged,
  udp,
  type Way,
} from './frames.ts';
import { arpFrom, type Case, ping4, ping6, type Segment, token, v4 } from './packets.ts';
import { internet6, routers } from './spoofs6.ts';

// What a workload must not send: frames by the name of what they try.

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
