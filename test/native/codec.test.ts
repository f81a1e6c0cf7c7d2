import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IpAddress, MacAddress } from '#protocol/address.ts';
import { parseAddress } from '#native/address.ts';
import {
  type Attribute,
  type Family,
  family,
  readAttributes,
  type StructFields,
  type Table,
  writeAttributes,
} from '#native/codec.ts';
import { parseLink } from '#native/link.ts';
import { parseNeighbour } from '#native/neighbour.ts';
import { parseNexthop } from '#native/nexthop.ts';
import { parseRoute } from '#native/route.ts';
import {
  ADDRESS,
  addressMessage,
  BRIDGE_PORT,
  EXTENDED_ACK,
  LINK,
  LINK_KINDS,
  linkMessage,
  NEIGHBOUR,
  NEXTHOP,
  neighbourMessage,
  nexthopMessage,
  NAMESPACE_ID,
  namespaceIdMessage,
  ROUTE,
  routeMessage,
  RULE,
  ruleMessage,
} from '#native/rtnetlink.ts';
import { CodecError, Writer } from '#native/writer.ts';
import { GOLDEN_LINKS } from './golden-links.ts';

// Whatever a table can hold comes back as it was written, and no bytes make a decoder do worse than throw
// CodecError.

const u8 = fc.integer({ min: 0, max: 0xff });
const u16 = fc.integer({ min: 0, max: 0xffff });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const i32 = fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff });
const macs = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((b) => MacAddress.fromBytes(b));
const ips = fc
  .oneof(
    fc.uint8Array({ minLength: 4, maxLength: 4 }),
    fc.uint8Array({ minLength: 16, maxLength: 16 }),
  )
  .map((bytes) => IpAddress.fromBytes(bytes));
const texts = fc.string({ unit: 'grapheme', maxLength: 40 }).filter((t) => !t.includes('\0'));
const bytes = fc.uint8Array({ maxLength: 40 });

/** Compared by text: addresses are objects with private parts. */
function show(value: unknown): unknown {
  if (value instanceof MacAddress || value instanceof IpAddress) return value.toString();
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (Array.isArray(value)) return value.map(show);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, show(one)]));
}

/** Any part of what these can hold. */
const partOf = (fields: Record<string, fc.Arbitrary<unknown>>): fc.Arbitrary<object> =>
  fc.record(fields, { requiredKeys: [] });

const CANDIDATES: readonly fc.Arbitrary<unknown>[] = [i32, u32, u16, u8, macs, ips, texts, bytes];

/** The widest values that an attribute of a plain kind carries, found by trying. */
function valuesOf(attribute: Attribute<unknown>): fc.Arbitrary<unknown> {
  const fitting = CANDIDATES.find((values) =>
    fc.sample(values, { numRuns: 50, seed: 7 }).every((value) => survives(attribute, value)),
  );
  if (fitting === undefined) throw new Error(`no values fit attribute ${attribute.type}`);
  return fitting;
}

function survives(attribute: Attribute<unknown>, value: unknown): boolean {
  const writer = new Writer();
  try {
    attribute.write(writer, value);
  } catch {
    return false;
  }
  const back = attribute.read(Buffer.from(writer.bytes));
  return JSON.stringify(show(back)) === JSON.stringify(show(value));
}

const plain = (table: Table): fc.Arbitrary<object> =>
  partOf(Object.fromEntries(Object.entries(table).map(([name, one]) => [name, valuesOf(one)])));

const vf = partOf({
  IFLA_VF_MAC: fc.record({ vf: u32, mac: macs }),
  IFLA_VF_VLAN: fc.record({ vf: u32, vlan: u32, qos: u32 }),
  IFLA_VF_TX_RATE: fc.record({ vf: u32, rate: u32 }),
  IFLA_VF_SPOOFCHK: fc.record({ vf: u32, setting: u32 }),
  IFLA_VF_LINK_STATE: fc.record({ vf: u32, link_state: u32 }),
  IFLA_VF_RATE: fc.record({ vf: u32, min_tx_rate: u32, max_tx_rate: u32 }),
  IFLA_VF_TRUST: fc.record({ vf: u32, setting: u32 }),
});
const vethPeer = partOf({
  IFLA_ADDRESS: macs,
  IFLA_IFNAME: texts,
  IFLA_MTU: u32,
  IFLA_GROUP: u32,
  IFLA_NET_NS_FD: u32,
});
const { veth: _veth, ...plainKinds } = LINK_KINDS;
const port = plain(BRIDGE_PORT);
const ofKind = (kind: string, data: fc.Arbitrary<object>): fc.Arbitrary<object> =>
  fc.record({ kind: fc.constant(kind), data, port }, { requiredKeys: ['kind'] });
const linkInfo = fc.oneof(
  fc.record({ kind: fc.constant('none'), port }),
  fc.record({ kind: fc.constant('other'), name: fc.constantFrom('dummy', 'bond') }),
  ofKind('veth', partOf({ VETH_INFO_PEER: vethPeer })),
  ...Object.entries(plainKinds).map(([kind, table]) => ofKind(kind, plain(table))),
);

const { IFLA_LINKINFO, IFLA_PROTINFO, IFLA_VFINFO_LIST, IFLA_AF_SPEC: _spec, ...plainLink } = LINK;
const settings = partOf({
  AF_INET: partOf({ IFLA_INET_CONF: bytes }),
  AF_INET6: partOf({ IFLA_INET6_CONF: bytes }),
});
const linkAttributes = fc
  .tuple(
    plain(plainLink),
    partOf({
      IFLA_LINKINFO: linkInfo,
      IFLA_PROTINFO: port,
      IFLA_AF_SPEC: settings,
      IFLA_VFINFO_LIST: fc.array(vf, { maxLength: 3 }),
    }),
  )
  .map(([simple, nested]) => ({ ...simple, ...nested }));

const families: [
  name: string,
  family: Family<StructFields, Table>,
  header: fc.Arbitrary<object>,
  attributes: fc.Arbitrary<object>,
][] = [
  [
    'link',
    linkMessage,
    fc.record({ ifi_family: u8, ifi_type: u16, ifi_index: i32, ifi_flags: u32, ifi_change: u32 }),
    linkAttributes,
  ],
  [
    'address',
    addressMessage,
    fc.record({
      ifa_family: u8,
      ifa_prefixlen: u8,
      ifa_flags: u8,
      ifa_scope: u8,
      ifa_index: u32,
    }),
    plain(ADDRESS),
  ],
  [
    'route',
    routeMessage,
    fc.record({
      rtm_family: u8,
      rtm_dst_len: u8,
      rtm_src_len: u8,
      rtm_tos: u8,
      rtm_table: u8,
      rtm_protocol: u8,
      rtm_scope: u8,
      rtm_type: u8,
      rtm_flags: u32,
    }),
    plain(ROUTE),
  ],
  [
    'next hop',
    nexthopMessage,
    fc.record({ nh_family: u8, nh_scope: u8, nh_protocol: u8, nh_flags: u32 }),
    plain(NEXTHOP),
  ],
  [
    'neighbour',
    neighbourMessage,
    fc.record({ ndm_family: u8, ndm_ifindex: i32, ndm_state: u16, ndm_flags: u8, ndm_type: u8 }),
    plain(NEIGHBOUR),
  ],
  [
    'rule',
    ruleMessage,
    fc.record({
      family: u8,
      dst_len: u8,
      src_len: u8,
      tos: u8,
      table: u8,
      action: u8,
      flags: u32,
    }),
    plain(RULE),
  ],
  ['namespace id', namespaceIdMessage, fc.record({ rtgen_family: u8 }), plain(NAMESPACE_ID)],
  ['extended acknowledgement', family({}, EXTENDED_ACK), fc.constant({}), plain(EXTENDED_ACK)],
];

describe('what is written is read', () => {
  test.each(families)('%s', (_name, message, headers, attributes) => {
    // Used again for each message, as a socket does.
    const writer = new Writer();
    fc.assert(
      fc.property(headers, attributes, (header, values) => {
        writer.reset();
        message.write(writer, header, values);
        expect(writer.length % 4).toBe(0);
        const back = message.read(Buffer.from(writer.bytes));
        expect(show(back)).toEqual(show({ header, attributes: values }));
      }),
      { numRuns: 300 },
    );
  });

  test('the nested attributes of a link are those with arbitraries of their own', () => {
    expect([IFLA_LINKINFO.type, IFLA_PROTINFO.type, IFLA_VFINFO_LIST.type]).toEqual([18, 12, 22]);
  });

  test('a writer that grew, or was used before, writes the same', () => {
    const writer = new Writer();
    const alias = 'x'.repeat(9_000);
    writeAttributes(writer, LINK, { IFLA_IFALIAS: alias });
    writer.reset();
    writeAttributes(writer, LINK, { IFLA_IFNAME: 'a', IFLA_IFALIAS: alias, IFLA_MTU: 1 });
    const fresh = new Writer();
    writeAttributes(fresh, LINK, { IFLA_IFNAME: 'a', IFLA_IFALIAS: alias, IFLA_MTU: 1 });
    expect(writer.bytes.equals(fresh.bytes)).toBe(true);
  });
});

describe('values that no message can hold', () => {
  test.each([
    ['an attribute over 64 KiB', { IFLA_IFALIAS: 'x'.repeat(70_000) }],
    ['a zero byte in a name, behind which the kernel sees nothing', { IFLA_IFNAME: 'veth\0x' }],
  ])('%s is refused', (_what, values) => {
    expect(() => writeAttributes(new Writer(), LINK, values)).toThrow(CodecError);
  });
});

describe('bad bytes', () => {
  const parsers = [parseLink, parseAddress, parseRoute, parseNexthop, parseNeighbour];

  /** Every decoder reads the bytes or refuses them. */
  function harmless(body: Buffer): void {
    for (const parse of parsers) {
      try {
        parse({ type: 0, body });
      } catch (error) {
        expect(error).toBeInstanceOf(CodecError);
      }
    }
  }

  test('any bytes are read or refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (some) => harmless(Buffer.from(some))),
      { numRuns: 2_000 },
    );
  });

  test('any attributes behind any header are read or refused', () => {
    const attribute = fc
      .tuple(fc.integer({ min: 0, max: 60 }), fc.uint8Array({ maxLength: 40 }))
      .map(([type, payload]) => {
        const writer = new Writer();
        writer.attribute(type, () => writer.raw(payload));
        return Buffer.from(writer.bytes);
      });
    fc.assert(
      fc.property(
        fc.constantFrom(8, 12, 16),
        fc.uint8Array({ minLength: 16, maxLength: 16 }),
        fc.array(attribute, { maxLength: 8 }),
        (headerBytes, header, attributes) => {
          harmless(Buffer.concat([header.subarray(0, headerBytes), ...attributes]));
        },
      ),
      { numRuns: 2_000 },
    );
  });

  test.each(GOLDEN_LINKS.map(({ command, hex }) => [command, hex] as const))(
    'cut or bent anywhere, a message is read or refused: %s',
    (_command, hex) => {
      const whole = Buffer.from(hex, 'hex');
      for (let at = 0; at < whole.length; at += 1) {
        harmless(whole.subarray(0, at));
        for (const byte of [0x00, 0x01, 0x7f, 0xff]) {
          const bent = Buffer.from(whole);
          bent[at] = byte;
          harmless(bent);
        }
      }
    },
  );

  test('what the table does not know is skipped, and so is what is of another kind', () => {
    const unknown = Buffer.from('0800ff0001000000', 'hex');
    const shortMtu = Buffer.from('0600040001000000', 'hex');
    expect(Object.keys(readAttributes(LINK, Buffer.concat([unknown, shortMtu])))).toEqual([]);
  });
});
