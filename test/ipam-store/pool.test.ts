import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IpAddress } from '#protocol/address.ts';
import { type FamilyPool, familyPools, fromHex, toHex } from '#ipam-store/pool.ts';
import { network } from './fixture.ts';

const rulesOf = (keys: object): ReturnType<FamilyPool['rules']> => {
  const [pool] = familyPools(network({ network: 'n', ...keys }));
  if (pool === undefined) throw new Error('no family');
  return pool.rules();
};

describe('hex', () => {
  test.each([
    ['10.42.0.5', '0a2a0005'],
    ['255.255.255.255', 'ffffffff'],
    ['2001:db8::1', '20010db8000000000000000000000001'],
    ['::1:0', '00000000000000000000000000010000'],
  ])('of %s is %s', (text, hex) => {
    expect(toHex(IpAddress.parse(text))).toBe(hex);
    expect(fromHex(hex).toString()).toBe(text);
  });

  test('sorts as addresses do', () => {
    const address = fc.bigInt(0n, 2n ** 128n - 1n).map((value) => new IpAddress(6, value));
    fc.assert(
      fc.property(address, address, (a, b) => {
        expect(Math.sign(a.compare(b))).toBe(
          Number(toHex(a) > toHex(b)) - Number(toHex(a) < toHex(b)),
        );
      }),
    );
  });
});

describe('what a pool gives', () => {
  test('has holes for gateway, excludes and reservations', () => {
    const { allowed, size, poolSize, reserved, forbidden } = rulesOf({
      subnet: '10.0.0.0/24',
      gateway: '10.0.0.1',
      pool: { start: '10.0.0.1', end: '10.0.0.40' },
      exclude: ['10.0.0.4', '10.0.0.8/29', '10.9.0.0/16', '2001:db8::/32'],
      reservations: { w: '10.0.0.20', far: '10.0.0.200' },
    });
    expect(allowed).toEqual([
      '0a000002-0a000003',
      '0a000005-0a000007',
      '0a000010-0a000013',
      '0a000015-0a000028',
    ]);
    expect(poolSize).toBe(29);
    expect(size).toBe(31);
    expect(reserved).toEqual(['0a000014 w', '0a0000c8 far']);
    expect(forbidden).toEqual([
      '0a000000-0a000000 subnet',
      '0a000001-0a000001 gateway',
      '0a000004-0a000004 exclude.0',
      '0a000008-0a00000f exclude.1',
      '0a0000ff-0a0000ff subnet',
      '0a090000-0a09ffff exclude.2',
    ]);
  });

  test('costs nothing for its size: an exclude of 2^100 addresses is one range', () => {
    const { allowed, poolSize } = rulesOf({
      ipv6: { subnet: '2001:db8::/32' },
      exclude: ['2001:db8:8000::/33'],
    });
    expect(allowed).toEqual(['20010db8000000000000000000000001-20010db87fffffffffffffffffffffff']);
    expect(poolSize).toBe(2 ** 95);
  });

  test('can be nothing', () => {
    expect(rulesOf({ subnet: '10.0.0.0/24', exclude: ['10.0.0.0/8'] })).toMatchObject({
      allowed: [],
      size: 0,
    });
  });
});
