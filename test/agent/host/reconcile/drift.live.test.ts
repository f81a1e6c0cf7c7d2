import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { decode } from '#protocol/envelope.ts';
import { until } from '../../../support/agent.ts';
import {
  disagreements,
  type Foreign,
  makeForeign,
  viewsOf,
} from '../../../support/agreement-of-host.ts';
import { bridge, deviceNames, ip, only } from '../../../support/kernel.ts';
import { startStack, type Stack, VOLT0 } from '../../../support/stack.ts';
import { requireTool } from '../../../support/tools.ts';

// Drift that no event of the kernel tells of is found by comparing, put right, and told; what is others' stays as it is.

const OUR_GROUP = String(0x766f6c74);
const GRACE_MS = 10_000;
const NETWORKS = [
  { ...VOLT0, portIsolation: true },
  { network: 'inner', type: 'host-only', subnet: '10.43.0.0/24', gateway: '10.43.0.1' },
  { network: 'alone', type: 'isolated', subnet: '10.44.0.0/24' },
];

let stack: Stack;
let foreign: Foreign;
let before: unknown;

const run = (tool: string, ...args: string[]): string =>
  execFileSync(requireTool(tool), args, { encoding: 'utf8' });
const tc = (...args: string[]): string => run('tc', ...args);

beforeAll(async () => {
  stack = await startStack({ networks: NETWORKS, config: { reconcileSeconds: 0.5 } });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
});
beforeEach(() => {
  foreign = makeForeign();
  before = foreign.look();
});
afterEach(async () => {
  using _foreign = foreign;
  const { attachments } = await stack.client.list(stack.host, {});
  for (const { id } of attachments) {
    await stack.client.detach(stack.host, { id });
    await stack.gone(id);
  }
  await until('everybody agrees that nothing is left', () => {
    const views = viewsOf(stack);
    return disagreements(views).length === 0 && views.records.size === 0;
  });
  assert.deepEqual(foreign.look(), before);
});

async function attach(id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> {
  const request = { id, workload: `vm-${id}`, kind: 'vm' as const, network: 'volt0', ...more };
  return (await stack.client.attach(stack.host, request)).attachment;
}

/** What the `repaired` events of an attachment say has differed. */
async function repaired(id: string): Promise<string[]> {
  const manager = await stack.connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_EVENTS');
  const found: string[] = [];
  for (let seq = state.first_seq; seq <= state.last_seq; seq += 1) {
    const stored = await manager.streams.getMessage('VOLT_NET_EVENTS', { seq });
    if (!stored.subject.endsWith('.repaired') || stored.header.get('ce-subject') !== id) continue;
    const { differences } = decode(stored.data) as { differences: { what: string }[] };
    found.push(...differences.map(({ what }) => what));
  }
  return found;
}

const LIMITED = { bandwidth: { ingressBitsPerSecond: 8_000_000, egressBitsPerSecond: 16_000_000 } };

const sysctl = (name: string): string => `/proc/sys/net/${name}`;
/** Without what comes with a carrier. */
const portOf = (name: string): unknown =>
  bridge('-d', 'link', 'show', 'dev', name).map((row) => ({ ...row, flags: [], state: null }));
const queuesOf = ({ name, ifindex }: { name: string; ifindex: number }): unknown => {
  const ifb = ip('link', 'show').some(({ ifname }) => ifname === `ifb-${ifindex}`);
  const filter = tc('filter', 'show', 'dev', name, 'ingress').match(/to device (\S+)\)/)?.[1];
  return [
    tc('qdisc', 'show', 'dev', name, 'root').replace(/qdisc tbf \w+:/, ''),
    ifb && tc('qdisc', 'show', 'dev', `ifb-${ifindex}`, 'root').replace(/qdisc tbf \w+:/, ''),
    ifb && only(ip('link', 'show', 'dev', `ifb-${ifindex}`)).flags.includes('UP'),
    filter,
  ];
};

/** MACs that the bridge leads to a device, whoever sends from them. */
const fixedOn = (name: string): string[] =>
  bridge('fdb', 'show', 'dev', name)
    .filter(({ flags }) => flags.includes('sticky'))
    .map(({ mac }) => String(mac));

interface Drift {
  readonly name: string;
  readonly what: string;
  /** The network whose object it is; by default it is the attachment that has it. */
  readonly owner?: string;
  readonly asked: Partial<AttachRequest>;
  readonly broken: (device: { name: string; ifindex: number }) => void;
  /** How what was broken looks. */
  readonly look: (device: { name: string; ifindex: number }) => unknown;
}

const limited = (name: string, what: string, broken: Drift['broken']): Drift => ({
  name,
  what,
  broken,
  asked: LIMITED,
  look: queuesOf,
});
const ofPort = (setting: string, value: string, what: string, asked = {}): Drift => ({
  name: `the port setting ${setting}`,
  what: `device.port.${what}`,
  asked,
  broken: ({ name }) => run('bridge', 'link', 'set', 'dev', name, setting, value),
  look: ({ name }) => portOf(name),
});
const ofSysctl = (
  path: (device: string) => string,
  value: string,
  what: string,
  owner?: string,
): Drift => ({
  name: `the setting ${path('DEVICE')}`,
  what,
  asked: { network: 'inner', ports: [{ protocol: 'tcp', hostPort: 8080, port: 80 }] },
  broken: ({ name }) => writeFileSync(sysctl(path(name)), value),
  look: ({ name }) => run('cat', sysctl(path(name))),
  ...(owner !== undefined && { owner }),
});

const DRIFTS: readonly Drift[] = [
  limited('the limit of what comes', 'bandwidth.ingress', ({ name }) =>
    tc('qdisc', 'del', 'dev', name, 'root'),
  ),
  limited('another limit of what comes', 'bandwidth.ingress', ({ name }) =>
    tc(...`qdisc change dev ${name} root tbf rate 1gbit burst 160000 limit 300000`.split(' ')),
  ),
  limited('the limit of what goes', 'bandwidth.egress', ({ ifindex }) =>
    tc('qdisc', 'del', 'dev', `ifb-${ifindex}`, 'root'),
  ),
  limited('the IFB', 'bandwidth.egress', ({ ifindex }) =>
    run('ip', 'link', 'del', `ifb-${ifindex}`),
  ),
  limited('the IFB being up', 'bandwidth.egress', ({ ifindex }) =>
    run('ip', 'link', 'set', `ifb-${ifindex}`, 'down'),
  ),
  limited('the way to the IFB', 'bandwidth.egress', ({ name }) =>
    tc('qdisc', 'del', 'dev', name, 'clsact'),
  ),
  limited('the rule that leads to the IFB', 'bandwidth.egress', ({ name }) =>
    tc('filter', 'del', 'dev', name, 'ingress'),
  ),
  ofPort('isolated', 'off', 'IFLA_BRPORT_ISOLATED'),
  ofPort('hairpin', 'on', 'IFLA_BRPORT_MODE'),
  ofPort('learning', 'on', 'IFLA_BRPORT_LEARNING'),
  ofPort('flood', 'off', 'IFLA_BRPORT_UNICAST_FLOOD'),
  ofPort('hairpin', 'off', 'IFLA_BRPORT_MODE', {
    network: 'inner',
    ports: [{ protocol: 'tcp', hostPort: 8081, port: 80 }],
  }),
  {
    name: 'the entry for the MAC of the workload',
    what: 'device.forwarding',
    asked: {},
    broken: ({ name }) =>
      run('bridge', 'fdb', 'del', fixedOn(name)[0] ?? '', 'dev', name, 'master'),
    look: ({ name }) => fixedOn(name),
  },
  ofSysctl((name) => `ipv6/conf/${name}/disable_ipv6`, '0', 'device.ipv6.disable_ipv6'),
  ofSysctl(() => 'ipv4/conf/inner/route_localnet', '0', 'bridge.ipv4.route_localnet', 'inner'),
  ofSysctl(() => 'ipv4/ip_forward', '0', 'sysctl net.ipv4.ip_forward', 'inner'),
];

for (const [place, { name, what, asked, broken, look, owner }] of DRIFTS.entries()) {
  test(`${name} that somebody has changed is as before again, and an event tells of it`, async () => {
    const id = `d${place}`;
    const { device } = await attach(id, asked);
    if (device === null) throw new Error('no device');
    const was = look(device);
    // Some drift is mended within milliseconds.
    process.kill(stack.agent.pid, 'SIGSTOP');
    try {
      broken(device);
      expect(look(device)).not.toEqual(was);
    } finally {
      process.kill(stack.agent.pid, 'SIGCONT');
    }
    await until('it is as before', () => {
      expect(look(device)).toEqual(was);
      return true;
    });
    await until('the event is there', async () => (await repaired(owner ?? id)).includes(what));
    // What was broken with it may be mended a moment later.
    await until('all agree', async () => {
      const { inSync, plan } = await stack.client.check(stack.host, {});
      expect({ inSync, plan }).toEqual({ inSync: true, plan: [] });
      expect(disagreements(viewsOf(stack))).toEqual([]);
      return true;
    });
    expect(only(ip('link', 'show', 'dev', device.name))['ifindex']).toBe(device.ifindex);
  });
}

test('the TAP of an isolated VM is made again in the namespace that stands', async () => {
  const { device, netns = '' } = await attach('iso', { network: 'alone' });
  const namespace = netns.split('/').at(-1) ?? '';
  const inode = run('stat', '-L', '-c', '%i', netns);
  run('ip', '-n', namespace, 'link', 'delete', device?.name ?? '');
  await until('it is there', () =>
    ip('-n', namespace, 'link').some(({ ifname }) => ifname === device?.name),
  );
  await until('the event is there', async () => (await repaired('iso')).includes('device'));
  expect(run('stat', '-L', '-c', '%i', netns)).toBe(inode);
  await stack.client.detach(stack.host, { id: 'iso' });
  await stack.gone('iso');
  expect(run('ip', 'netns', 'list')).not.toContain(namespace);
});

test("devices of ours that are nobody's go after a grace: untagged, put away, and another one of an attachment", async () => {
  const { generation, device } = await attach('kept');
  const make = (name: string, group: string, alias?: string): void => {
    run('ip', 'tuntap', 'add', name, 'mode', 'tap');
    run(
      'ip',
      'link',
      'set',
      name,
      'group',
      group,
      ...(alias === undefined ? [] : ['alias', alias]),
    );
  };
  make('untagged0', OUR_GROUP);
  make('vdel4711', String(Number(OUR_GROUP) + 3), 'volt:gone-long-ago#1');
  make('vdel4712', String(Number(OUR_GROUP) + 3));
  make('second0', OUR_GROUP, `volt:kept#${generation}`);
  make('vdel-not-ours', '0');
  const strays = ['untagged0', 'vdel4711', 'vdel4712', 'second0'];
  const since = Date.now();
  await until('they are gone', () => strays.every((name) => !deviceNames().includes(name)));
  expect(Date.now() - since).toBeGreaterThanOrEqual(GRACE_MS - 1_000);
  expect(deviceNames()).toContain('vdel-not-ours');
  expect(deviceNames()).toContain(device?.name);
  run('ip', 'link', 'delete', 'vdel-not-ours');
});

test('a lease of nothing is released after a grace, and one that the ledger has lost is told to it', async () => {
  const cli = (...args: string[]): string =>
    run('redis-cli', '-p', String(stack.redis.port), '--raw', ...args).trim();
  const { addresses } = await attach('lost', { workload: 'vm-web' });
  await attach('stays');
  // The record of one goes while no agent looks, and its device with it.
  const { runtimeDir } = stack.agent;
  const file = join(runtimeDir, 'attachments', 'lost.json');
  const aside = join(stack.agent.stateDir, 'lost.json');
  const key = cli('keys', '*:leases');
  const lease = cli('hget', key, 'stays');
  await stack.agent.kill();
  execFileSync('cp', [file, aside]);
  renameSync(file, `${file}.elsewhere`);
  run('ip', 'link', 'delete', 'tap-web');
  await stack.agent.restart();
  await stack.agent.ready();
  cli('hdel', key, 'stays');
  expect(viewsOf(stack).leases.has('stays')).toBe(false);
  await until('both are as they should be', () => {
    const { leases } = viewsOf(stack);
    return leases.has('stays') && !leases.has('lost');
  });
  expect(JSON.parse(cli('hget', key, 'stays'))).toMatchObject({
    hex: (JSON.parse(lease) as { hex: object }).hex,
  });
  execFileSync('rm', [`${file}.elsewhere`]);
  await until('all agree', () => disagreements(viewsOf(stack)).length === 0);
  // Free for its workload at once.
  const again = await attach('anew', { workload: 'vm-web' });
  expect(again.addresses).toEqual(addresses);
});
