import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Network } from '#protocol/network.ts';
import { diagnose, type Finding, observeHost } from '#agent/host/doctor.ts';
import { addNamespace } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// A host whose own rules drop what is forwarded: found, and mended by exactly what is printed.

let stack: Stack;

const run = (command: string): void => {
  execFileSync('sh', ['-c', command], { stdio: 'pipe' });
};

const load = (ruleset: string): void => {
  execFileSync(requireTool('nft'), ['-f', '-'], { input: ruleset });
};

const reaches = (): boolean =>
  spawnSync('ip', ['netns', 'exec', 'box', 'ping', '-c', '1', '-W', '1', '192.0.2.2']).status === 0;

const observed = (networks: readonly Network[] | string = []) =>
  observeHost({ table: 'volt', runtimeDir: stack.agent.runtimeDir, networks });

const problems = () => diagnose(observed()).filter(({ severity }) => severity === 'problem');

beforeAll(async () => {
  stack = await startStack({
    networks: [
      { network: 'doc0', type: 'host-only', subnet: '10.57.0.0/24', gateway: '10.57.0.1' } as {
        network: string;
      },
    ],
  });
  for (const name of ['outside', 'box']) addNamespace(name);
  for (const command of [
    'ip link add up0 type veth peer name eth0 netns outside',
    'ip addr add 192.0.2.1/24 dev up0',
    'ip link set up0 up',
    'ip -n outside addr add 192.0.2.2/24 dev eth0',
    'ip -n outside link set eth0 up',
  ]) {
    run(command);
  }
  await stack.client.attach(stack.host, {
    id: 'box',
    workload: 'container-box',
    kind: 'container',
    network: 'doc0',
    netns: '/run/netns/box',
  });
});
afterAll(() => stack[Symbol.asyncDispose]());

test('a host without rules of others has no problem', () => {
  expect(reaches()).toBe(true);
  expect(problems()).toEqual([]);
});

test('a policy of drop is found, and the printed rules mend it', () => {
  load('table inet own { chain forward { type filter hook forward priority 0; policy drop; }; }');
  expect(reaches()).toBe(false);
  const [found, ...more] = problems();
  expect(more).toEqual([]);
  expect(found).toMatchObject({ subject: 'bridge doc0' });
  for (const command of found?.commands ?? []) run(command);
  expect(reaches()).toBe(true);
  expect(problems()).toEqual([]);
  run('nft delete table inet own');
});

test.each([
  [
    'Docker',
    'table ip filter { chain DOCKER-USER { return; }; chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }; }',
    [
      'iptables -I DOCKER-USER -i doc0 -j ACCEPT',
      'iptables -I DOCKER-USER -o doc0 -m conntrack --ctstate ESTABLISHED,RELATED,DNAT -j ACCEPT',
    ],
  ],
  [
    'ufw',
    'table ip filter { chain ufw-user-forward { }; chain FORWARD { type filter hook forward priority 0; policy drop; jump ufw-user-forward; }; }',
    ['ufw route allow in on doc0', 'ufw route allow out on doc0'],
  ],
  [
    'firewalld',
    'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; reject with icmpx admin-prohibited; }; }',
    ['firewall-cmd --permanent --zone=trusted --add-interface=doc0', 'firewall-cmd --reload'],
  ],
])('%s is found, and told in its own words', (_who, ruleset, commands) => {
  load(ruleset);
  expect(reaches()).toBe(false);
  expect(problems().map((one) => one.commands)).toEqual([commands]);
  const { status, stdout } = spawnSync('deploy/bin/voltnet', ['doctor'], { encoding: 'utf8' });
  expect(status).toBe(8);
  for (const command of commands) expect(stdout).toContain(`    ${command}\n`);
  run(`nft delete table ${ruleset.split(' ').slice(1, 3).join(' ')}`);
});

test('a rule that lets the bridge through counts, also by the beginning of its name', () => {
  load(`table inet own { chain forward { type filter hook forward priority 0; policy drop;
    iifname "doc*" accept
    oifname "doc0" ct state established,related accept
  }; }`);
  expect(reaches()).toBe(true);
  expect(problems()).toEqual([]);
  run('nft delete table inet own');
});

test('rules of others that libnftables cannot put into JSON are looked at like all others', () => {
  load('table inet own { chain forward { type filter hook forward priority 0; policy drop; }; }');
  // 1.0.6 has no JSON of a name that is not UTF-8, and ends the process.
  const rule = 'add rule inet own forward iifname "a\\377" counter accept';
  run(`printf '${rule}' | ${requireTool('nft')} -f -`);
  const listed = spawnSync(requireTool('nft'), ['-j', 'list', 'table', 'inet', 'own']);
  expect(listed.status).not.toBe(0);
  const { status, stdout, stderr } = spawnSync('deploy/bin/voltnet', ['doctor'], {
    encoding: 'utf8',
  });
  expect(stderr).toBe('');
  expect(stdout).toContain('inet own forward drops what is forwarded to and from this bridge');
  expect(status).toBe(8);
  run('nft delete table inet own');
});

test('what cannot be seen or used is said', () => {
  const host = {
    ...observed('NATS is away'),
    kernel: '6.1.0',
    legacyTables: ['filter'],
    tun: false,
  };
  const subjects = diagnose({
    ...host,
    nftables: 'missing',
    forwardedBy: { 4: 'nobody', 6: 'nobody' },
  });
  expect(subjects.map(({ severity, subject }) => `${severity} ${subject}`)).toEqual([
    'problem nftables',
    'advice kernel',
    'problem tun',
    'problem forwarding of IPv4',
    'advice iptables-legacy',
    'ok bridge doc0',
    'advice networks',
  ]);
});

test("an agent's account that cannot be read is told, and the rest is looked at all the same", () => {
  const runtimeDir = mkdtempSync('/run/volt-test-doctor-');
  writeFileSync(`${runtimeDir}/networks.json`, '{"version":1,"netw');
  const found = diagnose(observeHost({ table: 'volt', runtimeDir, networks: [] }));
  expect(found.filter(({ severity }) => severity === 'problem')).toMatchObject([
    { subject: 'networks.json', seen: expect.stringContaining('cannot be read') },
  ]);
  expect(found.map(({ subject }) => subject)).toContain('bridge doc0');
});

describe('of networks', () => {
  const doctor = () =>
    spawnSync('deploy/bin/voltnet', ['doctor', '--json', '--config', stack.agent.configFile], {
      encoding: 'utf8',
    });
  const findings = (): Finding[] => JSON.parse(doctor().stdout).findings;
  const of = (network: string) =>
    findings().filter(({ subject }) => subject === `network ${network}`);

  test('what keeps traffic from passing a bridge that was there is found, and mended by what is printed', async () => {
    run('ip link add own0 type bridge');
    run('ip link set own0 type bridge stp_state 1 forward_delay 400');
    await stack.client.putNetwork({
      network: 'own0',
      subnet: '10.58.0.0/24',
      gateway: '10.58.0.1',
    });
    await stack.client.attach(stack.host, {
      ...{ id: 'own', workload: 'container-own', kind: 'container', network: 'own0' },
    });
    expect(of('own0').map(({ seen }) => seen)).toEqual([
      'bridge own0 is down',
      'bridge own0 has not the gateway 10.58.0.1/24',
      'bridge own0 has spanning tree: for 8000 ms it passes nothing for a new port',
    ]);
    expect(doctor().status).toBe(8);
    for (const { commands } of of('own0')) for (const command of commands) run(command);
    expect(of('own0')).toEqual([]);
    await stack.client.detach(stack.host, { id: 'own' });
    await stack.gone('own');
    await stack.client.deleteNetwork('own0');
  });

  test('a subnet that the host has elsewhere is named, with the device', async () => {
    run('ip addr add 10.59.0.7/16 dev up0');
    await stack.client.putNetwork({ network: 'near', type: 'host-only', subnet: '10.59.1.0/24' });
    await stack.client.putNetwork({
      network: 'away',
      type: 'macvtap',
      parent: 'no-nic',
      subnet: '10.59.2.0/24',
    });
    await stack.client.putNetwork({
      network: 'meant',
      type: 'macvtap',
      parent: 'up0',
      subnet: '10.59.3.0/24',
    });
    expect(of('near')).toMatchObject([
      { severity: 'advice', seen: expect.stringMatching(/10\.59\.1\.0\/24.*up0.*10\.59\.0\.7/) },
    ]);
    expect([...of('away'), ...of('meant')]).toEqual([]);
    expect(doctor().status).toBe(0);
  });
});
