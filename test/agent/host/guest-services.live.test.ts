import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, removeNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// DHCP, router advertisements and names, asked for by the clients that guests have.

const NETWORK = {
  network: 'gs0',
  subnet: '10.50.0.0/24',
  gateway: '10.50.0.1',
  ipv6: { subnet: 'fd50::/64', gateway: 'fd50::1' },
  mtu: 1400,
  dhcp: { leaseSeconds: 600, ntp: ['10.50.0.1'] },
  dns: { names: true, domain: 'example.internal', search: ['example.org'] },
  routes: [{ to: '10.9.0.0/16', via: '10.50.0.9' }],
  reuseDelaySeconds: 0,
} as const;

let stack: Stack;
const folder = mkdtempSync(join(tmpdir(), 'volt-test-dhcp-'));

beforeAll(async () => {
  stack = await startStack({ networks: [NETWORK] });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const attach = async (id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> => {
  addNamespace(id);
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'gs0',
    netns: `/run/netns/${id}`,
    hostname: id,
    ...more,
  });
  return attachment;
};

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
  removeNamespace(id);
};

const inside = (id: string, command: readonly string[]): string => {
  const [, ...words] = command;
  const program = requireTool(command[0] ?? '');
  const { stdout, stderr } = spawnSync('ip', ['netns', 'exec', id, program, ...words], {
    encoding: 'utf8',
    timeout: 20_000,
  });
  return stdout + stderr;
};

/** The options of a lease that ISC's client gets, by name; undefined where nobody answers for some seconds. */
function dhclient(id: string, family: 4 | 6 = 4): Record<string, string> | undefined {
  const leases = join(folder, `${id}.${family}.leases`);
  rmSync(leases, { force: true });
  inside(id, [
    'timeout',
    '5',
    requireTool('dhclient'),
    ...[`-${family}`, '-1', '-d', '-lf', leases, '-pf', join(folder, `${id}.pid`)],
    ...['-sf', '/bin/true', 'eth0'],
  ]);
  if (!existsSync(leases)) return undefined;
  const options = [
    ...readFileSync(leases, 'utf8').matchAll(/(?:option |)([a-z0-9.-]+) ([^;{]+)[;{]/g),
  ].map(([, name = '', value = '']) => [name, value.trim()] as const);
  return Object.fromEntries(options);
}

const dig = (id: string, ...question: string[]): string =>
  inside(id, ['dig', '+short', '+time=1', '+tries=2', '@10.50.0.1', ...question]).trim();

const bare = (address = ''): string => address.replace(/\/.*/, '');

const dnsmasqPid = (network: string): number =>
  Number(readFileSync(join(stack.agent.runtimeDir, 'dnsmasq', network, 'state', 'pid'), 'utf8'));

describe('a workload that asks', () => {
  let web: Attachment;
  beforeAll(async () => {
    web = await attach('web');
  });
  afterAll(() => detach('web'));

  test('gets by DHCP what the answer to the attach says', () => {
    const [own4, own6] = web.addresses.map(({ address }) => bare(address));
    expect(dhclient('web')).toMatchObject({
      'fixed-address': own4,
      'subnet-mask': '255.255.255.0',
      routers: '10.50.0.1',
      'dhcp-lease-time': '600',
      'domain-name-servers': '10.50.0.1',
      'domain-name': '"gs0.example.internal"',
      'domain-search': '"gs0.example.internal.", "example.org."',
      'interface-mtu': '1400',
      'ntp-servers': '10.50.0.1',
      'host-name': '"web"',
      'rfc3442-classless-static-routes': '16,10,9,10,50,0,9,0,10,50,0,1',
    });
    expect(dhclient('web', 6)).toMatchObject({
      iaaddr: own6,
      'dhcp6.name-servers': 'fd50::1',
      'dhcp6.domain-search': '"gs0.example.internal.","example.org."',
    });
    expect(web.dns).toEqual({
      servers: ['10.50.0.1', 'fd50::1'],
      search: ['gs0.example.internal', 'example.org'],
      domain: 'gs0.example.internal',
    });
  });

  test('finds others by name, of both families and in reverse', async () => {
    const [own4, own6] = web.addresses.map(({ address }) => bare(address));
    const db = await attach('db');
    const [db4 = '', db6 = ''] = db.addresses.map(({ address }) => bare(address));
    await until('the name is there', () => dig('web', 'db.gs0.example.internal') === db4);
    expect(dig('web', 'db.gs0.example.internal', 'AAAA')).toBe(db6);
    expect(dig('web', '-x', db4)).toBe('db.gs0.example.internal.');
    expect(dig('web', '-x', db6)).toBe('db.gs0.example.internal.');
    expect(dig('db', 'web.gs0.example.internal')).toBe(own4);
    expect(dig('db', 'web.gs0.example.internal', 'AAAA')).toBe(own6);
    expect(dhclient('db')?.['fixed-address']).toBe(db4);
    await detach('db');
    await until('the name is gone', () => dig('web', 'db.gs0.example.internal') === '');
    expect(dig('web', '-x', db4)).toBe('');
  });
});
