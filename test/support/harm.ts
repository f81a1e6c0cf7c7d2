import { IpAddress, MacAddress } from '#protocol/address.ts';
import { ETHERTYPE, PROTOCOL } from './frames.ts';
import { NA, NS, RA, type Station } from './packets.ts';

// What a frame of a workload could do to who gets it, judged as a lenient receiver reads it: one that takes ports
// where the header length says, and looks neither at versions nor at checksums.

const LISTENER_QUERY = 130;
const ROUTER_SOLICITATION = 133;
const REDIRECT = 137;
const IGMP_QUERY = 0x11;
const EXTENSIONS = [PROTOCOL.hopByHop, PROTOCOL.routing, PROTOCOL.destination] as number[];
const BEHIND_ETHERNET = 14;

/** Why nobody must get this frame; undefined when it is harmless. */
export function harmOf(frame: Buffer, self: Station): string | undefined {
  if (macAt(frame, 6) !== self.mac) return 'another MAC';
  const packet = frame.subarray(BEHIND_ETHERNET);
  switch (frame.readUInt16BE(12)) {
    case ETHERTYPE.arp:
      return harmOfArp(packet, self);
    case ETHERTYPE.ipv4:
      return harmOf4(packet, self);
    case ETHERTYPE.ipv6:
      return harmOf6(packet, self);
    default:
      return 'another ethertype';
  }
}

/** Whatever the header says of hardware, protocol and lengths. */
function harmOfArp(packet: Buffer, { mac, ip4 }: Station): string | undefined {
  if (packet.length < 28) return 'ARP cut short';
  if (macAt(packet, 8) !== mac) return 'ARP with the MAC of another';
  const sender = addressAt(packet, 14, 4);
  const probe = sender === '0.0.0.0' && packet.readUInt16BE(6) === 1;
  return sender === ip4 || probe ? undefined : 'ARP with the address of another';
}

function harmOf4(packet: Buffer, { ip4 }: Station): string | undefined {
  if (packet.length < 20) return 'IPv4 cut short';
  const first = packet.readUInt8(0);
  const header = (first & 0xf) * 4;
  const length = packet.readUInt16BE(2);
  if (first >> 4 !== 4) return 'no IPv4';
  if (header < 20 || length < header || length > packet.length) return 'lengths that contradict';
  const late = (packet.readUInt16BE(6) & 0x1fff) !== 0;
  const protocol = packet.readUInt8(9);
  const inside = packet.subarray(header);
  const [from, to] = ports(inside);
  const from4 = addressAt(packet, 12, 4);
  const client = from4 === '0.0.0.0' && from === 68 && to === 67 && !late;
  if (from4 !== ip4 && !client) return 'IPv4 from another';
  if (protocol === PROTOCOL.igmp && !late && inside[0] === IGMP_QUERY) return 'an IGMP query';
  if (protocol !== PROTOCOL.udp) return undefined;
  if (!late) return from === 67 || to === 68 ? 'a DHCP answer' : undefined;
  // As udhcpc reads: fragment or not, where there are no options and all lengths agree.
  const whole = header === 20 && inside.length >= 8 && inside.readUInt16BE(4) === length - 20;
  return whole && to === 68 ? 'a DHCP answer in a late fragment' : undefined;
}

function harmOf6(packet: Buffer, self: Station): string | undefined {
  if (packet.length < 40) return 'IPv6 cut short';
  if (packet.readUInt8(0) >> 4 !== 6) return 'no IPv6';
  const from = addressAt(packet, 8, 16);
  if (![self.ip6, self.linkLocal, '::'].includes(from)) return 'IPv6 from another';
  let next = packet.readUInt8(6);
  let at = 40;
  for (;;) {
    if (EXTENSIONS.includes(next) && at + 2 <= packet.length) {
      next = packet.readUInt8(at);
      at += 8 + packet.readUInt8(at + 1) * 8;
    } else if (next === PROTOCOL.fragment && at + 8 <= packet.length) {
      // Without the first it is nothing.
      if ((packet.readUInt16BE(at + 2) & 0xfff8) !== 0) return undefined;
      next = packet.readUInt8(at);
      at += 8;
    } else break;
  }
  if (packet.readUInt16BE(4) + 40 > packet.length) return 'a payload that is not there';
  const inside = packet.subarray(at);
  if (next === PROTOCOL.icmpv6) return harmOfIcmp6(inside, from, self);
  const [source, to] = ports(inside);
  if (from === '::') return 'IPv6 from nowhere';
  if (next !== PROTOCOL.udp) return undefined;
  return source === 547 || to === 546 ? 'a DHCPv6 answer' : undefined;
}

function harmOfIcmp6(message: Buffer, from: string, self: Station): string | undefined {
  const type = message[0];
  if (type === RA) return 'a router advertisement';
  if (type === REDIRECT) return 'a redirect';
  if (type === LISTENER_QUERY) return 'a listener query';
  const about = message.length < 24 ? undefined : addressAt(message, 8, 16);
  const own = about === self.ip6 || about === self.linkLocal;
  if (type === NA && !own) return 'an advertisement for another';
  if (type === NS && from === '::' && !own) return 'detection of the duplicates of another';
  const start = type === ROUTER_SOLICITATION ? 8 : 24;
  if (![NA, NS, ROUTER_SOLICITATION].some((one) => one === type)) return undefined;
  for (let at = start; at + 8 <= message.length; at += 8) {
    const named = [1, 2].includes(message.readUInt8(at));
    if (named && macAt(message, at + 2) !== self.mac) return 'the MAC of another in an option';
  }
  return undefined;
}

const ports = (inside: Buffer): readonly (number | undefined)[] =>
  inside.length < 4 ? [] : [inside.readUInt16BE(0), inside.readUInt16BE(2)];

const macAt = (bytes: Buffer, at: number): string =>
  MacAddress.fromBytes(bytes.subarray(at, at + 6)).toString();

const addressAt = (bytes: Buffer, at: number, length: number): string =>
  IpAddress.fromBytes(bytes.subarray(at, at + length)).toString();
