import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, ip, only, removeNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// What a network has on a host over its life: made with the first workload, kept while it is needed, changed with the
// definition, gone with it. Nothing here waits for the period of reconcile.

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8' });

const addressesOf = (device: string): string[] =>
  ip('addr', 'show', device)
    .flatMap(({ addr_info: all }) => all)
    .map(({ local, prefixlen }) => `${local}/${prefixlen}`);

/** What an agent has made of a bridge. */
function lookOf(device: string): unknown {
  const { linkinfo, flags, ...row } = only(ip('-d', 'link', 'show', device));
  const { info_data: made } = linkinfo as { info_data: Record<string, unknown> };
  const kept = ['UP', 'NOARP'].map((flag) => flags.includes(flag));
  return [row['address'], row['ifalias'], row['mtu'], made['stp_state'], ...kept];
}

const NET = {
  subnet: '10.71.0.0/24',
  gateway: '10.71.0.1',
  ipv6: { subnet: 'fd71::/64', gateway: 'fd71::1' },
};
const GATEWAYS = ['10.71.0.1/24', 'fd71::1/64'];

let stack: Stack;
let names = 0;

beforeAll(async () => {
  run('link add nic0 type veth peer name wire0');
  run('link set wire0 up');
  stack = await startStack({ networks: [], config: { reconcileSeconds: 3_600 } });
});
afterAll(() => stack[Symbol.asyncDispose]());

/** Another network each time: `net1`, `net2`. */
let network: string;
beforeEach(() => {
  names += 1;
  network = `net${names}`;
});

async function attach(id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> {
  const request = { id, workload: `vm-${id}`, kind: 'vm' as const, network, ...more };
  return (await stack.client.attach(stack.host, request)).attachment;
}

async function attachContainer(id: string): Promise<Attachment> {
  addNamespace(id);
  const kind = 'container' as const;
  return attach(id, { workload: `container-${id}`, kind, netns: `/run/netns/${id}` });
}

async function detach(id: string): Promise<void> {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
}

const inSync = async (): Promise<boolean> => {
  const { inSync: agrees, differences } = await stack.client.check(stack.host, {});
  expect(differences).toEqual([]);
  return agrees;
};

describe.each(['bridged', 'host-only'] as const)('a %s network', (type) => {
  test.each([
    ['is set down', (bridge: string) => `link set ${bridge} down`],
    ['loses its gateway', (bridge: string) => `addr del 10.71.0.1/24 dev ${bridge}`],
    ['loses its gateway of IPv6', (bridge: string) => `addr del fd71::1/64 dev ${bridge}`],
    ['gets another MAC', (bridge: string) => `link set ${bridge} address 02:00:00:00:00:77`],
    ['loses its alias', (bridge: string) => `link set ${bridge} alias other`],
    ['gets another MTU', (bridge: string) => `link set ${bridge} mtu 1400`],
    ['gets an MTU without IPv6', (bridge: string) => `link set ${bridge} mtu 1000`],
    ['gets spanning tree', (bridge: string) => `link set ${bridge} type bridge stp_state 1`],
    ['is told to answer no ARP', (bridge: string) => `link set ${bridge} arp off`],
    ['is deleted', (bridge: string) => `link del ${bridge}`],
  ])('its bridge %s and is right again, with its workload on it', async (_what, command) => {
    await stack.client.putNetwork({ ...NET, network, type });
    const { device } = await attach('one');
    const before = lookOf(network);
    run(command(network));
    await until('the bridge is right', async () => {
      expect(lookOf(network)).toEqual(before);
      expect(addressesOf(network)).toEqual(expect.arrayContaining(GATEWAYS));
      expect(only(ip('link', 'show', device?.name ?? ''))['master']).toBe(network);
      return inSync();
    });
    await detach('one');
    await stack.client.deleteNetwork(network);
  });

  test('a port that comes while its bridge has spanning tree passes frames at once', async () => {
    await stack.client.putNetwork({ ...NET, network, type });
    await attach('one');
    run(`link set ${network} type bridge stp_state 1`);
    await attachContainer('late');
    execFileSync('ip', 'netns exec late ping -c 1 -W 5 10.71.0.1'.split(' '));
    execFileSync('ip', 'netns exec late ping -6 -c 1 -W 5 fd71::1'.split(' '));
    await until('all agree', inSync);
    await detach('one');
    await detach('late');
    removeNamespace('late');
    await stack.client.deleteNetwork(network);
  });

  test('its bridge answers for IPv6 at once, under its own address', async () => {
    await stack.client.putNetwork({ ...NET, network, type });
    await attachContainer('six');
    execFileSync('ip', 'netns exec six ping -6 -c 1 -W 5 fd71::1'.split(' '));
    const tentative = ip('-6', 'addr', 'show', network).flatMap(({ addr_info: all }) =>
      all.filter((one) => 'tentative' in one),
    );
    expect(tentative).toEqual([]);
    await detach('six');
    removeNamespace('six');
    await stack.client.deleteNetwork(network);
  });

  test('with the network all of it goes, and the host is as it was', async () => {
    const forwarding = ['ipv4/ip_forward', 'ipv6/conf/all/forwarding'];
    const settings = (): string[] =>
      forwarding.map((path) => readFileSync(`/proc/sys/net/${path}`, 'utf8').trim());
    await until('nothing is left of others', () => deviceNames().length === 3);
    expect(settings()).toEqual(['0', '0']);
    const before = [deviceNames().toSorted(), settings()];
    await stack.client.putNetwork({ ...NET, network, type });
    await attach('one');
    expect(addressesOf(network)).toEqual(expect.arrayContaining(GATEWAYS));
    await detach('one');
    await stack.client.deleteNetwork(network);
    await until('nothing is left', () => {
      expect([deviceNames().toSorted(), settings()]).toEqual(before);
      return true;
    });
    expect(await inSync()).toBe(true);
  });

  test('it is deleted and put under another name, and has its workloads at once', async () => {
    await stack.client.putNetwork({ ...NET, network, type });
    await attach('one');
    await detach('one');
    await stack.client.deleteNetwork(network);
    const before = network;
    network = `${network}b`;
    await stack.client.putNetwork({ ...NET, network, type, reuseDelaySeconds: 0 });
    await until('it is granted', () => attach('two').then(() => true));
    expect(addressesOf(network)).toEqual(expect.arrayContaining(GATEWAYS));
    await until('the one of before is gone', () => !deviceNames().includes(before));
    await detach('two');
    await stack.client.deleteNetwork(network);
  });

  test('its gateway is another only when nobody relies on it, and on every host at once then', async () => {
    const { revision } = await stack.client.putNetwork({ ...NET, network, type });
    await attach('relies');
    const moved = { gateway: '10.71.0.9', ipv6: { subnet: 'fd71::/64', gateway: 'fd71::9' } };
    const change = { ...NET, ...moved, network, type, revision };
    await expect(stack.client.putNetwork(change)).rejects.toMatchObject({
      code: 'NETWORK_IN_USE',
      message: expect.stringContaining('relies') as unknown,
    });
    await detach('relies');
    await stack.client.putNetwork(change);
    await until('the bridge has the other gateway alone', () => {
      const held = addressesOf(network);
      expect(held).toEqual(expect.arrayContaining(['10.71.0.9/24', 'fd71::9/64']));
      expect(GATEWAYS.filter((one) => held.includes(one))).toEqual([]);
      return true;
    });
    await stack.client.deleteNetwork(network);
  });

  test('a second network with its bridge is refused while it is in use', async () => {
    await stack.client.putNetwork({ ...NET, network, type });
    await attach('one');
    const second = { network: `${network}x`, bridge: network, subnet: '10.72.0.0/24' };
    const put = await stack.client.putNetwork(second).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (put === undefined) {
      await expect(attach('two', { network: second.network })).rejects.toMatchObject({
        code: 'INTERFACE_EXISTS',
      });
      await stack.client.deleteNetwork(second.network);
    }
    expect(addressesOf(network)).not.toContain('10.72.0.1/24');
    await detach('one');
    await stack.client.deleteNetwork(network);
  });
});

test('an uplink that is taken out, or is gone and back, is a port again', async () => {
  await stack.client.putNetwork({ ...NET, network, uplink: { device: 'nic0' } });
  await attach('one');
  run('link set nic0 nomaster');
  await until('it is a port', () => only(ip('link', 'show', 'nic0'))['master'] === network);
  run('link del nic0');
  await until('it is missed', async () => {
    const { differences } = await stack.client.check(stack.host, {});
    return differences.some(({ what }) => what === 'uplink');
  });
  run('link add nic0 type veth peer name wire0');
  run('link set wire0 up');
  await until('it is a port', () => only(ip('link', 'show', 'nic0'))['master'] === network);
  await until('all agree', inSync);
  await detach('one');
  await stack.client.deleteNetwork(network);
  await until('it is let go', () => only(ip('link', 'show', 'nic0'))['master'] === undefined);
});

test('a NIC is free for another network, whatever its type, as soon as its network is deleted', async () => {
  const uplink = { device: 'nic0' };
  const types = [
    { type: 'bridged', uplink },
    { type: 'macvtap', parent: 'nic0' },
    { type: 'host-only', uplink },
    { type: 'bridged', uplink },
  ] as const;
  for (const [n, keys] of types.entries()) {
    network = `nic-${n}`;
    await stack.client.putNetwork({ network, subnet: `10.73.${n}.0/24`, ...keys });
    await attach('first');
    await detach('first');
    await stack.client.deleteNetwork(network);
  }
});

test('an adopted bridge that its owner makes again has its ports again, with nobody’s help', async () => {
  const owner = ['link add own0 type bridge', 'addr add 10.74.0.1/24 dev own0', 'link set own0 up'];
  for (const command of owner) run(command);
  network = 'own0';
  await stack.client.putNetwork({ network, subnet: '10.74.0.0/24', gateway: '10.74.0.1' });
  const { device } = await attach('on-own');
  run('link delete own0');
  await until('it is told', async () => {
    const { differences } = await stack.client.check(stack.host, {});
    return differences.some(({ id, what }) => id === 'own0' && what === 'bridge');
  });
  expect(deviceNames()).not.toContain('own0');
  for (const command of owner) run(command);
  await until(
    'its port is back',
    () => ip('link', 'show', device?.name ?? '')[0]?.['master'] === 'own0',
  );
  await until('all agrees', inSync);
  await detach('on-own');
  await stack.client.deleteNetwork('own0');
  run('link delete own0');
});

test('a network that would take the host from its segment is refused, and the host stays on it', async () => {
  run('addr add 192.168.50.5/24 dev wire0');
  const cases = [
    { type: 'host-only', subnet: '192.168.50.0/24', gateway: '192.168.50.1' },
    { type: 'bridged', subnet: '192.168.50.0/28', gateway: '192.168.50.1' },
    { type: 'macvtap', parent: 'nic0', subnet: '192.168.50.0/24' },
  ];
  for (const [place, one] of cases.entries()) {
    const name = `seg${place}`;
    await stack.client.putNetwork({ ...one, network: name });
    await expect(attach('no', { network: name })).rejects.toMatchObject({
      code: 'NETWORK_CONFLICT',
      details: { device: 'wire0', network: name },
    });
    await stack.client.deleteNetwork(name);
  }
  expect(ip('route', 'show', '192.168.50.0/24')).toHaveLength(1);
  run('addr del 192.168.50.5/24 dev wire0');
});
