import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readlinkSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip, only, removeNamespace, type Row } from '../../support/kernel.ts';
import { run } from '../../support/segment.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Containers whose processes end and start again: the path of a request is one process's, the namespace is that of all.

const NETWORKS = ['bridged', 'host-only', 'macvtap'].map((type, n) => ({
  network: type,
  type,
  subnet: `10.8${n}.0.0/24`,
  gateway: `10.8${n}.0.1`,
  ...(type === 'macvtap' ? { parent: 'nic0' } : { ipv6: { subnet: `fd00:8${n}::/64` } }),
}));

const ISOLATED = {
  ...{ network: 'isolated', type: 'isolated', subnet: '10.89.0.0/24' },
  ipv6: { subnet: 'fd00:89::/64' },
};
const HOST = '/proc/self/ns/net';

let stack: Stack;
const started = new Set<ChildProcess>();

/** A process in a network namespace of its own, or in that of another. */
async function start(beside?: ChildProcess): Promise<ChildProcess> {
  const own = beside === undefined ? ['unshare', '-n'] : ['nsenter', `--net=${pathOf(beside)}`];
  const [program, args] = dyingWithParent([...own, 'sleep', '1000']);
  const child = spawn(program, args, { stdio: 'ignore' });
  started.add(child);
  const wanted = beside === undefined ? undefined : readlinkSync(pathOf(beside));
  const host = readlinkSync(HOST);
  await until('it is there', () => {
    const now = existsSync(pathOf(child)) ? readlinkSync(pathOf(child)) : host;
    return wanted === undefined ? now !== host : now === wanted;
  });
  return child;
}

async function end(child: ChildProcess): Promise<void> {
  started.delete(child);
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

const pathOf = ({ pid }: ChildProcess): string => `/proc/${pid}/ns/net`;

/** `eth0` as `ip` sees it from a process, if it is there. */
const eth0Of = (child: ChildProcess): Row | undefined => deviceOf(child, 'eth0');

const bareOfLo = (child: ChildProcess): string[] =>
  (deviceOf(child, 'lo')?.addr_info ?? []).map(({ local }) => local);

function deviceOf(child: ChildProcess, name: string): Row | undefined {
  const command = [`--net=${pathOf(child)}`, requireTool('ip'), '-j', 'addr'];
  const rows = JSON.parse(
    execFileSync(requireTool('nsenter'), command, { encoding: 'utf8' }),
  ) as Row[];
  return rows.find(({ ifname }) => ifname === name);
}

const request = (id: string, network: string, netns: string): AttachRequest => ({
  ...{ id, workload: `c-${id}`, kind: 'container', network, netns },
});
/** In a namespace that the agent makes. */
const madeFor = (id: string): AttachRequest => ({
  ...{ id, workload: `c-${id}`, kind: 'container', network: 'isolated' },
});
const attach = (id: string, network: string, netns: string) =>
  stack.client.attach(stack.host, request(id, network, netns));
const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};
const stateOf = async (id: string): Promise<string> =>
  (await stack.client.get(stack.host, { id })).attachment.state;
const bare = ({ addresses }: Attachment): string[] =>
  addresses.map(({ address }) => address.split('/')[0] ?? '');

beforeAll(async () => {
  run('link add nic0 type veth peer name wire0');
  for (const name of ['nic0', 'wire0']) run(`link set ${name} up`);
  stack = await startStack({ networks: [...NETWORKS, ISOLATED], config: { reconcileSeconds: 1 } });
});
afterAll(() => stack[Symbol.asyncDispose]());
afterEach(async () => {
  for (const child of started) await end(child);
  for (const { id } of (await stack.client.list(stack.host, {})).attachments) await detach(id);
  for (const name of ['box', 'renewed']) {
    if (existsSync(`/run/netns/${name}`)) removeNamespace(name);
  }
});

test('a container keeps what it has when the process of its path ends and others live on', async () => {
  const others: [string, ChildProcess, Attachment][] = [];
  for (const { network } of NETWORKS) {
    const first = await start();
    const { attachment } = await attach(network, network, pathOf(first));
    others.push([network, await start(first), attachment]);
    await end(first);
  }
  // The same under a path that leads to another namespace by now.
  addNamespace('renewed');
  const { attachment } = await attach('renewed', 'macvtap', '/run/netns/renewed');
  const [program, args] = dyingWithParent(['nsenter', '--net=/run/netns/renewed', 'sleep', '1000']);
  const held = spawn(program, args, { stdio: 'ignore' });
  started.add(held);
  const before = readlinkSync(HOST);
  await until('it is inside', () => readlinkSync(pathOf(held)) !== before);
  removeNamespace('renewed');
  addNamespace('renewed');
  others.push(['renewed', held, attachment]);
  // An agent that starts finds them as well.
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  // Reconcile ends what nobody is in; it has looked at the others as often by then.
  const alone = await start();
  await attach('alone', 'macvtap', pathOf(alone));
  const pair = await start();
  await attach('pair', 'bridged', pathOf(pair));
  await end(alone);
  await end(pair);
  await stack.gone('alone');
  await stack.gone('pair');
  for (const [id, child, { mac, addresses }] of others) {
    expect(await stateOf(id)).toBe('attached');
    const found = eth0Of(child);
    expect(found).toMatchObject({ address: mac });
    const own = found?.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`);
    expect(own).toEqual(expect.arrayContaining(addresses.map(({ address }) => address)));
  }
  // It can be taken away, too, though no path leads there.
  for (const [id, child] of others) {
    await detach(id);
    expect(eth0Of(child)).toBeUndefined();
  }
});

test('so does one without an interface, until nobody is left in its namespace', async () => {
  const first = await start();
  const { attachment } = await attach('lone', 'isolated', pathOf(first));
  await attach('ended', 'isolated', pathOf(await start()));
  const made = (await stack.client.attach(stack.host, madeFor('made'))).attachment.netns ?? '';
  const [program, args] = dyingWithParent(['nsenter', `--net=${made}`, 'sleep', '1000']);
  const within = spawn(program, args, { stdio: 'ignore' });
  started.add(within);
  await until('it is inside', () => readlinkSync(pathOf(within)) !== readlinkSync(HOST));
  const other = await start(first);
  for (const child of started) if (![other, within].includes(child)) await end(child);
  removeNamespace('volt-made');
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  await stack.gone('ended');
  expect([await stateOf('lone'), await stateOf('made')]).toEqual(['attached', 'attached']);
  expect(bareOfLo(other)).toEqual(expect.arrayContaining(bare(attachment)));
  // Started again elsewhere it is attached there.
  const second = await start();
  await expect(attach('lone', 'isolated', pathOf(second))).rejects.toMatchObject({
    code: 'ALREADY_ATTACHED',
  });
  await end(other);
  const again = await attach('lone', 'isolated', pathOf(second));
  expect(bare(again.attachment)).toEqual(bare(attachment));
  await end(within);
  await stack.gone('made');
});

describe.each(NETWORKS)('on $network', ({ network }) => {
  test('a container that was started again is attached at once, and has the addresses that it had', async () => {
    const first = await start();
    const { attachment: before } = await attach('again', network, pathOf(first));
    const second = await start();
    const refused = attach('again', network, pathOf(second));
    await expect(refused).rejects.toMatchObject({ code: 'ALREADY_ATTACHED' });
    expect(eth0Of(first)).toMatchObject({ address: before.mac });
    await end(first);
    const { attachment, replayed } = await attach('again', network, pathOf(second));
    expect(replayed).toBe(false);
    expect(bare(attachment)).toEqual(bare(before));
    expect(eth0Of(second)).toMatchObject({ address: before.mac });
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    expect(await attach('again', network, pathOf(second))).toMatchObject({ replayed: true });
    await detach('again');
    expect(eth0Of(second)).toBeUndefined();
  });

  test('so is one whose path is the same, and one that asks for something else is not', async () => {
    addNamespace('box');
    await attach('again', network, '/run/netns/box');
    removeNamespace('box');
    addNamespace('box');
    const other = { ...request('again', network, '/run/netns/box'), ifname: 'eth7' };
    await expect(stack.client.attach(stack.host, other)).rejects.toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
    const { attachment } = await attach('again', network, '/run/netns/box');
    expect(only(ip('-n', 'box', 'link', 'show', 'eth0'))).toMatchObject({
      address: attachment.mac,
    });
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  });
});
