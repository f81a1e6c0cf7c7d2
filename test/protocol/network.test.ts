import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { IpAddress, IpPrefix } from '#protocol/address.ts';
import { decode, encode } from '#protocol/envelope.ts';
import { gatewayHolder, parseNetwork, withGatewayMode } from '#protocol/network.ts';
import { VOLT0 } from './samples.ts';
import { thrownBy } from './thrown.ts';

const refusal = (value: unknown): { path: unknown; message: string } => {
  const error = thrownBy(() => parseNetwork(value));
  expect(error.code).toBe('INVALID_REQUEST');
  return { path: error.details?.['path'], message: error.message };
};

describe('what is taken', () => {
  test('the contract’s JSON, verbatim, and defaults filled in', () => {
    expect(parseNetwork(VOLT0)).toEqual({
      ...VOLT0,
      type: 'bridged',
      bridge: 'volt0',
      filter: true,
      linkLocal: 'eui64',
      reuseDelaySeconds: 60,
    });
  });

  test('it survives JSON and MessagePack', () => {
    const network = parseNetwork(VOLT0);
    expect(parseNetwork(JSON.parse(JSON.stringify(network)))).toEqual(network);
    expect(parseNetwork(decode(encode(network)))).toEqual(network);
  });

  test('every key there is', () => {
    const bridged = {
      ...VOLT0,
      type: 'bridged',
      bridge: 'br0',
      mtu: 9_000,
      exclude: ['10.42.0.100', '10.42.0.128/26', 'fd00::dead'],
      ipv6: {
        subnet: 'fd00::/64',
        gateway: 'fd00::1',
        pool: { start: 'fd00::100', end: 'fd00::ffff' },
        reservations: { 'vm-web': 'fd00::10' },
      },
      uplink: { device: 'eth1', allowDefaultRoute: true },
      gatewayMode: 'anycast',
      dhcp: { leaseSeconds: 3_600 },
      dns: { servers: ['10.42.0.1', 'fd00::1'], search: ['example.org'], domain: 'example.org' },
      routes: [
        { to: '10.0.0.0/8', via: '10.42.0.2' },
        { to: '::/0', via: 'fd00::2' },
      ],
      filter: false,
      portIsolation: true,
      linkLocal: 'any',
      reuseDelaySeconds: 0,
      reclaimAfterSeconds: 86_400,
    };
    expect(parseNetwork(bridged)).toEqual(bridged);
  });

  test.for([
    ['host-only', { type: 'host-only', nat: { ipv6: true } }],
    ['macvtap', { type: 'macvtap', parent: 'eth1', mode: 'private' }],
    [
      'sriov',
      {
        type: 'sriov',
        parent: 'eth1',
        vlan: 7,
        spoofCheck: true,
        trust: false,
        rate: { maxMbps: 9 },
      },
    ],
    ['isolated', { type: 'isolated' }],
  ] as const)('%s, with its own keys', ([, keys]) => {
    expect(parseNetwork({ ...VOLT0, ...keys })).toMatchObject(keys);
  });

  test('an isolated network without a subnet', () => {
    expect(parseNetwork({ network: 'lone', type: 'isolated' })).toMatchObject({ network: 'lone' });
  });

  test('a network of IPv6 alone', () => {
    const network = { network: 'v6', ipv6: { subnet: 'fd00::/64', gateway: 'fd00::1' } };
    expect(parseNetwork(network)).toMatchObject(network);
  });

  test('addresses come out canonical', () => {
    const network = parseNetwork({
      ...VOLT0,
      exclude: ['FD00:0::DEAD', 'fd00:0::/127'],
      ipv6: { subnet: 'FD00:0:0::/64', gateway: 'fd00:0::01', reservations: { a: 'fd00:0::A' } },
    });
    expect(network.ipv6).toEqual({
      subnet: 'fd00::/64',
      gateway: 'fd00::1',
      reservations: { a: 'fd00::a' },
    });
    expect(network.exclude).toEqual(['fd00::dead', 'fd00::/127']);
  });

  // RFC 3021, RFC 6164: both addresses of the smallest links are hosts'.
  test.for([
    ['10.0.0.0/31', '10.0.0.0', '10.0.0.1'],
    ['10.0.0.7/32', '10.0.0.7', undefined],
  ])('%s: its gateway may be %s', ([subnet, gateway, reserved]) => {
    const reservations = reserved === undefined ? undefined : { a: reserved };
    const network = { network: 'p2p', subnet, gateway, reservations };
    expect(parseNetwork(network)).toMatchObject({ subnet, gateway });
  });

  test('reservations outside the pool, and addresses that end in .0 and .255 within a larger range', () => {
    const network = {
      network: 'wide',
      subnet: '10.0.0.0/23',
      pool: { start: '10.0.0.255', end: '10.0.1.0' },
      reservations: { a: '10.0.0.5' },
    };
    expect(parseNetwork(network)).toMatchObject(network);
  });

  test('parsing what was parsed changes nothing', () => {
    const plan = fc.record({
      base: fc.bigInt({ min: 0x0a000000n, max: 0x0affffffn }),
      length: fc.integer({ min: 9, max: 32 }),
      gateway: fc.double({ min: 0, max: 1, noNaN: true }),
      start: fc.double({ min: 0, max: 1, noNaN: true }),
      type: fc.constantFrom('bridged', 'host-only', 'isolated'),
      dual: fc.boolean(),
    });
    fc.assert(
      fc.property(plan, ({ base, length, gateway, start, type, dual }) => {
        const subnet = IpPrefix.around(new IpAddress(4, base), length);
        const usable = subnet.usable();
        const count = usable.end.value - usable.start.value;
        const part = (share: number): IpAddress =>
          usable.start.plus((count * BigInt(Math.round(share * 1_000))) / 1_000n);
        const network = parseNetwork({
          network: 'n',
          type,
          subnet: String(subnet),
          gateway: String(part(gateway)),
          pool: { start: String(part(start)), end: String(usable.end) },
          ...(dual && { ipv6: { subnet: 'fd00::/64', gateway: 'fd00::1' } }),
        });
        expect(parseNetwork(network)).toEqual(network);
        expect(parseNetwork(decode(encode(network)))).toEqual(network);
      }),
    );
  });
});

describe('who has the gateway’s address', () => {
  const uplink = { device: 'eth1' };
  const IPV6 = { network: 'v6', ipv6: { subnet: 'fd00::/64', gateway: 'fd00::1' } };

  test.for([
    ['a bridged network', VOLT0, 'bridge'],
    ['a host-only network', { ...VOLT0, type: 'host-only' }, 'bridge'],
    ['a host-only network with uplink', { ...VOLT0, type: 'host-only', uplink }, 'bridge'],
    ['with uplink and no mode', { ...VOLT0, uplink }, 'undecided'],
    ['with uplink and a router', { ...VOLT0, uplink, gatewayMode: 'router' }, 'segment'],
    ['with uplink and anycast', { ...VOLT0, uplink, gatewayMode: 'anycast' }, 'anycast'],
    ['of IPv6 alone', { ...IPV6, uplink, gatewayMode: 'anycast' }, 'anycast'],
    ['macvtap', { ...VOLT0, type: 'macvtap', parent: 'eth1' }, 'segment'],
    ['sriov', { ...VOLT0, type: 'sriov', parent: 'eth1' }, 'segment'],
  ] as const)('%s', ([, keys, holder]) => {
    expect(gatewayHolder(parseNetwork(keys))).toBe(holder);
  });

  test.for([
    ['a network with uplink and gateway', { ...VOLT0, uplink }, 'router'],
    ['the same of IPv6 alone', { ...IPV6, uplink }, 'router'],
    ['anycast stays', { ...VOLT0, uplink, gatewayMode: 'anycast' }, 'anycast'],
    ['without uplink there is no mode', VOLT0, undefined],
    ['without gateway there is no mode', { ...VOLT0, gateway: undefined, uplink }, undefined],
    ['nor on a host-only network', { ...VOLT0, type: 'host-only', uplink }, undefined],
  ] as const)('as it is put: %s', ([, keys, mode]) => {
    const network = withGatewayMode(parseNetwork(keys));
    expect(network.gatewayMode).toBe(mode);
    expect(parseNetwork(network)).toEqual(network);
  });
});

describe('what is refused, with the path of the key', () => {
  test.for<[string, Record<string, unknown>, string, string]>([
    // Ranges of host-local's tests: the message has the corrected value.
    ['host bits', { subnet: '192.0.2.12/24' }, 'subnet', 'did you mean 192.0.2.0/24?'],
    ['host bits', { subnet: '192.168.127.0/23' }, 'subnet', 'did you mean 192.168.126.0/23?'],
    [
      'host bits of IPv6, in the wrong place too',
      { subnet: '2001:db8:24:19ff::/63' },
      'subnet',
      'did you mean 2001:db8:24:19fe::/63?',
    ],
    [
      'host bits of IPv6',
      { ipv6: { subnet: '2001:db8:24:19ff::/63' } },
      'ipv6.subnet',
      'did you mean 2001:db8:24:19fe::/63?',
    ],
    ['a subnet without length', { subnet: '10.42.0.0' }, 'subnet', 'has no prefix length'],
    ['a subnet that is none', { subnet: 'ten' }, 'subnet', '"ten"'],
    ['IPv6 as subnet', { subnet: 'fd00::/64' }, 'subnet', 'IPv6 goes under "ipv6"'],
    ['IPv4 under ipv6', { ipv6: { subnet: '10.43.0.0/24' } }, 'ipv6.subnet', 'no IPv6 prefix'],
    ['loopback', { subnet: '127.0.0.0/24' }, 'subnet', 'loopback'],
    ['all addresses', { subnet: '0.0.0.0/0' }, 'subnet', 'overlaps 0.0.0.0/8'],
    ['multicast', { subnet: '239.0.0.0/24' }, 'subnet', 'multicast'],
    ['link-local', { ipv6: { subnet: 'fe80::/64' } }, 'ipv6.subnet', 'link-local'],
    ['no subnet', { subnet: undefined, gateway: undefined }, 'subnet', 'needs one'],

    ['a gateway outside', { gateway: '10.43.0.1' }, 'gateway', 'outside 10.42.0.0/24'],
    ['a gateway of IPv6', { gateway: 'fd00::1' }, 'gateway', 'outside'],
    ['a gateway that is none', { gateway: '10.42.0.1/24' }, 'gateway', 'not an IP address'],
    ['the network as gateway', { gateway: '10.42.0.0' }, 'gateway', 'network address'],
    ['the broadcast as gateway', { gateway: '10.42.0.255' }, 'gateway', 'broadcast address'],
    [
      'an IPv6 gateway outside',
      { ipv6: { subnet: 'fd00::/64', gateway: 'fd01::1' } },
      'ipv6.gateway',
      'outside fd00::/64',
    ],

    [
      'a pool before',
      { pool: { start: '10.41.255.255', end: '10.42.0.9' } },
      'pool.start',
      'outside',
    ],
    ['a pool beyond', { pool: { start: '10.42.0.9', end: '10.42.1.0' } }, 'pool.end', 'outside'],
    [
      'a pool reversed',
      { pool: { start: '10.42.0.9', end: '10.42.0.8' } },
      'pool',
      'did you mean 10.42.0.8 to 10.42.0.9?',
    ],
    ['half a pool', { pool: { start: '10.42.0.9' } }, 'pool.end', 'expected string'],
    ['more than a pool', { pool: { ...VOLT0.pool, step: 2 } }, 'pool.step', 'unknown key'],

    ['a reservation outside', { reservations: { a: '10.43.0.1' } }, 'reservations.a', 'outside'],
    [
      'an address reserved twice',
      { reservations: { a: '10.42.0.9', b: '10.42.0.9' } },
      'reservations.b',
      'reserved for a already',
    ],
    ['the gateway reserved', { reservations: { a: '10.42.0.1' } }, 'reservations.a', 'the gateway'],
    ['the network reserved', { reservations: { a: '10.42.0.0' } }, 'reservations.a', 'network'],
    [
      'a reservation for nobody',
      { reservations: { '': '10.42.0.9' } },
      'reservations.',
      'workload id',
    ],
    [
      'an IPv6 address reserved twice, written differently',
      { ipv6: { subnet: 'fd00::/64', reservations: { a: 'fd00::a', b: 'fd00:0::A' } } },
      'ipv6.reservations.b',
      'reserved for a already',
    ],

    ['host bits in an exclusion', { exclude: ['10.42.0.9/24'] }, 'exclude.0', '10.42.0.0/24'],
    ['an exclusion that is none', { exclude: ['10.42.0.9', 'x'] }, 'exclude.1', '"x"'],
    [
      'a route to host bits',
      { routes: [{ to: '10.1.0.0/8', via: '10.42.0.2' }] },
      'routes.0.to',
      '10.0.0.0/8',
    ],
    [
      'a route by way of elsewhere',
      { routes: [{ to: '10.0.0.0/8', via: '10.9.0.1' }] },
      'routes.0.via',
      'no subnet',
    ],
    [
      'a route of two families',
      { routes: [{ to: '::/0', via: '10.42.0.2' }] },
      'routes.0.via',
      'family',
    ],
    ['a name as DNS server', { dns: { servers: ['ns1'] } }, 'dns.servers.0', '"ns1"'],
    ['a search domain that is none', { dns: { search: ['a b'] } }, 'dns.search.0', 'domain name'],

    ['an unknown key', { gatewy: '10.42.0.1' }, 'gatewy', 'unknown key'],
    [
      'an unknown key within',
      { ipv6: { subnet: 'fd00::/64', dhcp: true } },
      'ipv6.dhcp',
      'unknown key',
    ],
    ['no name', { network: undefined }, 'network', 'expected string'],
    ['a name too long', { network: 'x'.repeat(16) }, 'network', 'must match'],
    ['capitals in the name', { network: 'Volt0' }, 'network', 'must match'],
    ['a type that is none', { type: 'bridge' }, 'type', 'expected one of'],
    ['an MTU too small', { mtu: 67 }, 'mtu', '>=68'],
    ['an MTU too small for IPv6', { mtu: 1_279, ipv6: { subnet: 'fd00::/64' } }, 'mtu', '1280'],
    ['an MTU that is text', { mtu: '1500' }, 'mtu', 'expected number'],
    ['half a byte of MTU', { mtu: 1500.5 }, 'mtu', 'expected int'],
    ['dhcp that is neither', { dhcp: 'yes' }, 'dhcp', 'true, false or'],
    ['a bridge too long', { bridge: 'x'.repeat(16) }, 'bridge', '<=15'],
    ['a bridge called all', { bridge: 'all' }, 'bridge', 'cannot name a device'],
    ['a network called default, and no bridge', { network: 'default' }, 'bridge', 'cannot name'],
    ['a name of networkd', { bridge: 'vb-web' }, 'bridge', 'systemd-networkd'],
    ['a network with a name of networkd', { network: 'host0' }, 'bridge', 'systemd-networkd'],
    ['an uplink that is no device', { uplink: { device: 'a/b' } }, 'uplink.device', 'device name'],

    ['a gateway mode without uplink', { gatewayMode: 'router' }, 'gatewayMode', 'needs an uplink'],
    [
      'a gateway mode without gateway',
      { uplink: { device: 'eth1' }, gateway: undefined, gatewayMode: 'router' },
      'gatewayMode',
      'needs a gateway',
    ],
    [
      'a gateway mode on a host-only network',
      { type: 'host-only', uplink: { device: 'eth1' }, gatewayMode: 'anycast' },
      'gatewayMode',
      'is for bridged networks',
    ],
    [
      'a gateway mode on macvtap',
      { type: 'macvtap', parent: 'eth1', gatewayMode: 'router' },
      'gatewayMode',
      'is for bridged networks',
    ],
    [
      'a gateway mode that is none',
      { uplink: { device: 'eth1' }, gatewayMode: 'bridge' },
      'gatewayMode',
      'expected one of',
    ],
    ['nat on a bridged network', { nat: true }, 'nat', 'is for host-only networks'],
    ['a mode on a bridged network', { mode: 'vepa' }, 'mode', 'is for macvtap networks'],
    ['a parent on a bridged network', { parent: 'eth1' }, 'parent', 'macvtap and sriov'],
    ['macvtap without parent', { type: 'macvtap' }, 'parent', 'needs one'],
    ['sriov without parent', { type: 'sriov' }, 'parent', 'needs one'],
    ['a VLAN on macvtap', { type: 'macvtap', parent: 'eth1', vlan: 7 }, 'vlan', 'is for sriov'],
    [
      'a bridge on macvtap',
      { type: 'macvtap', parent: 'eth1', bridge: 'br0' },
      'bridge',
      'has none',
    ],
    [
      'an uplink on isolated',
      { type: 'isolated', uplink: { device: 'eth1' } },
      'uplink',
      'bridged',
    ],
    ['VLAN 4095', { type: 'sriov', parent: 'eth1', vlan: 4_095 }, 'vlan', '<=4094'],
  ])('%s', ([, keys, path, message]) => {
    const refused = refusal({ ...VOLT0, pool: undefined, reservations: undefined, ...keys });
    expect(refused.path).toBe(path);
    expect(refused.message).toContain(path);
    expect(refused.message).toContain(message);
  });

  test.for(['gateway', 'pool', 'reservations'] as const)('%s without a subnet', (key) => {
    const value = { network: 'lone', type: 'isolated', [key]: VOLT0[key] };
    expect(refusal(value)).toMatchObject({ path: key, message: `${key}: needs a subnet` });
  });

  test.for([null, undefined, 'volt0', 7, [], [VOLT0]])('%j is no network', (value) => {
    expect(refusal(value).path).toBe('');
  });

  test('an own __proto__ key, as JSON.parse makes it, is no way in', () => {
    const text = JSON.stringify(VOLT0);
    expect(refusal(JSON.parse(text.replace('{', '{"__proto__":{"filter":false},'))).path).toBe(
      '__proto__',
    );
    const reservations: unknown = JSON.parse('{"__proto__":"10.42.0.10"}');
    expect(parseNetwork({ ...VOLT0, reservations }).reservations).toEqual({});
  });

  test('many wrong keys make a short message', () => {
    const wrong = Object.fromEntries(
      Array.from({ length: 5_000 }, (_, n) => [`${n}-${'x'.repeat(500)}`, 0]),
    );
    const error = thrownBy(() => parseNetwork({ ...VOLT0, ...wrong }));
    expect(error.message.length).toBeLessThan(1_500);
    expect(String(error.details?.['path']).length).toBeLessThan(200);
  });

  test('several mistakes are named at once', () => {
    const { path, message } = refusal({ ...VOLT0, mtu: 1, gatewy: 'x', filter: 'on' });
    expect(path).toBe('mtu');
    expect(message).toMatch(/mtu: .*filter: .*gatewy: unknown key/);
  });
});
