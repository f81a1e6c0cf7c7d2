import { IpAddress, MacAddress } from '#protocol/address.ts';
import {
  AF_BRIDGE,
  AF_INET,
  AF_INET6,
  addressMessage,
  IFA_F_NODAD,
  neighbourMessage,
  NTF_MASTER,
  NTF_SELF,
  NUD_NOARP,
  NUD_PERMANENT,
  NUD_REACHABLE,
  RT_SCOPE_LINK,
  RTM_DELADDR,
  RTM_DELROUTE,
  RTM_NEWADDR,
  RTM_NEWNEIGH,
  RTM_NEWROUTE,
  RTN_UNICAST,
  routeMessage,
  RTPROT_STATIC,
} from '#native/rtnetlink.ts';
import { type Golden, golden } from './golden.ts';

const mac = MacAddress.parse;
const address = IpAddress.parse;

const STATIC_ROUTE = {
  rtm_family: AF_INET,
  rtm_table: 254,
  rtm_protocol: RTPROT_STATIC,
  rtm_type: RTN_UNICAST,
};

export const GOLDEN_ADDRESSES: readonly Golden[] = [
  golden({
    command: 'ip addr add 10.9.1.1/24 dev br0',
    type: RTM_NEWADDR,
    family: addressMessage,
    header: { ifa_family: AF_INET, ifa_prefixlen: 24, ifa_index: 101 },
    attributes: { IFA_LOCAL: address('10.9.1.1'), IFA_ADDRESS: address('10.9.1.1') },
    hex: ['0218000065000000', '080002000a090101', '080001000a090101'],
  }),
  golden({
    command: 'ip addr delete 10.9.1.1/24 dev br0',
    type: RTM_DELADDR,
    family: addressMessage,
    header: { ifa_family: AF_INET, ifa_prefixlen: 24, ifa_index: 101 },
    attributes: { IFA_LOCAL: address('10.9.1.1'), IFA_ADDRESS: address('10.9.1.1') },
    hex: ['0218000065000000', '080002000a090101', '080001000a090101'],
  }),
  golden({
    command: 'ip addr add fd00:9::1/64 dev br0 nodad',
    type: RTM_NEWADDR,
    family: addressMessage,
    header: { ifa_family: AF_INET6, ifa_prefixlen: 64, ifa_flags: IFA_F_NODAD, ifa_index: 101 },
    attributes: { IFA_LOCAL: address('fd00:9::1'), IFA_ADDRESS: address('fd00:9::1') },
    hex: [
      '0a40020065000000',
      '14000200fd000009000000000000000000000001',
      '14000100fd000009000000000000000000000001',
    ],
  }),
  golden({
    command: 'ip route add default via 10.9.0.254 dev br0 proto static',
    type: RTM_NEWROUTE,
    family: routeMessage,
    header: STATIC_ROUTE,
    attributes: { RTA_GATEWAY: address('10.9.0.254'), RTA_OIF: 101 },
    hex: ['02000000fe04000100000000', '080005000a0900fe', '0800040065000000'],
  }),
  golden({
    command: 'ip route add 10.77.0.0/16 via 10.9.0.254 dev br0 proto static metric 50',
    type: RTM_NEWROUTE,
    family: routeMessage,
    header: { ...STATIC_ROUTE, rtm_dst_len: 16 },
    attributes: {
      RTA_DST: address('10.77.0.0'),
      RTA_GATEWAY: address('10.9.0.254'),
      RTA_PRIORITY: 50,
      RTA_OIF: 101,
    },
    hex: [
      '02100000fe04000100000000',
      '080001000a4d0000',
      '080005000a0900fe',
      '0800060032000000',
      '0800040065000000',
    ],
  }),
  golden({
    command: 'ip route add 10.78.0.0/16 dev br0 proto static table 1000',
    type: RTM_NEWROUTE,
    family: routeMessage,
    header: { ...STATIC_ROUTE, rtm_dst_len: 16, rtm_table: 0, rtm_scope: RT_SCOPE_LINK },
    attributes: { RTA_DST: address('10.78.0.0'), RTA_TABLE: 1000, RTA_OIF: 101 },
    hex: ['021000000004fd0100000000', '080001000a4e0000', '08000f00e8030000', '0800040065000000'],
  }),
  golden({
    command: 'ip route add fd00:77::/32 via fd00:9::2 dev br0 proto static',
    type: RTM_NEWROUTE,
    family: routeMessage,
    header: { ...STATIC_ROUTE, rtm_family: AF_INET6, rtm_dst_len: 32 },
    attributes: { RTA_DST: address('fd00:77::'), RTA_GATEWAY: address('fd00:9::2'), RTA_OIF: 101 },
    hex: [
      '0a200000fe04000100000000',
      '14000100fd000077000000000000000000000000',
      '14000500fd000009000000000000000000000002',
      '0800040065000000',
    ],
  }),
  golden({
    command:
      'ip route delete unicast 10.77.0.0/16 via 10.9.0.254 dev br0 proto static scope global',
    type: RTM_DELROUTE,
    family: routeMessage,
    header: { ...STATIC_ROUTE, rtm_dst_len: 16 },
    attributes: { RTA_DST: address('10.77.0.0'), RTA_GATEWAY: address('10.9.0.254'), RTA_OIF: 101 },
    hex: ['02100000fe04000100000000', '080001000a4d0000', '080005000a0900fe', '0800040065000000'],
  }),
  golden({
    command: 'ip neigh replace 10.9.0.7 lladdr 02:00:00:00:00:07 dev br0 nud permanent',
    type: RTM_NEWNEIGH,
    family: neighbourMessage,
    header: { ndm_family: AF_INET, ndm_ifindex: 101, ndm_state: NUD_PERMANENT },
    attributes: { NDA_DST: address('10.9.0.7'), NDA_LLADDR: mac('02:00:00:00:00:07') },
    hex: ['020000006500000080000000', '080001000a090007', '0a0002000200000000070000'],
  }),
  golden({
    command: 'bridge fdb replace 02:00:00:00:00:08 dev port0 master static',
    type: RTM_NEWNEIGH,
    family: neighbourMessage,
    header: {
      ndm_family: AF_BRIDGE,
      ndm_ifindex: 102,
      ndm_state: NUD_NOARP | NUD_REACHABLE,
      ndm_flags: NTF_MASTER,
    },
    attributes: { NDA_LLADDR: mac('02:00:00:00:00:08') },
    hex: ['070000006600000042000400', '0a0002000200000000080000'],
  }),
  golden({
    command: 'bridge fdb replace 02:00:00:00:00:08 dev x1 self static dst 10.9.0.9',
    type: RTM_NEWNEIGH,
    family: neighbourMessage,
    header: {
      ndm_family: AF_BRIDGE,
      ndm_ifindex: 107,
      ndm_state: NUD_NOARP | NUD_REACHABLE,
      ndm_flags: NTF_SELF,
    },
    attributes: { NDA_LLADDR: mac('02:00:00:00:00:08'), NDA_DST: address('10.9.0.9') },
    hex: ['070000006b00000042000200', '0a0002000200000000080000', '080001000a090009'],
  }),
];
