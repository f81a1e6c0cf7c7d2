import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { failEachMessage } from '../../support/failing.ts';
import { addNamespace, deviceNames, ip } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// The same life for every type and kind: attached, repeated, compared, listed, kept over agents, detached twice, and
// nothing left. (sriov: test/lab.)

const BOTH = { ipv6: { subnet: 'fd58::/64', gateway: 'fd58::1' } };
const NETWORKS = [
  { network: 'con-br', subnet: '10.58.0.0/24', gateway: '10.58.0.1', ...BOTH },
  { network: 'con-up', subnet: '10.58.1.0/24', uplink: { device: 'up0' }, portIsolation: true },
  {
    network: 'con-ho',
    type: 'host-only',
    subnet: '10.58.2.0/24',
    gateway: '10.58.2.1',
    ipv6: { subnet: 'fd59::/64', gateway: 'fd59::1' },
    nat: { ipv6: true },
  },
  { network: 'con-iso', type: 'isolated', subnet: '10.58.3.0/24' },
  { network: 'con-mv', type: 'macvtap', parent: 'nic0', subnet: '10.58.4.0/24' },
];
const PORTS: AttachRequest['ports'] = [
  { protocol: 'tcp', hostPort: 8058, port: 80 },
  { protocol: 'udp', hostPort: 8058, port: 80 },
];
const BANDWIDTH = { ingressBitsPerSecond: 1e7, egressBitsPerSecond: 2e7 };

const ROWS: readonly [network: string, filter: string, more: Partial<AttachRequest>][] = [
  ['con-br', 'full', { bandwidth: BANDWIDTH }],
  ['con-up', 'full', {}],
  ['con-ho', 'full', { ports: PORTS, bandwidth: BANDWIDTH }],
  ['con-iso', 'none', {}],
  ['con-mv', 'full', {}],
];
const CASES = ROWS.flatMap(([network, filter, more]) =>
  (['vm', 'container'] as const).map((kind) => ({ network, filter, more, kind })),
);

let stack: Stack;

beforeAll(async () => {
  for (const command of [
    'link add up0 type veth peer name wire0',
    'link set wire0 up',
    'link add nic0 type veth peer name wire1',
    'link set nic0 up',
    'link set wire1 up',
  ]) {
    execFileSync('ip', command.split(' '));
  }
  addNamespace('con');
  stack = await startStack({
    networks: NETWORKS.map((network) => ({ ...network, reuseDelaySeconds: 0 })),
  });
});
afterAll(() => stack[Symbol.asyncDispose]());

type Case = (typeof CASES)[number];

/** What an isolated container has is a namespace of its own. */
const requestOf = ({ network, more, kind }: Case, id: string): AttachRequest => ({
  id,
  workload: `${kind}-${id}`,
  kind,
  network,
  ...(kind === 'container' && network !== 'con-iso' && { netns: '/run/netns/con' }),
  ...more,
});

/** What `snapshot` does not show: namespaces, what is inside one, IFBs among the devices, chains of devices. */
const beside = () => ({
  namespaces: ip('netns').map(({ name }) => name),
  inside: ip('-n', 'con', 'link').map(({ ifname }) => ifname),
  devices: deviceNames().toSorted(),
  chains: execFileSync('nft', ['list', 'chains'], { encoding: 'utf8' }).match(/chain port_\d+/g),
});

/** Elements that are there for a bridge, which an agent without attachments on it forgets as it starts. */
const OF_BRIDGES = / (host(local|target)|trusted|isolated|bridges|inside|(pool|own|nat)[46]) /;

async function everything(): Promise<object> {
  const snapshot = await stack.snapshot();
  const elements = snapshot.elements.filter((element) => !OF_BRIDGES.test(element));
  return { ...snapshot, elements, ...beside() };
}

describe.each(CASES)('$kind on $network', (row) => {
  test('is attached, repeated, kept and detached as all are', async () => {
    const { client, host, agent } = stack;
    // The network's own bridge is made by its first attach, and stays.
    await client.attach(host, requestOf(row, 'first'));
    await client.detach(host, { id: 'first' });
    await stack.gone('first');
    const before = await everything();
    const request = requestOf(row, 'con');

    const { attachment, replayed } = await client.attach(host, request);
    expect(replayed).toBe(false);
    const unfiltered = row.network === 'con-mv' && row.kind === 'container';
    expect(attachment.filter).toBe(unfiltered ? 'none' : row.filter);
    const again = { attachment, replayed: true };
    expect(
      await client.attach(host, { ...request, requestId: `other-${row.network}-${row.kind}` }),
    ).toEqual(again);
    await expect(client.attach(host, { ...request, hostname: 'other' })).rejects.toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
    expect((await client.check(host, {})).differences).toEqual([]);
    expect((await client.list(host, {})).attachments).toEqual([attachment]);

    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      await agent.restart(signal);
      await agent.ready();
      expect((await client.check(host, {})).differences).toEqual([]);
      expect(await client.attach(host, request)).toEqual(again);
    }

    expect(await client.detach(host, { id: 'con' })).toMatchObject({ detached: true });
    await stack.gone('con');
    expect(await client.detach(host, { id: 'con' })).toEqual({
      detached: false,
      releasing: false,
    });
    expect(await everything()).toEqual(before);

    const anew = await client.attach(host, request);
    expect(anew.attachment.generation).toBeGreaterThan(attachment.generation);
    await client.detach(host, { id: 'con' });
    await stack.gone('con');
    expect(await everything()).toEqual(before);
  });

  test('leaves nothing, whichever message to the kernel fails', async () => {
    const before = beside();
    await failEachMessage(
      stack,
      (id) => requestOf(row, id),
      () => expect(beside()).toEqual(before),
    );
  });
});
