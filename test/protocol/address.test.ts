import { BlockList } from 'node:net';
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  AddressError,
  deriveMac,
  hostEndMac,
  InterfaceAddress,
  IpAddress,
  IpPrefix,
  MacAddress,
} from '#protocol/address.ts';

const nodeFamily = ({ family }: { family: 4 | 6 }) => (family === 4 ? 'ipv4' : 'ipv6');

const anyV4 = fc.bigInt({ min: 0n, max: (1n << 32n) - 1n }).map((value) => new IpAddress(4, value));
const anyV6 = fc
  .oneof(
    fc.bigInt({ min: 0n, max: (1n << 128n) - 1n }),
    // Runs of zero groups, which uniform numbers hardly ever have.
    fc
      .array(fc.constantFrom(0n, 0n, 0n, 1n, 0xabcn, 0xffffn), { minLength: 8, maxLength: 8 })
      .map((groups) => groups.reduce<bigint>((value, group) => (value << 16n) | group, 0n)),
  )
  .map((value) => new IpAddress(6, value));
const anyAddress = fc.oneof(anyV4, anyV6);
const anyPrefix = anyAddress.chain((address) =>
  fc
    .integer({ min: 0, max: address.family === 4 ? 32 : 128 })
    .map((length) => IpPrefix.around(address, length)),
);
const anyMac = fc
  .uint8Array({ minLength: 6, maxLength: 6 })
  .map((bytes) => MacAddress.fromBytes(bytes));

const parsedOrThrown = (text: string): unknown => {
  try {
    return IpAddress.parse(text);
  } catch (error) {
    return error;
  }
};

describe('IpAddress', () => {
  test.for([
    ['10.42.0.1', 4, 0x0a2a0001n, '10.42.0.1'],
    ['0.0.0.0', 4, 0n, '0.0.0.0'],
    ['255.255.255.255', 4, 0xffffffffn, '255.255.255.255'],
    ['::', 6, 0n, '::'],
    ['::1', 6, 1n, '::1'],
    ['2001:DB8:0:0:1:0:0:1', 6, 0x20010db8000000000001000000000001n, '2001:db8::1:0:0:1'],
    ['2001:db8:0:1:1:1:1:1', 6, 0x20010db8000000010001000100010001n, '2001:db8:0:1:1:1:1:1'],
    ['64:ff9b::192.0.2.33', 6, 0x64ff9b0000000000000000c0000221n, '64:ff9b::c000:221'],
    ['::ffff:192.0.2.1', 6, 0xffffc0000201n, '::ffff:192.0.2.1'],
  ] as const)('%s is read, and written as RFC 5952 says', ([text, family, value, canonical]) => {
    const address = IpAddress.parse(text);
    expect([address.family, address.value]).toEqual([family, value]);
    expect(address.toString()).toBe(canonical);
  });

  test.for([
    '',
    ' ',
    '10.42.0',
    '10.42',
    '10',
    '0x0a.1.1.1',
    '010.42.0.1',
    '10.42.0.256',
    '10.42.0.1 ',
    '10.42.0.1\n',
    '10.42.0.1/24',
    '1.2.3.4.5',
    '-1.2.3.4',
    '١.2.3.4',
    '4294967295',
    'fe80::1%eth0',
    '::1%1',
    '[::1]',
    ':::',
    '1::2::3',
    '::12345',
    '1:2:3:4:5:6:7:8:9',
    '::ffff:010.0.0.1',
    '::ffff:0x7f.1',
    '::1.2.3',
    '1:2:3:4:5:6:7:',
    ' ::1',
    '::1/128',
    'x::1',
  ])('%j is refused', (text) => {
    expect(() => IpAddress.parse(text)).toThrow(AddressError);
  });

  test('text and bytes round-trip', () => {
    fc.assert(
      fc.property(anyAddress, (address) => {
        expect(IpAddress.parse(address.toString())).toEqual(address);
        expect(IpAddress.fromBytes(address.toBytes())).toEqual(address);
      }),
    );
  });

  test('IPv6 text is what the URL standard writes, but for IPv4-mapped addresses', () => {
    fc.assert(
      fc.property(anyV6, (address) => {
        fc.pre(address.value >> 32n !== 0xffffn);
        expect(`[${address.toString()}]`).toBe(new URL(`http://[${address.toString()}]/`).hostname);
      }),
    );
  });

  test('no text crashes the parser', () => {
    const digits = fc.string({ unit: fc.constantFrom(...'0123456789abcdefx:./% '.split('')) });
    fc.assert(
      fc.property(fc.oneof(fc.string(), digits), (text) => {
        expect([IpAddress, AddressError]).toContain(Object(parsedOrThrown(text)).constructor);
      }),
    );
  });

  test('order is by family, then by number', () => {
    const texts = ['::', '10.0.0.10', '2001:db8::', '10.0.0.9', '::1', '255.255.255.255'];
    const sorted = texts.map((text) => IpAddress.parse(text)).toSorted((a, b) => a.compare(b));
    expect(sorted.map(String)).toEqual([
      '10.0.0.9',
      '10.0.0.10',
      '255.255.255.255',
      '::',
      '::1',
      '2001:db8::',
    ]);
  });

  test.for([
    [4, (1n << 32n) - 1n],
    [6, (1n << 128n) - 1n],
  ] as const)('adding does not run past the end of IPv%d', ([family, last]) => {
    expect(() => new IpAddress(family, last).plus(1n)).toThrow(AddressError);
    expect(() => new IpAddress(family, 0n).plus(-1n)).toThrow(AddressError);
  });

  test.for([0, 3, 5, 15, 17])('%d bytes are no address', (length) => {
    expect(() => IpAddress.fromBytes(new Uint8Array(length))).toThrow(AddressError);
  });
});

describe('IpPrefix', () => {
  // The ranges of the CNI plugin host-local's tests, as data: what each prefix leaves to hosts.
  test.for([
    ['192.0.2.0/24', '192.0.2.1', '192.0.2.254', 256n],
    ['192.0.2.0/25', '192.0.2.1', '192.0.2.126', 128n],
    ['192.0.2.12/30', '192.0.2.13', '192.0.2.14', 4n],
    ['192.0.2.12/31', '192.0.2.12', '192.0.2.13', 2n],
    ['192.0.2.12/32', '192.0.2.12', '192.0.2.12', 1n],
    ['10.0.0.0/8', '10.0.0.1', '10.255.255.254', 1n << 24n],
    ['2001:db8:1::/64', '2001:db8:1::1', '2001:db8:1:0:ffff:ffff:ffff:ffff', 1n << 64n],
    ['2001:db8::2/127', '2001:db8::2', '2001:db8::3', 2n],
    ['2001:db8::2/128', '2001:db8::2', '2001:db8::2', 1n],
    ['::/0', '::1', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 1n << 128n],
  ] as const)('%s leaves %s to %s to hosts', ([text, start, end, size]) => {
    const prefix = IpPrefix.parse(text);
    const usable = prefix.usable();
    expect([String(usable.start), String(usable.end)]).toEqual([start, end]);
    expect(prefix.size).toBe(size);
    expect(prefix.toString()).toBe(text);
  });

  // Also from host-local's tests: each is refused, and the message has what was meant.
  test.for<[string, string]>([
    ['192.0.2.12/24', '192.0.2.0/24'],
    ['192.168.127.0/23', '192.168.126.0/23'],
    ['2001:db8:24:19ff::/63', '2001:db8:24:19fe::/63'],
    ['10.42.0.1/0', '0.0.0.0/0'],
    ['::1/127', '::/127'],
  ])('host bits in %s are refused with %s', ([text, meant]) => {
    expect(() => IpPrefix.parse(text)).toThrow(`did you mean ${meant}?`);
    expect(() => IpPrefix.parse(text)).toThrow(expect.objectContaining({ suggestion: meant }));
  });

  test.for([
    '10.0.0.0',
    '10.0.0.0/',
    '10.0.0.0/33',
    '10.0.0.0/-1',
    '10.0.0.0/024',
    '10.0.0.0/1e1',
    '10.0.0.0/24/24',
    '/24',
    '::/129',
    '::/ 64',
    '10.0.0.0/255.0.0.0',
    '10.0.0.0/٨',
  ])('%j is refused', (text) => {
    expect(() => IpPrefix.parse(text)).toThrow(AddressError);
  });

  // host-local's range tests: overlap does not depend on who is asked.
  test.for([
    ['10.0.0.0/20', '10.0.1.0/24', true],
    ['10.0.0.0/25', '10.0.0.128/25', false],
    ['10.0.0.0/24', '10.0.0.0/24', true],
    ['0.0.0.0/0', '::/0', false],
    ['2001:db8::/32', '2001:db8:ffff::/48', true],
    ['2001:db8::/33', '2001:db8:8000::/33', false],
  ] as const)('%s and %s: overlap is %s, both ways', ([a, b, expected]) => {
    const [one, other] = [IpPrefix.parse(a), IpPrefix.parse(b)];
    expect([one.overlaps(other), other.overlaps(one)]).toEqual([expected, expected]);
  });

  test('it contains what node:net says it does', () => {
    // Half of the addresses are near the prefix: next to all others lie outside.
    const pair = anyPrefix.chain((prefix) => {
      const near = fc
        .bigInt({ min: -4n, max: prefix.size + 4n })
        .map((n) => prefix.first.value + n)
        .filter((value) => value >= 0n && value >> (prefix.family === 4 ? 32n : 128n) === 0n)
        .map((value) => new IpAddress(prefix.family, value));
      return fc.tuple(fc.constant(prefix), fc.oneof(near, anyAddress));
    });
    fc.assert(
      fc.property(pair, ([prefix, address]) => {
        const list = new BlockList();
        list.addSubnet(String(prefix.network), prefix.length, nodeFamily(prefix));
        // node:net lets an IPv4-mapped address match an IPv4 subnet; here they are different addresses.
        fc.pre(address.family === prefix.family || address.value >> 32n !== 0xffffn);
        fc.pre(address.family === prefix.family || address.family === 6);
        const expected = list.check(String(address), nodeFamily(address));
        expect(prefix.contains(address)).toBe(expected);
      }),
    );
  });

  test('nth counts from the network address and ends with the prefix', () => {
    fc.assert(
      fc.property(anyPrefix, (prefix) => {
        expect(prefix.nth(0n)).toEqual(prefix.first);
        expect(prefix.nth(prefix.size - 1n)).toEqual(prefix.last);
        expect(() => prefix.nth(prefix.size)).toThrow(AddressError);
        expect(() => prefix.nth(-1n)).toThrow(AddressError);
        expect(IpPrefix.parse(prefix.toString()).equals(prefix)).toBe(true);
        expect(prefix.contains(prefix)).toBe(true);
      }),
    );
  });
});

describe('InterfaceAddress', () => {
  test('keeps host bits and knows its network', () => {
    const address = InterfaceAddress.parse('10.42.0.5/24');
    expect(String(address)).toBe('10.42.0.5/24');
    expect(String(address.prefix)).toBe('10.42.0.0/24');
    expect(address.equals(InterfaceAddress.parse('10.42.0.5/24'))).toBe(true);
    expect(address.equals(InterfaceAddress.parse('10.42.0.5/25'))).toBe(false);
  });

  test.for(['10.42.0.5', '10.42.0.5/33', 'fe80::1/129', '/24', 'x/24'])('%j is refused', (text) => {
    expect(() => InterfaceAddress.parse(text)).toThrow(AddressError);
  });

  test.for([33, -1, 1.5, Number.NaN])('%d is no prefix length of IPv4', (length) => {
    expect(() => new InterfaceAddress(IpAddress.parse('10.0.0.1'), length)).toThrow(AddressError);
  });
});

describe('MacAddress', () => {
  test('either case is read, lower case is written', () => {
    expect(String(MacAddress.parse('52:54:00:AB:cd:EF'))).toBe('52:54:00:ab:cd:ef');
  });

  test('text and bytes round-trip, and the bytes are nobody else’s', () => {
    fc.assert(
      fc.property(anyMac, (mac) => {
        const bytes = mac.toBytes();
        expect(MacAddress.fromBytes(bytes).equals(mac)).toBe(true);
        expect(MacAddress.parse(String(mac)).equals(mac)).toBe(true);
        const before = String(mac);
        bytes.fill(0xff);
        expect(String(mac)).toBe(before);
      }),
    );
  });

  test.for([
    '',
    '52:54:00:ab:cd',
    '52:54:00:ab:cd:ef:01',
    '52-54-00-ab-cd-ef',
    '5254.00ab.cdef',
    '52:54:00:ab:cd:eg',
    '2:4:0:b:d:f',
    '52:54:00:ab:cd:ef ',
    '52:54:00:ab:cd:ef\n',
  ])('%j is refused', (text) => {
    expect(() => MacAddress.parse(text)).toThrow(AddressError);
  });

  test.for([
    ['01:00:5e:00:00:01', true, false],
    ['ff:ff:ff:ff:ff:ff', true, true],
    ['02:00:00:00:00:01', false, true],
    ['00:00:00:00:00:00', false, false],
    ['fe:54:00:12:34:56', false, true],
  ] as const)('%s: multicast is %s, locally administered is %s', ([text, multicast, local]) => {
    const mac = MacAddress.parse(text);
    expect([mac.isMulticast, mac.isLocal]).toEqual([multicast, local]);
  });

  // RFC 4291, appendix A; the second is what Linux gives a device with this MAC.
  test.for<[string, string]>([
    ['34:56:78:9a:bc:de', 'fe80::3656:78ff:fe9a:bcde'],
    ['02:42:ac:11:00:02', 'fe80::42:acff:fe11:2'],
  ])('%s has the link-local address %s', ([mac, linkLocal]) => {
    expect(String(MacAddress.parse(mac).linkLocal())).toBe(linkLocal);
  });
});

describe('deriveMac and hostEndMac', () => {
  test('a derived MAC is unicast, local, no host end’s, and the same every time', () => {
    fc.assert(
      fc.property(fc.string(), (seed) => {
        const mac = deriveMac(seed);
        expect([mac.isMulticast, mac.isLocal]).toEqual([false, true]);
        expect(mac.toBytes()[0]).not.toBe(0xfe);
        expect(deriveMac(seed).equals(mac)).toBe(true);
        expect(hostEndMac(mac).equals(mac)).toBe(false);
      }),
    );
  });

  test('the derivation is fixed: agents of all versions must agree on it', () => {
    expect(String(deriveMac('att-1'))).toBe(GOLDEN_MAC);
  });

  test('a host end keeps all but the first byte, and is unicast', () => {
    const mac = hostEndMac(MacAddress.parse('52:54:00:12:34:56'));
    expect(String(mac)).toBe('fe:54:00:12:34:56');
    expect(mac.isMulticast).toBe(false);
  });

  test('ten thousand ids have ten thousand MACs', () => {
    const macs = Array.from({ length: 10_000 }, (_, n) => String(deriveMac(`att-${n}`)));
    expect(new Set(macs).size).toBe(10_000);
  });
});

// printf att-1 | sha256sum | cut -c1-12, with the multicast bit cleared and the local bit set.
const GOLDEN_MAC = '22:86:4c:46:31:c6';
