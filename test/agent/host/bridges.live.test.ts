import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Network, parseNetwork } from '#protocol/network.ts';
import { atOnce } from '#native/steps.ts';
import { Applied } from '#agent/host/bridges/applied.ts';
import { Bridges, type NeedsOfType, type NetworkDifferences } from '#agent/host/bridges/bridges.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { Forwarding, SWITCHES } from '#agent/host/networks/forwarding.ts';
import { bridgedNeeds } from '#agent/host/networks/bridged.ts';
import { hostOnlyNeeds } from '#agent/host/networks/host-only.ts';
import { DEVICE_GROUP } from '#agent/host/ownership.ts';
import { createLog } from '#agent/log.ts';
import { deviceNames, ip, only } from '../../support/kernel.ts';

// What networks have on a host, from its description: each object is broken in each way it can be, told, and put right;
// and in the end all of it goes.

const kernel = new Kernel();
const log = createLog('silent', 'h1');
const inUse = new Set<string>();

const needsOf = (network: Network): NeedsOfType =>
  network.type === 'bridged' ? bridgedNeeds(network) : hostOnlyNeeds(network);

function agent(host = 'h1'): Bridges {
  const applied = new Applied({ runtimeDir: undefined, log });
  const firewall = new Firewall({ log, table: 'volt' });
  const forwarding = new Forwarding({ kernel, firewall, log });
  return new Bridges({
    host,
    kernel,
    firewall,
    forwarding,
    applied,
    needsOf,
    inUse: () => inUse,
    attached: () => inUse,
    log,
  });
}

const compare = (bridges: Bridges): NetworkDifferences[] => atOnce(bridges.compare());

const run = (command: string): void => void execFileSync('ip', command.split(' '));

const NETS = (['bridged', 'host-only'] as const).map((type) =>
  parseNetwork({
    network: 'br0',
    type,
    subnet: '10.1.0.0/24',
    gateway: '10.1.0.1',
    ipv6: { subnet: 'fd01::/64', gateway: 'fd01::1' },
    mtu: 1400,
    ...(type === 'bridged' && { uplink: { device: 'nic0' }, gatewayMode: 'anycast' }),
  }),
);

/** All that iproute2 tells of the host's devices, addresses and routes, without what counts up by itself. */
const host = (): unknown => [
  ip('link')
    .map(({ ifname, flags, mtu, master, group, address, ifalias }) =>
      [ifname, flags.includes('UP'), mtu, master, group, address, ifalias].join(' '),
    )
    .toSorted(),
  ip('addr')
    .map(({ ifname, addr_info: all }) =>
      [ifname, ...all.map(({ local, prefixlen }) => `${local}/${prefixlen}`).toSorted()].join(' '),
    )
    .toSorted(),
  ['-4', '-6'].map((family) =>
    ip(family, 'route', 'show', 'table', 'all')
      // The kernel's own for multicast and link-local addresses come with a carrier, or after a while.
      .filter(
        ({ type, dst }) =>
          type !== 'multicast' && type !== 'anycast' && !String(dst).startsWith('fe80'),
      )
      .map(({ type, dst, dev, table, metric }) => [type, dst, dev, table, metric].join(' '))
      .toSorted(),
  ),
  ['ipv4/ip_forward', 'ipv6/conf/all/forwarding', 'ipv6/conf/nic0/accept_ra'].map((path) =>
    readFileSync(`/proc/sys/net/${path}`, 'utf8'),
  ),
];

beforeEach(() => {
  inUse.clear();
  run('link add nic0 mtu 1450 type veth peer name wire0');
  // The kernel would give them link-local addresses of its own, sooner or later.
  for (const nic of ['nic0', 'wire0']) {
    writeFileSync(`/proc/sys/net/ipv6/conf/${nic}/disable_ipv6`, '1');
  }
  run('link set wire0 up');
  for (const path of ['ipv4/ip_forward', 'ipv6/conf/all/forwarding']) {
    writeFileSync(`/proc/sys/net/${path}`, '0');
  }
});
afterEach(() => {
  // What stands on a NIC goes with it.
  for (const name of ['other0', 'br0', 'nic0']) {
    if (deviceNames().includes(name)) run(`link delete ${name}`);
  }
});

function attach(bridges: Bridges, network: Network): void {
  inUse.add(network.network);
  bridges.ensure(network, bridges.look(network));
}

describe.each(NETS)('a $type network', (network) => {
  test('each of its objects is missed when it is broken, and put right', async () => {
    const bridges = agent();
    attach(bridges, network);
    expect(compare(bridges)).toEqual([]);
    const before = host();
    const description = bridges.describe(network);
    const breaks: [what: string, how: string | (() => void)][] = [
      ['bridge.up', 'link set br0 down'],
      ['bridge.mac', 'link set br0 address 02:00:00:00:00:99'],
      ['bridge.mtu', 'link set br0 mtu 1300'],
      // Takes IPv6 away, with addresses and settings.
      ['bridge.mtu', 'link set br0 mtu 1200'],
      ['bridge.stp_state', 'link set br0 type bridge stp_state 1'],
      ['bridge.arp', 'link set br0 arp off'],
      ['bridge.group', 'link set br0 group 0'],
      ['bridge.alias', 'link set br0 alias other'],
      ['bridge', 'link delete br0'],
      ...[...description.gateways, description.linkLocal ?? ''].map((address): [string, string] => [
        'bridge.address',
        `addr delete ${address} dev br0`,
      ]),
      ...description.localRoutes.map((to): [string, string] => [
        'bridge.route',
        `-6 route delete local ${to} dev br0 table local`,
      ]),
      ...Object.keys(description.bridgeSettings).map((name): [string, () => void] => {
        const [family, key] = name.split('.');
        const file = `/proc/sys/net/${family}/conf/br0/${key}`;
        return [`bridge.${name}`, () => writeFileSync(file, '0')];
      }),
      ...Object.entries(description.ownSettings).map(([name, value]): [string, () => void] => {
        const [family, key] = name.split('.');
        const file = `/proc/sys/net/${family}/conf/br0/${key}`;
        return [`bridge.${name}`, () => writeFileSync(file, value === 0 ? '1' : '0')];
      }),
      ...description.forwards.map((family): [string, () => void] => [
        `sysctl ${SWITCHES[family].join('.')}`,
        () => writeFileSync(`/proc/sys/${SWITCHES[family].join('/')}`, '0'),
      ]),
      ...(description.uplink === undefined
        ? []
        : ([
            ['uplink.bridge', 'link set nic0 nomaster'],
            ['uplink.up', 'link set nic0 down'],
          ] as [string, string][])),
    ];
    for (const [what, how] of breaks) {
      if (typeof how === 'string') run(how);
      else how();
      const [found] = compare(bridges);
      expect(
        found?.differences.map((one) => one.what),
        what,
      ).toContain(what);
      expect(
        found?.differences.every(({ repairable }) => repairable),
        what,
      ).toBe(true);
      bridges.repair('br0');
      expect(compare(bridges), what).toEqual([]);
      // The kernel adds the route to an address of IPv6 in a thread of its own (addrconf_dad_work).
      await expect.poll(host, { timeout: 10_000, message: what }).toEqual(before);
    }
  });

  test('all of it goes with the network, and the host is as it was', () => {
    const before = host();
    const bridges = agent();
    attach(bridges, network);
    expect(host()).not.toEqual(before);
    inUse.clear();
    bridges.revise(new Map(), [], new Set());
    expect(host()).toEqual(before);
    expect(bridges.names).toEqual([]);
  });

  test('on a bridge that was there, what was there stays as it was', () => {
    run('link add br0 address 02:00:00:00:00:33 type bridge');
    run('addr add 10.1.0.254/24 dev br0');
    const before = host();
    const bridges = agent();
    attach(bridges, network);
    const told = compare(bridges).flatMap(({ differences }) => differences);
    expect(told.filter(({ repairable }) => repairable)).toEqual([]);
    // It is down, and has not the gateway: its owner has to know.
    expect(told.map(({ what }) => what)).toEqual(
      expect.arrayContaining(['bridge.up', 'bridge.address']),
    );
    inUse.clear();
    bridges.revise(new Map(), [], new Set());
    expect(host()).toEqual(before);
  });
});

describe('a network without an MTU', () => {
  const [, given] = NETS;
  if (given === undefined) throw new Error('no network');
  const { mtu: _, ...network } = given;
  const mtuNow = (): unknown => ip('link', 'show', 'br0')[0]?.['mtu'];

  test('keeps the MTU that its bridge was made with, also when that is made again', () => {
    run('link set nic0 up');
    run('addr add 192.0.2.1/24 dev nic0');
    run('route add default via 192.0.2.2');
    const bridges = agent();
    attach(bridges, network);
    expect(mtuNow()).toBe(1450);
    // The next one is no port of anything; the way out is another by now.
    run('link set nic0 mtu 1420');
    for (const how of ['link set br0 mtu 1000', 'link delete br0']) {
      run(how);
      expect(compare(bridges)).toHaveLength(1);
      bridges.repair('br0');
      expect(compare(bridges)).toEqual([]);
      expect(mtuNow()).toBe(1450);
    }
    run('link set br0 mtu 1000');
    expect(bridges.mtuOf(network, bridges.look(network))).toBe(1450);
    attach(bridges, network);
    expect(mtuNow()).toBe(1450);
    bridges.remove('br0');
    attach(bridges, network);
    expect(mtuNow()).toBe(1420);
  });

  test('has it from the bridge that an agent without an account has left', () => {
    attach(agent(), network);
    const bridges = agent();
    bridges.resume(network);
    run('link set br0 mtu 1000');
    bridges.repair('br0');
    expect(mtuNow()).toBe(1500);
  });

  test('has its bridge keep the MTU when it loses its own', () => {
    const bridges = agent();
    attach(bridges, given);
    bridges.ensureAll(network);
    expect([mtuNow(), compare(bridges)]).toEqual([1400, []]);
    run('link set br0 mtu 1300');
    bridges.repair('br0');
    expect(mtuNow()).toBe(1400);
  });

  test('leaves the MTU of a bridge that was there, whatever it gets', () => {
    run('link add br0 address 02:00:00:00:00:33 type bridge');
    const bridges = agent();
    attach(bridges, network);
    run('link set br0 mtu 1300');
    bridges.repair('br0');
    expect([mtuNow(), bridges.mtuOf(network, bridges.look(network))]).toEqual([1300, 1300]);
  });
});

test('an uplink that is a port of another bridge is told by the name of that bridge', () => {
  const [network] = NETS;
  if (network === undefined) throw new Error('no network');
  const bridges = agent();
  attach(bridges, network);
  run('link add other0 type bridge');
  run('link set nic0 master other0');
  expect(compare(bridges).flatMap(({ differences }) => differences)).toEqual([
    { what: 'uplink.bridge', expected: 'br0', observed: 'other0', repairable: true },
  ]);
});

test.each(['router', 'anycast'] as const)(
  'the link-local address of another gateway mode goes when the mode is %s, and no other does',
  (gatewayMode) => {
    const [given] = NETS;
    if (given === undefined) throw new Error('no network');
    const others = gatewayMode === 'router' ? 'anycast' : 'router';
    const bridges = agent();
    attach(bridges, { ...given, gatewayMode: others });
    const { linkLocal: before } = bridges.describe({ ...given, gatewayMode: others });
    run('addr add fe80::99/64 dev br0 nodad');
    bridges.ensureAll({ ...given, gatewayMode });
    const { linkLocal: after } = bridges.describe({ ...given, gatewayMode });
    const held = ip('addr', 'show', 'br0')
      .flatMap(({ addr_info: all }) => all)
      .map(({ local, prefixlen }) => `${local}/${prefixlen}`)
      .filter((one) => one.startsWith('fe80'));
    expect(held.toSorted()).toEqual(['fe80::99/64', after ?? ''].toSorted());
    expect(after).not.toBe(before);
    expect(compare(bridges)).toEqual([]);
  },
);

test('a bridge that another agent is making keeps the MAC that it was made with', () => {
  const [, network] = NETS;
  if (network === undefined) throw new Error('no network');
  const [one, other] = [agent('h1'), agent('h2')];
  inUse.add(network.network);
  const seen = one.look(network);
  // The other has come this far: nothing tells yet whose it is but the group.
  run(`link add br0 address 02:00:00:00:00:55 group ${DEVICE_GROUP} type bridge`);
  one.ensure(network, seen);
  other.ensure(network, other.look(network));
  one.repair('br0');
  other.repair('br0');
  expect(ip('link', 'show', 'br0')[0]?.['address']).toBe('02:00:00:00:00:55');
  expect([compare(one), compare(other)]).toEqual([[], []]);
});

describe('a bridge that was there before', () => {
  const [, network] = NETS;
  if (network === undefined) throw new Error('no network');
  const own = ['link add br0 type bridge', 'link set br0 up', 'addr add 10.1.0.1/24 dev br0'];
  const bridges = (): unknown[] => ip('link', 'show', 'type', 'bridge');

  test('and is gone is its owner’s to make again, and is used as before then', () => {
    for (const command of own) run(command);
    const one = agent();
    attach(one, network);
    run('link delete br0');
    expect(compare(one)).toMatchObject([{ differences: [{ what: 'bridge', repairable: false }] }]);
    expect(one.problems.map(({ reason }) => reason)).toEqual([expect.stringContaining('is gone')]);
    one.repair('br0');
    one.ensureAll(network);
    expect(() => one.standing(network)).toThrow('its owner has to make it again');
    expect(() => attach(one, network)).toThrow('its owner has to make it again');
    expect(bridges()).toEqual([]);
    for (const command of own) run(command);
    const before = ip('addr', 'show', 'br0');
    one.repair('br0');
    expect(compare(one)[0]?.differences.filter(({ repairable }) => repairable) ?? []).toEqual([]);
    expect(ip('addr', 'show', 'br0')).toEqual(before);
    one.remove('br0');
    expect(bridges()).toHaveLength(1);
  });

  test('and is gone is made by the agent when nobody is attached any more', () => {
    for (const command of own) run(command);
    const one = agent();
    attach(one, network);
    run('link delete br0');
    inUse.clear();
    one.ensure(network, one.look(network));
    expect(compare(one)).toEqual([]);
    one.remove('br0');
    expect(bridges()).toEqual([]);
  });
});

test.each(NETS)(
  '$type: of several that saw no bridge one makes it; the others leave it',
  (network) => {
    const bridges = agent();
    inUse.add(network.network);
    const [first, ...others] = Array.from({ length: 3 }, () => bridges.look(network));
    if (first === undefined) throw new Error('nobody has looked');
    const { index } = bridges.ensure(network, first);
    const set = vi.spyOn(kernel.links, 'set');
    for (const seen of others) expect(bridges.ensure(network, seen).index).toBe(index);
    // A bridge that goes down for a moment takes all ports that are on it by now along.
    expect(set).not.toHaveBeenCalled();
    set.mockRestore();
  },
);

test('a NIC that a network without workloads has is free for another network at once', () => {
  const [network] = NETS;
  if (network === undefined) throw new Error('no network');
  const bridges = agent();
  attach(bridges, network);
  inUse.clear();
  const other = { ...network, network: 'other0', bridge: 'other0' };
  attach(bridges, other);
  expect(ip('link', 'show', 'nic0')[0]?.['master']).toBe('other0');
  bridges.remove('other0');
});

test('what a network that keeps its bridge does not need any more is as a new bridge has it', () => {
  const [, network] = NETS;
  if (network === undefined) throw new Error('no network');
  const bridges = agent();
  attach(bridges, network);
  const settings = ['ipv4/conf/br0/route_localnet', 'ipv6/conf/br0/forwarding'];
  const read = (): string[] =>
    settings.map((path) => readFileSync(`/proc/sys/net/${path}`, 'utf8').trim());
  expect(read()).toEqual(['1', '1']);
  bridges.ensureAll({ ...network, type: 'bridged' });
  expect(compare(bridges)).toEqual([]);
  expect(read()).toEqual(['0', '0']);
});

test('a network that cannot be made whole, and that nobody is attached to, leaves nothing', () => {
  const [network] = NETS;
  if (network === undefined) throw new Error('no network');
  run('link add link nic0 other0 type macvlan');
  const before = host();
  const bridges = agent();
  expect(() => bridges.ensure(network, bridges.look(network))).toThrow(/nic0/);
  expect(host()).toEqual(before);
  expect(bridges.names).toEqual([]);
});

test('a bridge of the agent that somebody has renamed gets its name back, and keeps its ports', () => {
  const [, network] = NETS;
  if (network === undefined) throw new Error('no network');
  const bridges = agent();
  attach(bridges, network);
  run('link set nic0 master br0');
  const { ifindex } = only(ip('link', 'show', 'br0'));
  for (const change of ['down', 'name other0', 'up'])
    run(`link set br0 ${change}`.replace('br0 up', 'other0 up'));
  expect(compare(bridges)).toMatchObject([{ differences: [{ what: 'bridge' }] }]);
  bridges.repair('br0');
  expect(compare(bridges)).toEqual([]);
  expect(ip('link', 'show', 'br0')[0]).toMatchObject({ ifindex });
  expect(ip('link', 'show', 'nic0')[0]?.['master']).toBe('br0');
});

test('a setting that somebody has changed since is left', () => {
  const bridges = agent();
  const [, network] = NETS;
  if (network === undefined) throw new Error('no network');
  writeFileSync('/proc/sys/net/ipv4/ip_forward', '1');
  attach(bridges, network);
  inUse.clear();
  bridges.revise(new Map(), [], new Set());
  expect(readFileSync('/proc/sys/net/ipv4/ip_forward', 'utf8').trim()).toBe('1');
});

describe('settings of a bridge', () => {
  const [, network] = NETS;
  if (network === undefined) throw new Error('no network');
  const PATHS = ['ipv4/conf/br0/route_localnet', 'ipv6/conf/br0/forwarding'] as const;
  const settings = (): string[] =>
    PATHS.map((path) => readFileSync(`/proc/sys/net/${path}`, 'utf8').trim());
  const detach = (bridges: Bridges, ...networks: Network[]): void => {
    inUse.clear();
    bridges.revise(new Map(networks.map((one) => [one.network, one])), [], new Set());
  };

  test('one of ours that routes no more is no router', () => {
    const bridges = agent();
    attach(bridges, network);
    expect(settings()).toEqual(['1', '1']);
    const { nat: _, ...rest } = network;
    detach(bridges, { ...rest, type: 'bridged' });
    expect(settings()).toEqual(['0', '0']);
    expect(compare(bridges)).toEqual([]);
  });

  test('those of one that is gone are not given to another of its name', () => {
    const bridges = agent();
    attach(bridges, network);
    detach(bridges);
    run('link add br0 address 02:00:00:00:00:33 type bridge');
    for (const path of PATHS) writeFileSync(`/proc/sys/net/${path}`, '1');
    attach(bridges, network);
    detach(bridges);
    expect(settings()).toEqual(['1', '1']);
  });
});

describe('what the host has in the way', () => {
  const [network] = NETS;
  if (network === undefined) throw new Error('no network');
  test.each([
    ['an address of the subnet', 'addr add 10.1.0.7/24 dev wire0'],
    ['an address whose segment is around it', 'addr add 10.1.7.7/16 dev wire0'],
    ['an address of IPv6', 'addr add fd01::7/64 dev lo nodad'],
    ['a route into it', 'route add 10.1.0.128/25 dev wire0'],
    ['a route around it', 'route add 10.0.0.0/8 dev wire0'],
  ])('%s keeps the network out, and is named', (_what, command) => {
    run(command);
    const before = host();
    expect(() => attach(agent(), network)).toThrow(
      expect.objectContaining({
        code: 'NETWORK_CONFLICT',
        details: expect.objectContaining({
          device: command.includes('dev lo') ? 'lo' : 'wire0',
        }) as unknown,
      }),
    );
    expect(host()).toEqual(before);
    if (command.includes('dev lo')) run('addr del fd01::7/64 dev lo');
  });

  test('a gateway on the segment is kept off the bridge, and an old one stays until it is decided', () => {
    const bridges = agent();
    const { gatewayMode: _, ...undecided } = network;
    attach(bridges, network);
    bridges.ensureAll(undecided);
    expect(compare(bridges)).toEqual([]);
    expect(bridges.problems.map(({ kind }) => kind)).toEqual(['undecided', 'undecided']);
    bridges.ensureAll({ ...undecided, gatewayMode: 'router' });
    expect(bridges.problems).toEqual([]);
    expect(compare(bridges)).toEqual([]);
    const held = ip('addr', 'show', 'br0').flatMap(({ addr_info: all }) => all);
    expect(held.map(({ local }) => local).filter((one) => !one.startsWith('fe80'))).toEqual([]);
    // A host that never had it does not get it.
    bridges.remove('br0');
    attach(bridges, undecided);
    expect(bridges.problems).toEqual([]);
  });

  test('what it has on the uplink is meant', () => {
    run('addr add 10.1.0.7/24 dev nic0');
    const bridges = agent();
    attach(bridges, network);
    expect([...bridges.ownAddresses(network)]).toEqual([['10.1.0.7', 'nic0']]);
  });

  test('what it is given on a bridge of the agent, or elsewhere, later is for no workload, either', () => {
    const bridges = agent();
    attach(bridges, network);
    expect(bridges.ownAddresses(network).size).toBe(0);
    for (const command of ['10.1.0.8/24 dev br0', '10.1.0.9/32 dev lo']) run(`addr add ${command}`);
    expect([...bridges.ownAddresses(network).keys()].toSorted()).toEqual(['10.1.0.8', '10.1.0.9']);
    // It is told as well, but for what it has on the bridge itself.
    expect(compare(bridges)).toEqual([]);
    expect(bridges.problems.map(({ reason }) => reason)).toEqual([
      expect.stringMatching(/network br0: this host has 10\.1\.0\.9\/32 on lo/),
    ]);
    run('addr del 10.1.0.9/32 dev lo');
    expect(compare(bridges)).toEqual([]);
    expect(bridges.problems).toEqual([]);
    // One for another: there are as many as before.
    run('addr del 10.1.0.8/24 dev br0');
    run('addr add 10.1.0.11/32 dev lo');
    expect([...bridges.ownAddresses(network).keys()]).toEqual(['10.1.0.11']);
    run('addr del 10.1.0.11/32 dev lo');
    expect(bridges.ownAddresses(network).size).toBe(0);
  });

  test.each([
    ['a default route', ['route add default via 192.0.2.2']],
    [
      'one next hop of several',
      [
        'link add other0 type veth peer name other1',
        'link set other0 up',
        'addr add 198.51.100.1/24 dev other0',
        'route add default nexthop via 192.0.2.2 dev nic0 nexthop via 198.51.100.2 dev other0',
      ],
    ],
    ['a route of another table', ['route add default via 192.0.2.2 table 77']],
    ['a route to some', ['route add 203.0.113.0/24 via 192.0.2.2']],
  ])('the uplink carries %s', (_what, commands) => {
    run('link set nic0 up');
    run('addr add 192.0.2.1/24 dev nic0');
    for (const command of commands) run(command);
    expect(() => attach(agent(), network)).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED' }),
    );
    const allowed = { ...network, uplink: { device: 'nic0', allowDefaultRoute: true } };
    attach(agent(), allowed);
  });

  test.each([
    ['lo', 'is no Ethernet device'],
    ['br1', 'is a bridge itself'],
  ])('%s is no uplink', (device, reason) => {
    if (device === 'br1') run('link add br1 type bridge');
    const other = { ...network, uplink: { device } };
    expect(() => attach(agent(), other)).toThrow(reason);
    if (device === 'br1') run('link delete br1');
  });

  test('a bridge that another network has here is refused, and taken over when nobody needs it', () => {
    const bridges = agent();
    attach(bridges, network);
    const other = parseNetwork({ network: 'net1', bridge: 'br0', subnet: '10.2.0.0/24' });
    expect(() => attach(bridges, other)).toThrow(
      expect.objectContaining({
        code: 'INTERFACE_EXISTS',
        details: expect.objectContaining({ network: 'br0' }) as unknown,
      }),
    );
    inUse.clear();
    attach(bridges, other);
    expect(bridges.names).toEqual(['net1']);
  });

  test('a network of the same subnet finds nothing of one that was deleted in its way', () => {
    const bridges = agent();
    attach(bridges, network);
    inUse.clear();
    const { uplink: _, ...rest } = network;
    attach(bridges, { ...rest, network: 'net1', bridge: 'other0' });
    expect(bridges.names).toEqual(['net1']);
    expect(kernel.links.get('br0')).toBeNull();
  });
});
