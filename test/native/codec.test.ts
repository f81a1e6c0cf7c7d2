import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IpAddress, MacAddress } from '#protocol/address.ts';
import {
  type Attribute,
  CodecError,
  readAttributes,
  type Table,
  Writer,
  writeAttributes,
} from '#native/codec.ts';
import {
  ADDRESS,
  addressMessage,
  BRIDGE_PORT,
  LINK,
  LINK_KINDS,
  linkMessage,
  NEIGHBOUR,
  neighbourMessage,
  ROUTE,
  routeMessage,
  VF_INFO,
} from '#native/rtnetlink.ts';

// Whatever a table can hold comes back as it was written, and no bytes make a decoder do worse than throw
// CodecError.

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const macs = fc.uint8Array({ minLength: 6, maxLength: 6 }).map((b) => MacAddress.fromBytes(b));
const ips = fc
  .oneof(
    fc.uint8Array({ minLength: 4, maxLength: 4 }),
    fc.uint8Array({ minLength: 16, maxLength: 16 }),
  )
  .map((bytes) => IpAddress.fromBytes(bytes));
const texts = fc.string({ unit: 'grapheme', maxLength: 40 }).filter((t) => !t.includes('\0'));

/** Values for an attribute, found by what it reads from its own probe. */
function valuesOf(attribute: Attribute<unknown>): fc.Arbitrary<unknown> {
  const candidates: fc.Arbitrary<unknown>[] = [
    fc.integer({ min: 0, max: 0xff }),
    fc.integer({ min: 0, max: 0xffff }),
    u32,
    fc.integer({ min: -0x8000_0000, max: 0x7fff_ffff }),
    macs,
    ips,
    texts,
  ];
  const fitting = candidates.filter((values) =>
    fc.sample(values, { numRuns: 20, seed: 7 }).every((value) => survives(attribute, value)),
  );
  const [, ...rest] = fitting;
  if (fitting.length === 0) throw new Error('no values fit');
  return fc.oneof(...(rest.length > 0 ? fitting : fitting));
}

function survives(attribute: Attribute<unknown>, value: unknown): boolean {
  const writer = new Writer();
  try {
    attribute.write(writer, value);
    const back = attribute.read(Buffer.from(writer.bytes));
    return JSON.stringify(show(back)) === JSON.stringify(show(value));
  } catch {
    return false;
  }
}

/** Compared by text: addresses are objects with private parts. */
function show(value: unknown): unknown {
  if (value instanceof MacAddress || value instanceof IpAddress) return value.toString();
  if (typeof value === 'bigint') return `${value}n`;
  if (Array.isArray(value)) return value.map(show);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, show(one)]));
}

function roundTrip(table: Table, values: Record<string, unknown>): unknown {
  const writer = new Writer();
  writeAttributes(writer, table, values);
  return readAttributes(table, Buffer.from(writer.bytes));
}

/** Attributes whose payload is one plain value; nested ones have cases of their own. */
const simple = (table: Table): Table =>
  Object.fromEntries(
    Object.entries(table).filter(([name]) => {
      return !['IFLA_LINKINFO', 'IFLA_PROTINFO', 'IFLA_VFINFO_LIST', 'VETH_INFO_PEER'].includes(
        name,
      );
    }),
  );

const tables: [name: string, table: Table][] = [
  ['LINK', LINK],
  ['ADDRESS', ADDRESS],
  ['ROUTE', ROUTE],
  ['NEIGHBOUR', NEIGHBOUR],
  ['BRIDGE_PORT', BRIDGE_PORT],
  ...Object.entries(LINK_KINDS)
    .filter(([kind]) => kind !== 'veth')
    .map(([kind, table]): [string, Table] => [`LINK_KINDS.${kind}`, table]),
];

describe('what is written is read', () => {
  test.each(tables)('%s', (_name, table) => {
    const plain = simple(table);
    const arbitrary = fc.record(
      Object.fromEntries(Object.entries(plain).map(([name, one]) => [name, valuesOf(one)])),
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(arbitrary, (values) => {
        expect(show(roundTrip(plain, values))).toEqual(show(values));
      }),
    );
  });

  test('nested: link kinds, a veth and its peer, bridge ports, VF settings', () => {
    const vf = fc.record({
      IFLA_VF_MAC: fc.record({ vf: u32, mac: macs }),
      IFLA_VF_VLAN: fc.record({ vf: u32, vlan: u32, qos: u32 }),
      IFLA_VF_RATE: fc.record({ vf: u32, min_tx_rate: u32, max_tx_rate: u32 }),
      IFLA_VF_SPOOFCHK: fc.record({ vf: u32, setting: u32 }),
      IFLA_VF_TRUST: fc.record({ vf: u32, setting: u32 }),
    });
    const values = fc.record({
      IFLA_IFNAME: texts,
      IFLA_PROTINFO: fc.record({ IFLA_BRPORT_ISOLATED: fc.constantFrom(0, 1) }),
      IFLA_VFINFO_LIST: fc.array(vf, { maxLength: 3 }),
      IFLA_LINKINFO: fc.oneof(
        fc.constant({ kind: 'bridge' }),
        fc.record({ kind: fc.constant('other'), name: fc.constantFrom('dummy', 'bond') }),
        fc.record({
          kind: fc.constant('veth'),
          data: fc.record({
            VETH_INFO_PEER: fc.record({ IFLA_IFNAME: texts, IFLA_ADDRESS: macs, IFLA_MTU: u32 }),
          }),
        }),
        fc.record({
          kind: fc.constantFrom('macvlan', 'macvtap'),
          data: fc.record({ IFLA_MACVLAN_MODE: u32 }),
        }),
      ),
    });
    fc.assert(
      fc.property(values, (given) => {
        expect(show(roundTrip(LINK, given))).toEqual(show(given));
      }),
    );
    expect(Object.keys(VF_INFO)).toContain('IFLA_VF_LINK_STATE');
  });

  test('a writer that grew, or was used before, writes the same', () => {
    const writer = new Writer();
    const alias = 'x'.repeat(9_000);
    writeAttributes(writer, LINK, { IFLA_IFALIAS: alias });
    writer.reset();
    writeAttributes(writer, LINK, { IFLA_IFALIAS: alias, IFLA_MTU: 1 });
    expect(readAttributes(LINK, Buffer.from(writer.bytes))).toEqual({
      IFLA_IFALIAS: alias,
      IFLA_MTU: 1,
    });
    expect(() => writeAttributes(new Writer(), LINK, { IFLA_IFALIAS: 'x'.repeat(70_000) })).toThrow(
      CodecError,
    );
  });
});

describe('bad bytes', () => {
  const families = [linkMessage, addressMessage, routeMessage, neighbourMessage];
  const harmless = (read: () => unknown): void => {
    try {
      read();
    } catch (error) {
      expect(error).toBeInstanceOf(CodecError);
    }
  };

  test('any bytes are read or refused', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        for (const family of families) harmless(() => family.read(Buffer.from(bytes)));
      }),
      { numRuns: 2_000 },
    );
  });

  test('a message cut anywhere is read or refused', () => {
    const writer = new Writer();
    linkMessage.write(
      writer,
      { ifi_index: 7 },
      {
        IFLA_IFNAME: 'veth-x-h',
        IFLA_ADDRESS: MacAddress.parse('fe:00:00:00:00:01'),
        IFLA_LINKINFO: { kind: 'veth', data: { VETH_INFO_PEER: { IFLA_IFNAME: 'eth0' } } },
      },
    );
    const whole = Buffer.from(writer.bytes);
    for (let length = 0; length < whole.length; length += 1) {
      harmless(() => linkMessage.read(whole.subarray(0, length)));
    }
  });

  test('what the table does not know is skipped, and so is what is of another kind', () => {
    const unknown = Buffer.from('0800ff0001000000', 'hex');
    const shortMtu = Buffer.from('0600040001000000', 'hex');
    expect(readAttributes(LINK, Buffer.concat([unknown, shortMtu]))).toEqual({});
  });
});
