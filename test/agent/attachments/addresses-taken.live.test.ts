import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { gatewayOn } from '../../support/hearing.ts';
import { addNamespace, bridge, ip, nftElements, only } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// A request that names what the host has, or the gateway: a MAC, an address to send from or to be reached at.

const ALL = { exclude: ['10.51.0.0/28', '10.51.0.240/28', 'fd51::/120'] };
const NETWORKS = [
  {
    ...{ network: 'edge0', type: 'host-only', subnet: '10.51.0.0/24', gateway: '10.51.0.1' },
    ...{ ipv6: { subnet: 'fd51::/64', gateway: 'fd51::1' }, ...ALL },
  },
  // On a bridge that is there, with an address of the host's that the network knows nothing of.
  {
    ...{ network: 'given0', subnet: '10.52.0.0/24' },
    ...{ pool: { start: '10.52.0.5', end: '10.52.0.6' }, reservations: { asker: '10.52.0.5' } },
  },
  { network: 'second0', bridge: 'given1', subnet: '10.53.0.0/24', gateway: '10.53.0.1' },
  { network: 'free0', bridge: 'given2', subnet: '10.54.0.0/24', filter: false },
  { network: 'later0', subnet: '10.55.0.0/24', gateway: '10.55.0.1' },
  { network: 'new0', subnet: '10.56.0.0/24', gateway: '10.56.0.1' },
];
const BRIDGE_MAC = '02:00:00:00:52:01';
const OPEN_BRIDGE_MAC = '02:00:00:00:52:03';
const NIC_MAC = '02:00:00:00:52:02';
const ROUTER_MAC = '02:00:00:00:53:01';

let stack: Stack;
const run = (command: string): void => {
  execFileSync(requireTool('ip'), command.split(' '));
};

beforeAll(async () => {
  run(`link add given0 address ${BRIDGE_MAC} type bridge`);
  run('addr add 10.52.0.5/24 dev given0');
  run('link add given1 type bridge');
  run('addr add 10.53.0.7/24 dev given1');
  run(`link add given2 address ${OPEN_BRIDGE_MAC} type bridge`);
  for (const name of ['given0', 'given1', 'given2']) run(`link set ${name} up`);
  run('link add nic1 type veth peer name wire1');
  run('link set nic1 master given1 up');
  run('link set wire1 up');
  run(`link add nic0 address ${NIC_MAC} type veth peer name wire0`);
  run('link set nic0 master given0 up');
  run('link set wire0 up');
  run(`neigh add 10.53.0.1 lladdr ${ROUTER_MAC} dev given1`);
  stack = await startStack({ networks: NETWORKS });
  await attach('one', { network: 'edge0' });
  run('addr add 10.51.0.250/24 dev edge0');
});
afterAll(() => stack[Symbol.asyncDispose]());

const requestOf = (id: string, more: Partial<AttachRequest>): AttachRequest => ({
  ...{ id, workload: id, kind: 'vm', network: 'given0' },
  ...more,
});

const attach = (id: string, more: Partial<AttachRequest>) =>
  stack.client.attach(stack.host, requestOf(id, more));

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

describe('an address to send from', () => {
  test.each([
    ['the gateway', '10.51.0.1'],
    ['the network address', '10.51.0.0'],
    ['the broadcast address', '10.51.0.255'],
    ['an address that the host has on the bridge', '10.51.0.250'],
    ['the gateway of IPv6', 'fd51::1'],
    ['the anycast address of routers', 'fd51::'],
  ])('is not %s, though the network excludes it', async (_what, address) => {
    const before = { elements: nftElements(), list: await stack.client.list(stack.host) };
    const filterAddresses = ['10.51.0.7', address];
    await expect(
      stack.client.update(stack.host, { id: 'one', filterAddresses }),
    ).rejects.toMatchObject({
      code: 'ADDRESS_OUT_OF_RANGE',
      details: { path: 'filterAddresses.1', address },
    });
    expect({ elements: nftElements(), list: await stack.client.list(stack.host) }).toEqual(before);
  });

  test('is another that the network excludes', async () => {
    const filterAddresses = ['10.51.0.7', '10.51.0.254', 'fd51::7'];
    const answer = await stack.client.update(stack.host, { id: 'one', filterAddresses });
    expect(answer.attachment.filterAddresses).toEqual(filterAddresses);
    await stack.client.update(stack.host, { id: 'one', filterAddresses: [] });
  });
});

test.each(['10.51.0.255', '255.255.255.255', '224.0.0.1', '0.1.2.3', 'ff02::1', 'fe80::1'])(
  'a port map is not of %s, on which no socket of the host could listen',
  async (hostAddress) => {
    const ports = [{ protocol: 'udp', hostPort: 67, port: 67, hostAddress }] as const;
    await expect(
      stack.client.update(stack.host, { id: 'one', ports: [...ports] }),
    ).rejects.toMatchObject({ code: 'INVALID_REQUEST', details: { path: 'ports.0.hostAddress' } });
  },
);

describe('a MAC that is asked for', () => {
  test.each([
    ['the bridge', { mac: BRIDGE_MAC }, 'given0'],
    ['the bridge, without a filter', { mac: OPEN_BRIDGE_MAC, network: 'free0' }, 'given2'],
    ['a port of another', { mac: NIC_MAC }, 'nic0'],
    ['the gateway beyond', { mac: ROUTER_MAC, network: 'second0' }, 'the gateway 10.53.0.1'],
  ])('is not that of %s', async (_what, asked, holder) => {
    const before = await stack.snapshot();
    const refusal = { code: 'MAC_IN_USE', details: { path: 'mac', holder } };
    await expect(attach('taker', asked)).rejects.toMatchObject(refusal);
    await expect(attach('taker', { ...asked, dryRun: true })).rejects.toMatchObject(refusal);
    expect(await stack.snapshot()).toEqual(before);
  });

  test('is not that of a bridge of ours, also before it is made', async () => {
    await attach('first', { network: 'later0' });
    const { mac } = gatewayOn('later0', { ip4: '10.55.0.1', ip6: '::' });
    await detach('first');
    const refusal = { code: 'MAC_IN_USE', details: { path: 'mac', holder: 'later0' } };
    await expect(attach('taker', { network: 'later0', mac })).rejects.toMatchObject(refusal);
    run('link delete later0');
    await expect(attach('taker', { network: 'later0', mac })).rejects.toMatchObject(refusal);
    expect(ip('link').map(({ ifname }) => ifname)).not.toContain('later0');
  });

  test('may be any other at the first attach of a network, which makes the bridge', async () => {
    const names = () => ip('link').map(({ ifname }) => ifname);
    for (const mac of ['02:00:00:00:56:01', '02:00:00:00:56:02']) {
      // The second time the bridge is gone that the first attach has made.
      expect(names()).not.toContain('new0');
      const asked = { network: 'new0', mac };
      const { lease } = await stack.client.dryRun(stack.host, requestOf('opens', asked));
      expect(lease).toMatchObject({ mac });
      expect(names()).not.toContain('new0');
      const { attachment } = await attach('opens', asked);
      expect(attachment).toMatchObject({ mac, device: { bridge: 'new0' } });
      await detach('opens');
      run('link delete new0');
    }
  });

  test('may be one that the bridge has learned somewhere: the workload has moved here', async () => {
    const mac = '02:00:00:00:52:78';
    execFileSync(requireTool('bridge'), `fdb add ${mac} dev nic1 master dynamic`.split(' '));
    const { attachment } = await attach('moved', { network: 'second0', mac });
    const rows = bridge('fdb', 'show', 'br', 'given1').filter((row) => row['mac'] === mac);
    expect(only(rows)).toMatchObject({ ifname: attachment.device?.name, state: 'static' });
    await detach('moved');
  });
});

test.each([
  ['asked for', { addresses: ['10.52.0.5'], workload: 'asker' }],
  ['reserved', { workload: 'asker' }],
])('an address that the host has on a bridge that was there is refused: %s', async (_how, more) => {
  addNamespace('box');
  const before = await stack.snapshot();
  for (const kind of ['vm', 'container'] as const) {
    const netns = kind === 'container' ? { netns: '/run/netns/box' } : {};
    await expect(attach('taker', { ...more, ...netns, kind })).rejects.toMatchObject({
      code: 'ADDRESS_OUT_OF_RANGE',
      details: { address: '10.52.0.5', device: 'given0' },
    });
  }
  expect(await stack.snapshot()).toEqual(before);
  run('netns delete box');
});
