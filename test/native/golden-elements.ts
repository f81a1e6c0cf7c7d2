import { IpAddress, MacAddress } from '#protocol/address.ts';
import type { SetDeclaration, SetElement } from '#native/nftset.ts';

const ip = IpAddress.parse;
const mac = MacAddress.parse;

/** An element, what nft calls it, and the NFTA_SET_ELEM_LIST_ELEMENTS that nft sends to add it to an empty set. */
export interface GoldenElement {
  readonly declaration: SetDeclaration;
  /** As in `add set inet t s { … }`. */
  readonly declared: string;
  readonly element: SetElement;
  /** As in `add element inet t s { … }`. */
  readonly text: string;
  readonly hex: readonly string[];
}

export const GOLDEN_ELEMENTS: readonly GoldenElement[] = [
  {
    declaration: { key: ['ifname'] },
    declared: '{ type ifname; }',
    element: { key: ['tap0'] },
    text: '"tap0"',
    hex: ['200003801c000180180001801400010074617030000000000000000000000000'],
  },
  {
    declaration: { key: ['ifname', 'ether_addr'] },
    declared: '{ type ifname . ether_addr; }',
    element: { key: ['tap0', mac('02:00:00:00:00:0a')] },
    text: '"tap0" . 02:00:00:00:00:0a',
    hex: ['2800038024000180200001801c0001007461703000000000000000000000000002000000000a0000'],
  },
  {
    declaration: { key: ['ifname', 'ether_addr', 'ipv4_addr'] },
    declared: '{ type ifname . ether_addr . ipv4_addr; }',
    element: { key: ['fifteen-letters', mac('02:00:00:00:00:0a'), ip('10.0.0.2')] },
    text: '"fifteen-letters" . 02:00:00:00:00:0a . 10.0.0.2',
    hex: [
      '2c0003802800018024000180200001006669667465656e2d6c6574746572730002000000000a0000',
      '0a000002',
    ],
  },
  {
    declaration: { key: ['ipv6_addr'] },
    declared: '{ type ipv6_addr; }',
    element: { key: [ip('fe80::1')] },
    text: 'fe80::1',
    hex: ['200003801c0001801800018014000100fe800000000000000000000000000001'],
  },
  {
    declaration: { key: ['ifname', 'th,64,128'] },
    declared: '{ typeof iifname . @th,64,128; }',
    element: { key: ['tap0', ip('fd00::2')] },
    text: '"tap0" . 0xfd000000000000000000000000000002',
    hex: [
      '300003802c000180280001802400010074617030000000000000000000000000fd00000000000000',
      '0000000000000002',
    ],
  },
  {
    declaration: { key: ['ifname', 'th,208,48'] },
    declared: '{ typeof iifname . @th,208,48; }',
    element: { key: ['tap0', mac('02:00:00:00:00:0a')] },
    text: '"tap0" . 0x02000000000a',
    hex: ['2800038024000180200001801c0001007461703000000000000000000000000002000000000a0000'],
  },
  {
    declaration: { key: ['inet_proto', 'inet_service'], data: ['ipv4_addr', 'inet_service'] },
    declared: '{ type inet_proto . inet_service : ipv4_addr . inet_service; }',
    element: { key: [6, 8080], data: [ip('10.0.0.2'), 80] },
    text: 'tcp . 8080 : 10.0.0.2 . 80',
    hex: ['2800038024000180100001800c000100060000001f900000100002800c0001000a00000200500000'],
  },
  {
    declaration: {
      key: ['ipv6_addr', 'inet_proto', 'inet_service'],
      data: ['ipv6_addr', 'inet_service'],
    },
    declared: '{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }',
    element: { key: [ip('2001:db8::1'), 132, 1], data: [ip('fd00::2'), 65_535] },
    text: '2001:db8::1 . sctp . 1 : fd00::2 . 65535',
    hex: [
      '4400038040000180200001801c00010020010db80000000000000000000000018400000000010000',
      '1c00028018000100fd000000000000000000000000000002ffff0000',
    ],
  },
  {
    declaration: { key: ['ifname', 'ipv4_addr'], interval: true },
    declared: '{ type ifname . ipv4_addr; flags interval; }',
    element: { key: ['br0', ip('10.0.0.0')], end: ['br0', ip('10.0.0.255')] },
    text: '"br0" . 10.0.0.0-10.0.0.255',
    hex: [
      '400003803c0001801c00018018000100627230000000000000000000000000000a0000001c000a80',
      '18000100627230000000000000000000000000000a0000ff',
    ],
  },
];
