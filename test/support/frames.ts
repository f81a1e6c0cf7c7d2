import { IpAddress, MacAddress } from '#protocol/address.ts';

// Frames as a workload may send them, right or wrong: each layer is a function from what it carries to bytes.
// Checksums are right, lengths are those of what is there; whatever else is to be wrong is said by the caller.

export const ETHERTYPE = {
  ipv4: 0x0800,
  arp: 0x0806,
  rarp: 0x8035,
  vlan: 0x8100,
  ipv6: 0x86dd,
  lldp: 0x88cc,
  qinq: 0x88a8,
  experimental: 0x88b5,
} as const;

/** IANA protocol numbers. */
export const PROTOCOL = {
  hopByHop: 0,
  icmp: 1,
  igmp: 2,
  tcp: 6,
  udp: 17,
  routing: 43,
  fragment: 44,
  icmpv6: 58,
  destination: 60,
} as const;

export const BROADCAST = 'ff:ff:ff:ff:ff:ff';

/** IEEE 802.3: destination, source, type (or length), and what is inside. */
export const ethernet = (to: string, from: string, type: number, inside: Uint8Array): Buffer =>
  Buffer.concat([
    MacAddress.parse(to).toBytes(),
    MacAddress.parse(from).toBytes(),
    be16(type),
    inside,
  ]);

/** IEEE 802.1Q: puts a tag of the given type behind the addresses of a frame. */
export const tagged = (frame: Buffer, id: number, type: number = ETHERTYPE.vlan): Buffer =>
  Buffer.concat([frame.subarray(0, 12), be16(type), be16(id), frame.subarray(12)]);

/** The same frame for somebody else. */
export const sentTo = (to: string, frame: Buffer): Buffer =>
  Buffer.concat([MacAddress.parse(to).toBytes(), frame.subarray(6)]);

export interface ArpFields {
  /** 1 request, 2 reply. */
  readonly operation: 1 | 2;
  readonly sender: { readonly mac: string; readonly ip: string };
  readonly target: { readonly mac?: string; readonly ip: string };
}

/** RFC 826. */
export const arp = ({ operation, sender, target }: ArpFields): Buffer =>
  Buffer.concat([
    be16(1),
    be16(ETHERTYPE.ipv4),
    Buffer.of(6, 4),
    be16(operation),
    MacAddress.parse(sender.mac).toBytes(),
    addressBytes(sender.ip),
    MacAddress.parse(target.mac ?? '00:00:00:00:00:00').toBytes(),
    addressBytes(target.ip),
  ]);

/** From where to where. */
export interface Way {
  readonly from: string;
  readonly to: string;
}

export interface Fragment {
  /** Of all fragments of a packet. */
  readonly id: number;
  /** In bytes, a multiple of 8. */
  readonly offset: number;
  readonly more: boolean;
}

/** RFC 791. */
export function ipv4(
  { from, to }: Way,
  protocol: number,
  inside: Uint8Array,
  { ttl = 64, fragment }: { readonly ttl?: number; readonly fragment?: Fragment } = {},
): Buffer {
  const header = Buffer.concat([
    Buffer.of(0x45, 0),
    be16(20 + inside.length),
    be16(fragment?.id ?? 0),
    be16(((fragment?.more ?? false) ? 0x2000 : 0) | ((fragment?.offset ?? 0) >> 3)),
    Buffer.of(ttl, protocol, 0, 0),
    addressBytes(from),
    addressBytes(to),
  ]);
  header.writeUInt16BE(checksum(header), 10);
  return Buffer.concat([header, inside]);
}

/** RFC 8200. `next` is what is inside: a protocol, or an extension header. */
export const ipv6 = (
  { from, to }: Way,
  next: number,
  inside: Uint8Array,
  { hopLimit = 64 } = {},
): Buffer =>
  Buffer.concat([
    Buffer.of(0x60, 0, 0, 0),
    be16(inside.length),
    Buffer.of(next, hopLimit),
    addressBytes(from),
    addressBytes(to),
    inside,
  ]);

/** Hop-by-hop or destination options: padding, with `words` times 8 bytes behind the first 8. */
export const options = (next: number, inside: Uint8Array, words = 0): Buffer =>
  Buffer.concat([
    Buffer.of(next, words),
    Buffer.of(1, 4 + words * 8),
    Buffer.alloc(4 + words * 8),
    inside,
  ]);

/** The hop-by-hop header of multicast listener discovery: a router alert (RFC 2711). */
export const routerAlert = (next: number, inside: Uint8Array): Buffer =>
  Buffer.concat([Buffer.of(next, 0, 5, 2, 0, 0, 1, 0), inside]);

/** A routing header without segments left. */
export const routing = (next: number, inside: Uint8Array): Buffer =>
  Buffer.concat([Buffer.of(next, 0, 4, 0, 0, 0, 0, 0), inside]);

export const fragmented = (
  next: number,
  { id, offset, more }: Fragment,
  inside: Uint8Array,
): Buffer =>
  Buffer.concat([Buffer.of(next, 0), be16(offset | (more ? 1 : 0)), be16(0), be16(id), inside]);

/** RFC 4443; the addresses are part of its checksum. `body` is what follows the checksum. */
export function icmpv6(way: Way, type: number, body: Uint8Array, code = 0): Buffer {
  const message = Buffer.concat([Buffer.of(type, code, 0, 0), body]);
  message.writeUInt16BE(checksum(pseudo(way, PROTOCOL.icmpv6, message)), 2);
  return message;
}

/** RFC 792, and IGMP (RFC 2236), which is made the same way. */
export function icmp(type: number, body: Uint8Array): Buffer {
  const message = Buffer.concat([Buffer.of(type, 0, 0, 0), body]);
  message.writeUInt16BE(checksum(message), 2);
  return message;
}

export function udp(way: Way, fromPort: number, toPort: number, inside: Uint8Array): Buffer {
  const length = 8 + inside.length;
  const datagram = Buffer.concat([be16(fromPort), be16(toPort), be16(length), be16(0), inside]);
  datagram.writeUInt16BE(checksum(pseudo(way, PROTOCOL.udp, datagram)) || 0xffff, 6);
  return datagram;
}

/** Bodies of neighbour discovery (RFC 4861), behind type, code and checksum. */
export const discovery = {
  /** Solicitation and advertisement; flags are those of an advertisement. */
  neighbour: (target: string, more: readonly Uint8Array[] = [], flags = 0): Buffer =>
    Buffer.concat([be16(flags), be16(0), addressBytes(target), ...more]),
  routerSolicitation: (more: readonly Uint8Array[] = []): Buffer =>
    Buffer.concat([Buffer.alloc(4), ...more]),
  /** For half an hour. */
  routerAdvertisement: (more: readonly Uint8Array[] = []): Buffer =>
    Buffer.concat([Buffer.of(64, 0), be16(1800), Buffer.alloc(8), ...more]),
  redirect: (target: string, destination: string): Buffer =>
    Buffer.concat([Buffer.alloc(4), addressBytes(target), addressBytes(destination)]),
  /** Option 1 of who asks, 2 of who is asked for. */
  linkLayer: (option: 1 | 2, mac: string): Buffer =>
    Buffer.concat([Buffer.of(option, 1), MacAddress.parse(mac).toBytes()]),
  /** RFC 3971, by which one knows one's own solicitation (RFC 7527). */
  nonce: (bytes: Uint8Array): Buffer => Buffer.concat([Buffer.of(14, 1), bytes.subarray(0, 6)]),
};

/** `33:33:…` of a multicast address (RFC 2464). */
export const multicastMac = (address: string): string =>
  MacAddress.fromBytes(
    Buffer.concat([Buffer.of(0x33, 0x33), addressBytes(address).subarray(12)]),
  ).toString();

/** `ff02::1:ff…` of an address (RFC 4291). */
export const solicitedNode = (address: string): string => {
  const group = Buffer.from(addressBytes('ff02::1:ff00:0'));
  group.set(addressBytes(address).subarray(13), 13);
  return IpAddress.fromBytes(group).toString();
};

/** What is inside the outermost headers of Ethernet and VLANs: by it a frame is known again. */
export function innermost(frame: Buffer): Buffer {
  let at = 12;
  while ([ETHERTYPE.vlan, ETHERTYPE.qinq].some((type) => type === frame.readUInt16BE(at))) at += 4;
  return frame.subarray(at + 2);
}

function addressBytes(text: string): Uint8Array {
  return IpAddress.parse(text).toBytes();
}

function be16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function pseudo({ from, to }: Way, protocol: number, message: Buffer): Buffer {
  const tail = Buffer.concat([be16(message.length), Buffer.of(0, protocol)]);
  return Buffer.concat([addressBytes(from), addressBytes(to), tail, message]);
}

/** The Internet checksum (RFC 1071). */
function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let at = 0; at + 1 < bytes.length; at += 2) sum += bytes.readUInt16BE(at);
  if (bytes.length % 2 === 1) sum += bytes.readUInt8(bytes.length - 1) << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
