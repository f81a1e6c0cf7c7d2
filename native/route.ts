import { IpAddress, IpPrefix } from '#protocol/address.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import type { Received } from './netlink-message.ts';
import { type Nexthop, nexthopsOf } from './nexthop.ts';
import {
  AF_INET,
  AF_INET6,
  AF_UNSPEC,
  NLM_F_APPEND,
  NLM_F_CREATE,
  NLM_F_EXCL,
  RT_SCOPE_HOST,
  RT_SCOPE_LINK,
  RT_SCOPE_UNIVERSE,
  RT_TABLE_MAIN,
  RTM_DELROUTE,
  RTM_GETROUTE,
  RTM_NEWROUTE,
  RTN_LOCAL,
  RTN_UNICAST,
  routeMessage,
  RTPROT_STATIC,
} from './rtnetlink.ts';

export interface Route {
  /** Absent: the default route, of the family of `via`; without `via`, IPv4's. */
  readonly to?: IpPrefix;
  /** Of a route that is read it may be of another family than `to`: a router of IPv6 for IPv4. */
  readonly via?: IpAddress;
  readonly ifindex?: number;
  /** Default: main (254). */
  readonly table?: number;
  readonly metric?: number | undefined;
  /** RTN_LOCAL: packets to `to` are for this host. Each device may have its own, with the same metric. */
  readonly local?: boolean;
  /** Read only. Indices of the devices of a route with several next hops, which has no `ifindex` of its own. */
  readonly nexthops?: readonly number[];
  /** Read only. The number of the next hop that the route names; `list` answers `via` and devices of it, too. */
  readonly nexthopId?: number;
}

const MAX_TABLE_BYTE = 255;
const NEXTHOP_BYTES = 8;
const NEXTHOP_INDEX_OFFSET = 4;
const NEXTHOP_PADDING = 4;
/** The family at the head of `struct rtvia`. */
const VIA_FAMILY_BYTES = 2;

/** Unicast routes of one network namespace. */
export class Routes {
  readonly #socket: NetlinkSocket;

  constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /**
   * Adds a route; EEXIST when there is one to the same destination with the same metric, for a local one: by the same
   * device.
   */
  add(route: Route): void {
    this.#socket.request(this.addition(route));
  }

  /** The request of `add`, for a batch. */
  addition(route: Route): Request {
    return {
      ...routeRequest(RTM_NEWROUTE, 'RTM_NEWROUTE', route),
      flags: NLM_F_CREATE | (route.local === true ? NLM_F_APPEND : NLM_F_EXCL),
    };
  }

  /**
   * Removes a route that `add` or an operator made (RTPROT_STATIC), with any metric unless one is given. ESRCH if
   * there is none, even if the kernel or a daemon made a similar one.
   */
  remove(route: Route): void {
    this.#socket.request(routeRequest(RTM_DELROUTE, 'RTM_DELROUTE', route));
  }

  /** All unicast routes, or those of type local, of every table unless one is given. */
  list({ table, local = false }: { table?: number; local?: boolean } = {}): Route[] {
    const rows = this.#socket.dump(
      {
        type: RTM_GETROUTE,
        operation: 'RTM_GETROUTE',
        subject: 'routes',
        write: (writer) => routeMessage.write(writer, { rtm_family: AF_UNSPEC }, {}),
      },
      (message) => parseRoute(message, local),
    );
    const found = rows
      .filter((row) => row !== null)
      .filter((row) => table === undefined || row.table === table);
    if (!found.some(isUnresolved)) return found;
    const nexthops = nexthopsOf(this.#socket);
    return found.map((route) => (isUnresolved(route) ? resolved(route, nexthops) : route));
  }
}

function routeRequest(type: number, operation: string, route: Route): Request {
  const { to, via, ifindex, metric, local = false, table = RT_TABLE_MAIN } = route;
  const family = to?.family ?? via?.family ?? 4;
  return {
    type,
    operation,
    subject: subjectOf(route),
    write: (writer) =>
      routeMessage.write(
        writer,
        {
          rtm_family: family === 4 ? AF_INET : AF_INET6,
          rtm_dst_len: to?.length ?? 0,
          rtm_table: table > MAX_TABLE_BYTE ? 0 : table,
          rtm_protocol: RTPROT_STATIC,
          rtm_scope: local ? RT_SCOPE_HOST : via === undefined ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE,
          rtm_type: local ? RTN_LOCAL : RTN_UNICAST,
        },
        {
          ...(to !== undefined && { RTA_DST: to.network }),
          ...(via !== undefined && { RTA_GATEWAY: via }),
          ...(ifindex !== undefined && { RTA_OIF: ifindex }),
          ...(metric !== undefined && { RTA_PRIORITY: metric }),
          ...(table > MAX_TABLE_BYTE && { RTA_TABLE: table }),
        },
      ),
  };
}

function subjectOf({ to, via, ifindex }: Route): string {
  const parts = [to?.toString() ?? 'default'];
  if (via !== undefined) parts.push(`via ${via.toString()}`);
  if (ifindex !== undefined) parts.push(`dev #${ifindex}`);
  return parts.join(' ');
}

/**
 * A route from the body of an RTM_NEWROUTE message; null for other than unicast of IPv4 and IPv6, or with `local` for
 * other than such of type local.
 */
export function parseRoute({ body }: Received, local = false): Route | null {
  const { header, attributes } = routeMessage.read(body);
  const ipFamily = ipFamilyOf(header.rtm_family);
  if (header.rtm_type !== (local ? RTN_LOCAL : RTN_UNICAST)) return null;
  if (ipFamily === undefined) return null;
  const { RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PRIORITY, RTA_TABLE, RTA_MULTIPATH } = attributes;
  const { RTA_VIA, RTA_NH_ID } = attributes;
  const via = RTA_GATEWAY ?? (RTA_VIA && routerIn(RTA_VIA));
  if (header.rtm_dst_len > bitsOf(RTA_DST?.family ?? ipFamily)) return null;
  const to =
    RTA_DST === undefined
      ? defaultWithout(RTA_GATEWAY, ipFamily)
      : IpPrefix.around(RTA_DST, header.rtm_dst_len);
  return {
    ...(to !== undefined && { to }),
    ...(local && { local }),
    ...(via !== undefined && { via }),
    ...(RTA_OIF !== undefined && { ifindex: RTA_OIF }),
    table: RTA_TABLE ?? header.rtm_table,
    ...(RTA_PRIORITY !== undefined && { metric: RTA_PRIORITY }),
    ...(RTA_MULTIPATH !== undefined && { nexthops: nexthopDevices(RTA_MULTIPATH) }),
    ...(RTA_NH_ID !== undefined && { nexthopId: RTA_NH_ID }),
  };
}

/** With `nexthop_compat_mode` the kernel tells devices and routers of a next hop with each route that names it. */
const isUnresolved = ({ nexthopId, ifindex, nexthops }: Route): boolean =>
  nexthopId !== undefined && ifindex === undefined && nexthops === undefined;

function resolved(route: Route, known: ReadonlyMap<number, Nexthop>): Route {
  // A route goes with its next hop: one that has gone since the routes were read leads nowhere.
  const { via, ifindex, members } = known.get(route.nexthopId ?? 0) ?? {};
  return {
    ...route,
    ...(via !== undefined && { via }),
    ...(ifindex !== undefined && { ifindex }),
    ...(members !== undefined && {
      nexthops: members.flatMap((id) => known.get(id)?.ifindex ?? []),
    }),
  };
}

/** `struct rtvia` (linux/rtnetlink.h). */
function routerIn(via: Uint8Array): IpAddress | undefined {
  const address = via.subarray(VIA_FAMILY_BYTES);
  return address.length === 4 || address.length === 16 ? IpAddress.fromBytes(address) : undefined;
}

/** `struct rtnexthop` (linux/rtnetlink.h): length, flags and hops, index; then attributes, padded to four bytes. */
function nexthopDevices(bytes: Uint8Array): number[] {
  const view = Buffer.from(bytes);
  const devices: number[] = [];
  for (let at = 0; at + NEXTHOP_BYTES <= view.length;) {
    const length = view.readUInt16LE(at);
    if (length < NEXTHOP_BYTES) break;
    devices.push(view.readInt32LE(at + NEXTHOP_INDEX_OFFSET));
    at += Math.ceil(length / NEXTHOP_PADDING) * NEXTHOP_PADDING;
  }
  return devices;
}

function ipFamilyOf(addressFamily: number): 4 | 6 | undefined {
  if (addressFamily === AF_INET) return 4;
  return addressFamily === AF_INET6 ? 6 : undefined;
}

const bitsOf = (family: 4 | 6): number => (family === 4 ? 32 : 128);

/** A default route without a gateway names its destination, which alone tells its family. */
const defaultWithout = (via: IpAddress | undefined, family: 4 | 6): IpPrefix | undefined =>
  via === undefined ? IpPrefix.around(new IpAddress(family, 0n), 0) : undefined;
