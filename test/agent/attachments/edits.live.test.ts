import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { heardAfter, heardUntil, stationOf, whoHas, whoHeard } from '../../support/hearing.ts';
import { deviceNames, addNamespace, bridge, ip, only } from '../../support/kernel.ts';
import { markOf, type Station } from '../../support/packets.ts';
import { openContainer, type RawPort } from '../../support/raw-port.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A network is changed while workloads are attached: what is there becomes what it says, without a new attach.

const NET = { network: 'net0', subnet: '10.61.0.0/24', gateway: '10.61.0.1', filter: false };
const FOREIGN = '10.61.0.99';

interface Box {
  readonly answer: Attachment;
  readonly station: Station;
  readonly port: RawPort;
}

const open = new AsyncDisposableStack();
let stack: Stack;
let one: Box;
let two: Box;

beforeAll(async () => {
  stack = open.use(await startStack({ networks: [NET] }));
  one = await attach('one');
  two = await attach('two');
  // A bridge passes nothing until it has seen its ports' carrier.
  await until('the bridge passes frames', () => {
    one.port.send(whoHas(one.station, two.station.ip4));
    return two.port.received().length > 0;
  });
});
afterAll(() => open.disposeAsync());

async function attach(id: string, network = 'net0', addresses?: string[]): Promise<Box> {
  addNamespace(id);
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network,
    netns: `/run/netns/${id}`,
    ...(addresses !== undefined && { addresses }),
  });
  const port = open.use(openContainer(`/run/netns/${id}`));
  return { answer: attachment, station: stationOf(attachment), port };
}

const inSync = (): Promise<void> =>
  until(
    'all is as the network says',
    async () => (await stack.client.check(stack.host, {})).inSync,
  );

/** Changes the network and waits until the host agrees with it. */
async function change(keys: object): Promise<void> {
  const { network, revision } = await stack.client.getNetwork(NET.network);
  await stack.client.putNetwork({ ...network, ...keys, revision });
  await inSync();
}

const attachmentOf = async (id: string): Promise<Attachment> =>
  (await stack.client.get(stack.host, { id })).attachment;

/** Whether the other hears what a workload sends from an address that is not its own. */
async function isHeardAsForeign(): Promise<boolean> {
  const foreign = whoHas({ ...one.station, ip4: FOREIGN }, '10.61.0.200');
  one.port.send(foreign);
  const heard = await heardAfter({ two: two.port }, one);
  return whoHeard([foreign], heard).length > 0;
}

const portOf = ({ answer }: Box): Record<string, unknown> =>
  only(bridge('-d', 'link', 'show', 'dev', answer.device?.name ?? ''));

const entriesOf = ({ answer, station }: Box): string[] =>
  bridge('fdb', 'show', 'dev', answer.device?.name ?? '')
    .filter(({ mac }) => mac === station.mac)
    .flatMap(({ flags }) => (Array.isArray(flags) ? flags.map(String) : []));

const inside = (id: string): string =>
  execFileSync('ip', ['-n', id, 'route'], { encoding: 'utf8' });

test('a filter that is switched on stops what a port sent from a foreign address', async () => {
  expect(await isHeardAsForeign()).toBe(true);
  await change({ filter: true });
  expect(await isHeardAsForeign()).toBe(false);
  expect(await attachmentOf('one')).toMatchObject({
    filter: 'full',
    generation: one.answer.generation,
  });
  expect(portOf(one)).toMatchObject({ learning: false });
  expect(entriesOf(one)).toContain('sticky');
});

test('and lets it again when it is switched off', async () => {
  await change({ filter: false });
  expect(await isHeardAsForeign()).toBe(true);
  expect(await attachmentOf('one')).toMatchObject({ filter: 'none' });
  expect(entriesOf(one)).not.toContain('sticky');
});

test('ports are isolated, and are not any more', async () => {
  await change({ filter: true, portIsolation: true });
  expect(portOf(two)).toMatchObject({ isolated: true });
  await change({ portIsolation: undefined });
  expect(portOf(two)).toMatchObject({ isolated: false });
  const request = whoHas(one.station, two.station.ip4);
  one.port.send(request);
  await heardUntil({ two: two.port }, (all) => all.some((each) => each.includes(markOf(request))));
});

test('routes reach a container, name servers the answer, and nothing else is touched', async () => {
  const { ifindex } = one.answer.device ?? {};
  execFileSync('ip', ['-n', 'one', 'route', 'add', '10.8.0.0/16', 'via', '10.61.0.1']);
  await change({ routes: [{ to: '10.9.0.0/16', via: '10.61.0.1' }] });
  expect(inside('one')).toContain('10.9.0.0/16 via 10.61.0.1');
  const dns = { servers: ['10.61.0.1'] };
  await change({ routes: [{ to: '10.9.0.0/16', via: '10.61.0.2' }], dns });
  expect(inside('one')).toContain('10.9.0.0/16 via 10.61.0.2');
  expect(inside('one')).not.toContain('10.9.0.0/16 via 10.61.0.1');
  expect(inside('one')).toContain('10.8.0.0/16 via 10.61.0.1');
  const { device, ...now } = await attachmentOf('one');
  expect(now).toMatchObject({ dns, routes: [{ to: '10.9.0.0/16', via: '10.61.0.2' }] });
  expect(device?.ifindex).toBe(ifindex);
  await change({ routes: undefined });
  expect(inside('one')).not.toContain('10.9.0.0');
});

test('a check tells of a change that this host has not applied, and it is applied in the end', async () => {
  // What the agent meets there is somebody else's: its port cannot be mended while it is no bridge.
  const { network, revision } = await stack.client.getNetwork('net0');
  // At once: the agent gives a bridge its name back as soon as it hears that it has another.
  const away = ['link set net0 name away0', 'link add net0 type veth peer name net0-peer'];
  execFileSync('ip', ['-batch', '-'], { input: away.join('\n') });
  const put = await stack.client.putNetwork({ ...network, linkLocal: 'any', revision });
  const { differences } = await stack.client.check(stack.host, { id: 'one' });
  expect(differences).toContainEqual({
    id: 'one',
    what: 'network.revision',
    expected: put.revision,
    observed: revision,
  });
  const back = ['link set net0 name net0-other', 'link set away0 name net0', 'link set net0 up'];
  execFileSync('ip', ['-batch', '-'], { input: back.join('\n') });
  await inSync();
});

test('what comes while the network changes is as it is in the end', async () => {
  const { network, revision } = await stack.client.getNetwork('net0');
  const attaching = ['a', 'b', 'c', 'd'].map((id) => attach(id));
  await stack.client.putNetwork({ ...network, dns: { domain: 'late' }, revision });
  await Promise.all(attaching);
  await inSync();
  for (const id of ['a', 'b', 'c', 'd']) {
    expect(await attachmentOf(id)).toMatchObject({ dns: { domain: 'late' } });
  }
});

describe('without leases', () => {
  const EMPTY = {
    network: 'gone0',
    subnet: '10.62.0.0/29',
    gateway: '10.62.0.1',
    reuseDelaySeconds: 0,
  };
  const addresses = (): string[] =>
    ip('-4', 'addr')
      .filter(({ ifname }) => ifname === 'gone0')
      .flatMap(({ addr_info: all }) => (Array.isArray(all) ? all : []))
      .map(({ local }: { local: unknown }) => String(local));

  test('a bridge gets the gateway of now, and the one of before is granted when it is gone', async () => {
    await stack.client.putNetwork(EMPTY);
    await attach('first', 'gone0');
    await stack.client.detach(stack.host, { id: 'first' });
    await stack.gone('first');
    expect(addresses()).toEqual(['10.62.0.1']);
    const { revision } = await stack.client.getNetwork('gone0');
    await stack.client.putNetwork({ ...EMPTY, gateway: '10.62.0.6', revision });
    expect((await stack.client.getNetwork('gone0')).usage).toMatchObject({ cooling: 1 });
    await until('the gateway is another', () => addresses().join() === '10.62.0.6');
    await until('the address is free', async () => {
      return (await stack.client.getNetwork('gone0')).usage.cooling === 0;
    });
    const { answer } = await attach('second', 'gone0', ['10.62.0.1']);
    expect(answer.addresses).toEqual([{ address: '10.62.0.1/29', gateway: '10.62.0.6' }]);
  });

  test('nothing is left of a network that was deleted', async () => {
    await stack.client.detach(stack.host, { id: 'second' });
    await stack.gone('second');
    await stack.client.deleteNetwork('gone0');
    await until('nothing is left', () => !deviceNames().includes('gone0'));
  });
});
