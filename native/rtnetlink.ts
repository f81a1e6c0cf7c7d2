import {
  type Attribute,
  be16,
  bytes,
  eachAttribute,
  family,
  i32,
  ip,
  listOf,
  mac,
  nested,
  readAttributes,
  struct,
  structAttribute,
  text,
  u16,
  u32,
  u8,
  unterminated,
  type Values,
  writeAttributes,
} from './codec.ts';
import type { Writer } from './writer.ts';

// The messages of NETLINK_ROUTE (man 7 rtnetlink) under the kernel's names: linux/rtnetlink.h, if_link.h,
// if_addr.h, neighbour.h, veth.h, fib_rules.h, net_namespace.h, nexthop.h. What is not declared here is skipped when
// read.

export const NLMSG_ERROR = 2;
export const NLMSG_DONE = 3;
export const RTM_NEWLINK = 16;
export const RTM_DELLINK = 17;
export const RTM_GETLINK = 18;
export const RTM_SETLINK = 19;
export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
export const RTM_GETADDR = 22;
export const RTM_NEWROUTE = 24;
export const RTM_DELROUTE = 25;
export const RTM_GETROUTE = 26;
export const RTM_NEWNEIGH = 28;
export const RTM_DELNEIGH = 29;
export const RTM_GETNEIGH = 30;
export const RTM_NEWRULE = 32;
export const RTM_DELRULE = 33;
export const RTM_NEWNSID = 88;
export const RTM_GETNSID = 90;
export const RTM_GETNEXTHOP = 106;

export const NLM_F_REQUEST = 0x1;
export const NLM_F_ACK = 0x4;
export const NLM_F_ECHO = 0x8;
export const NLM_F_DUMP_INTR = 0x10;
export const NLM_F_REPLACE = 0x100;
export const NLM_F_EXCL = 0x200;
export const NLM_F_DUMP = 0x300;
export const NLM_F_CREATE = 0x400;
export const NLM_F_APPEND = 0x800;

export const RTNLGRP_LINK = 1;
export const RTNLGRP_IPV4_IFADDR = 5;
export const RTNLGRP_IPV6_IFADDR = 9;
export const RTNLGRP_IPV4_NETCONF = 24;
export const RTNLGRP_IPV6_NETCONF = 25;

export const AF_UNSPEC = 0;
export const AF_INET = 2;
export const AF_BRIDGE = 7;
export const AF_INET6 = 10;

export const IFF_UP = 0x1;
export const IFF_NOARP = 0x80;
export const RTEXT_FILTER_VF = 0x1;
export const RTEXT_FILTER_SKIP_STATS = 0x8;
export const IFA_F_NODAD = 0x02;
export const NUD_REACHABLE = 0x02;
/** With NUD_REACHABLE: a static entry of a bridge, which does not age. */
export const NUD_NOARP = 0x40;
export const NUD_PERMANENT = 0x80;
export const NTF_SELF = 0x02;
export const NTF_MASTER = 0x04;
/** Of a bridge's entry: frames that come in by another port do not move it there. */
export const NTF_STICKY = 0x40;
export const RT_TABLE_MAIN = 254;
export const RTPROT_STATIC = 4;
export const RTN_UNICAST = 1;
export const RTN_LOCAL = 2;
export const FR_ACT_TO_TBL = 1;
export const RT_SCOPE_UNIVERSE = 0;
export const RT_SCOPE_LINK = 253;
export const RT_SCOPE_HOST = 254;

/** IFLA_INFO_DATA of a bridge. Times are in hundredths of a second. */
export const BRIDGE = {
  IFLA_BR_FORWARD_DELAY: u32(1),
  IFLA_BR_HELLO_TIME: u32(2),
  IFLA_BR_MAX_AGE: u32(3),
  IFLA_BR_AGEING_TIME: u32(4),
  IFLA_BR_STP_STATE: u32(5),
  IFLA_BR_PRIORITY: u16(6),
  IFLA_BR_VLAN_FILTERING: u8(7),
  IFLA_BR_VLAN_PROTOCOL: be16(8),
  IFLA_BR_GROUP_FWD_MASK: u16(9),
  IFLA_BR_MCAST_SNOOPING: u8(23),
  IFLA_BR_MCAST_QUERIER: u8(25),
  IFLA_BR_NF_CALL_IPTABLES: u8(36),
  IFLA_BR_NF_CALL_IP6TABLES: u8(37),
  IFLA_BR_NF_CALL_ARPTABLES: u8(38),
  IFLA_BR_VLAN_DEFAULT_PVID: u16(39),
} as const;

/** Of a bridge's port: IFLA_PROTINFO in messages of AF_BRIDGE, IFLA_INFO_SLAVE_DATA in others. */
export const BRIDGE_PORT = {
  /** linux/if_bridge.h: 0 disabled, 1 listening, 2 learning, 3 forwarding, 4 blocking. */
  IFLA_BRPORT_STATE: u8(1),
  IFLA_BRPORT_PRIORITY: u16(2),
  IFLA_BRPORT_COST: u32(3),
  /** Hairpin: a frame may leave by the port it came from. */
  IFLA_BRPORT_MODE: u8(4),
  IFLA_BRPORT_GUARD: u8(5),
  IFLA_BRPORT_PROTECT: u8(6),
  IFLA_BRPORT_FAST_LEAVE: u8(7),
  IFLA_BRPORT_LEARNING: u8(8),
  IFLA_BRPORT_UNICAST_FLOOD: u8(9),
  IFLA_BRPORT_PROXYARP: u8(10),
  IFLA_BRPORT_MCAST_FLOOD: u8(27),
  IFLA_BRPORT_MCAST_TO_UCAST: u8(28),
  IFLA_BRPORT_BCAST_FLOOD: u8(30),
  /** By bit: …:00 to …:0f of the group addresses that end at a bridge, which it treats as any other. */
  IFLA_BRPORT_GROUP_FWD_MASK: u16(31),
  IFLA_BRPORT_NEIGH_SUPPRESS: u8(32),
  IFLA_BRPORT_ISOLATED: u8(33),
  IFLA_BRPORT_LOCKED: u8(39),
} as const;

/** IFLA_INFO_DATA of a TUN or TAP device: read only, TUNSETIFF makes them. */
const TUN = {
  IFLA_TUN_OWNER: u32(1),
  IFLA_TUN_GROUP: u32(2),
  IFLA_TUN_TYPE: u8(3),
  IFLA_TUN_PI: u8(4),
  IFLA_TUN_VNET_HDR: u8(5),
  IFLA_TUN_PERSIST: u8(6),
  IFLA_TUN_MULTI_QUEUE: u8(7),
  /** Of a multi-queue device: how many are attached to a descriptor. */
  IFLA_TUN_NUM_QUEUES: u32(8),
  IFLA_TUN_NUM_DISABLED_QUEUES: u32(9),
} as const;

/** IFLA_INFO_DATA of macvlan and macvtap. Modes: 1 private, 2 vepa, 4 bridge, 8 passthru. */
const MACVLAN = {
  IFLA_MACVLAN_MODE: u32(1),
  IFLA_MACVLAN_FLAGS: u16(2),
} as const;

const VXLAN = {
  IFLA_VXLAN_ID: u32(1),
  IFLA_VXLAN_GROUP: ip(2),
  IFLA_VXLAN_LINK: u32(3),
  IFLA_VXLAN_LOCAL: ip(4),
  IFLA_VXLAN_TTL: u8(5),
  IFLA_VXLAN_TOS: u8(6),
  IFLA_VXLAN_LEARNING: u8(7),
  IFLA_VXLAN_AGEING: u32(8),
  IFLA_VXLAN_PORT: be16(15),
  IFLA_VXLAN_GROUP6: ip(16),
  IFLA_VXLAN_LOCAL6: ip(17),
  IFLA_VXLAN_UDP_CSUM: u8(18),
} as const;

const IFINFOMSG = {
  ifi_family: 'u8',
  pad: 'pad1',
  ifi_type: 'u16',
  ifi_index: 'i32',
  ifi_flags: 'u32',
  ifi_change: 'u32',
} as const;

const PEER_LINK = {
  IFLA_ADDRESS: mac(1),
  IFLA_IFNAME: text(3),
  IFLA_MTU: u32(4),
  IFLA_GROUP: u32(27),
  IFLA_NET_NS_FD: u32(28),
  IFLA_NUM_TX_QUEUES: u32(31),
  IFLA_NUM_RX_QUEUES: u32(32),
} as const;

/** VETH_INFO_PEER holds a link message of its own: header and attributes. */
const ifinfomsg = struct(IFINFOMSG);
const vethPeer = (type: number): Attribute<Values<typeof PEER_LINK>> => ({
  type,
  write: (writer, values) => {
    ifinfomsg.write(writer, {});
    writeAttributes(writer, PEER_LINK, values);
  },
  read: (payload) =>
    payload.length < ifinfomsg.size
      ? undefined
      : readAttributes(PEER_LINK, payload.subarray(ifinfomsg.size)),
});

const VETH = { VETH_INFO_PEER: vethPeer(1) } as const;

/** The kinds of links whose IFLA_INFO_DATA is known. */
export const LINK_KINDS = {
  bridge: BRIDGE,
  veth: VETH,
  tun: TUN,
  macvlan: MACVLAN,
  macvtap: MACVLAN,
  vxlan: VXLAN,
} as const;

type KnownKind = keyof typeof LINK_KINDS;

/** IFLA_LINKINFO: the kind of a link, the attributes of that kind, and those of the bridge's port that it is. */
export type LinkInfo = (
  | {
      [Kind in KnownKind]: { kind: Kind; data?: Values<(typeof LINK_KINDS)[Kind]> };
    }[KnownKind]
  | { kind: 'other'; name: string }
  /** Has no kind: hardware, and loopback. */
  | { kind: 'none' }
) & { port?: Values<typeof BRIDGE_PORT> };

const INFO_KIND = unterminated(1);
const INFO_DATA_TYPE = 2;
const INFO_SLAVE_KIND = unterminated(4);
const INFO_SLAVE_DATA = nested(5, BRIDGE_PORT);

const isKnownKind = (kind: string): kind is KnownKind => Object.hasOwn(LINK_KINDS, kind);

function writeLinkInfo(writer: Writer, info: LinkInfo): void {
  if (info.kind !== 'none') {
    const kind = info.kind === 'other' ? info.name : info.kind;
    writer.attribute(INFO_KIND.type, () => INFO_KIND.write(writer, kind));
  }
  if (info.kind !== 'none' && info.kind !== 'other' && info.data !== undefined) {
    const { data } = info;
    const table = LINK_KINDS[info.kind];
    writer.attribute(INFO_DATA_TYPE, () => writeAttributes(writer, table, data));
  }
  if (info.port === undefined) return;
  const { port } = info;
  writer.attribute(INFO_SLAVE_KIND.type, () => INFO_SLAVE_KIND.write(writer, 'bridge'));
  writer.attribute(INFO_SLAVE_DATA.type, () => INFO_SLAVE_DATA.write(writer, port));
}

function readLinkInfo(payload: Buffer): LinkInfo {
  const parts = new Map<number, Buffer>();
  eachAttribute(payload, (type, start, end) => parts.set(type, payload.subarray(start, end)));
  const part = <T>(attribute: Attribute<T>): T | undefined => {
    const body = parts.get(attribute.type);
    return body && attribute.read(body);
  };
  const port = part(INFO_SLAVE_KIND) === 'bridge' ? part(INFO_SLAVE_DATA) : undefined;
  const ofPort = port === undefined ? {} : { port };
  const kind = part(INFO_KIND);
  if (kind === undefined) return { kind: 'none', ...ofPort };
  if (!isKnownKind(kind)) return { kind: 'other', name: kind, ...ofPort };
  const data = parts.get(INFO_DATA_TYPE);
  if (data === undefined) return { kind, ...ofPort };
  return { kind, data: readAttributes(LINK_KINDS[kind], data), ...ofPort } as LinkInfo;
}

const linkInfo = (type: number): Attribute<LinkInfo> => ({
  type,
  write: writeLinkInfo,
  read: readLinkInfo,
});

/** IFLA_VF_INFO: each setting is a struct that names its VF. Rates are in Mbit/s, 0 is no limit. */
export const VF_INFO = {
  IFLA_VF_MAC: structAttribute(1, { vf: 'u32', mac: 'mac32' }),
  IFLA_VF_VLAN: structAttribute(2, { vf: 'u32', vlan: 'u32', qos: 'u32' }),
  IFLA_VF_TX_RATE: structAttribute(3, { vf: 'u32', rate: 'u32' }),
  IFLA_VF_SPOOFCHK: structAttribute(4, { vf: 'u32', setting: 'u32' }),
  /** 0 auto, 1 enable, 2 disable. */
  IFLA_VF_LINK_STATE: structAttribute(5, { vf: 'u32', link_state: 'u32' }),
  IFLA_VF_RATE: structAttribute(6, { vf: 'u32', min_tx_rate: 'u32', max_tx_rate: 'u32' }),
  IFLA_VF_TRUST: structAttribute(9, { vf: 'u32', setting: 'u32' }),
} as const;

/** By family; settings are an array of s32 in the order of linux/ip.h (from 1) and linux/ipv6.h (from 0). */
const AF_SPEC = {
  AF_INET: nested(AF_INET, { IFLA_INET_CONF: bytes(1) }),
  AF_INET6: nested(AF_INET6, { IFLA_INET6_CONF: bytes(2) }),
} as const;

export const LINK = {
  IFLA_ADDRESS: mac(1),
  IFLA_IFNAME: text(3),
  IFLA_MTU: u32(4),
  IFLA_LINK: u32(5),
  IFLA_MASTER: u32(10),
  IFLA_PROTINFO: nested(12, BRIDGE_PORT, { flagged: true }),
  IFLA_TXQLEN: u32(13),
  IFLA_OPERSTATE: u8(16),
  IFLA_LINKINFO: linkInfo(18),
  IFLA_NET_NS_PID: u32(19),
  /** An empty one, which takes the alias away, has to be empty on the wire too. */
  IFLA_IFALIAS: unterminated(20),
  IFLA_NUM_VF: u32(21),
  IFLA_VFINFO_LIST: listOf(22, 1, VF_INFO),
  /** Read only here; messages of AF_BRIDGE have something else in it. */
  IFLA_AF_SPEC: nested(26, AF_SPEC),
  IFLA_GROUP: u32(27),
  IFLA_NET_NS_FD: u32(28),
  IFLA_EXT_MASK: u32(29),
  IFLA_NUM_TX_QUEUES: u32(31),
  IFLA_NUM_RX_QUEUES: u32(32),
  IFLA_CARRIER: u8(33),
  IFLA_LINK_NETNSID: i32(37),
  IFLA_MIN_MTU: u32(50),
  IFLA_MAX_MTU: u32(51),
  IFLA_ALT_IFNAME: text(53),
  IFLA_PERM_ADDRESS: mac(54),
  IFLA_TARGET_NETNSID: i32(46),
  IFLA_PARENT_DEV_NAME: text(56),
  IFLA_PARENT_DEV_BUS_NAME: text(57),
} as const;

export const ADDRESS = {
  IFA_ADDRESS: ip(1),
  IFA_LOCAL: ip(2),
  IFA_LABEL: text(3),
  IFA_BROADCAST: ip(4),
  IFA_FLAGS: u32(8),
  IFA_RT_PRIORITY: u32(9),
  IFA_TARGET_NETNSID: i32(10),
  IFA_PROTO: u8(11),
} as const;

export const ROUTE = {
  RTA_DST: ip(1),
  RTA_OIF: u32(4),
  RTA_GATEWAY: ip(5),
  RTA_PRIORITY: u32(6),
  RTA_PREFSRC: ip(7),
  /** Read only: `struct rtnexthop` and its attributes, one after the other. */
  RTA_MULTIPATH: bytes(9),
  RTA_TABLE: u32(15),
  /** Read only: `struct rtvia`, a router of another family than the route's (u16), and its address. */
  RTA_VIA: bytes(18),
  /** Of a next hop that is an object of its own. Unless `nexthop_compat_mode` is on, the route says no more of it. */
  RTA_NH_ID: u32(30),
} as const;

export const NEXTHOP = {
  NHA_ID: u32(1),
  /** Read only: `struct nexthop_grp` for each member. */
  NHA_GROUP: bytes(2),
  NHA_OIF: u32(5),
  NHA_GATEWAY: ip(6),
} as const;

export const RULE = {
  FRA_SRC: ip(2),
  FRA_PRIORITY: u32(6),
  FRA_TABLE: u32(15),
  FRA_PROTOCOL: u8(21),
} as const;

export const NAMESPACE_ID = {
  NETNSA_NSID: i32(1),
  NETNSA_FD: u32(3),
} as const;

export const NEIGHBOUR = {
  NDA_DST: ip(1),
  NDA_LLADDR: mac(2),
  NDA_VLAN: u16(5),
  NDA_PORT: be16(6),
  NDA_VNI: u32(7),
  NDA_IFINDEX: u32(8),
  NDA_MASTER: u32(9),
} as const;

/** Extended acknowledgement (NETLINK_EXT_ACK). */
export const EXTENDED_ACK = {
  NLMSGERR_ATTR_MSG: text(1),
  NLMSGERR_ATTR_OFFS: u32(2),
  NLMSGERR_ATTR_COOKIE: bytes(3),
} as const;

export const linkMessage = family(IFINFOMSG, LINK);

export const addressMessage = family(
  { ifa_family: 'u8', ifa_prefixlen: 'u8', ifa_flags: 'u8', ifa_scope: 'u8', ifa_index: 'u32' },
  ADDRESS,
);

export const routeMessage = family(
  {
    rtm_family: 'u8',
    rtm_dst_len: 'u8',
    rtm_src_len: 'u8',
    rtm_tos: 'u8',
    rtm_table: 'u8',
    rtm_protocol: 'u8',
    rtm_scope: 'u8',
    rtm_type: 'u8',
    rtm_flags: 'u32',
  },
  ROUTE,
);

/** struct nhmsg. */
export const nexthopMessage = family(
  {
    nh_family: 'u8',
    nh_scope: 'u8',
    nh_protocol: 'u8',
    resvd: 'pad1',
    nh_flags: 'u32',
  },
  NEXTHOP,
);

export const ruleMessage = family(
  {
    family: 'u8',
    dst_len: 'u8',
    src_len: 'u8',
    tos: 'u8',
    table: 'u8',
    pad1: 'pad1',
    pad2: 'pad1',
    action: 'u8',
    flags: 'u32',
  },
  RULE,
);

/** struct rtgenmsg, one byte long: attributes begin at the next multiple of four. */
export const namespaceIdMessage = family(
  { rtgen_family: 'u8', pad1: 'pad1', pad2: 'pad2' },
  NAMESPACE_ID,
);

export const neighbourMessage = family(
  {
    ndm_family: 'u8',
    pad1: 'pad1',
    pad2: 'pad2',
    ndm_ifindex: 'i32',
    ndm_state: 'u16',
    ndm_flags: 'u8',
    ndm_type: 'u8',
  },
  NEIGHBOUR,
);
