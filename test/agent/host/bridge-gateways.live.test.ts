import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Network, parseNetwork } from '#protocol/network.ts';
import { Kernel } from '#agent/host/kernel.ts';
import {
  bridgedNetworks,
  bridgeTagOf,
  giveGateways,
  reviseBridges,
} from '#agent/host/networks/gateways.ts';
import { DEVICE_GROUP } from '#agent/host/networks/network-type.ts';
import { ip } from '../../support/kernel.ts';

// What a bridge of ours has of gateways, and what its alias says of them, as its network changes.

const NET = parseNetwork({
  network: 'br0',
  subnet: '10.1.0.0/24',
  gateway: '10.1.0.1',
  ipv6: { subnet: 'fd01::/64', gateway: 'fd01::1' },
});
const BOTH = ['10.1.0.1/24', 'fd01::1/64'];
const kernel = new Kernel();

beforeEach(() => {
  const link = kernel.links.createBridge({ name: 'br0', group: DEVICE_GROUP });
  giveGateways(kernel, link, NET);
  kernel.links.createBridge({ name: 'foreign0' });
});
afterEach(() => {
  for (const name of ['br0', 'foreign0']) ip('link', 'delete', name);
});

const link = (): NonNullable<ReturnType<typeof kernel.links.get>> => {
  const found = kernel.links.get('br0');
  if (found === null) throw new Error('no br0');
  return found;
};

const held = (): string[] =>
  kernel.addresses
    .list({ ifindex: link().index })
    .filter(({ ifindex }) => ifindex === link().index)
    .map(({ address }) => address.toString())
    .filter((text) => !text.startsWith('fe80'))
    .toSorted();

const revise = (networks: Network[], letGo: string[] = [], unknown: string[] = []): void =>
  reviseBridges(
    kernel,
    new Map(networks.map((one) => [one.network, one])),
    letGo.map((address) => ({ network: 'br0', address })),
    new Set(unknown),
  );

test('it has them, and says so', () => {
  expect(held()).toEqual(BOTH);
  expect(bridgeTagOf(link())).toEqual({ network: 'br0', gateways: BOTH });
  expect(bridgedNetworks(kernel)).toEqual(['br0']);
  expect(
    kernel.links
      .bridges()
      .map(({ name }) => name)
      .toSorted(),
  ).toEqual(['br0', 'foreign0']);
});

test('those of now take the place of those of before, whoever has forgotten them', () => {
  const moved = { ...NET, gateway: '10.1.0.9' };
  revise([moved]);
  expect(held()).toEqual(['10.1.0.9/24', 'fd01::1/64']);
  expect(bridgeTagOf(link())?.gateways).toEqual(['10.1.0.9/24', 'fd01::1/64']);
  revise([{ ...moved, subnet: '10.1.0.0/16' }]);
  expect(held()).toEqual(['10.1.0.9/16', 'fd01::1/64']);
});

test('what was given before it was said is taken away too', () => {
  // An agent that ended between one step and the next.
  giveGateways(kernel, link(), { ...NET, gateway: '10.1.0.9' });
  ip('addr', 'del', '10.1.0.9/24', 'dev', 'br0');
  expect(bridgeTagOf(link())?.gateways).toContain('10.1.0.9/24');
  revise([NET]);
  expect(held()).toEqual(BOTH);
  expect(bridgeTagOf(link())?.gateways).toEqual(BOTH);
});

test('a network that is gone, or has another bridge, leaves none', () => {
  revise([{ ...NET, bridge: 'br1' }]);
  expect(held()).toEqual([]);
  revise([NET]);
  expect(held()).toEqual(BOTH);
  revise([]);
  expect(held()).toEqual([]);
  expect(bridgeTagOf(link())).toEqual({ network: 'br0', gateways: [] });
});

test('of an unknown one with attachments nothing goes but what has to', () => {
  revise([], [], ['br0']);
  expect(held()).toEqual(BOTH);
  revise([], ['10.1.0.1'], ['br0']);
  expect(held()).toEqual(['fd01::1/64']);
  revise([]);
  expect(held()).toEqual([]);
});

test("somebody else's addresses stay, and what the ledger names goes from a bridge of an earlier agent", () => {
  ip('addr', 'add', '192.0.2.1/32', 'dev', 'br0');
  ip('addr', 'add', '10.1.0.7/24', 'dev', 'br0');
  kernel.links.set(link(), { alias: 'volt:bridge:br0' });
  revise([NET], ['10.1.0.7']);
  expect(held()).toEqual([...BOTH.slice(0, 1), '192.0.2.1/32', ...BOTH.slice(1)]);
});
