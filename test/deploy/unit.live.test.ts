import { execFileSync } from 'node:child_process';
import { connect, headers, type NatsConnection } from 'nats';
import { existsSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { VoltNetworkClient } from '#protocol/client.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { until } from '../support/agent.ts';
import { addNamespace, ip, removeNamespace } from '../support/kernel.ts';
import { scrape } from '../support/metrics.ts';
import { answers, run as runIp } from '../support/segment.ts';
import { freePort, type Server, startNats, startRedis } from '../support/servers.ts';
import { INSTALLED, startSystemd, type Systemd } from '../support/systemd.ts';
import { requireTool } from '../support/tools.ts';

// The unit as it is installed, under Debian's systemd as PID 1 of namespaces of its own: whatever kind of attachment
// there is can be had, and lost again, with what the unit leaves the agent.

const DEPLOY = new URL('../../deploy', import.meta.url).pathname;
const UNIT = 'volt-network-agent.service';
const DNSMASQ = 'volt-network-dnsmasq@asked.service';
const read = (file: string): string => readFileSync(`${DEPLOY}/systemd/${file}`, 'utf8');
const HOST = 'h1';
const LOG = '/run/agent.log';
const SOCKET = '/run/volt-vmm/network/agent.sock';

const NETWORKS = [
  { network: 'volt0', subnet: '10.42.0.0/24', gateway: '10.42.0.1' },
  { network: 'alone', type: 'isolated' },
  { network: 'inner', type: 'host-only', subnet: '10.49.0.0/24', gateway: '10.49.0.1' },
  {
    network: 'asked',
    subnet: '10.52.0.0/24',
    gateway: '10.52.0.1',
    ipv6: { subnet: 'fd52::/64', gateway: 'fd52::1' },
    dhcp: true,
    dns: { names: true },
  },
  {
    network: 'outer',
    type: 'macvtap',
    parent: 'nic0',
    subnet: '10.60.0.0/24',
    gateway: '10.60.0.1',
  },
];

/** A device that is none of the agent's, and that root may open. */
const FOREIGN = ['/dev/fuse', '/dev/loop-control', '/dev/kmsg'].find((path) => existsSync(path));

const LOGGED = `[Service]
StandardOutput=append:${LOG}
StandardError=append:${LOG}
# systemd starts nothing where this succeeds.
ExecStartPre=sh -c '! (: <${FOREIGN}) 2>/dev/null'
`;

/** What the filter keeps back ends the agent, where the unit itself answers EPERM. */
const STRICT = 'SystemCallErrorNumber=kill\nSystemCallFilter=io_uring_setup io_uring_enter\n';

let systemd: Systemd;
let nats: Server;
let redis: Server;
let metricsPort: number;
let connection: NatsConnection;
let client: VoltNetworkClient;

beforeAll(async () => {
  [nats, redis] = await Promise.all([startNats(), startRedis()]);
  metricsPort = await freePort();
  const config = { nats: { url: nats.url }, redis: { url: redis.url } };
  const wrapper = (program: string) => `#!/bin/sh\nexec ${INSTALLED}/deploy/bin/${program} "$@"\n`;
  systemd = await startSystemd({
    etc: {
      'volt/network/agent.json': JSON.stringify({ ...config, heartbeatSeconds: 1 }),
      'volt/network/environment': [
        `VOLT_NET_HOST=${HOST}`,
        `VOLT_NET_METRICS_LISTEN=127.0.0.1:${metricsPort}\n`,
      ].join('\n'),
    },
    bin: { 'volt-network-agent': wrapper('volt-network-agent'), voltnet: wrapper('voltnet') },
  });
  systemd.put({
    [UNIT]: read(UNIT),
    'volt-network-dnsmasq@.service': read('volt-network-dnsmasq@.service'),
    // A container as its runtime has it: a process in a network of its own, with more rights than the agent.
    'container.service': '[Service]\nPrivateNetwork=yes\nExecStart=sleep 600\n',
    'foreign.service': `[Service]\nType=oneshot\nExecStart=sh -c ': <${FOREIGN}'\n`,
    'web.service': '[Service]\nExecStart=python3 -m http.server 80\n',
  });
  systemd.systemctl('start', 'container.service', 'web.service', 'foreign.service');
  addNamespace('box');
  runIp('link add nic0 type veth peer name wire0');
  runIp('link set nic0 up');
  connection = await connect({ servers: nats.url });
  client = new VoltNetworkClient({ connection, headers });
});
afterAll(async () => {
  await connection.close();
  removeNamespace('box');
  await systemd[Symbol.asyncDispose]();
  await Promise.all([nats.stop(), redis.stop()]);
});

/** Starts the unit with these lines more, and these drop-ins; nobody has been started again or refused before. */
async function start(more: string, ...dropIns: string[]): Promise<void> {
  systemd.systemctl('stop', UNIT);
  rmSync(LOG, { force: true });
  const tighter = ['own-mounts.conf', 'vms-only.conf'].map((name) => [
    `${UNIT}.d/${name}`,
    dropIns.includes(name) ? read(`tighter/${name}`) : '',
  ]);
  systemd.put({ ...Object.fromEntries(tighter), [`${UNIT}.d/zz-test.conf`]: LOGGED + more });
  systemd.systemctl('start', UNIT);
  await ready();
  for (const network of NETWORKS) await client.putNetwork(network);
}

/** Until the agent that systemd says is the main process has both servers. */
const ready = (): Promise<void> =>
  until('the agent serves', async () => {
    const { bytes } = await requestSeqpacket(SOCKET, Buffer.from('{"op":"health"}'));
    const { requests, redis: ledger, session } = JSON.parse(bytes.toString()).health;
    return requests === 'ready' && ledger.state === 'ready' && session.open;
  });

const attach = async (request: Omit<AttachRequest, 'id'>): Promise<Attachment> =>
  (await client.attach(HOST, { id: request.workload, ...request })).attachment;

/** The agent did not have to be started again, but so many times by us, and has met no refusal. */
function nothingWasKeptBack(kills = 0): void {
  expect(systemd.show(UNIT, 'NRestarts')).toBe(String(kills));
  const lines = readFileSync(LOG, 'utf8').trim().split('\n');
  const bad = /EPERM|EACCES|not permitted|denied|"level":(50|60)/i;
  expect(lines.filter((line) => bad.test(line))).toEqual([]);
}

const VM = { kind: 'vm', network: 'volt0' } as const;

/** The id of a process of a unit, as the agent sees it. */
const pidOf = (unit: string): string => systemd.show(unit, 'MainPID');

async function attachVms(): Promise<void> {
  const vm = await attach({ workload: 'vm-a', ...VM, tap: { ownerUid: 4_242 } });
  expect(ip('link', 'show', vm.device?.name ?? '')).toHaveLength(1);
  const port = { protocol: 'tcp', port: 80 } as const;
  await attach({
    workload: 'vm-p',
    kind: 'vm',
    network: 'inner',
    ports: [{ ...port, hostPort: 81 }],
    bandwidth: { ingressBitsPerSecond: 1e6, egressBitsPerSecond: 1e6 },
  });
  const taken = { workload: 'vm-t', kind: 'vm', network: 'inner' } as const;
  const refused = attach({ ...taken, ports: [{ ...port, hostPort: 80 }] });
  await expect(refused).rejects.toMatchObject({ code: 'PORT_IN_USE' });
  await attach({ workload: 'vm-m', kind: 'vm', network: 'outer' });
  const claim = ['voltnet', '--timeout', '5s', 'exec'];
  // The socket is everybody's, whatever the umask: its agent judges who asks.
  const owner = ['setpriv', '--reuid', '4242', '--clear-groups', '--'];
  for (const words of [
    [...owner, ...claim, 'vm-a'],
    [...claim, 'vm-m'],
  ]) {
    const { status, stderr } = systemd.run(...words, '--', 'true');
    expect({ words, status, stderr }).toEqual({ words, status: 0, stderr: '' });
  }
  expect(systemd.run(...owner, ...claim, 'vm-m', '--', 'true').status).toBe(7);
}

async function attachContainers(): Promise<void> {
  // By a link, which takes a process of its own to look up.
  const netns = '/run/container';
  rmSync(netns, { force: true });
  symlinkSync(`/proc/${pidOf('container.service')}/ns/net`, netns);
  const { addresses } = await attach({ workload: 'container-a', ...VM, kind: 'container', netns });
  expect(answers(addresses[0]?.address.split('/')[0] ?? '')).toBe(true);
  const box = '/run/netns/box';
  await attach({ workload: 'container-b', kind: 'container', network: 'inner', netns: box });
  await attach({
    workload: 'container-m',
    kind: 'container',
    network: 'outer',
    netns: box,
    ifname: 'eth1',
  });
  for (const network of ['volt0', 'inner', 'outer']) {
    const dry = { id: 'dry', workload: 'container-d', kind: 'container', network } as const;
    const { operations } = await client.dryRun(HOST, { ...dry, netns: box, ifname: 'eth2' });
    expect(operations.length).toBeGreaterThan(2);
  }
}

async function attachIsolated(): Promise<void> {
  await attach({ workload: 'container-i', kind: 'container', network: 'alone' });
  await attach({ workload: 'vm-i', kind: 'vm', network: 'alone' });
  const names = ip('netns').map(({ name }) => name);
  expect(names).toContain('volt-container-i');
  // What the test sees of it is what every process of the host sees, root or not.
  expect(statSync('/run/netns').mode & 0o777).toBe(0o755);
  runIp('-n volt-container-i link show lo');
}

/** DHCP and names, by a unit that is none of the agent's. */
async function attachAsking(): Promise<void> {
  await attach({
    workload: 'container-q',
    kind: 'container',
    network: 'asked',
    netns: '/run/netns/box',
    ifname: 'eth9',
    hostname: 'q',
  });
  await until('the name is known', isNamed);
  const { stdout: status } = systemd.run('cat', `/proc/${pidOf(DNSMASQ)}/status`);
  const [, uid] = /^Uid:\s+(\d+)/m.exec(status) ?? [];
  expect(Number(uid)).toBeGreaterThan(0);
}

const isNamed = (): boolean =>
  execFileSync(
    requireTool('ip'),
    [
      'netns',
      'exec',
      'box',
      'dig',
      '+short',
      '+time=1',
      '+tries=1',
      '@10.52.0.1',
      'q.asked.internal',
    ],
    { encoding: 'utf8' },
  ).startsWith('10.52.0.');

/** What stands is kept over a stop and a kill of the agent, and goes with its detach. */
async function restartAndDetach(afterwards = (): void => {}): Promise<void> {
  const before = (await client.list(HOST)).attachments;
  systemd.systemctl('restart', UNIT);
  await ready();
  systemd.systemctl('kill', '--signal=KILL', UNIT);
  await until('systemd starts it again', () => systemd.show(UNIT, 'NRestarts') === '1');
  await ready();
  expect(await client.check(HOST)).toMatchObject({ inSync: true });
  expect((await client.list(HOST)).attachments).toEqual(before);
  afterwards();
  await detachAll();
  nothingWasKeptBack(1);
}

async function detachAll(): Promise<void> {
  expect(await scrape(metricsPort)).toContain('volt_network_attachments{');
  for await (const { id } of client.listAll(HOST)) await client.detach(HOST, { id });
  await until('all is gone', async () => (await client.list(HOST)).attachments.length === 0);
  expect(ip('netns').map(({ name }) => name)).toEqual(['box']);
}

/** The mounts that a process of a unit sees. */
const mountsOf = (pid: string): string => systemd.run('readlink', `/proc/${pid}/ns/mnt`).stdout;

test('the unit as it is: every kind of attachment, dry run and restart', async () => {
  await start('');
  await attachVms();
  await attachContainers();
  await attachIsolated();
  await attachAsking();
  expect(mountsOf(pidOf(UNIT))).toBe(mountsOf('1'));
  // Who holds a port is read from /proc of another user's process.
  const port = { protocol: 'tcp', port: 80, hostPort: 80 } as const;
  const refused = attach({ workload: 'vm-t', kind: 'vm', network: 'inner', ports: [port] });
  await expect(refused).rejects.toThrow(pidOf('web.service'));
  const before = pidOf(DNSMASQ);
  // It goes on while there is no agent, and ends with its last workload.
  await restartAndDetach(() => expect(pidOf(DNSMASQ)).toBe(before));
  await until('dnsmasq has ended', () => systemd.show(DNSMASQ, 'ActiveState') === 'inactive');
  await until('its leases are gone', () => !existsSync('/run/volt-network-dnsmasq/asked'));
});

test('a dnsmasq that is killed is back', async () => {
  await start('');
  await attachAsking();
  const before = pidOf(DNSMASQ);
  systemd.systemctl('kill', '--signal=KILL', DNSMASQ);
  await until('another runs', () => !['0', before].includes(pidOf(DNSMASQ)));
  await until('the name is known', isNamed);
  await detachAll();
  nothingWasKeptBack();
});

test('nothing that the filter keeps back is tried, but io_uring, without which libuv goes on', async () => {
  await start(STRICT);
  await attachVms();
  await attachContainers();
  await attachIsolated();
  await attachAsking();
  await detachAll();
  nothingWasKeptBack();
});

// systemd.exec(5), "Mount namespacing"; tried, since what a setting takes differs from release to release.
const OWN_MOUNTS = [
  ...[
    'PrivateTmp',
    'PrivateDevices',
    'PrivateMounts',
    'PrivateIPC',
    'ProtectSystem',
    'ProtectHome',
  ],
  ...['ProtectKernelTunables', 'ProtectKernelModules', 'ProtectKernelLogs', 'ProtectControlGroups'],
];
const FORBIDDEN = [
  ...OWN_MOUNTS.map((name) => `${name}=yes`),
  ...['ProtectProc=invisible', 'ProcSubset=pid', 'ReadOnlyPaths=/usr', 'DynamicUser=yes'],
];

test('what the unit forgoes would give it mounts of its own, which send nothing back', () => {
  const probe = (setting: string) =>
    `[Service]\nType=oneshot\nExecStart=readlink /proc/self/ns/mnt\nStandardOutput=truncate:/run/probe-%i\n${setting}\n`;
  const names = ['', ...FORBIDDEN].map((_, n) => `probe-${n}`);
  systemd.put(
    Object.fromEntries(
      ['', ...FORBIDDEN].map((setting, n) => [
        `probe-${n}.service`,
        probe(setting).replace('%i', String(n)),
      ]),
    ),
  );
  systemd.systemctl('start', ...names);
  const [without, ...own] = names.map((name) => readFileSync(`/run/${name}`, 'utf8'));
  expect(without).toBe(mountsOf('1'));
  expect(FORBIDDEN.filter((_, n) => own[n] === without)).toEqual([]);
  const words = new Set(read(UNIT).match(/[A-Za-z]+/g));
  expect(OWN_MOUNTS.filter((name) => !words.has(name))).toEqual([]);
});

test('own-mounts.conf leaves all that a host without isolated networks has', async () => {
  await start(STRICT, 'own-mounts.conf');
  expect(mountsOf(pidOf(UNIT))).not.toBe(mountsOf('1'));
  await attachVms();
  await attachContainers();
  await restartAndDetach();
});

test('vms-only.conf leaves all that VMs need', async () => {
  await start(STRICT, 'own-mounts.conf', 'vms-only.conf');
  await attachVms();
  await restartAndDetach();
});

test('what a drop-in takes away is refused, and leaves nothing', async () => {
  const isolated = { workload: 'container-i', kind: 'container', network: 'alone' } as const;
  await start('', 'own-mounts.conf');
  await expect(attach(isolated)).rejects.toMatchObject({ code: 'KERNEL_ERROR' });
  await start('', 'own-mounts.conf', 'vms-only.conf');
  const box = { kind: 'container', network: 'inner', netns: '/run/netns/box' } as const;
  const refused = await Promise.allSettled([
    attach(isolated),
    attach({ workload: 'container-b', ...box }),
    client.dryRun(HOST, { id: 'dry', workload: 'vm-d', ...VM }),
  ]);
  const reason = expect.objectContaining({ code: 'KERNEL_ERROR' });
  expect(refused).toEqual(refused.map(() => ({ status: 'rejected', reason })));
  await until('nothing is left', async () => (await client.list(HOST)).attachments.length === 0);
  expect(ip('netns').map(({ name }) => name)).toEqual(['box']);
});
