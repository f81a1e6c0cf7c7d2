import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { startStack, type Stack, VOLT0 } from '../../support/stack.ts';
import { addNamespace, ip, only, removeNamespace } from '../../support/kernel.ts';

// The answers against what `ip` says, and workloads that ping each other.

let stack: Stack;

beforeAll(async () => {
  stack = await startStack();
});
afterAll(() => stack[Symbol.asyncDispose]());

const pings = (namespace: string, to: string): string =>
  execFileSync('ip', ['netns', 'exec', namespace, 'ping', '-c', '1', '-W', '3', to], {
    encoding: 'utf8',
  });

const attachContainer = async (
  id: string,
  netns: string,
  extra: object = {},
): Promise<Attachment> => {
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'volt0',
    netns: `/run/netns/${netns}`,
    ...extra,
  });
  return attachment;
};

const detached = (id: string): Promise<void> => stack.gone(id);

describe('a container', () => {
  test('has exactly what the answer says, inside and outside', async () => {
    addNamespace('c1');
    const attachment = await attachContainer('one', 'c1', { mtu: 1400, labels: { tier: 'db' } });
    const { device } = attachment;
    expect(device).toMatchObject({ type: 'veth', name: 'veth-one-h', mtu: 1400 });
    if (device?.peer === undefined) throw new Error('a veth has a peer');
    const host = only(ip('-d', 'link', 'show', device.name));
    expect(host).toMatchObject({
      ifindex: device.ifindex,
      address: device.mac,
      mtu: 1400,
      master: 'volt0',
      ifalias: `volt:one#${attachment.generation}`,
      linkinfo: { info_kind: 'veth', info_slave_kind: 'bridge' },
    });
    expect(host.flags).toContain('UP');
    const inside = only(ip('-n', 'c1', '-d', 'addr', 'show', 'eth0'));
    expect(inside).toMatchObject({
      ifindex: device.peer.ifindex,
      address: attachment.mac,
      mtu: 1400,
      operstate: 'UP',
    });
    const [own] = attachment.addresses;
    expect(own?.gateway).toBe('10.42.0.1');
    expect(inside.addr_info.map((a) => `${a.local}/${a.prefixlen}`)).toContain(own?.address);
    expect(ip('-n', 'c1', 'route', 'show', 'default')).toMatchObject([
      { gateway: '10.42.0.1', dev: 'eth0' },
    ]);
    const loopback = only(ip('-n', 'c1', 'link', 'show', 'lo'));
    expect(loopback.flags).toContain('UP');
    expect(device.mac.startsWith('fe:')).toBe(true);
    await stack.client.detach(stack.host, { id: 'one' });
    await detached('one');
    expect(ip('-n', 'c1', 'link').map((l) => l['ifname'])).toEqual(['lo']);
    removeNamespace('c1');
  });

  test('pings another container and the gateway, and the bridge keeps its MAC', async () => {
    addNamespace('c2');
    addNamespace('c3');
    const two = await attachContainer('two', 'c2');
    const before = only(ip('link', 'show', 'volt0'));
    const three = await attachContainer('three', 'c3');
    const after = only(ip('link', 'show', 'volt0'));
    expect(after['address']).toBe(before['address']);
    const address = (one: Attachment): string => one.addresses[0]?.address.split('/')[0] ?? '';
    expect(pings('c2', address(three))).toContain('1 received');
    expect(pings('c3', address(two))).toContain('1 received');
    expect(pings('c2', '10.42.0.1')).toContain('1 received');
    for (const id of ['two', 'three']) await stack.client.detach(stack.host, { id });
    await Promise.all([detached('two'), detached('three')]);
    removeNamespace('c2');
    removeNamespace('c3');
  });

  test('is found at once where another had its address before, and announces itself', async () => {
    await stack.client.putNetwork({
      network: 'again0',
      subnet: '10.98.0.0/29',
      gateway: '10.98.0.1',
      ipv6: { subnet: 'fd98::/64', gateway: 'fd98::1' },
      reuseDelaySeconds: 0,
    });
    // A bridge without a port that is up forgets all neighbours by itself.
    addNamespace('keeper');
    await attachContainer('keeper', 'keeper', { network: 'again0' });
    const addresses = ['10.98.0.4', 'fd98::4'];
    for (const netns of ['again1', 'again2']) {
      addNamespace(netns);
      const attachment = await attachContainer(netns, netns, { network: 'again0', addresses });
      for (const address of addresses) {
        execFileSync('ping', ['-c', '1', '-W', '2', address]);
        const [entry] = ip('neigh', 'show', address);
        expect(entry).toMatchObject({ dev: 'again0', lladdr: attachment.mac });
      }
      await stack.client.detach(stack.host, { id: netns });
      await detached(netns);
      expect(addresses.flatMap((address) => ip('neigh', 'show', address))).toEqual([]);
      removeNamespace(netns);
    }
    // Somebody who still has the address of before learns the new MAC without asking.
    execFileSync(
      'ip',
      'neigh replace 10.98.0.4 lladdr 02:00:00:00:00:99 nud stale dev again0'.split(' '),
    );
    addNamespace('again3');
    const { mac } = await attachContainer('again3', 'again3', { network: 'again0', addresses });
    await until('it was announced', () =>
      ip('neigh', 'show', '10.98.0.4').some(({ lladdr }) => lladdr === mac),
    );
    for (const id of ['again3', 'keeper']) {
      await stack.client.detach(stack.host, { id });
      await detached(id);
      removeNamespace(id);
    }
  });

  test('without a namespace leaves its end on the host, down, for the caller to move', async () => {
    const { attachment } = await stack.client.attach(stack.host, {
      id: 'bare',
      workload: 'container-xyz',
      kind: 'container',
      network: 'volt0',
    });
    expect(attachment.device).toMatchObject({ name: 'veth-xyz-h', peer: { name: 'veth-xyz-c' } });
    const peer = only(ip('link', 'show', 'veth-xyz-c'));
    expect(peer).toMatchObject({
      address: attachment.mac,
      ifindex: attachment.device?.peer?.ifindex,
    });
    expect(peer.flags).not.toContain('UP');
    await stack.client.detach(stack.host, { id: 'bare' });
    await detached('bare');
    expect(ip('link').map((l) => l['ifname'])).not.toContain('veth-xyz-c');
  });

  test('detaches when its namespace is gone already', async () => {
    addNamespace('c4');
    await attachContainer('four', 'c4');
    removeNamespace('c4');
    expect(await stack.client.detach(stack.host, { id: 'four' })).toMatchObject({ detached: true });
    await detached('four');
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  });
});

test('a bridge that was there keeps its addresses, MTU and state, whatever its ports have', async () => {
  for (const command of [
    'link add own0 address 02:00:00:00:00:77 type bridge',
    'addr add 10.99.7.1/24 dev own0',
    'link set own0 up',
  ]) {
    execFileSync('ip', command.split(' '));
  }
  await stack.client.putNetwork({ network: 'own0', subnet: '10.99.0.0/24', gateway: '10.99.0.1' });
  const request = {
    id: 'own',
    workload: 'vm-own',
    kind: 'vm',
    network: 'own0',
    mtu: 1300,
  } as const;
  const { attachment } = await stack.client.attach(stack.host, request);
  expect(attachment.device).toMatchObject({ mtu: 1300, bridge: 'own0' });
  const bridge = only(ip('addr', 'show', 'own0'));
  expect(bridge).toMatchObject({ mtu: 1500, address: '02:00:00:00:00:77' });
  expect(bridge['ifalias']).toBeUndefined();
  const ipv4 = bridge.addr_info.filter(({ local }) => local.includes('.'));
  expect(ipv4.map(({ local }) => local)).toEqual(['10.99.7.1']);
  await stack.client.detach(stack.host, { id: 'own' });
  await detached('own');
  expect(only(ip('link', 'show', 'own0'))['mtu']).toBe(1500);
  await stack.client.deleteNetwork('own0');
  // The host hears of it with its next heartbeat.
  const ofBridge = (element: string): boolean => /own0|ff:?fe00:?0*77/.test(element);
  await expect
    .poll(async () => (await stack.snapshot()).elements.filter(ofBridge), { timeout: 20_000 })
    .toEqual([]);
});

describe('a repeated request', () => {
  test('gets the same answer, also under another path of the same namespace', async () => {
    addNamespace('c5');
    const first = await attachContainer('five', 'c5');
    const again = await stack.client.attach(stack.host, {
      id: 'five',
      workload: 'container-five',
      kind: 'container',
      network: 'volt0',
      netns: '/run/../run/netns/c5',
      labels: { other: 'label' },
    });
    expect(again).toEqual({ attachment: first, replayed: true });
    await expect(attachContainer('five', 'c5', { mtu: 1300 })).rejects.toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
    await stack.client.detach(stack.host, { id: 'five' });
    await detached('five');
    removeNamespace('c5');
  });

  test('makes a device anew that somebody deleted, with the same address', async () => {
    addNamespace('c6');
    const first = await attachContainer('six', 'c6');
    execFileSync('ip', ['link', 'delete', first.device?.name ?? '']);
    const again = await attachContainer('six', 'c6');
    expect(again.addresses).toEqual(first.addresses);
    expect(again.generation).toBe(first.generation);
    expect((await stack.client.check(stack.host, { id: 'six' })).inSync).toBe(true);
    await stack.client.detach(stack.host, { id: 'six' });
    await detached('six');
    removeNamespace('c6');
  });

  test('of a detach succeeds, also for what never was', async () => {
    expect(await stack.client.detach(stack.host, { id: 'never' })).toEqual({
      detached: false,
      releasing: false,
    });
  });
});

describe('many at once', () => {
  test('200 containers get 200 addresses and leave nothing', async () => {
    const before = await stack.snapshot();
    const ids = Array.from({ length: 200 }, (_, n) => `many-${n}`);
    const attached = await Promise.all(
      ids.map((id) =>
        stack.client.attach(stack.host, {
          id,
          workload: `container-${id}`,
          kind: 'container',
          network: 'volt0',
        }),
      ),
    );
    const addresses = new Set(attached.map(({ attachment }) => attachment.addresses[0]?.address));
    expect(addresses.size).toBe(200);
    const listed: string[] = [];
    for await (const one of stack.client.listAll(stack.host, { limit: 64 })) listed.push(one.id);
    expect(listed.toSorted()).toEqual(ids.toSorted());
    await Promise.all(ids.map((id) => stack.client.detach(stack.host, { id })));
    await Promise.all(ids.map(detached));
    // Their addresses cool down; nothing else may tell that they ever were.
    const after = await stack.snapshot();
    const { cooling, free, ...rest } = after.usage;
    expect({ ...after, usage: rest }).toEqual({
      ...before,
      usage: { size: 253, used: 0, reserved: 2, suspect: 0 },
    });
    expect((cooling ?? 0) + (free ?? 0)).toBe(251);
  });
});

test('VOLT0 is served by any agent', async () => {
  expect((await stack.client.getNetwork('volt0')).network).toMatchObject(VOLT0);
});
