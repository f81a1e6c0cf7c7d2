import { execFileSync } from 'node:child_process';
import { connect, headers, type NatsConnection } from 'nats';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent, until } from '../../support/agent.ts';
import { bareAddresses, dhclient, dig } from '../../support/asking.ts';
import { attachBox, detachBox } from '../../support/boxes.ts';
import { addNamespace } from '../../support/kernel.ts';
import { type Server, startNats, startRedis } from '../../support/servers.ts';
import { requireTool } from '../../support/tools.ts';

// Names of one network on two hosts, each in a namespace of its own, with one segment between them.

const HOSTS = ['h1', 'h2'] as const;
type Host = (typeof HOSTS)[number];
const NETWORK = {
  network: 'gx0',
  subnet: '10.59.0.0/24',
  gateway: '10.59.0.1',
  ipv6: { subnet: 'fd59::/64', gateway: 'fd59::1' },
  uplink: { device: 'nic0' },
  gatewayMode: 'anycast',
  dhcp: true,
  dns: { names: true },
  reuseDelaySeconds: 0,
};

const open = new AsyncDisposableStack();
let nats: Server;
let redis: Server;
let connection: NatsConnection;
let client: VoltNetworkClient;
const agents = new Map<Host, RunningAgent>();

const run = (words: string): string =>
  execFileSync(requireTool('ip'), words.split(' '), { encoding: 'utf8' });

beforeAll(async () => {
  // The servers are on the segment that each host has its other NIC on.
  run('link add backbone type bridge');
  run('link set backbone up');
  run('addr add 192.0.2.254/24 dev backbone');
  run('link add segment type bridge');
  run('link set segment up');
  const redisArgs = ['--bind', '0.0.0.0', '--protected-mode', 'no'];
  [nats, redis] = await Promise.all([
    startNats({ address: '0.0.0.0' }),
    startRedis({ args: redisArgs }),
  ]);
  open.defer(() => nats.stop());
  open.defer(() => redis.stop());
  for (const [index, host] of HOSTS.entries()) {
    addNamespace(host);
    run(`-n ${host} link set lo up`);
    for (const [nic, to] of [
      ['eth0', 'backbone'],
      ['nic0', 'segment'],
    ]) {
      run(`link add ${host}-${nic} type veth peer name ${nic} netns ${host}`);
      run(`link set ${host}-${nic} master ${to}`);
      run(`link set ${host}-${nic} up`);
      run(`-n ${host} link set ${nic} up`);
    }
    run(`-n ${host} addr add 192.0.2.${index + 1}/24 dev eth0`);
    const servers = {
      nats: { url: `nats://192.0.2.254:${nats.port}` },
      redis: { url: `redis://192.0.2.254:${redis.port}` },
    };
    const agent = await startAgent({
      config: { host, ...servers },
      wrap: [requireTool('ip'), 'netns', 'exec', host],
    });
    open.defer(async () => void (await agent.stop()));
    agents.set(host, agent);
    await agent.ready();
  }
  connection = await connect({ servers: nats.url, maxReconnectAttempts: -1 });
  open.defer(() => connection.close());
  client = new VoltNetworkClient({ connection, headers });
  await client.putNetwork(NETWORK);
});
afterAll(() => open.disposeAsync());

const attach = (host: Host, id: string): Promise<Attachment> =>
  attachBox({ client, host }, id, { network: 'gx0', hostname: id });
const detach = (host: Host, id: string): Promise<void> => detachBox({ client, host }, id);

const lookUp = (asker: string, ...question: string[]): string =>
  dig(asker, '10.59.0.1', ...question);
const nameOf = (asker: string, id: string): string => lookUp(asker, `${id}.gx0.internal`);

const agentOf = (host: Host): RunningAgent => {
  const agent = agents.get(host);
  if (agent === undefined) throw new Error(`no agent of ${host}`);
  return agent;
};

test('a name is known on the other host, in reverse, too, and goes with its workload', async () => {
  await attach('h1', 'one');
  for (let turn = 0; turn < 3; turn += 1) {
    const two = await attach('h2', 'two');
    const [own4 = '', own6 = ''] = bareAddresses(two);
    await until('known on the other host', () => nameOf('one', 'two') === own4);
    await until('of both families', () => lookUp('one', 'two.gx0.internal', 'AAAA') === own6);
    expect(lookUp('one', '-x', own4)).toBe('two.gx0.internal.');
    expect(lookUp('one', '-x', own6)).toBe('two.gx0.internal.');
    expect((await dhclient('two'))?.['fixed-address']).toBe(own4);
    expect((await dhclient('two', 6))?.['iaaddr']).toBe(own6);
    await detach('h2', 'two');
    await until('unknown on the other host', () => nameOf('one', 'two') === '');
    for (const address of [own4, own6]) expect(lookUp('one', '-x', address)).toBe('');
  }
});

test('without Redis names stay, what is detached here goes, and a restart keeps the others', async () => {
  const three = await attach('h2', 'three');
  const [own4 = ''] = bareAddresses(three);
  await attach('h1', 'four');
  await until('known', () => nameOf('one', 'three') === own4 && nameOf('three', 'four') !== '');
  await redis.kill();
  expect(nameOf('one', 'three')).toBe(own4);
  await client.detach('h1', { id: 'four' });
  await until('gone here', () => nameOf('one', 'four') === '');
  await agentOf('h1').restart('SIGKILL');
  expect(nameOf('one', 'three')).toBe(own4);
  process.kill(await pidOfDnsmasq('h1'), 'SIGKILL');
  await until('back, with the names', () => nameOf('one', 'three') === own4);
  expect((await dhclient('one'))?.['host-name']).toBe('"one"');
});

const pidOfDnsmasq = async (host: Host): Promise<number> => {
  const file = `${agentOf(host).runtimeDir}/dnsmasq/gx0/state/pid`;
  return Number(execFileSync('cat', [file], { encoding: 'utf8' }));
};
