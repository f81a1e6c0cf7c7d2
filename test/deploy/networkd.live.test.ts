import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../support/agent.ts';
import { addNamespace, bridge, ip, only, removeNamespace } from '../support/kernel.ts';
import { type Stack, startStack } from '../support/stack.ts';
import { dyingWithParent, requireTool } from '../support/tools.ts';

// Debian's systemd-networkd and udevadm with the units of deploy/systemd, beside an agent: networkd makes volt0,
// the agent's ports are on it, and neither takes anything from the other.

const ROOT = new URL('../..', import.meta.url).pathname;
const NETWORKD = '/lib/systemd/systemd-networkd';
const UDEV = join(ROOT, '.cache/udev');
const UNITS = '/run/systemd/network';
/** An operator's own, for every veth and TAP that nobody has spoken for. */
const OPERATORS = `[Match]
Kind=veth tun
[Network]
Address=192.0.2.1/24
LinkLocalAddressing=no
ConfigureWithoutCarrier=yes
`;

/** With all that the agent adds beside a port: routes, sysctls, masquerade, a port map. */
const NETWORK = {
  network: 'volt0',
  type: 'host-only',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  ipv6: { subnet: 'fd42::/64', gateway: 'fd42::1' },
  nat: { ipv6: true },
};
const SETTINGS = [
  '/proc/sys/net/ipv4/conf/volt0',
  '/proc/sys/net/ipv6/conf/volt0',
  '/proc/sys/net/ipv4/ip_forward',
  '/proc/sys/net/ipv6/conf/all/forwarding',
];

interface Networkd {
  /** SIGTERM, then a new process. */
  restart(): Promise<void>;
  stop(): Promise<void>;
  /** What all its processes said. */
  output(): string;
}

/** As its unit starts it: a user of its own with these capabilities. */
const CAPABILITIES = '+net_admin,+net_bind_service,+net_broadcast,+net_raw';
const AS_ITS_USER = [
  ...['setpriv', '--reuid', 'systemd-network', '--regid', 'systemd-network', '--clear-groups'],
  ...['--inh-caps', CAPABILITIES, '--ambient-caps', CAPABILITIES, '--'],
];
// Where sysfs is read-only networkd does not wait for udevd.
const READ_ONLY_SYSFS = ['sh', '-c', 'mount -o remount,bind,ro /sys && exec "$@"', 'sh'];

/** Starts networkd in the namespaces of this test; returns when it has configured volt0. */
async function startNetworkd(): Promise<Networkd> {
  let output = '';
  const launch = async (): Promise<ChildProcess> => {
    // Last, since a change of user takes the signal at the parent's death away.
    const networkd = dyingWithParent([NETWORKD]).flat();
    const inside = [...READ_ONLY_SYSFS, ...AS_ITS_USER, ...networkd];
    const child = spawn(requireTool('unshare'), ['--mount', ...inside]);
    const before = output.length;
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await until('networkd has seen all devices', () => {
      if (child.exitCode !== null) throw new Error(output);
      return output.slice(before).includes('Enumeration completed');
    });
    await until('volt0 is configured', () => stateOf('volt0') === 'configured');
    return child;
  };
  let child = await launch();
  const stop = async (): Promise<void> => {
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    await exited;
  };
  return {
    restart: async () => {
      await stop();
      child = await launch();
    },
    stop,
    output: () => output,
  };
}

/** What networkd makes of a device: `configured`, `unmanaged`, … (its ADMIN_STATE); absent: it has not seen it. */
function stateOf(device: string): string | undefined {
  const { ifindex } = only(ip('link', 'show', device));
  const file = `/run/systemd/netif/links/${String(ifindex)}`;
  if (!existsSync(file)) return undefined;
  return /^ADMIN_STATE=(.*)$/m.exec(readFileSync(file, 'utf8'))?.[1];
}

interface Verdict {
  /** The .link file that applies. */
  readonly file: string | undefined;
  readonly name: string | undefined;
}

/** Does to a device what udevd would do when it appears, its MAC included; answers what it would be called. */
function udev(device: string): Verdict {
  const properties = execFileSync(
    join(UDEV, 'bin/udevadm'),
    ['test-builtin', 'net_setup_link', `/sys/class/net/${device}`],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const value = (key: string): string | undefined =>
    new RegExp(`^${key}=(.*)$`, 'm').exec(properties)?.[1];
  return { file: value('ID_NET_LINK_FILE')?.split('/').at(-1), name: value('ID_NET_NAME') };
}

/** All of the kernel that networkd or udev might change; counters and ages left out. */
const everything = (): unknown => ({
  settings: execFileSync('grep', ['-r', '.', '--exclude=stable_secret', ...SETTINGS], {
    encoding: 'utf8',
  }).split('\n'),
  links: ip('-d', 'link').map(({ ifname, address, mtu, master, ifalias, flags, group }) => ({
    ifname,
    address,
    mtu,
    master,
    ifalias,
    group,
    up: flags.includes('UP'),
  })),
  addresses: ip('addr').map(({ ifname, addr_info }) => [
    ifname,
    addr_info.map(({ local }) => local),
  ]),
  routes: ip('route', 'show', 'table', 'all'),
  routes6: ip('-6', 'route', 'show', 'table', 'all').map(({ dst, dev, metric }) => [
    dst,
    dev,
    metric,
  ]),
  inside: [ip('-n', 'box', 'addr'), ip('-n', 'box', 'route')].map((rows) =>
    rows.map(({ ifname, dst, gateway, addr_info }) => [
      ifname,
      dst,
      gateway,
      addr_info?.map(({ local }) => local),
    ]),
  ),
});

let networkd: Networkd;
let stack: Stack;

const attach = async (request: Omit<AttachRequest, 'network'>): Promise<Attachment> =>
  (await stack.client.attach(stack.host, { network: 'volt0', ...request })).attachment;

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

beforeAll(async () => {
  for (const file of [NETWORKD, join(UDEV, 'bin/udevadm')]) {
    if (!existsSync(file)) throw new Error(`${file} is missing: sh deploy/bootstrap.sh test`);
  }
  mkdirSync(UNITS, { recursive: true });
  const ours = readdirSync(join(ROOT, 'deploy/systemd')).filter((name) =>
    /\.(network|netdev|link)$/.test(name),
  );
  for (const name of ours) cpSync(join(ROOT, 'deploy/systemd', name), join(UNITS, name));
  cpSync(join(UDEV, 'lib/systemd/network/99-default.link'), join(UNITS, '99-default.link'));
  writeFileSync(join(UNITS, '20-operator.network'), OPERATORS);
  mkdirSync('/run/systemd/netif');
  execFileSync('chown', ['systemd-network:', '/run/systemd/netif']);
  networkd = await startNetworkd();
});
afterAll(async () => {
  await stack?.[Symbol.asyncDispose]();
  await networkd.stop();
});

test('networkd makes volt0 and nothing that workloads might be surprised by', () => {
  const link = only(ip('-d', 'link', 'show', 'volt0'));
  expect(link).toMatchObject({ mtu: 1500, linkinfo: { info_kind: 'bridge' } });
  expect(link.flags).toContain('UP');
  const addresses = only(ip('addr', 'show', 'volt0')).addr_info;
  expect(addresses.map(({ local, prefixlen }) => `${local}/${prefixlen}`)).toEqual([
    '10.42.0.1/24',
  ]);
  expect(readFileSync('/proc/sys/net/ipv6/conf/volt0/accept_ra', 'utf8').trim()).toBe('0');
  const complaints = networkd
    .output()
    .split('\n')
    .filter((line) => line.startsWith(UNITS));
  expect(complaints).toEqual([]);
});

test('the MAC of volt0 is fixed: the same when made again, and whatever its ports have', async () => {
  const mac = (): unknown => only(ip('link', 'show', 'volt0'))['address'];
  const first = mac();
  execFileSync(requireTool('ip'), ['link', 'delete', 'volt0']);
  await networkd.restart();
  expect(mac()).toBe(first);
  const low = 'link add low master volt0 address 00:00:00:00:00:01 type veth peer name lowest';
  execFileSync(requireTool('ip'), low.split(' '));
  expect(mac()).toBe(first);
  execFileSync(requireTool('ip'), ['link', 'delete', 'low']);
});

test('the agent adopts volt0 and leaves it as it is', async () => {
  const volt0 = (): unknown => [
    only(ip('link', 'show', 'volt0')).flags.filter((flag) => !/CARRIER|LOWER_UP/.test(flag)),
    ['address', 'mtu', 'ifalias', 'group'].map((key) => only(ip('link', 'show', 'volt0'))[key]),
    only(ip('addr', 'show', 'volt0')).addr_info.map(({ local }) => local),
  ];
  const before = volt0();
  stack = await startStack({ networks: [NETWORK] });
  addNamespace('box');
  await attach({
    id: 'box',
    workload: 'container-box',
    kind: 'container',
    netns: '/run/netns/box',
    ports: [{ protocol: 'tcp', hostPort: 8080, port: 80 }],
  });
  await attach({ id: 'guest', workload: 'vm-guest', kind: 'vm', mtu: 1400 });
  await attach({ id: 'moved', workload: 'container-moved', kind: 'container' });
  expect(volt0()).toEqual(before);
  const ports = bridge('link').filter(({ master }) => master === 'volt0');
  expect(ports.map(({ ifname }) => String(ifname)).toSorted()).toEqual([
    'tap-guest',
    'veth-box-h',
    'veth-moved-h',
  ]);
});

test('networkd leaves ports alone, also where an operator has a file for all devices', async () => {
  execFileSync(requireTool('ip'), 'link add plain type veth peer name plain2'.split(' '));
  await until('a device of nobody is configured', () => stateOf('plain') === 'configured');
  for (const device of ['tap-guest', 'veth-box-h', 'veth-moved-h', 'veth-moved-c']) {
    expect([device, stateOf(device)]).toEqual([device, 'unmanaged']);
    expect(only(ip('addr', 'show', device)).addr_info).toEqual([]);
  }
});

test('udev leaves ports alone, also those on their way out', () => {
  execFileSync(requireTool('ip'), 'link add vdel4711 type veth peer name ifb-guest'.split(' '));
  const before = everything();
  const ours = ['tap-guest', 'veth-box-h', 'veth-moved-h', 'veth-moved-c', 'vdel4711', 'ifb-guest'];
  for (const device of ours) {
    expect(udev(device)).toEqual({ file: '90-volt-vmm.link', name: device });
  }
  expect(udev('volt0')).toEqual({ file: '99-default.link', name: 'volt0' });
  expect(everything()).toEqual(before);
  // And it does reach for those that nobody has spoken for.
  const mac = only(ip('link', 'show', 'plain'))['address'];
  expect(udev('plain')).toMatchObject({ file: '99-default.link' });
  expect(only(ip('link', 'show', 'plain'))['address']).not.toBe(mac);
  for (const device of ['vdel4711', 'plain']) {
    execFileSync(requireTool('ip'), ['link', 'delete', device]);
  }
});

describe('restarts', () => {
  test.each([
    ['networkd', () => networkd.restart()],
    ['the agent', () => stack.agent.restart('SIGTERM')],
    ['the agent, killed', () => stack.agent.restart('SIGKILL')],
  ])('of %s change nothing and lose no frame', async (_, restart) => {
    const before = everything();
    const inside = [
      'netns',
      'exec',
      'box',
      requireTool('ping'),
      '-c',
      '20',
      '-i',
      '0.1',
      '10.42.0.1',
    ];
    const ping = spawn(requireTool('ip'), inside, { stdio: ['ignore', 'pipe', 'inherit'] });
    let said = '';
    ping.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
    const pinged = once(ping, 'exit');
    await restart();
    await pinged;
    expect(said).toContain('20 packets transmitted, 20 received');
    expect(everything()).toEqual(before);
    await stack.agent.ready();
    // networkd's unit gives volt0 no IPv6 gateway: that is told, and networkd's to change.
    expect(await stack.client.check(stack.host, {})).toMatchObject({
      differences: [{ what: 'bridge.address', expected: 'fd42::1/64' }],
      plan: [],
    });
  });
});

test('detaching leaves volt0 to networkd', async () => {
  for (const id of ['box', 'guest', 'moved']) await detach(id);
  removeNamespace('box');
  expect(ip('link').map(({ ifname }) => ifname)).toEqual(['lo', 'volt0']);
  expect(stateOf('volt0')).toBe('configured');
});
