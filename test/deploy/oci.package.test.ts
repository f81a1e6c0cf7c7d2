import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { until } from '../support/agent.ts';
import { ip, only } from '../support/kernel.ts';
import { openPage } from '../support/page.ts';
import { type PodmanHost, startPodmanHost } from '../support/podman.ts';
import { type Server, startNats, startRedis } from '../support/servers.ts';
import { runVoltnet } from '../support/voltnet.ts';

// The agent in a container: the commands of docs/oci.md, as they stand there, and what the host sees of it.

const PACKAGES = fileURLToPath(new URL('../../.cache/deb/test/old', import.meta.url));
const CONTAINERFILE = fileURLToPath(new URL('../../deploy/oci/Containerfile', import.meta.url));
const CONTEXT = '/run/volt-test-image';
const RUNTIME = '/run/volt-vmm/network';

const page = openPage('oci.md');
const MACVTAP = /`(--cap-add MKNOD [^`]*)`/.exec(page.text)?.[1] ?? '';
let host: PodmanHost;
let servers: Server[];

beforeAll(async () => {
  host = await startPodmanHost();
  // Where an agent without configuration looks for them; the network is the test's own.
  servers = await Promise.all([
    startNats({ port: 4222 }),
    startRedis({ port: 6379, args: ['--appendonly', 'yes'] }),
  ]);
  mkdirSync(CONTEXT);
  const [deb = ''] = readdirSync(PACKAGES);
  host.shell(`cp ${join(PACKAGES, deb)} ${CONTAINERFILE} ${CONTEXT}`);
});
afterAll(async () => {
  await host[Symbol.asyncDispose]();
  for (const server of servers) await server.stop();
});

const type = (chapter: string, index = 0): string =>
  host.shell(`cd ${CONTEXT}; ${page.commandsOf(chapter, index)}`);

const voltnet = (words: string): string =>
  host.shell(`podman exec volt-network-agent voltnet ${words}`);

const put = (network: object): string =>
  host.shell(
    `echo '${JSON.stringify(network)}' | podman exec --interactive volt-network-agent voltnet network put /dev/stdin`,
  );

const ready = (): Promise<void> =>
  until('the agent serves', () => voltnet('status') !== '', 60_000);

const agentPid = (): string =>
  host.shell("podman inspect --format '{{.State.Pid}}' volt-network-agent").trim();

const ids = (): string[] => {
  const { attachments } = JSON.parse(voltnet('list --json')) as { attachments: { id: string }[] };
  return attachments.map(({ id }) => id).toSorted();
};

const pings = (): string => host.shell('ip netns exec db ping -c 1 -W 5 10.42.0.1');

test('the image is built without systemd and with no machine-id of its own', () => {
  type('Build');
  const found = host.shell(
    'podman run --rm --entrypoint sh volt-network -c "ls /usr/bin/volt-network-agent /etc/machine-id /lib/systemd/systemd 2>&1 || true"',
  );
  expect(found.split('\n').filter((line) => line.startsWith('/'))).toEqual([
    '/usr/bin/volt-network-agent',
  ]);
});

test('a container attached by it has an answer from its gateway', async () => {
  type('Start');
  await ready();
  expect(type('Use', 0)).toContain('nats');
  expect(type('Use', 1)).toMatch(/ 0% packet loss/);
});

test('a TAP is on the host, and a VMM of the host claims it', async () => {
  voltnet('attach --id web --workload vm-web --kind vm --network volt0');
  expect(only(ip('link', 'show', 'tap-web'))).toMatchObject({ master: 'volt0' });
  const words = ['exec', 'web', '--', 'sh', '-c', 'cat /proc/self/fdinfo/$1', 'sh', '{fd}'];
  const { stdout } = await runVoltnet(words, { env: { VOLT_NET_RUNTIME_DIR: RUNTIME } });
  expect(stdout).toContain('iff:\ttap-web');
});

test('the namespace of an isolated network is seen on the host', () => {
  put({ network: 'iso0', type: 'isolated' });
  voltnet('attach --id iso --workload vm-iso --kind vm --network iso0');
  expect(only(ip('-n', 'volt-iso', 'link', 'show', 'tap-iso')).flags).toContain('UP');
  voltnet('attach --id box --workload container-box --kind container --network iso0');
  voltnet('detach box');
});

test('a namespace of a process is entered, and a host-only network forwards', () => {
  put({ network: 'ho0', type: 'host-only', subnet: '10.43.0.0/24', gateway: '10.43.0.1' });
  host.shell(`unshare --net sleep 300 >/dev/null 2>&1 &
    podman exec volt-network-agent voltnet attach --id process --workload container-process \\
      --kind container --network ho0 --netns /proc/$!/ns/net --port 8080:80
    kill $!`);
  expect(host.shell('cat /proc/sys/net/ipv4/ip_forward')).toBe('2\n');
  voltnet('detach process');
});

test('attachments and their traffic outlive the container that has made them', async () => {
  const before = { pid: agentPid(), ids: ids(), links: ip('link').map(({ ifindex }) => ifindex) };
  expect(before.ids).toEqual(['db', 'iso', 'web']);
  host.shell('podman restart volt-network-agent');
  await ready();
  expect(agentPid()).not.toBe(before.pid);
  expect(ids()).toEqual(before.ids);
  expect(ip('link').map(({ ifindex }) => ifindex)).toEqual(before.links);
  pings();
  type('Upgrade');
  pings();
  type('Start');
  await ready();
  expect(ids()).toEqual(before.ids);
  voltnet('check');
  pings();
});

test('macvtap needs the flags that the page names', async () => {
  host.shell('ip link add p0 type veth peer name p1 && ip link set p0 up && ip link set p1 up');
  put({ network: 'lan0', type: 'macvtap', parent: 'p0', subnet: '10.60.0.0/24' });
  const attach = 'attach --id lan --workload vm-lan --kind vm --network lan0';
  expect(() => voltnet(attach)).toThrow(/mknod .*EPERM.*CAP_MKNOD/);
  host.shell('podman rm --force --time 20 volt-network-agent');
  host.shell(page.commandsOf('Start').replace('--cap-drop', `${MACVTAP} --cap-drop`));
  await ready();
  voltnet(attach);
  const words = ['exec', 'lan', '--', 'sh', '-c', 'readlink /proc/self/fd/$1', 'sh', '{fd}'];
  const { stdout } = await runVoltnet(words, { env: { VOLT_NET_RUNTIME_DIR: RUNTIME } });
  expect(stdout).toMatch(/^\/dev\/tap\d+\n$/);
});

test('every command of the page was typed', () => {
  expect(page.untyped()).toEqual([]);
});
