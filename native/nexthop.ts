import type { IpAddress } from '#protocol/address.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import type { Received } from './netlink-message.ts';
import { AF_UNSPEC, nexthopMessage, RTM_GETNEXTHOP } from './rtnetlink.ts';

/** A next hop that is an object of its own (man 8 ip-nexthop): routes name it by its number. */
export interface Nexthop {
  readonly id: number;
  readonly via?: IpAddress;
  readonly ifindex?: number;
  /** Of a group: the numbers of its members, which are no groups themselves. */
  readonly members?: readonly number[];
}

/** `struct nexthop_grp` (linux/nexthop.h): number, weight, and padding. */
const MEMBER_BYTES = 8;

const ALL_NEXTHOPS: Request = {
  type: RTM_GETNEXTHOP,
  operation: 'RTM_GETNEXTHOP',
  subject: 'next hops',
  write: (writer) => nexthopMessage.write(writer, { nh_family: AF_UNSPEC }, {}),
};

/** All next hops and groups of the namespace of a socket, by number. Linux has them since 5.3. */
export const nexthopsOf = (socket: NetlinkSocket): ReadonlyMap<number, Nexthop> =>
  new Map(socket.dump(ALL_NEXTHOPS, parseNexthop).map((one) => [one.id, one]));

/** A next hop from the body of an RTM_NEWNEXTHOP message. */
export function parseNexthop({ body }: Received): Nexthop {
  const { NHA_ID = 0, NHA_GROUP, NHA_OIF, NHA_GATEWAY } = nexthopMessage.read(body).attributes;
  return {
    id: NHA_ID,
    ...(NHA_GATEWAY !== undefined && { via: NHA_GATEWAY }),
    ...(NHA_OIF !== undefined && { ifindex: NHA_OIF }),
    ...(NHA_GROUP !== undefined && { members: membersIn(Buffer.from(NHA_GROUP)) }),
  };
}

function membersIn(group: Buffer): number[] {
  const members: number[] = [];
  for (let at = 0; at + MEMBER_BYTES <= group.length; at += MEMBER_BYTES) {
    members.push(group.readUInt32LE(at));
  }
  return members;
}
