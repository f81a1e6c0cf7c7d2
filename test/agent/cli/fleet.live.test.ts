import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Ledger } from '#ipam-store/ledger.ts';
import { until } from '../../support/agent.ts';
import { type Hosts, startHosts } from '../../support/hosts.ts';
import { type Server, startRedis } from '../../support/servers.ts';
import { VOLT0 } from '../../support/stack.ts';
import { askFor, openLedger } from '../../ipam-store/fixture.ts';

// The commands that look at the whole fleet, as installed, against two agents.

const VOLTNET = fileURLToPath(new URL('../../../deploy/bin/voltnet', import.meta.url));
const ROOT = 'volt:{ledger}';

let redis: Server;
let raw: Redis;
let fleet: Hosts;
let ledger: Ledger;

beforeAll(async () => {
  redis = await startRedis();
  raw = new Redis(redis.url);
  fleet = await startHosts({ hosts: ['h1', 'h2'], config: { redis: { url: redis.url } } });
  ledger = await openLedger(redis.url);
  await fleet.client.putNetwork({ ...VOLT0 });
  for (const host of ['h1', 'h2']) {
    const id = `of-${host}`;
    await fleet.client.attach(host, { id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' });
  }
});
afterAll(async () => {
  await fleet[Symbol.asyncDispose]();
  await ledger.close();
  raw.disconnect();
  await redis.stop();
});

function voltnet(...words: string[]): { status: number | null; stdout: string; stderr: string } {
  const env = { ...process.env, VOLT_NET_NATS_URL: fleet.nats.url, VOLT_NET_HOST: 'h1' };
  return spawnSync(VOLTNET, words, { encoding: 'utf8', env });
}

function json(...words: string[]): { status: number | null; answer: Record<string, unknown> } {
  const { status, stdout } = voltnet('--json', ...words);
  return { status, answer: JSON.parse(stdout) as Record<string, unknown> };
}

test('lease list shows who holds what, on all hosts or one', () => {
  const all = voltnet('lease', 'list', '--network', 'volt0');
  expect(all.status).toBe(0);
  expect(all.stdout).toMatch(
    /^ID +NETWORK +ADDRESSES +MAC +HOST +STATE +AGE\nof-h1 .*\nof-h2 .* h2 +held/,
  );
  const { answer } = json('lease', 'list', '--host', 'h2', '--state', 'held');
  expect(answer['leases']).toMatchObject([{ id: 'of-h2', host: 'h2', state: 'held' }]);
  expect(json('lease', 'list', '--state', 'suspect').answer).toEqual({ leases: [] });
  expect(voltnet('lease', 'list', '--state', 'odd').status).toBe(2);
});

test('list --all-hosts shows labels, which each host is asked for, and filters by them', async () => {
  await fleet.client.update('h1', { id: 'of-h1', labels: { tier: 'web', zone: 'a' } });
  await fleet.client.update('h2', { id: 'of-h2', labels: { tier: 'web' } });
  await until('the list has both', () => {
    const { answer } = json('list', '--all-hosts');
    return (answer['attachments'] as unknown[]).length === 2;
  });
  const plain = json('list', '--all-hosts').answer['attachments'] as object[];
  expect(plain.filter((one) => 'labels' in one)).toEqual([]);
  const shown = voltnet('list', '--all-hosts', '--labels');
  expect(shown).toMatchObject({ status: 0, stderr: '' });
  expect(shown.stdout).toMatch(/^ID .* LABELS\nof-h1 .* tier=web,zone=a\nof-h2 .* tier=web\n$/);
  expect(json('list', '--all-hosts', '--label', 'tier=web', '--label', 'zone=a').answer).toEqual({
    attachments: [
      expect.objectContaining({ id: 'of-h1', host: 'h1', labels: { tier: 'web', zone: 'a' } }),
    ],
    behind: [],
    silent: [],
  });
  expect(json('list', '--label', 'zone=a').answer['attachments']).toMatchObject([{ id: 'of-h1' }]);
  expect(json('list', '--label', 'zone=b').answer['attachments']).toEqual([]);
  expect(voltnet('list', '--labels').stdout).toMatch(/LABELS\nof-h1 .* tier=web,zone=a\n$/);
  expect(voltnet('list', '--all-hosts', '--labels', '--local').status).toBe(2);
  expect(voltnet('list', '--label', 'zone').status).toBe(2);
});

test('a host that does not answer is named, and what it has is shown without labels', async () => {
  await fleet.agent('h2').kill();
  const shown = voltnet('list', '--all-hosts', '--labels');
  expect(shown.status).toBe(0);
  expect(shown.stdout).toMatch(/\nof-h1 .* tier=web,zone=a\nof-h2 .* -\n$/);
  expect(shown.stderr).toContain('h2 did not answer (AGENT_UNAVAILABLE): its labels are not shown');
  const { answer } = json('list', '--all-hosts', '--label', 'tier=web');
  expect(answer).toMatchObject({
    attachments: [{ id: 'of-h1' }],
    silent: [{ host: 'h2', code: 'AGENT_UNAVAILABLE' }],
  });
  await fleet.agent('h2').restart();
  await fleet.agent('h2').ready();
});

test('host list shows who lives, and host forget refuses those', () => {
  const { answer } = json('host', 'list');
  expect(answer).toMatchObject({
    state: 'armed',
    hosts: [
      { host: 'h1', state: 'live', leases: 1 },
      { host: 'h2', state: 'live', leases: 1 },
    ],
  });
  expect(voltnet('host', 'list').stdout).toMatch(
    /^HOST +STATE +LEASES +HEARD\nh1 +live +1 +\S+ ago/,
  );
  const refused = voltnet('host', 'forget', 'h2');
  expect(refused.status).toBe(5);
  expect(refused.stderr).toContain('h2 is alive');
  expect(voltnet('host', 'forget', 'nobody').stdout).toBe('nobody was not known\n');
});

test('network show says how full a network is', () => {
  const { stdout } = voltnet('network', 'show', 'volt0');
  expect(stdout).toMatch(
    /^NETWORK +ADDRESSES +USED +FREE +RESERVED +COOLING +SUSPECT\nvolt0 +253 +2 +249 +2 +0 +0\n$/,
  );
  expect(voltnet('network', 'show', 'none').status).toBe(4);
});

test('ledger check finds nothing in a healthy fleet', () => {
  expect(json('ledger', 'check')).toEqual({
    status: 0,
    answer: {
      inSync: true,
      differences: [],
      checked: ['h1', 'h2'],
      silent: [],
      truncated: false,
    },
  });
});

test('ledger check names damage in Redis, and repairs it when told', async () => {
  await raw.hset(`${ROOT}:net:volt0`, 'mac:02:00:00:00:00:01', 'nobody');
  const found = json('ledger', 'check');
  expect(found).toMatchObject({
    status: 8,
    answer: {
      inSync: false,
      differences: [{ id: 'nobody', what: 'ledger mac stray', repaired: false }],
    },
  });
  expect(json('ledger', 'check', '--repair')).toMatchObject({
    status: 0,
    answer: { inSync: true, differences: [{ id: 'nobody', repaired: true }] },
  });
  expect(json('ledger', 'check').answer).toMatchObject({ inSync: true, differences: [] });
});

test('ledger check ends a lease that its own host has no record of, and no other', async () => {
  const record = await ledger.getNetwork('volt0');
  if (record === null) throw new Error('there is no volt0');
  const machineId = readFileSync('/etc/machine-id', 'utf8').trim();
  const bootId = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  for (const host of ['h1', 'h2']) {
    await ledger.acquire(askFor(record, `leaked-${host}`, { host, machineId, bootId }));
  }
  const leaked = { what: 'record', expected: null };
  expect(json('ledger', 'check')).toMatchObject({
    status: 8,
    answer: {
      differences: [
        { ...leaked, id: 'leaked-h1', host: 'h1', repaired: false },
        { ...leaked, id: 'leaked-h2', host: 'h2', repaired: false },
      ],
    },
  });
  await fleet.agent('h2').kill();
  await until('h2 is suspect', () => voltnet('host', 'list').stdout.includes('suspect'));
  const repaired = json('ledger', 'check', '--repair');
  expect(repaired).toMatchObject({
    status: 8,
    answer: { differences: [{ id: 'leaked-h1', repaired: true }], silent: ['h2'] },
  });
  expect(await ledger.getLease('leaked-h1')).toBeNull();
  expect(await ledger.getLease('leaked-h2')).not.toBeNull();
  expect(voltnet('lease', 'list', '--state', 'suspect').stdout).toMatch(/leaked-h2 .*\nof-h2 /);
  expect(voltnet('host', 'forget', 'h2').stdout).toBe('h2 forgotten, 2 leases ended\n');
});

test('ledger check leaves a lease that is kept over a reboot', async () => {
  const record = await ledger.getNetwork('volt0');
  if (record === null) throw new Error('there is no volt0');
  const machineId = readFileSync('/etc/machine-id', 'utf8').trim();
  await ledger.acquire(askFor(record, 'rebooted', { host: 'h1', machineId, bootId: 'before' }));
  expect(json('ledger', 'check', '--repair')).toMatchObject({
    status: 8,
    answer: { inSync: false, differences: [{ id: 'rebooted', what: 'record', repaired: false }] },
  });
  expect(await ledger.getLease('rebooted')).not.toBeNull();
});
