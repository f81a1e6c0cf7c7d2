import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { diagnose, observeHost } from '#agent/host/doctor.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { Forwarding } from '#agent/host/networks/forwarding.ts';
import { createLog } from '#agent/log.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip, nftElements } from '../../support/kernel.ts';
import { icmpv6 } from '../../support/frames.ts';
import { RA, v6 } from '../../support/packets.ts';
import { openContainer } from '../../support/raw-port.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A host that forwards nothing until a network needs it: what its networks and its other devices reach before and after.
// Two neighbours, `left` and `right`, take the host for their router. `switch` is a bridge of somebody else.

const PLAIN = {
  network: 'plain0',
  subnet: '10.31.0.0/24',
  gateway: '10.31.0.1',
  ipv6: { subnet: 'fd31::/64', gateway: 'fd31::1' },
};
const OTHER = {
  network: 'other0',
  subnet: '10.32.0.0/24',
  gateway: '10.32.0.1',
  ipv6: { subnet: 'fd32::/64', gateway: 'fd32::1' },
};
const ROUTED = {
  network: 'routed0',
  subnet: '10.33.0.0/24',
  gateway: '10.33.0.1',
  ipv6: { subnet: 'fd33::/64', gateway: 'fd33::1' },
  routed: true,
};
const HOST_ONLY = {
  network: 'ho0',
  type: 'host-only',
  subnet: '10.34.0.0/24',
  gateway: '10.34.0.1',
  ipv6: { subnet: 'fd34::/64', gateway: 'fd34::1' },
  nat: { ipv6: true },
};

const IPV4 = '/proc/sys/net/ipv4/ip_forward';
const IPV6 = '/proc/sys/net/ipv6/conf/all/forwarding';
const setting = (path: string): string => readFileSync(path, 'utf8').trim();
const ofDevice = (name: string, key: string): string =>
  setting(`/proc/sys/net/ipv6/conf/${name}/${key}`);

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8', stdio: 'pipe' });

/** What of the addresses answers a ping. */
async function reached(from: string, to: readonly string[]): Promise<string[]> {
  const answered = to.map((address) => {
    const ping = ['netns', 'exec', from, 'ping', '-c', '1', '-W', '1', address];
    return once(spawn('ip', ping, { stdio: 'ignore' }), 'exit').then(([code]) =>
      code === 0 ? [address] : [],
    );
  });
  return (await Promise.all(answered)).flat();
}

const LEFT = ['192.0.2.2', '2001:db8:1::2'];
const RIGHT = ['198.51.100.2', '2001:db8:2::2'];

let stack: Stack;
const addresses = new Map<string, string[]>();
const of = (id: string): string[] => addresses.get(id) ?? [];

async function attach(id: string, network: string, more: object = {}): Promise<void> {
  addNamespace(id);
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network,
    netns: `/run/netns/${id}`,
    ...more,
  });
  addresses.set(
    id,
    attachment.addresses.map(({ address }) => address.split('/')[0] ?? ''),
  );
}

function neighbour(name: string, host: readonly string[], own: readonly string[]): void {
  const [host4, host6] = host;
  const [own4, own6] = own;
  addNamespace(name);
  run(`link add ${name} type veth peer name eth0 netns ${name}`);
  run(`addr add ${host4}/24 dev ${name}`);
  run(`addr add ${host6}/64 dev ${name} nodad`);
  run(`link set ${name} up`);
  run(`-n ${name} addr add ${own4}/24 dev eth0`);
  run(`-n ${name} addr add ${own6}/64 dev eth0 nodad`);
  run(`-n ${name} link set eth0 up`);
  run(`-n ${name} route add default via ${host4}`);
  run(`-n ${name} -6 route add default via ${host6}`);
}

/** A neighbour on `switch`, a bridge that is none of ours. */
function onSwitch(name: string, address: string): void {
  addNamespace(name);
  run(`link add ${name} type veth peer name eth0 netns ${name}`);
  run(`link set ${name} master switch up`);
  run(`-n ${name} addr add ${address} dev eth0`);
  run(`-n ${name} link set eth0 up`);
}

/** A router advertisement with a lifetime, from a neighbour on a link. */
function advertise(namespace: string): void {
  using port = openContainer(`/run/netns/${namespace}`);
  const [eth0] = ip('-n', namespace, 'link', 'show', 'eth0');
  const body = Buffer.from('40001c2000000000000000000000'.slice(0, 24), 'hex');
  const way = { from: 'fe80::99', to: 'ff02::1' };
  port.send(v6(String(eth0?.['address']), way, 58, icmpv6(way, RA, body), 255));
}

const defaultRoutes = (device: string): string[] =>
  ip('-6', 'route', 'show', 'default', 'dev', device).map(({ gateway }) => String(gateway));

beforeAll(async () => {
  for (const path of [IPV4, IPV6]) writeFileSync(path, '0');
  neighbour('left', ['192.0.2.1', '2001:db8:1::1'], LEFT);
  neighbour('right', ['198.51.100.1', '2001:db8:2::1'], RIGHT);
  run('link add switch type bridge');
  run('link set switch up');
  onSwitch('east', '203.0.113.2/24');
  onSwitch('west', '203.0.113.3/24');
  stack = await startStack({
    networks: [PLAIN, OTHER, ROUTED, HOST_ONLY],
    // Nothing here waits for the next comparison of the whole host.
    config: { reconcileSeconds: 3600 },
  });
  await attach('plain', 'plain0');
  await attach('other', 'other0');
  advertise('left');
  await until('the host has a route of an advertisement', () => defaultRoutes('left').length > 0);
}, 60_000);
afterAll(() => stack[Symbol.asyncDispose]());

/** What must be the same before and after this agent has switched forwarding on. */
async function closed(): Promise<void> {
  const found = await Promise.all([
    reached('plain', [...of('other'), ...LEFT]),
    reached('left', [...of('plain'), ...RIGHT]),
    reached('right', LEFT),
    reached('east', ['203.0.113.3']),
  ]);
  expect(found).toEqual([[], [], [], ['203.0.113.3']]);
}

test('before a network needs it, the host forwards nothing', async () => {
  await closed();
  expect([setting(IPV4), setting(IPV6)]).toEqual(['0', '0']);
});

describe.each(['0', '1'])('once a host-only network needs it, with br_netfilter %s', (called) => {
  beforeAll(async () => {
    for (const family of ['iptables', 'ip6tables']) {
      writeFileSync(`/proc/sys/net/bridge/bridge-nf-call-${family}`, called);
    }
    if (called === '0') await attach('inner', 'ho0');
  });

  test('its workloads reach what the host reaches, and nobody else does', async () => {
    expect(await reached('inner', [...LEFT, ...RIGHT])).toEqual([...LEFT, ...RIGHT]);
    expect(await reached('inner', [...of('plain'), ...of('other')])).toEqual([]);
    await closed();
  });
});

test('workloads of a network that is routed reach the others of the host, and are reached', async () => {
  await attach('routed', 'routed0');
  expect(await reached('routed', [...LEFT, ...RIGHT])).toEqual([...LEFT, ...RIGHT]);
  expect(await reached('left', of('routed'))).toEqual(of('routed'));
  // The other network has its say, too.
  expect(await reached('routed', of('plain'))).toEqual([]);
  expect(await reached('plain', of('routed'))).toEqual([]);
  expect(await reached('inner', of('routed'))).toEqual(of('routed'));
  await closed();
});

test('a port map of a host-only network is reached from every network', async () => {
  await attach('mapped', 'ho0', { ports: [{ protocol: 'tcp', hostPort: 8300, port: 1 }] });
  // Nobody listens: the workload itself refuses, and a rule of the host would leave no answer at all.
  const script = `
import socket
try: socket.create_connection(('10.31.0.1', 8300), 2)
except ConnectionRefusedError: print('refused', end='')
except OSError: print('nothing', end='')
`;
  const answer = execFileSync('ip', ['netns', 'exec', 'plain', 'python3', '-c', script]);
  expect(answer.toString()).toBe('refused');
});

test('the host keeps its routes of router advertisements, and hears new ones', async () => {
  expect(defaultRoutes('left')).toEqual(['fe80::99']);
  neighbour('later', ['192.0.3.1', '2001:db8:3::1'], ['192.0.3.2', '2001:db8:3::2']);
  advertise('later');
  await until('its route is there', () => defaultRoutes('later').length > 0);
  for (const name of ['left', 'later', 'default']) {
    expect([ofDevice(name, 'forwarding'), ofDevice(name, 'accept_ra')]).toEqual(['0', '1']);
  }
  await closed();
});

test.each([
  ['IPv4', IPV4],
  ['IPv6', IPV6],
])('when somebody switches %s off, it is on again at once', async (_family, path) => {
  writeFileSync(path, '0');
  await until('it is on again', () => setting(path) === '2');
  expect(await reached('inner', [...LEFT, ...RIGHT])).toEqual([...LEFT, ...RIGHT]);
  expect(defaultRoutes('left')).toEqual(['fe80::99']);
  await closed();
});

test('it stays closed when the agent starts again', async () => {
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  await closed();
  expect(await reached('inner', LEFT)).toEqual(LEFT);
  const { differences } = await stack.client.check(stack.host, {});
  expect(differences).toEqual([]);
});

const findings = () =>
  diagnose(observeHost({ table: 'volt', runtimeDir: '/nowhere', networks: [] })).filter(
    ({ subject }) => subject.startsWith('forwarding'),
  );

test('the doctor says who has switched it on', () => {
  expect(findings().map(({ severity }) => severity)).toEqual(['ok', 'ok']);
});

test('an operator who switches it on takes over, and his devices reach each other', async () => {
  writeFileSync(IPV4, '1');
  const [right4 = '', right6 = ''] = RIGHT;
  const passes = async (): Promise<boolean> => (await reached('left', [right4])).length > 0;
  await until('the firewall lets it pass', passes);
  expect(await reached('left', [right6, ...of('plain')])).toEqual([]);
  expect(findings().map(({ severity }) => severity)).toEqual(['advice', 'ok']);
  await stack.agent.restart('SIGTERM');
  await stack.agent.ready();
  expect(await reached('left', RIGHT)).toEqual([right4]);
});

test('what an operator has set for a device stays, when forwarding is switched on and off again', async () => {
  await stack.agent.kill();
  for (const path of [IPV4, IPV6]) writeFileSync(path, '0');
  const ofIpv4 = (name: string): string => `/proc/sys/net/ipv4/conf/${name}/forwarding`;
  writeFileSync(ofIpv4('left'), '1');
  const log = createLog('silent', 'h1');
  using kernel = new Kernel();
  using firewall = new Firewall({ log, table: 'own' });
  firewall.start();
  using forwarding = new Forwarding({ kernel, firewall, log });
  const own = () => nftElements().filter((element) => element.includes(' own '));
  forwarding.switchOn([4, 6]);
  expect([setting(IPV4), setting(IPV6), setting(ofIpv4('left'))]).toEqual(['2', '2', '1']);
  expect(own()).toContain('inet own opened {"concat":["ip","left"]}');
  expect(own()).toContain('inet own shut "ip6"');
  forwarding.switchOff();
  expect([setting(IPV4), setting(IPV6), setting(ofIpv4('left'))]).toEqual(['0', '0', '1']);
  expect(own()).toEqual([]);
});
