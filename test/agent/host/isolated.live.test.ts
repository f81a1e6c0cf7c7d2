import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { claimFrom } from '../../support/claim.ts';
import { addNamespace, ip, only, removeNamespace } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A namespace for each workload, and no way out of it.

const ISLAND = { network: 'island', type: 'isolated' };
const SUBNET = {
  network: 'sub0',
  type: 'isolated',
  subnet: '10.47.0.0/24',
  ipv6: { subnet: 'fd47::/64' },
};

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: [ISLAND, SUBNET] });
});
afterAll(() => stack[Symbol.asyncDispose]());

const attach = (id: string, more: object = {}) =>
  stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'island',
    ...more,
  });

const namespaces = (): string[] => ip('netns').map(({ name }) => String(name));

const answers = (netns: string, address: string): boolean =>
  spawnSync('ip', ['netns', 'exec', netns, 'ping', '-c', '1', '-W', '1', address]).status === 0;

describe('a container', () => {
  test('gets a namespace in which nothing but lo answers, and which goes with it', async () => {
    const { attachment } = await attach('one');
    expect(attachment).toMatchObject({
      type: 'isolated',
      device: null,
      filter: 'none',
      netns: '/run/netns/volt-one',
      addresses: [],
    });
    expect(namespaces()).toEqual(['volt-one']);
    expect(ip('-n', 'volt-one', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
    expect(only(ip('-n', 'volt-one', 'link')).flags).toContain('UP');
    expect(ip('-n', 'volt-one', 'route')).toEqual([]);
    expect(answers('volt-one', '127.0.0.1')).toBe(true);
    const [, port] = /:(\d+)$/.exec(stack.nats.url) ?? [];
    const toNats = ['netns', 'exec', 'volt-one', 'bash', '-c', `: </dev/tcp/127.0.0.1/${port}`];
    // Its loopback is not the host's.
    expect(spawnSync('ip', toNats).status).not.toBe(0);
    expect((await attach('one')).replayed).toBe(true);
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    await stack.client.detach(stack.host, { id: 'one' });
    await stack.gone('one');
    expect(namespaces()).toEqual([]);
    expect(existsSync('/run/netns/volt-one')).toBe(false);
  });

  test('has its addresses on lo, and none beside them', async () => {
    const { attachment } = await attach('two', { network: 'sub0' });
    const [v4, v6] = attachment.addresses.map(({ address }) => address.split('/')[0] ?? '');
    expect(answers('volt-two', v4 ?? '')).toBe(true);
    expect(answers('volt-two', v6 ?? '')).toBe(true);
    expect(answers('volt-two', '10.47.0.99')).toBe(false);
    await stack.client.detach(stack.host, { id: 'two' });
    await stack.gone('two');
  });

  test('in a namespace of its own choice leaves that as it was, but for lo', async () => {
    addNamespace('given');
    const { attachment } = await attach('three', { network: 'sub0', netns: '/run/netns/given' });
    expect(attachment.netns).toBe('/run/netns/given');
    expect(only(ip('-n', 'given', 'link')).flags).toContain('UP');
    await stack.client.detach(stack.host, { id: 'three' });
    await stack.gone('three');
    expect(namespaces()).toEqual(['given']);
    const addresses = only(ip('-n', 'given', 'addr')).addr_info.map(({ local }) => local);
    expect(addresses).toEqual(['127.0.0.1', '::1']);
    removeNamespace('given');
  });

  test('whose namespace was deleted is found out, and detached all the same', async () => {
    await attach('four');
    removeNamespace('volt-four');
    const { differences } = await stack.client.check(stack.host, { id: 'four' });
    expect(differences).toMatchObject([{ id: 'four', what: 'netns', observed: null }]);
    await stack.client.detach(stack.host, { id: 'four' });
    await stack.gone('four');
  });
});

describe('a VM', () => {
  test('has its TAP inside a namespace, which is claimed over the local socket', async () => {
    const { attachment } = await attach('five', {
      kind: 'vm',
      workload: 'vm-five',
      tap: { queues: 2 },
    });
    expect(attachment).toMatchObject({
      netns: '/run/netns/volt-five',
      device: { type: 'tap', name: 'tap-five', queues: 2 },
    });
    expect(ip('link').map(({ ifname }) => ifname)).toEqual(['lo']);
    const tap = only(ip('-n', 'volt-five', '-d', 'link', 'show', 'tap-five'));
    expect(tap).toMatchObject({
      ifindex: attachment.device?.ifindex,
      ifalias: `volt:five#${attachment.generation}`,
      address: attachment.device?.mac,
    });
    const claimed = await claimFrom(stack.agent, { op: 'claim', id: 'five' });
    expect(claimed.fds).toHaveLength(2);
    for (const fd of claimed.fds) {
      expect(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')).toContain('iff:\ttap-five');
    }
    claimed.close();
    await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    await stack.client.detach(stack.host, { id: 'five' });
    await stack.gone('five');
    expect(namespaces()).toEqual([]);
  });

  test('whose descriptor is still held is out of use at once, and its namespace gone', async () => {
    await attach('six', { kind: 'vm', workload: 'vm-six' });
    const held = await claimFrom(stack.agent, { op: 'claim', id: 'six' });
    expect(held.fds).toHaveLength(1);
    await stack.client.detach(stack.host, { id: 'six' });
    await stack.gone('six');
    expect(namespaces()).toEqual([]);
    expect(() => writeSync(held.fds[0] ?? -1, Buffer.alloc(64))).toThrow('write');
    held.close();
  });
});

test.each([
  ['ports', { ports: [{ protocol: 'tcp', hostPort: 1, port: 1 }] }, 'UNSUPPORTED'],
  ['bandwidth', { bandwidth: { ingressBitsPerSecond: 1_000_000 } }, 'UNSUPPORTED'],
  ['ifname', { netns: '/run/netns/none', ifname: 'eth7' }, 'UNSUPPORTED'],
  ['a namespace that is not there', { netns: '/run/netns/none' }, 'NAMESPACE_NOT_FOUND'],
])('%s is refused, and nothing is left', async (_what, more, code) => {
  const before = await stack.snapshot();
  await expect(attach('no', more)).rejects.toMatchObject({ code });
  expect(await stack.snapshot()).toEqual(before);
});

test('a namespace of that name which somebody else made is not taken', async () => {
  addNamespace('volt-taken');
  await expect(attach('taken')).rejects.toMatchObject({ code: 'INTERFACE_EXISTS' });
  expect(namespaces()).toEqual(['volt-taken']);
  removeNamespace('volt-taken');
});
