import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, ip, removeNamespace } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// `voltnet host clean`: what nobody needs, and at the end everything.

const VOLTNET = new URL('../../../deploy/bin/voltnet', import.meta.url).pathname;

const NETWORKS = [
  { network: 'unused0', subnet: '10.73.0.0/24', gateway: '10.73.0.1' },
  { network: 'used0', type: 'host-only', subnet: '10.74.0.0/24', gateway: '10.74.0.1' },
  { network: 'up0', subnet: '10.75.0.0/24', uplink: { device: 'nic0' } },
];

let stack: Stack;
beforeEach(async () => {
  writeFileSync('/proc/sys/net/ipv4/ip_forward', '0');
  execFileSync('ip', 'link add nic0 type veth peer name wire0'.split(' '));
  stack = await startStack({ networks: NETWORKS });
  for (const network of ['unused0', 'used0', 'up0']) {
    const request = { id: network, workload: `vm-${network}`, kind: 'vm', network } as const;
    await stack.client.attach(stack.host, request);
  }
  await stack.client.detach(stack.host, { id: 'unused0' });
  await stack.gone('unused0');
});
afterEach(async () => {
  await stack[Symbol.asyncDispose]();
  // Attachments outlive their agent, and the next test's are of the same names.
  for (const name of deviceNames()) {
    if (!['lo', 'wire0'].includes(name)) execFileSync('ip', ['link', 'delete', name]);
  }
});

const voltnet = (...words: string[]) => {
  const { runtimeDir, configFile } = stack.agent;
  const env = { ...process.env, VOLT_NET_RUNTIME_DIR: runtimeDir };
  const { status, stdout, stderr } = spawnSync(
    VOLTNET,
    ['--config', configFile, '--json', 'host', 'clean', ...words],
    { env, encoding: 'utf8' },
  );
  return { status, stderr, answer: stdout === '' ? undefined : (JSON.parse(stdout) as object) };
};

const tables = (): string =>
  execFileSync(requireTool('nft'), ['list', 'tables'], { encoding: 'utf8' });

test('networks that nobody is attached to go, and come again with an attach', async () => {
  expect(voltnet()).toMatchObject({ status: 0, answer: { networks: ['unused0'] } });
  expect(deviceNames()).not.toContain('unused0');
  expect(deviceNames()).toEqual(expect.arrayContaining(['used0', 'up0']));
  await stack.client.attach(stack.host, {
    ...{ id: 'again', workload: 'vm-again', kind: 'vm', network: 'unused0' },
  });
  expect(deviceNames()).toContain('unused0');
});

test('everything goes from a host whose agent is stopped, and not before', async () => {
  addNamespace('box');
  await stack.client.attach(stack.host, {
    ...{ id: 'box', workload: 'container-box', kind: 'container', network: 'used0' },
    netns: '/run/netns/box',
  });
  expect(voltnet('--all')).toMatchObject({ status: 5 });
  await stack.agent.kill();
  expect(voltnet('--all')).toMatchObject({ status: 0, answer: { attachments: 3 } });
  await until('nothing is left', () => deviceNames().toSorted().join() === 'lo,nic0,wire0');
  expect(ip('-n', 'box', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
  expect(ip('link', 'show', 'nic0')[0]?.['master']).toBeUndefined();
  expect(readFileSync('/proc/sys/net/ipv4/ip_forward', 'utf8').trim()).toBe('0');
  expect(tables()).not.toContain('volt');
  removeNamespace('box');
});

test('everything goes where somebody has put a rule into our tables that libnftables cannot list', async () => {
  await stack.agent.kill();
  // 1.0.6 has no JSON of a name that is not UTF-8, and ends the process.
  const rule = 'add rule inet volt forward iifname "a\\377" counter';
  execFileSync('sh', ['-c', `printf '${rule}' | ${requireTool('nft')} -f -`]);
  expect(voltnet('--all')).toMatchObject({ status: 0, answer: { attachments: 2 } });
  expect(tables()).not.toContain('volt');
  // Once more, with nothing left.
  expect(voltnet('--all')).toMatchObject({ status: 0, answer: { attachments: 0 } });
});
