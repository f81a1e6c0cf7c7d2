import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, ip, nftElements, only } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A NIC of the host as a port of the bridge, with a peer on its wire.

let stack: Stack;

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8' });

const attach = (id: string, network: string) =>
  stack.client.attach(stack.host, { id, workload: `vm-${id}`, kind: 'vm', network });

const networkOf = (network: string, number: number, uplink: object) => ({
  network,
  subnet: `10.67.${number}.0/24`,
  gateway: `10.67.${number}.1`,
  uplink,
});

beforeAll(async () => {
  addNamespace('peer');
  addNamespace('box');
  addNamespace('away');
  run('netns set away 7');
  for (const command of [
    'link add up0 mtu 1400 type veth peer name eth0 netns peer',
    'addr add 192.0.2.1/24 dev up0',
    '-n peer link set eth0 up',
    '-n peer addr add 10.67.0.99/24 dev eth0',
    'link add way0 type veth peer name way1',
    'addr add 198.51.100.1/24 dev way0',
    'link set way0 up',
    'link set way1 up',
    'route add default via 198.51.100.2',
    'link add other0 type bridge',
    'link add port0 type veth peer name port1',
    'link set port0 master other0',
  ]) {
    run(command);
  }
  stack = await startStack({
    networks: [
      networkOf('upl0', 0, { device: 'up0' }),
      networkOf('upl1', 1, { device: 'way0' }),
      networkOf('upl2', 2, { device: 'way0', allowDefaultRoute: true }),
      networkOf('upl3', 3, { device: 'none0' }),
      networkOf('upl4', 4, { device: 'port0' }),
    ],
  });
});
afterAll(() => stack[Symbol.asyncDispose]());

test('becomes a port, keeps its addresses, and brings its MTU and its segment along', async () => {
  const { attachment } = await stack.client.attach(stack.host, {
    id: 'box',
    workload: 'container-box',
    kind: 'container',
    network: 'upl0',
    netns: '/run/netns/box',
  });
  expect(attachment.device?.mtu).toBe(1400);
  const uplink = only(ip('addr', 'show', 'up0'));
  expect(uplink).toMatchObject({ master: 'upl0' });
  expect(uplink.addr_info.map(({ local }) => local)).toContain('192.0.2.1');
  execFileSync('ip', 'netns exec box ping -c 1 -W 5 10.67.0.99'.split(' '));
  await stack.client.detach(stack.host, { id: 'box' });
  await stack.gone('box');
  expect(only(ip('link', 'show', 'up0'))['master']).toBe('upl0');
});

test('taken away by hand is put back by the next attach', async () => {
  run('link set up0 nomaster');
  await attach('back', 'upl0');
  expect(only(ip('link', 'show', 'up0'))['master']).toBe('upl0');
});

test('with the default route of the host is refused, unless that is wanted', async () => {
  const before = await stack.snapshot();
  await expect(attach('no', 'upl1')).rejects.toMatchObject({
    code: 'UNSUPPORTED',
    details: { path: 'uplink.device', device: 'way0' },
  });
  expect(await stack.snapshot()).toEqual(before);
  expect(only(ip('link', 'show', 'way0'))['master']).toBeUndefined();
  await attach('yes', 'upl2');
  expect(only(ip('link', 'show', 'way0'))['master']).toBe('upl2');
  expect(ip('route', 'show', 'default')).toHaveLength(1);
});

test.each([
  ['that is not there', 'upl3', 'PARENT_NOT_FOUND'],
  ['that is a port of another bridge', 'upl4', 'DEVICE_BUSY'],
])('%s is refused', async (_what, network, code) => {
  const before = await stack.snapshot();
  await expect(attach('no', network)).rejects.toMatchObject({ code });
  expect(await stack.snapshot()).toEqual(before);
});

describe('another NIC', () => {
  let number = 10;
  let network: string;
  let nic: string;

  beforeEach(async () => {
    number += 1;
    network = `upl${number}`;
    nic = `nic${number}`;
    for (const command of [
      `link add ${nic} type veth peer name wire${number} netns peer`,
      `link set ${nic} up`,
      `-n peer link set wire${number} up`,
      `addr add 203.0.113.1/28 dev ${nic}`,
      `addr add 2001:db8::1/64 dev ${nic} nodad`,
    ]) {
      run(command);
    }
    await stack.client.putNetwork(networkOf(network, number, { device: nic }));
  });
  afterEach(async () => {
    run('nexthop flush');
    run(`link del ${nic}`);
    const { attachments } = await stack.client.list(stack.host, {});
    for (const { id } of attachments.filter((one) => one.network === network)) {
      await stack.client.detach(stack.host, { id });
      await stack.gone(id);
    }
    await stack.client.deleteNetwork(network);
    await until('nothing of the network is left', () =>
      [...deviceNames(), ...nftElements()].every((one) => !one.includes(network)),
    );
  });

  const setCompatMode = (mode: string): void => {
    writeFileSync('/proc/sys/net/ipv4/nexthop_compat_mode', mode);
  };

  /** An attach and a dry run are refused in the same words, and nothing is there but what was before. */
  async function expectRefusal(code: string, reason: RegExp): Promise<void> {
    const before = await stack.snapshot();
    const request = { id: 'no', workload: 'vm-no', kind: 'vm', network } as const;
    const refused = { code, message: expect.stringMatching(reason) as unknown };
    await expect(stack.client.dryRun(stack.host, request)).rejects.toMatchObject(refused);
    await expect(stack.client.attach(stack.host, request)).rejects.toMatchObject(refused);
    expect(await stack.snapshot()).toEqual(before);
    expect(only(ip('link', 'show', nic))['master']).toBeUndefined();
  }

  describe.each(['0', '1'])('with net.ipv4.nexthop_compat_mode %s', (mode) => {
    test.each([
      ['by a next hop that is an object', 'route add 192.0.2.128/25 nhid 1', /192\.0\.2\.128/],
      ['by a group of next hops', 'route add default metric 9 nhid 9', /default/],
      ['of IPv6 by a next hop', '-6 route add 2001:db8:9::/48 nhid 6', /2001:db8:9::/],
      ['of IPv6 by a group', '-6 route add 2001:db8:9::/48 nhid 8', /2001:db8:9::/],
      [
        'of IPv4 by a router of IPv6, in another table',
        'route add 198.18.0.0/24 via inet6 fe80::2 dev NIC table 77',
        /198\.18\.0\.0/,
      ],
    ])('that a route leads out of, %s, is refused', async (_what, route, reason) => {
      setCompatMode(mode);
      run(`nexthop add id 1 via 203.0.113.2 dev ${nic}`);
      run('nexthop add id 2 via 198.51.100.3 dev way0');
      run('nexthop add id 9 group 2/1');
      run(`nexthop add id 6 via 2001:db8::2 dev ${nic}`);
      run('nexthop add id 8 group 6');
      run(route.replace('NIC', nic));
      await expectRefusal('UNSUPPORTED', reason);
    });

    test('with a next hop on its own segment alone becomes a port', async () => {
      setCompatMode(mode);
      run(`nexthop add id 1 dev ${nic}`);
      run('route add 192.0.2.128/25 nhid 1');
      await attach('near', network);
      expect(only(ip('link', 'show', nic))['master']).toBe(network);
    });

    test('is no uplink of a network into whose subnet a next hop leads', async () => {
      setCompatMode(mode);
      run('nexthop add id 2 via 198.51.100.3 dev way0');
      run('nexthop add id 9 group 2');
      run(`route add 10.67.${number}.128/25 nhid 9`);
      await expect(attach('no', network)).rejects.toMatchObject({
        code: 'NETWORK_CONFLICT',
        details: { device: 'way0', network },
      });
    });
  });

  test.each([
    ['a macvlan', 'link add upper0 link NIC type macvlan mode bridge'],
    ['a macvtap', 'link add upper0 link NIC type macvtap mode vepa'],
    ['a macvlan in a namespace', 'link add upper0 link NIC netns away type macvlan'],
  ])('with %s on it is refused before anything is made', async (_what, command) => {
    run(command.replace('NIC', nic));
    await expectRefusal('DEVICE_BUSY', /upper0/);
  });
});
