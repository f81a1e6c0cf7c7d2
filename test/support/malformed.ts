import { MacAddress } from '#protocol/address.ts';
import {
  arp,
  BROADCAST,
  discovery,
  ethernet,
  ETHERTYPE,
  fragmented,
  icmpv6,
  ipv4,
  ipv6,
  multicastMac,
  options,
  PROTOCOL,
  tagged,
  udp,
  type Way,
} from './frames.ts';
import { ALL_NODES, NA, OVERRIDE, RA, type Segment } from './packets.ts';

// Frames whose headers say odd things: each field of each header set to each odd value, the fields that say where
// things lie to each combination, and the whole cut and padded. What may pass of them, harm.ts judges.

export interface Malformed {
  /** `a DHCP answer, ipv4.version 3`. */
  readonly name: string;
  readonly frame: Buffer;
}

type Field = readonly [name: string, bits: number];

/** Headers as on the wire, in order. */
const LAYOUTS = {
  ethernet: [
    ['to', 48],
    ['from', 48],
    ['type', 16],
  ],
  arp: [
    ['htype', 16],
    ['ptype', 16],
    ['hlen', 8],
    ['plen', 8],
    ['operation', 16],
    ['senderMac', 48],
    ['sender', 32],
    ['targetMac', 48],
    ['target', 32],
  ],
  ipv4: [
    ['version', 4],
    ['ihl', 4],
    ['tos', 8],
    ['length', 16],
    ['id', 16],
    ['flags', 3],
    ['offset', 13],
    ['ttl', 8],
    ['protocol', 8],
    ['checksum', 16],
    ['from', 32],
    ['to', 32],
  ],
  ipv6: [
    ['version', 4],
    ['class', 8],
    ['flow', 20],
    ['length', 16],
    ['next', 8],
    ['hops', 8],
    ['from', 128],
    ['to', 128],
  ],
  extension: [
    ['next', 8],
    ['words', 8],
  ],
  fragment: [
    ['next', 8],
    ['reserved', 8],
    ['offset', 13],
    ['flags', 3],
    ['id', 32],
  ],
  udp: [
    ['from', 16],
    ['to', 16],
    ['length', 16],
    ['checksum', 16],
  ],
  icmpv6: [
    ['type', 8],
    ['code', 8],
    ['checksum', 16],
  ],
} as const satisfies Record<string, readonly Field[]>;

type Header = keyof typeof LAYOUTS;

/** Fields by which a parser finds what follows: tried in all combinations. */
const STRUCTURE: Partial<Record<Header, readonly string[]>> = {
  arp: ['htype', 'ptype', 'hlen', 'plen'],
  ipv4: ['version', 'ihl', 'length', 'offset'],
  ipv6: ['version', 'length', 'next'],
  fragment: ['next', 'offset', 'flags'],
};

const ETHERNET_BYTES = 14;
/** Of a fragment. */
const OFFSET_BITS = 13;

interface Base {
  readonly name: string;
  readonly frame: Buffer;
  /** Headers behind Ethernet's, each with its first byte. */
  readonly headers: readonly (readonly [Header, number])[];
}

/** Every malformed frame of who wants to be a DHCP server, a router or somebody else. */
export function malformed(segment: Segment): Malformed[] {
  return bases(segment).flatMap((base) => [
    { name: base.name, frame: base.frame },
    ...oddFields(base),
    ...combinations(base),
    ...otherLengths(base),
    ...wrapped(base),
  ]);
}

function bases({ self, other, gateway }: Segment): Base[] {
  const toAll = { from: self.ip4, to: '255.255.255.255' };
  const local = { from: self.linkLocal, to: ALL_NODES };
  const answer = udp(toAll, 67, 68, bootp(self.mac));
  const answer6 = udp(local, 547, 546, Buffer.from('0200000100010000', 'hex'));
  const router = icmpv6(local, RA, discovery.routerAdvertisement());
  const mine = discovery.linkLayer(2, self.mac);
  const neighbour = icmpv6(local, NA, discovery.neighbour(gateway.ip6, [mine], OVERRIDE));
  const v4 = (way: Way, inside: Buffer, fragment?: Parameters<typeof ipv4>[3]): Buffer =>
    ethernet(BROADCAST, self.mac, ETHERTYPE.ipv4, ipv4(way, PROTOCOL.udp, inside, fragment));
  const v6 = (next: number, inside: Uint8Array): Buffer => {
    const packet = ipv6(local, next, inside, { hopLimit: 255 });
    return ethernet(multicastMac(local.to), self.mac, ETHERTYPE.ipv6, packet);
  };
  const claim = (operation: 1 | 2, ip: string): Buffer => {
    const inside = arp({ operation, sender: { mac: self.mac, ip }, target: { ip: other.ip4 } });
    return ethernet(BROADCAST, self.mac, ETHERTYPE.arp, inside);
  };
  const { hopByHop, fragment } = PROTOCOL;
  const whole = { id: 7, offset: 0, more: false };
  const chained = options(PROTOCOL.udp, answer6);
  return [
    baseOf('a DHCP answer', v4(toAll, answer), ['ipv4', 'udp']),
    baseOf('a DHCP answer from nowhere', v4({ ...toAll, from: '0.0.0.0' }, answer), [
      'ipv4',
      'udp',
    ]),
    baseOf('a first fragment', v4(toAll, answer, { fragment: { ...whole, more: true } }), ['ipv4']),
    baseOf('a late fragment', v4(toAll, answer, { fragment: { ...whole, offset: 8 } }), [
      'ipv4',
      'udp',
    ]),
    baseOf('ARP for the gateway', claim(2, gateway.ip4), ['arp']),
    baseOf('ARP for another', claim(1, other.ip4), ['arp']),
    baseOf('a DHCPv6 answer', v6(PROTOCOL.udp, answer6), ['ipv6', 'udp']),
    baseOf('a DHCPv6 answer behind options', v6(hopByHop, chained), ['ipv6', 'extension', 'udp']),
    baseOf('a router advertisement', v6(PROTOCOL.icmpv6, router), ['ipv6', 'icmpv6']),
    baseOf(
      'a router advertisement in a fragment',
      v6(fragment, fragmented(PROTOCOL.icmpv6, whole, router)),
      ['ipv6', 'fragment', 'icmpv6'],
    ),
    baseOf('an advertisement for the gateway', v6(PROTOCOL.icmpv6, neighbour), ['ipv6', 'icmpv6']),
  ];
}

function baseOf(name: string, frame: Buffer, layers: readonly Header[]): Base {
  let at = ETHERNET_BYTES;
  const headers = layers.map((header) => {
    const place = [header, at] as const;
    // What is padded to 8 bytes is declared by its first two.
    at += header === 'extension' ? 8 : bitsOf(LAYOUTS[header]) / 8;
    return place;
  });
  return { name, frame, headers };
}

/** RFC 2131: an offer, as clients read it. */
function bootp(mac: string): Buffer {
  const message = Buffer.alloc(248);
  message.set([2, 1, 6]);
  message.set(MacAddress.parse(mac).toBytes(), 28);
  message.set(Buffer.from('63825363350102ff', 'hex'), 236);
  return message;
}

function* oddFields({ name, frame, headers }: Base): Generator<Malformed> {
  for (const [header, place] of [['ethernet', 0] as const, ...headers]) {
    let at = place * 8;
    for (const [field, bits] of LAYOUTS[header]) {
      for (const value of oddValues(read(frame, at, bits), bits, frame.length - place)) {
        const changed = Buffer.from(frame);
        write(changed, { at, bits, value });
        yield { name: `${name}, ${header}.${field} ${value}`, frame: changed };
      }
      at += bits;
    }
  }
}

function* combinations({ name, frame, headers }: Base): Generator<Malformed> {
  for (const [header, place] of headers) {
    const tried = STRUCTURE[header] ?? [];
    let at = place * 8;
    let changed: Malformed[] = [{ name: `${name}, ${header}`, frame }];
    for (const [field, bits] of LAYOUTS[header]) {
      const start = at;
      at += bits;
      if (!tried.includes(field)) continue;
      const values = fewValues(read(frame, start, bits), bits, frame.length - place);
      changed = changed.flatMap((one) =>
        values.map((value) => {
          const copy = Buffer.from(one.frame);
          write(copy, { at: start, bits, value });
          return { name: `${one.name} ${field} ${value}`, frame: copy };
        }),
      );
    }
    if (tried.length > 0) yield* changed;
  }
}

/** Cut at every byte, and with more behind it, as Ethernet pads what is short. */
function* otherLengths({ name, frame }: Base): Generator<Malformed> {
  for (let length = ETHERNET_BYTES; length < frame.length; length += 1) {
    yield { name: `${name}, cut at ${length}`, frame: frame.subarray(0, length) };
  }
  for (const more of [1, 2, 7, 46, 512]) {
    const behind = frame.subarray(ETHERNET_BYTES, ETHERNET_BYTES + more);
    const padding = Buffer.alloc(more);
    yield { name: `${name}, padded by ${more}`, frame: Buffer.concat([frame, padding]) };
    yield { name: `${name}, behind it ${more} again`, frame: Buffer.concat([frame, behind]) };
  }
}

/** With tags, and as 802.3 with a length and LLC or SNAP in the place of a type. */
function wrapped({ name, frame }: Base): Malformed[] {
  const { qinq, vlan } = ETHERTYPE;
  const inside = frame.subarray(ETHERNET_BYTES);
  const addresses = frame.subarray(0, 12);
  const snap = Buffer.concat([Buffer.from('aaaa03000000', 'hex'), frame.subarray(12)]);
  const lengths = [0, 1, snap.length, 1500, 1501, 1535];
  const u16 = (value: number): Buffer => Buffer.of(value >> 8, value & 0xff);
  return [
    ...[0, 1, 7, 4095].flatMap((id) => [
      { name: `${name}, tag ${id}`, frame: tagged(frame, id) },
      { name: `${name}, tag of 802.1ad ${id}`, frame: tagged(frame, id, qinq) },
      { name: `${name}, two tags ${id}`, frame: tagged(tagged(frame, id), id) },
      { name: `${name}, tags of both ${id}`, frame: tagged(tagged(frame, id), id, qinq) },
    ]),
    { name: `${name}, a tag of nothing`, frame: Buffer.concat([addresses, u16(vlan)]) },
    ...lengths.flatMap((length) => [
      { name: `${name}, SNAP ${length}`, frame: Buffer.concat([addresses, u16(length), snap]) },
      { name: `${name}, raw ${length}`, frame: Buffer.concat([addresses, u16(length), inside]) },
    ]),
  ];
}

/** `room`: the bytes from the header's first on, which a length may claim to have. */
function oddValues(value: bigint, bits: number, room: number): bigint[] {
  // All there are.
  if (bits <= 8) return Array.from({ length: 2 ** bits }, (_, n) => BigInt(n));
  const top = 1n << BigInt(bits - 1);
  const lengths = [0, 1, 2, 7, 8, 9, 19, 20, 21, 27, 28, 29, 39, 40, 41, 67, 68, 546, 547];
  const ends = [room - 41, room - 40, room - 39, room - 1, room, room + 1];
  return distinct(
    [
      ...(bits <= 16 ? [...lengths, ...ends].map(BigInt) : [0n, 1n]),
      ...[value - 1n, value + 1n, value ^ 1n, value ^ top, value << 1n, value >> 1n],
      ...[top - 1n, top, 2n * top - 2n, 2n * top - 1n],
    ],
    bits,
  );
}

function fewValues(value: bigint, bits: number, room: number): bigint[] {
  if (bits <= 4) return oddValues(value, bits, room);
  const max = (1n << BigInt(bits)) - 1n;
  if (bits === OFFSET_BITS) return distinct([value, 0n, 1n, max], bits);
  const lengths = [0, 1, 19, 20, 24, 28, 40, 60, room - 40, room - 1, room, room + 1].map(BigInt);
  const protocols = Object.values(PROTOCOL).map(BigInt);
  return distinct([value, value + 1n, max, ...(bits <= 8 ? protocols : lengths)], bits);
}

const distinct = (values: readonly bigint[], bits: number): bigint[] => [
  ...new Set(values.map((value) => BigInt.asUintN(bits, value))),
];

const bitsOf = (fields: readonly Field[]): number =>
  fields.reduce((sum, [, bits]) => sum + bits, 0);

function read(frame: Buffer, at: number, bits: number): bigint {
  const last = (at + bits + 7) >> 3;
  const whole = BigInt(`0x${frame.subarray(at >> 3, last).toString('hex')}`);
  return (whole >> BigInt(last * 8 - at - bits)) & ((1n << BigInt(bits)) - 1n);
}

function write(
  frame: Buffer,
  { at, bits, value }: { readonly at: number; readonly bits: number; readonly value: bigint },
): void {
  const first = at >> 3;
  const last = (at + bits + 7) >> 3;
  const shift = BigInt(last * 8 - at - bits);
  const mask = ((1n << BigInt(bits)) - 1n) << shift;
  const whole = BigInt(`0x${frame.subarray(first, last).toString('hex')}`);
  const changed = (whole & ~mask) | (value << shift);
  frame.set(Buffer.from(changed.toString(16).padStart((last - first) * 2, '0'), 'hex'), first);
}
