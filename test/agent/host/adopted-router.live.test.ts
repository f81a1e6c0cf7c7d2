import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { addNamespace, ip } from '../../support/kernel.ts';
import { icmpv6 } from '../../support/frames.ts';
import { ALL_NODES, RA, v6 } from '../../support/packets.ts';
import { openContainer } from '../../support/raw-port.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// Bridges that an operator made, each with a NIC, by which the host has its IPv6 address and default route: learned from
// router advertisements. Networks whose workloads use the host as a router adopt them. `beyond` is behind the host.

interface Definition {
  readonly network: string;
  readonly bridge: string;
  readonly type?: string;
  readonly routed?: boolean;
  readonly subnet: string;
  readonly gateway: string;
  readonly ipv6: { readonly subnet: string; readonly gateway: string };
  readonly nat?: { readonly ipv6: boolean };
}

const ROUTED: Definition = {
  network: 'routed0',
  bridge: 'op0',
  routed: true,
  subnet: '10.41.0.0/24',
  gateway: '10.41.0.1',
  ipv6: { subnet: 'fd41::/64', gateway: 'fd41::1' },
};
const HOST_ONLY: Definition = {
  network: 'ho0',
  type: 'host-only',
  bridge: 'op1',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  ipv6: { subnet: 'fd42::/64', gateway: 'fd42::1' },
  nat: { ipv6: true },
};
const BEYOND = ['192.0.2.2', '2001:db8:1::2'];

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8', stdio: 'pipe' });

function reaches(from: string, to: string): boolean {
  try {
    run(`netns exec ${from} ping -c 1 -W 1 ${to}`);
    return true;
  } catch {
    return false;
  }
}

/** What says whether the host is a router on a bridge, or takes its packets for its own. */
const settings = (bridge: string): string[] =>
  ['ipv6/forwarding', 'ipv6/accept_ra', 'ipv4/route_localnet', 'ipv4/forwarding'].map((name) => {
    const [family, key] = name.split('/');
    return readFileSync(`/proc/sys/net/${family}/conf/${bridge}/${key}`, 'utf8').trim();
  });

const forwarding = (): string[] =>
  ['ipv4/ip_forward', 'ipv6/conf/all/forwarding'].map((path) =>
    readFileSync(`/proc/sys/net/${path}`, 'utf8').trim(),
  );

/** A router advertisement with a lifetime and a prefix, from the segment of a bridge's NIC. */
function advertise(bridge: string): void {
  using port = openContainer(`/run/netns/lan-${bridge}`);
  const [eth0] = ip('-n', `lan-${bridge}`, 'link', 'show', 'eth0');
  const router = '40001c200000000000000000';
  const prefix = `030440c00000ea600000ea600000000020010db800${bridge === 'op0' ? '90' : '91'}`;
  const body = Buffer.from(`${router}${prefix.padEnd(64, '0')}`, 'hex');
  const way = { from: 'fe80::99', to: ALL_NODES };
  port.send(v6(String(eth0?.['address']), way, 58, icmpv6(way, RA, body), 255));
}

const defaultRoutes = (bridge: string): string[] =>
  ip('-6', 'route', 'show', 'default', 'dev', bridge).map(({ gateway }) => String(gateway));

/** The address that the host has made for itself of a prefix in an advertisement. */
const learned = (bridge: string): string[] =>
  ip('-6', 'addr', 'show', 'dev', bridge)
    .flatMap(({ addr_info: all }) => all.map(({ local }) => local))
    .filter((address) => address.startsWith('2001:db8:9'));

/** Until the host has a default route by an advertisement that is sent now. */
const hears = (bridge: string): Promise<void> =>
  until(`the host hears an advertisement on ${bridge}`, () => {
    advertise(bridge);
    return defaultRoutes(bridge).length > 0;
  });

function operatorsBridge({ bridge, gateway, ipv6 }: Definition): void {
  const lan = `lan-${bridge}`;
  addNamespace(lan);
  run(`link add ${bridge} address 02:00:00:00:00:0${bridge.slice(2)} type bridge`);
  run(`link add nic-${bridge} type veth peer name eth0 netns ${lan}`);
  run(`link set nic-${bridge} master ${bridge} up`);
  run(`link set ${bridge} up`);
  run(`-n ${lan} link set eth0 up`);
  run(`addr add ${gateway}/24 dev ${bridge}`);
  run(`addr add ${ipv6.gateway}/64 dev ${bridge} nodad`);
}

let stack: Stack;
beforeAll(async () => {
  for (const path of ['ipv4/ip_forward', 'ipv6/conf/all/forwarding']) {
    writeFileSync(`/proc/sys/net/${path}`, '0');
  }
  addNamespace('beyond');
  run('link add beyond type veth peer name eth0 netns beyond');
  run('addr add 192.0.2.1/24 dev beyond');
  run('addr add 2001:db8:1::1/64 dev beyond nodad');
  run('link set beyond up');
  run('-n beyond link set eth0 up');
  run('-n beyond addr add 192.0.2.2/24 dev eth0');
  run('-n beyond addr add 2001:db8:1::2/64 dev eth0 nodad');
  run('-n beyond route add default via 192.0.2.1');
  run('-n beyond -6 route add default via 2001:db8:1::1');
  for (const network of [ROUTED, HOST_ONLY]) operatorsBridge(network);
  stack = await startStack({ networks: [ROUTED, HOST_ONLY] });
}, 60_000);
afterAll(() => stack[Symbol.asyncDispose]());

/** Answers the workload's addresses. */
async function attach(network: string): Promise<string[]> {
  const { attachment } = await stack.client.attach(stack.host, {
    id: network,
    workload: `container-${network}`,
    kind: 'container',
    network,
    netns: `/run/netns/${network}`,
  });
  return attachment.addresses.map(({ address }) => address.split('/')[0] ?? '');
}

async function detach(network: string): Promise<void> {
  await stack.client.detach(stack.host, { id: network });
  await stack.gone(network);
}

describe.each([ROUTED, HOST_ONLY])('$network on a bridge of an operator', (definition) => {
  const { network, bridge, subnet, gateway, ipv6 } = definition;
  let found: readonly string[];
  let addresses: readonly string[];

  const asFound = (): Promise<void> =>
    until('its settings are as they were', () => settings(bridge).join() === found.join());
  const change = async (to: Definition): Promise<void> => {
    const { revision } = await stack.client.getNetwork(network);
    await stack.client.putNetwork({ ...to, revision });
  };

  beforeAll(async () => {
    await hears(bridge);
    await until('the host has an address', () => learned(bridge).length > 0);
    found = settings(bridge);
    addNamespace(network);
    addresses = await attach(network);
  });

  test('the host keeps route and address, and goes on to hear advertisements', async () => {
    expect(defaultRoutes(bridge)).toEqual(['fe80::99']);
    expect(learned(bridge)).toHaveLength(1);
    run(`-6 route delete default dev ${bridge}`);
    await hears(bridge);
    expect(settings(bridge).slice(0, 2)).toEqual(found.slice(0, 2));
  });

  test('workloads have a way out in both families, and back', async () => {
    // The host asks for neighbours when its link-local addresses are known to be its own alone.
    await until('the workload reaches what the host reaches', () =>
      BEYOND.every((address) => reaches(network, address)),
    );
    if (definition.routed === true) {
      await until('the workload is reached', () =>
        addresses.every((address) => reaches('beyond', address)),
      );
    }
    const { differences } = await stack.client.check(stack.host, {});
    expect(differences).toEqual([]);
  });

  test('the bridge is as it was when the network is one that uses no router', async () => {
    await detach(network);
    await change({ network, bridge, subnet, gateway, ipv6 });
    await asFound();
    expect(defaultRoutes(bridge)).toEqual(['fe80::99']);
  });

  test('the bridge is as it was when the network is deleted, and the host hears', async () => {
    await change(definition);
    await attach(network);
    expect(forwarding()).toEqual(['2', '2']);
    await detach(network);
    await stack.client.deleteNetwork(network);
    await until('the host forwards nothing', () => forwarding().join() === '0,0');
    await asFound();
    expect(defaultRoutes(bridge)).toEqual(['fe80::99']);
    run(`-6 route delete default dev ${bridge}`);
    await hears(bridge);
    expect(learned(bridge)).toHaveLength(1);
  });
});
