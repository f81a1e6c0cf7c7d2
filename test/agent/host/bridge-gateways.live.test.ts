import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Network, parseNetwork } from '#protocol/network.ts';
import { createLog } from '#agent/log.ts';
import { Applied } from '#agent/host/bridges/applied.ts';
import { Bridges } from '#agent/host/bridges/bridges.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { Forwarding } from '#agent/host/networks/forwarding.ts';
import { bridgedNeeds } from '#agent/host/networks/bridged.ts';
import { ip } from '../../support/kernel.ts';
import { bridgeTag, bridgeTagOf } from '#agent/host/ownership.ts';

// What a bridge of ours has of gateways, and what its alias says of them, as its network changes.

const NET = parseNetwork({
  network: 'br0',
  subnet: '10.1.0.0/24',
  gateway: '10.1.0.1',
  ipv6: { subnet: 'fd01::/64', gateway: 'fd01::1' },
});
const BOTH = ['10.1.0.1/24', 'fd01::1/64'];
const kernel = new Kernel();
const log = createLog('silent', 'h1');

/** Networks with attachments here. */
const inUse = new Set<string>();

/** Another agent each time, which knows what the one before has written. */
let applied: Applied;
const firewall = new Firewall({ log, table: 'volt' });
const agent = (): Bridges =>
  new Bridges({
    host: 'h1',
    kernel,
    firewall,
    forwarding: new Forwarding({ kernel, firewall, log }),
    applied,
    needsOf: bridgedNeeds,
    inUse: () => inUse,
    attached: () => inUse,
    log,
  });

beforeEach(() => {
  applied = new Applied({ runtimeDir: undefined, log });
  inUse.clear();
  attach(NET);
  kernel.links.createBridge({ name: 'foreign0' });
});
afterEach(() => {
  for (const { ifname } of ip('link')) {
    if (/^(br0|br1|foreign0)$/.test(String(ifname))) ip('link', 'delete', String(ifname));
  }
});

/** What an attach makes of a network. */
function attach(network: Network): void {
  const bridges = agent();
  bridges.ensure(network, bridges.look(network));
}

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
  agent().revise(
    new Map(networks.map((one) => [one.network, one])),
    letGo.map((address) => ({ network: 'br0', address })),
    new Set(unknown),
  );

test('it has them, and says so', () => {
  expect(held()).toEqual(BOTH);
  expect(bridgeTagOf(link())).toEqual({ network: 'br0', gateways: BOTH });
  expect(agent().names).toEqual(['br0']);
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
  kernel.links.set(link(), {
    alias: bridgeTag({ network: 'br0', gateways: [...BOTH, '10.1.0.9/24', '10.1.0.8/24'] }),
  });
  ip('addr', 'add', '10.1.0.9/24', 'dev', 'br0');
  revise([NET]);
  expect(held()).toEqual(BOTH);
  expect(bridgeTagOf(link())?.gateways).toEqual(BOTH);
});

test('a network that is gone leaves nothing, and one that has another bridge leaves the old one', () => {
  revise([{ ...NET, bridge: 'br1' }]);
  expect(kernel.links.get('br0')).toBeNull();
  // Nobody is attached: the new one is made with the first attach.
  expect(agent().names).toEqual([]);
  attach({ ...NET, bridge: 'br1' });
  inUse.add('br0');
  revise([NET]);
  expect(kernel.links.get('br1')).toBeNull();
  expect(held()).toEqual(BOTH);
  inUse.clear();
  revise([]);
  expect(kernel.links.bridges().map(({ name }) => name)).toEqual(['foreign0']);
});

test('of an unknown one with attachments nothing goes but what has to', () => {
  revise([], [], ['br0']);
  expect(held()).toEqual(BOTH);
  revise([], ['10.1.0.1'], ['br0']);
  expect(held()).toEqual(['fd01::1/64']);
});

test("somebody else's addresses stay, and what the ledger names goes from a bridge of an earlier agent", () => {
  ip('addr', 'add', '192.0.2.1/32', 'dev', 'br0');
  ip('addr', 'add', '10.1.0.7/24', 'dev', 'br0');
  kernel.links.set(link(), { alias: 'volt:bridge:br0' });
  revise([NET], ['10.1.0.7']);
  expect(held()).toEqual([...BOTH.slice(0, 1), '192.0.2.1/32', ...BOTH.slice(1)]);
});
