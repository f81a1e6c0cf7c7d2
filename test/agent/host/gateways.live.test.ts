import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Ledger, NetworkRecord } from '#ipam-store/ledger.ts';
import { parseNetwork } from '#protocol/network.ts';
import { askFor, bare, openLedger, owned, ROOT } from '../../ipam-store/fixture.ts';
import { fleetOf, type Member } from '../../ipam-store/member.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, ip } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A network's gateway is another while a host has a bridge of it, and no workload: nobody is given an address that the
// host's bridge has, whatever became of the host or of the ledger meanwhile, and in the end the bridge has the gateway of
// now and no other.

const NET = { network: 'gw0', subnet: '10.62.0.0/29', gateway: '10.62.0.1', reuseDelaySeconds: 0 };

let open: AsyncDisposableStack;
let stack: Stack;
let ledger: Ledger;
let raw: Redis;
let other: Member;
let tries = 0;

beforeEach(async () => {
  open = new AsyncDisposableStack();
  stack = open.use(await startStack({ config: { suspectAfterSeconds: 3 } }));
  ledger = await openLedger(stack.redis.url);
  open.defer(() => ledger.close());
  raw = new Redis(stack.redis.url);
  open.defer(() => raw.disconnect());
  const [member] = await fleetOf(ledger, ['h9']);
  if (member === undefined) throw new Error('no member');
  other = member;
  // Another host lives meanwhile, and has nothing of the network.
  const living = setInterval(() => void turn().catch(() => {}), 300);
  open.defer(() => clearInterval(living));
  await useBridge();
});
afterEach(async () => {
  await open.disposeAsync();
  for (const { ifname } of ip('link')) {
    if (typeof ifname === 'string' && /^(gw0|next0|volt0)$/.test(ifname))
      ip('link', 'delete', ifname);
  }
});

async function turn(): Promise<void> {
  await other.turn({ suspectAfterSeconds: 3 });
  await other.beat({ applied: other.seen.revision, suspectAfterSeconds: 3 });
}

/** The host has had a workload of the network. */
async function useBridge(): Promise<void> {
  tries += 1;
  const id = `first${tries}`;
  addNamespace(id);
  await stack.client.putNetwork(NET);
  const netns = `/run/netns/${id}`;
  await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'gw0',
    netns,
  });
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
  expect(onBridge()).toEqual(['10.62.0.1/29']);
}

/** Empty where there is no bridge. */
const onBridge = (name = 'gw0'): string[] =>
  ip('-4', 'addr')
    .filter(({ ifname }) => ifname === name)
    .flatMap(({ addr_info: all }) => (Array.isArray(all) ? all : []))
    .map(({ local, prefixlen }: { local: string; prefixlen: number }) => `${local}/${prefixlen}`);

async function change(keys: object, name = 'gw0'): Promise<NetworkRecord> {
  const before = await ledger.getNetwork(name);
  return ledger.putNetwork(parseNetwork({ ...NET, ...keys }), before?.revision);
}

/** All that is granted now, and given back; none of it is on the host's bridge. */
async function granted(name = 'gw0'): Promise<string[]> {
  const record = await ledger.getNetwork(name);
  if (record === null) return [];
  const given: string[] = [];
  for (;;) {
    tries += 1;
    const ask = { ...askFor(record, `t${tries}`, { host: 'h9' }) };
    const lease = await ledger.acquire(ask).then(
      (one) => one.lease,
      () => undefined,
    );
    if (lease === undefined) break;
    given.push(bare(lease));
    expect(onBridge().map((one) => one.replace(/\/.*/, ''))).not.toContain(bare(lease));
  }
  for (const lease of (await ledger.listLeases({ network: name })).leases) {
    await ledger.release({ ...owned(lease), cool: false });
  }
  return given;
}

async function endsWith(addresses: readonly string[], free: number, name = 'gw0'): Promise<void> {
  await until('all but the gateway is free, and nothing else is on the bridge', async () => {
    const given = await granted(name);
    return given.length === free && onBridge().join() === addresses.join();
  });
}

async function repairAll(): Promise<string[]> {
  const found: string[] = [];
  for await (const difference of ledger.audit()) {
    found.push(difference.what);
    await ledger.repair(difference).catch(() => {}); // The next round sees it again.
  }
  return found;
}

async function forgotten(): Promise<void> {
  await stack.agent.kill();
  await until('the host is forgotten', async () => (await ledger.forgetHost('h1')).forgotten);
}

test('it is another, and the one of before, and another, at once', async () => {
  for (let round = 0; round < 4; round += 1) {
    await change({ gateway: '10.62.0.6' });
    await sleep(round * 40);
    await change({});
    if (round % 2 === 1) await change({ gateway: '10.62.0.5' });
    if (round % 2 === 1) await change({});
    await endsWith(['10.62.0.1/29'], 5);
  }
});

test('the definition vanishes, and is put with another', async () => {
  await raw.del(`${ROOT}:net:gw0`);
  await expect(change({ gateway: '10.62.0.6' })).rejects.toMatchObject({ code: 'RECOVERING' });
  await until('the hosts have said what it was', async () => {
    await repairAll();
    return (await ledger.getNetwork('gw0').catch(() => null)) !== null;
  });
  await until('it is put', async () => {
    await change({ gateway: '10.62.0.6' });
    return true;
  });
  await until('it is looked for', async () => (await repairAll()).length === 0);
  await endsWith(['10.62.0.6/29'], 5);
});

test('the subnet is another while the host is away, and forgotten; then it is back', async () => {
  await forgotten();
  await change({ subnet: '10.63.0.0/29', gateway: '10.63.0.1' });
  await ledger.putNetwork(parseNetwork({ ...NET, network: 'next0', gateway: '10.62.0.6' }));
  await stack.agent.restart();
  await stack.agent.ready();
  await until('the bridge has the gateway of now', () => onBridge().join() === '10.63.0.1/29');
  await endsWith(['10.63.0.1/29'], 5);
  await endsWith(['10.63.0.1/29'], 5, 'next0');
});

test('the host is forgotten, and is back before the gateway is another', async () => {
  await forgotten();
  await change({ gateway: '10.62.0.6' });
  await change({});
  await stack.agent.restart();
  await stack.agent.ready();
  await until('the host agrees', () => onBridge().join() === '10.62.0.1/29');
  await change({ gateway: '10.62.0.6' });
  await endsWith(['10.62.0.6/29'], 5);
});

test('the network goes while the host is away, and forgotten', async () => {
  await forgotten();
  await ledger.deleteNetwork('gw0');
  await stack.agent.restart();
  await stack.agent.ready();
  await until('the bridge is gone', () => !deviceNames().includes('gw0'));
});

test('all data is lost, and the network is put with another gateway while the host is away', async () => {
  await stack.agent.kill();
  await raw.flushall();
  await until('the other host goes on', async () => {
    await other.turn({ newFleet: true, suspectAfterSeconds: 3 });
    await ledger.forgetHost('h1');
    await change({ gateway: '10.62.0.6' });
    return true;
  });
  await stack.agent.restart();
  await stack.agent.ready();
  const now = await ledger.getNetwork('gw0');
  const gateway = `${now?.network.gateway}/29`;
  await until('the bridge has what the ledger says', () => onBridge().join() === gateway);
  await endsWith([gateway], 5);
});
