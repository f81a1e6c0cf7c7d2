import { execFileSync, spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import type { Condition } from '#protocol/conditions.ts';
import { decode } from '#protocol/envelope.ts';
import { until } from '../../../support/agent.ts';
import {
  addNamespace,
  deviceNames,
  ip,
  nftElements,
  only,
  removeNamespace,
  type Row,
} from '../../../support/kernel.ts';
import { startStack, type Stack } from '../../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../../support/tools.ts';

// What somebody breaks by hand, or a reboot takes away, is as before again by itself. iproute2 and nft look.

const GRACE_MS = 10_000;
let stack: Stack;

const run = (...args: string[]): void => {
  execFileSync(requireTool('ip'), args);
};

beforeAll(async () => {
  stack = await startStack({ config: { reconcileSeconds: 1 } });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
});
afterEach(async () => {
  const { attachments } = await stack.client.list(stack.host, {});
  for (const { id } of attachments) {
    await stack.client.detach(stack.host, { id });
    await stack.gone(id);
  }
});

async function attach(id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> {
  const request = { id, workload: `vm-${id}`, kind: 'vm' as const, network: 'volt0', ...more };
  return (await stack.client.attach(stack.host, request)).attachment;
}

const linkOf = (name: string): Row => only(ip('-d', 'link', 'show', 'dev', name));

/** What of a device must be as it was; counters, carrier and a new index are not. */
function shapeOf(name: string): object {
  const link = linkOf(name);
  const { ifname, mtu, address, ifalias, master, group, linkinfo } = link;
  const { info_kind, info_data } = linkinfo as { info_kind: string; info_data: object };
  const port = (linkinfo as { info_slave_data?: Record<string, unknown> }).info_slave_data;
  return {
    ...{ ifname, mtu, address, ifalias, master, group, info_kind, info_data },
    up: link.flags.includes('UP'),
    isolated: port?.['isolated'],
    groupForwarding: port?.['group_fwd_mask'],
  };
}

/** Everything that belongs to nobody here. */
const foreign = (): unknown[] => ip('link', 'show', 'dev', 'foreign0');

interface Told {
  readonly subject: string;
  readonly body: Readonly<Record<string, unknown>>;
}

async function told(type: string, id: string): Promise<Told[]> {
  const manager = await stack.connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_EVENTS');
  const found: Told[] = [];
  for (let seq = state.first_seq; seq <= state.last_seq; seq += 1) {
    const stored = await manager.streams.getMessage('VOLT_NET_EVENTS', { seq });
    const subject = stored.header.get('ce-subject');
    if (!stored.subject.endsWith(`.${type}`) || subject !== id) continue;
    found.push({ subject, body: decode(stored.data) as Told['body'] });
  }
  return found;
}

const inSync = async (): Promise<void> =>
  until('records, kernel and ledger agree', async () => {
    const { inSync: agreed } = await stack.client.check(stack.host, {});
    return agreed;
  });

describe("a VM's device", () => {
  const breakages: [name: string, what: string, broken: (name: string) => void][] = [
    ['deleted', 'device', (name) => run('link', 'delete', name)],
    ['renamed', 'device.name', (name) => run('link', 'set', name, 'name', 'elsewhere')],
    ['down', 'device.up', (name) => run('link', 'set', name, 'down')],
    ['out of its bridge', 'device.bridge', (name) => run('link', 'set', name, 'nomaster')],
    [
      'with another MAC',
      'device.mac',
      (name) => run('link', 'set', name, 'address', '02:11:22:33:44:55'),
    ],
    ['with another MTU', 'device.mtu', (name) => run('link', 'set', name, 'mtu', '1300')],
    ['in another group', 'device.group', (name) => run('link', 'set', name, 'group', '7')],
    ['without its bridge', 'device', () => run('link', 'delete', 'volt0')],
  ];
  for (const [name, what, broken] of breakages) {
    test(`${name} is as before again, and an event tells of it`, async () => {
      run('link', 'add', 'foreign0', 'type', 'bridge');
      try {
        const id = `r-${name.replaceAll(' ', '-').toLowerCase()}`;
        const { device, generation } = await attach(id, { workload: 'vm-web' });
        const before = shapeOf(device?.name ?? '');
        const [elements, others] = [nftElements(), foreign()];
        broken(device?.name ?? '');
        await until('it is repaired', () => {
          expect(shapeOf('tap-web')).toEqual(before);
          return true;
        });
        await until('the event is there', async () => (await told('repaired', id)).length > 0);
        const bodies = (await told('repaired', id)).map(({ body }) => body);
        expect(bodies[0]).toMatchObject({ id, generation, host: 'h1', network: 'volt0' });
        expect(JSON.stringify(bodies)).toContain(`"${what}`);
        await inSync();
        expect(nftElements()).toEqual(elements);
        expect(foreign()).toEqual(others);
        expect(only(ip('addr', 'show', 'dev', 'volt0')).addr_info).toContainEqual(
          expect.objectContaining({ local: '10.42.0.1', prefixlen: 24 }),
        );
      } finally {
        run('link', 'delete', 'foreign0');
      }
    });
  }

  test('whose name a foreign device has taken waits, and the foreign device stays', async () => {
    const { device } = await attach('squatted', { workload: 'vm-web' });
    expect(device?.name).toBe('tap-web');
    await stack.agent.kill();
    run('link', 'delete', 'tap-web');
    run('link', 'add', 'tap-web', 'type', 'bridge');
    await stack.agent.restart();
    await stack.agent.ready();
    await until('it was tried', () => stack.agent.output().includes('not repaired yet'));
    expect(linkOf('tap-web')['linkinfo']).toMatchObject({ info_kind: 'bridge' });
    const { plan } = await stack.client.check(stack.host, {});
    expect(plan).toContainEqual({ id: 'squatted', action: 'remake', reason: 'device' });
    run('link', 'delete', 'tap-web');
    await inSync();
    expect(linkOf('tap-web')['linkinfo']).toMatchObject({ info_kind: 'tun' });
  });
});

test('a device that somebody changes again and again is repaired with pauses', async () => {
  const { device } = await attach('fought');
  const name = device?.name ?? '';
  const change = `while :; do ip link set ${name} mtu 1400; sleep 0.02; done`;
  const [program, args] = dyingWithParent(['sh', '-c', change]);
  const other = spawn(program, args, { stdio: 'ignore' });
  try {
    await until('it is told', async () => {
      const conditions = (await stack.agent.health())['conditions'] as readonly Condition[];
      return conditions.some(({ name: one }) => one === 'reconcile-differs');
    });
  } finally {
    other.kill('SIGKILL');
  }
  await until('it is as it was', () => linkOf(name)['mtu'] === device?.mtu);
});

test('a detach that waits for Redis is no difference', async () => {
  const { client, host, redis, gone } = stack;
  await attach('waits');
  redis.pause();
  try {
    await client.detach(host, { id: 'waits' });
    await until('its device is gone', () => !deviceNames().some((name) => /waits|vdel/.test(name)));
    const { attachments } = await client.list(host, {});
    expect(attachments).toMatchObject([{ id: 'waits', state: 'detaching' }]);
    expect((await client.check(host, {}, { timeoutMs: 30_000 })).differences).toEqual([]);
    const one = await client.check(host, { id: 'waits' }, { timeoutMs: 30_000 });
    expect(one.differences).toEqual([]);
  } finally {
    redis.resume();
  }
  await gone('waits');
});

test('a bridge that lost its address or is down gets both back', async () => {
  await attach('b1');
  run('addr', 'flush', 'dev', 'volt0');
  run('link', 'set', 'volt0', 'down');
  await until('it is repaired', () => {
    const { addr_info: addresses, flags } = only(ip('addr', 'show', 'dev', 'volt0'));
    return flags.includes('UP') && addresses.some(({ local }) => local === '10.42.0.1');
  });
  await inSync();
});

test("a container's pair is made again in its namespace, with its addresses and routes", async () => {
  addNamespace('c1');
  try {
    const container = { kind: 'container' as const, netns: '/run/netns/c1' };
    const { device, addresses } = await attach('c1', container);
    run('link', 'delete', device?.name ?? '');
    await inSync();
    const { addr_info: held } = only(ip('-n', 'c1', '-4', 'addr', 'show', 'dev', 'eth0'));
    expect(held.map(({ local, prefixlen }) => `${local}/${prefixlen}`)).toEqual(
      addresses.map(({ address }) => address),
    );
    expect(ip('-n', 'c1', 'route', 'show', 'default')).toMatchObject([{ gateway: '10.42.0.1' }]);
  } finally {
    await stack.client.detach(stack.host, { id: 'c1' });
    removeNamespace('c1');
  }
});

test('a container whose namespace is gone is detached after a grace, and its lease released', async () => {
  addNamespace('c2');
  await attach('c2', { kind: 'container', netns: '/run/netns/c2' });
  removeNamespace('c2');
  const gone = Date.now();
  await stack.gone('c2');
  expect(Date.now() - gone).toBeGreaterThanOrEqual(GRACE_MS - 1_000);
  await until('the event is there', async () => (await told('detached', 'c2')).length > 0);
  expect(await told('detached', 'c2')).toMatchObject([{ body: { reason: 'namespace-gone' } }]);
  await inSync();
});

test('a tagged device of nobody is removed after a grace; others, and one with a lease, stay', async () => {
  const { device: held } = await attach('held');
  run('link', 'add', 'lost0', 'group', String(0x766f6c74), 'type', 'bridge');
  run('link', 'set', 'lost0', 'alias', 'volt:nobody#1');
  run('link', 'add', 'foreign0', 'type', 'bridge');
  run('link', 'set', 'foreign0', 'alias', 'not volt:nobody#1');
  const since = Date.now();
  await until('it is removed', () => !deviceNames().includes('lost0'));
  expect(Date.now() - since).toBeGreaterThanOrEqual(GRACE_MS - 1_000);
  expect(deviceNames()).toContain('foreign0');
  expect(deviceNames()).toContain(held?.name);
  run('link', 'delete', 'foreign0');
});

test('after a reboot VMs have their devices again, and containers have ended', async () => {
  addNamespace('c3');
  const vm = await attach('v3', { workload: 'vm-web' });
  const before = shapeOf('tap-web');
  await attach('c3', { kind: 'container', netns: '/run/netns/c3' });
  await stack.agent.kill();
  // What the records would be after a reboot: of another boot, and no device is there.
  for (const id of ['v3', 'c3']) {
    const file = join(stack.agent.runtimeDir, 'attachments', `${id}.json`);
    const record = JSON.parse(readFileSync(file, 'utf8')) as object;
    writeFileSync(file, JSON.stringify({ ...record, bootId: 'of-before' }));
  }
  for (const name of deviceNames()) if (name !== 'lo') run('link', 'delete', name);
  removeNamespace('c3');
  await stack.agent.restart();
  await stack.agent.ready();
  await stack.gone('c3');
  await until('the VM has its device', () => deviceNames().includes('tap-web'));
  await inSync();
  expect(shapeOf('tap-web')).toEqual(before);
  const { attachment } = await stack.client.get(stack.host, { id: 'v3' });
  expect({ ...attachment, device: null }).toEqual({ ...vm, device: null });
  await until('the event is there', async () => (await told('detached', 'c3')).length > 0);
  expect(await told('detached', 'c3')).toMatchObject([{ body: { reason: 'reboot' } }]);
});
