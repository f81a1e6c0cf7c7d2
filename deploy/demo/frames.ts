// Ethernet, ARP (RFC 826), IPv4 (RFC 791) and ICMP echo (RFC 792): as little of each as answering and
// sending a ping takes.

export interface Station {
  /** 6 bytes. */
  readonly mac: Uint8Array;
  /** 4 bytes. */
  readonly address: Uint8Array;
}

/** What came in, as far as a station that only pings understands it. */
export type Received =
  | { readonly kind: 'arp-request'; readonly from: Station }
  | { readonly kind: 'arp-reply'; readonly from: Station }
  | { readonly kind: 'echo-request' | 'echo-reply'; readonly from: Station; readonly echo: Echo };

export interface Echo {
  readonly identifier: number;
  readonly sequence: number;
  readonly payload: Uint8Array;
}

const BROADCAST = Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0xff, 0xff);
const NO_MAC = new Uint8Array(6);
const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_ARP = 0x0806;
const ARP_REQUEST = 1;
const ARP_REPLY = 2;
const PROTOCOL_ICMP = 1;
const ICMP_ECHO_REPLY = 0;
const ICMP_ECHO_REQUEST = 8;
const ETHERNET_HEADER = 14;
const ARP_BYTES = 28;
const IPV4_HEADER = 20;
const ICMP_HEADER = 8;
const TTL = 64;

/** Undefined for whatever is not for `self`, or not ARP or ICMP echo over IPv4. */
export function parseFrame(frame: Buffer, self: Station): Received | undefined {
  if (frame.length < ETHERNET_HEADER) return undefined;
  const body = frame.subarray(ETHERNET_HEADER);
  switch (frame.readUInt16BE(12)) {
    case ETHERTYPE_ARP:
      return parseArp(body, self);
    case ETHERTYPE_IPV4:
      return parseEcho(frame.subarray(6, 12), body, self);
    default:
      return undefined;
  }
}

function parseArp(body: Buffer, self: Station): Received | undefined {
  if (body.length < ARP_BYTES || !body.subarray(24, 28).equals(self.address)) return undefined;
  const from = {
    mac: Buffer.from(body.subarray(8, 14)),
    address: Buffer.from(body.subarray(14, 18)),
  };
  switch (body.readUInt16BE(6)) {
    case ARP_REQUEST:
      return { kind: 'arp-request', from };
    case ARP_REPLY:
      return { kind: 'arp-reply', from };
    default:
      return undefined;
  }
}

function parseEcho(mac: Buffer, packet: Buffer, self: Station): Received | undefined {
  if (packet.length < IPV4_HEADER) return undefined;
  const headerBytes = (packet.readUInt8(0) & 0x0f) * 4;
  const end = packet.readUInt16BE(2);
  const forSelf = packet.subarray(16, 20).equals(self.address);
  if (!forSelf || packet.readUInt8(9) !== PROTOCOL_ICMP) return undefined;
  if (end > packet.length || headerBytes + ICMP_HEADER > end) return undefined;
  const icmp = packet.subarray(headerBytes, end);
  const type = icmp.readUInt8(0);
  if (type !== ICMP_ECHO_REQUEST && type !== ICMP_ECHO_REPLY) return undefined;
  if (checksum(icmp) !== 0) return undefined;
  return {
    kind: type === ICMP_ECHO_REQUEST ? 'echo-request' : 'echo-reply',
    from: { mac: Buffer.from(mac), address: Buffer.from(packet.subarray(12, 16)) },
    echo: {
      identifier: icmp.readUInt16BE(4),
      sequence: icmp.readUInt16BE(6),
      payload: Buffer.from(icmp.subarray(ICMP_HEADER)),
    },
  };
}

export const arpRequest = (self: Station, address: Uint8Array): Buffer =>
  arp(ARP_REQUEST, self, { mac: NO_MAC, address }, BROADCAST);

export const arpReply = (self: Station, to: Station): Buffer => arp(ARP_REPLY, self, to, to.mac);

function arp(operation: number, self: Station, target: Station, destination: Uint8Array): Buffer {
  const frame = Buffer.alloc(ETHERNET_HEADER + ARP_BYTES);
  writeEthernet(frame, destination, self.mac, ETHERTYPE_ARP);
  const body = frame.subarray(ETHERNET_HEADER);
  body.writeUInt16BE(1, 0); // Ethernet
  body.writeUInt16BE(ETHERTYPE_IPV4, 2);
  body.writeUInt8(6, 4);
  body.writeUInt8(4, 5);
  body.writeUInt16BE(operation, 6);
  body.set(self.mac, 8);
  body.set(self.address, 14);
  body.set(target.mac, 18);
  body.set(target.address, 24);
  return frame;
}

export const echoRequest = (self: Station, to: Station, echo: Echo): Buffer =>
  icmpEcho(ICMP_ECHO_REQUEST, self, to, echo);

export const echoReply = (self: Station, to: Station, echo: Echo): Buffer =>
  icmpEcho(ICMP_ECHO_REPLY, self, to, echo);

function icmpEcho(type: number, self: Station, to: Station, echo: Echo): Buffer {
  const length = IPV4_HEADER + ICMP_HEADER + echo.payload.length;
  const frame = Buffer.alloc(ETHERNET_HEADER + length);
  writeEthernet(frame, to.mac, self.mac, ETHERTYPE_IPV4);
  const packet = frame.subarray(ETHERNET_HEADER);
  packet.writeUInt8(0x45, 0); // version 4, header of 5 words
  packet.writeUInt16BE(length, 2);
  packet.writeUInt8(TTL, 8);
  packet.writeUInt8(PROTOCOL_ICMP, 9);
  packet.set(self.address, 12);
  packet.set(to.address, 16);
  packet.writeUInt16BE(checksum(packet.subarray(0, IPV4_HEADER)), 10);
  const icmp = packet.subarray(IPV4_HEADER);
  icmp.writeUInt8(type, 0);
  icmp.writeUInt16BE(echo.identifier, 4);
  icmp.writeUInt16BE(echo.sequence, 6);
  icmp.set(echo.payload, ICMP_HEADER);
  icmp.writeUInt16BE(checksum(icmp), 2);
  return frame;
}

function writeEthernet(frame: Buffer, to: Uint8Array, from: Uint8Array, type: number): void {
  frame.set(to, 0);
  frame.set(from, 6);
  frame.writeUInt16BE(type, 12);
}

/** The Internet checksum (RFC 1071); 0 over bytes that carry a right one. */
function checksum(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i + 1 < bytes.length; i += 2) sum += bytes.readUInt16BE(i);
  if (bytes.length % 2 === 1) sum += bytes.readUInt8(bytes.length - 1) << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
