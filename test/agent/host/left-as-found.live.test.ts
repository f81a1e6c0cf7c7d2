import { execFileSync, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, ip, removeNamespace } from '../../support/kernel.ts';
import { icmpv6 } from '../../support/frames.ts';
import { ALL_NODES, RA, v6 } from '../../support/packets.ts';
import { openContainer } from '../../support/raw-port.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// Every setting below /proc/sys/net, and the routes of router advertisements: when the networks have gone from a host, it
// has those that it had before the first of them.

const VOLTNET = new URL('../../../deploy/bin/voltnet', import.meta.url).pathname;

/** One of each network that has settings on the host, on a bridge of the agent's own and on an operator's. */
const NETWORKS: readonly { network: string; type?: string; [key: string]: unknown }[] = [
  ...['own', 'op'].flatMap((kind, place) => [
    {
      network: `ho-${kind}`,
      type: 'host-only',
      ...(kind === 'op' && { bridge: 'op0' }),
      subnet: `10.5${place}.0.0/24`,
      gateway: `10.5${place}.0.1`,
      ipv6: { subnet: `fd5${place}::/64`, gateway: `fd5${place}::1` },
      nat: { ipv6: true },
      portIsolation: true,
    },
    {
      network: `ro-${kind}`,
      routed: true,
      ...(kind === 'op' && { bridge: 'op1' }),
      subnet: `10.6${place}.0.0/24`,
      gateway: `10.6${place}.0.1`,
      ipv6: { subnet: `fd6${place}::/64`, gateway: `fd6${place}::1` },
    },
  ]),
  { network: 'up', subnet: '10.70.0.0/24', uplink: { device: 'nic0' } },
  { network: 'mv', type: 'macvtap', parent: 'nic1', subnet: '10.71.0.0/24' },
];

const HARDENED: Readonly<Record<string, string>> = {
  'ipv4/conf/all/accept_redirects': '0',
  'ipv4/conf/default/accept_redirects': '0',
  'ipv4/conf/default/forwarding': '1',
  'ipv6/conf/default/forwarding': '1',
  'ipv6/conf/all/accept_redirects': '0',
};
const AS_INSTALLED: Readonly<Record<string, string>> = {
  'ipv4/conf/all/accept_redirects': '1',
  'ipv4/conf/default/accept_redirects': '1',
  'ipv4/conf/default/forwarding': '0',
  'ipv6/conf/default/forwarding': '0',
  'ipv6/conf/all/accept_redirects': '1',
};

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8', stdio: 'pipe' });

const write = (path: string, value: string): void => writeFileSync(`/proc/sys/net/${path}`, value);

/** Counters, and what the kernel draws at random or computes from the memory of the machine. */
const NO_SETTING = /nf_conntrack_(count|max|buckets)$|tcp_fastopen_key$|stable_secret$/;

/** All settings of this namespace: `ipv4/ip_forward` → `0`. */
function settings(): Record<string, string> {
  const root = '/proc/sys/net';
  const files = readdirSync(root, { recursive: true }).map(String);
  return Object.fromEntries(
    files.flatMap((file) => {
      const { mode } = statSync(`${root}/${file}`);
      // Some can be written alone, as `route/flush`.
      if ((mode & 0o170000) === 0o040000 || (mode & 0o400) === 0) return [];
      if (NO_SETTING.test(file)) return [];
      return [[file, readFileSync(`${root}/${file}`, 'utf8').trim()]];
    }),
  );
}

const learnedRoutes = (): string[] =>
  ip('-6', 'route', 'show', 'default').map(
    ({ gateway, dev }) => `${String(gateway)} ${String(dev)}`,
  );

/** An advertisement with a lifetime, by which the host has a route. */
async function advertise(device: string): Promise<void> {
  using port = openContainer('/run/netns/wire');
  const [eth0] = ip('-n', 'wire', 'link', 'show', 'eth0');
  const way = { from: 'fe80::99', to: ALL_NODES };
  const body = Buffer.from('40001c200000000000000000', 'hex');
  const frame = v6(String(eth0?.['address']), way, 58, icmpv6(way, RA, body), 255);
  await until('the host has a route of an advertisement', () => {
    port.send(frame);
    return learnedRoutes().includes(`fe80::99 ${device}`);
  });
}

async function prepare(values: Readonly<Record<string, string>>): Promise<void> {
  for (const path of ['ipv4/ip_forward', 'ipv6/conf/all/forwarding']) write(path, '0');
  for (const [path, value] of Object.entries(values)) write(path, value);
  addNamespace('wire');
  addNamespace('box');
  run('link add wan type veth peer name eth0 netns wire');
  run('link add nic0 type veth peer name wire0');
  run('link add nic1 type veth peer name wire1');
  for (const device of ['wan', 'nic0', 'wire0', 'nic1', 'wire1']) run(`link set ${device} up`);
  run('-n wire link set eth0 up');
  // What the operator has set for single devices, against the host's switches.
  for (const family of ['ipv4', 'ipv6']) {
    write(`${family}/conf/wan/forwarding`, '0');
    write(`${family}/conf/nic1/forwarding`, '1');
  }
  write('ipv6/conf/nic0/accept_ra', '2');
  for (const [place, bridge] of ['op0', 'op1'].entries()) {
    run(`link add ${bridge} address 02:00:00:00:00:0${place} type bridge`);
    run(`link set ${bridge} up`);
    run(`addr add 10.${place + 5}1.0.1/24 dev ${bridge}`);
    run(`addr add fd${place + 5}1::1/64 dev ${bridge} nodad`);
    write(`ipv6/conf/${bridge}/forwarding`, '0');
  }
  await advertise('wan');
}

/** One workload in each network. */
async function attachAll({ client, host }: Stack): Promise<void> {
  for (const { network, type } of NETWORKS) {
    const ids = { id: network, workload: `w-${network}`, network };
    if (type === 'macvtap') await client.attach(host, { ...ids, kind: 'vm' });
    else {
      const inside = { netns: '/run/netns/box', ifname: `eth-${network}` };
      await client.attach(host, { ...ids, kind: 'container', ...inside });
    }
  }
}

async function deleteAll({ client, host, gone }: Stack): Promise<void> {
  for (const { network } of NETWORKS) {
    await client.detach(host, { id: network });
    await gone(network);
    await client.deleteNetwork(network);
  }
}

async function cleanAll({ agent }: Stack): Promise<void> {
  await agent.kill();
  const { runtimeDir, configFile } = agent;
  const env = { ...process.env, VOLT_NET_RUNTIME_DIR: runtimeDir };
  const { status, stderr } = spawnSync(
    VOLTNET,
    ['--config', configFile, 'host', 'clean', '--all'],
    { env, encoding: 'utf8' },
  );
  expect(status, stderr).toBe(0);
}

afterEach(() => {
  for (const device of ['wan', 'nic0', 'nic1', 'op0', 'op1']) run(`link delete ${device}`);
  for (const name of ['wire', 'box']) removeNamespace(name);
});

test.each([
  ['as installed', 'networks are deleted', AS_INSTALLED, deleteAll],
  ['hardened', 'networks are deleted', HARDENED, deleteAll],
  ['hardened', 'the host is cleaned', HARDENED, cleanAll],
] as const)(
  'a host %s has the settings and routes that it had, when %s',
  async (_host, _end, values, end) => {
    await prepare(values);
    const before = settings();
    const devices = deviceNames().toSorted();
    const routes = learnedRoutes();
    const stack = await startStack({ networks: NETWORKS });
    try {
      await attachAll(stack);
      const during = settings();
      for (const path of Object.keys(values)) {
        // The switch of IPv4 is the default for new devices, too: replies come in by them.
        if (path === 'ipv4/conf/default/forwarding' && values[path] === '0') continue;
        expect([path, during[path]]).toEqual([path, before[path]]);
      }
      expect(learnedRoutes()).toEqual(routes);
      await end(stack);
      const isAsBefore = (): boolean => deviceNames().toSorted().join() === devices.join();
      await until('no device is left', isAsBefore);
      await until('nothing is forwarded', () => settings()['ipv4/ip_forward'] === '0');
      expect(settings()).toEqual(before);
      expect(learnedRoutes()).toEqual(routes);
    } finally {
      await stack[Symbol.asyncDispose]();
    }
  },
  60_000,
);
