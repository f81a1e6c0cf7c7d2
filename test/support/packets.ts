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
  PROTOCOL,
  solicitedNode,
  type Way,
} from './frames.ts';

// Packets of workloads, by what they are for: a few words each, and all that a table of them has in common.

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

export const ALL_NODES = 'ff02::1';
export const ALL_ROUTERS = 'ff02::2';
export const MLD_REPORTS = 'ff02::16';
export const RA = 134;
export const NS = 135;
export const NA = 136;
/** Flags of an advertisement: solicited, override. */
export const OVERRIDE = 0x2000;
const TOKEN = Buffer.from('8f0c6b1de42a9375', 'hex');

/** Drawn anew for each frame that carries one: no frame is taken for another. */
let drawn = 0;
export const token = (): Buffer => {
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
export const v6 = (
  mac: string,
  way: Way,
  next: number,
  inside: Uint8Array,
  hopLimit = 255,
): Buffer =>
  ethernet(multicastMac(way.to), mac, ETHERTYPE.ipv6, ipv6(way, next, inside, { hopLimit }));

export const v4 = (mac: string, way: Way, protocol: number, inside: Uint8Array, ttl = 64): Buffer =>
  ethernet(BROADCAST, mac, ETHERTYPE.ipv4, ipv4(way, protocol, inside, { ttl }));

export const ping4 = (mac: string, way: Way): Buffer =>
  v4(mac, way, PROTOCOL.icmp, icmp(8, Buffer.concat([Buffer.alloc(4), token()])));

export const ping6 = (mac: string, way: Way): Buffer =>
  v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, 128, Buffer.concat([Buffer.alloc(4), token()])));

export const solicit = (
  mac: string,
  from: string,
  target: string,
  more: readonly Uint8Array[] = [],
): Buffer => {
  const way = { from, to: solicitedNode(target) };
  return v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, NS, discovery.neighbour(target, more)));
};

export const advertise = (
  mac: string,
  from: string,
  target: string,
  more: readonly Uint8Array[] = [],
): Buffer => {
  const way = { from, to: ALL_NODES };
  const body = discovery.neighbour(target, more, OVERRIDE);
  return v6(mac, way, PROTOCOL.icmpv6, icmpv6(way, NA, body));
};

export const arpFrom = (mac: string, fields: Parameters<typeof arp>[0]): Buffer =>
  ethernet(BROADCAST, mac, ETHERTYPE.arp, arp(fields));

/** The two parts of what is behind the IPv6 header, cut at a multiple of 8. */
export const cut = (id: number, next: number, whole: Buffer, at: number): [Buffer, Buffer] => {
  const part = (fields: Omit<Fragment, 'id'>, inside: Buffer): Buffer =>
    fragmented(next, { id, ...fields }, inside);
  return [
    part({ offset: 0, more: true }, whole.subarray(0, at)),
    part({ offset: at, more: false }, whole.subarray(at)),
  ];
};
