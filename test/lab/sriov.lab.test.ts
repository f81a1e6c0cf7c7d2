import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { driverOf, virtualFunctions } from '#native/sriov.ts';
import { until } from '../support/agent.ts';
import { viewsOf } from '../support/agreement-of-host.ts';
import { failEachMessage } from '../support/failing.ts';
import { addNamespace, ip, only, removeNamespace, type Row } from '../support/kernel.ts';
import { CALLS } from '../support/kill-points.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { atCall, callsDuring } from '../support/strace.ts';

// Virtual functions of a NIC that QEMU plays (igb), with Debian's drivers, in the lab's guest.

const PF = 'eth0';
const FUNCTIONS = 3;
const NETWORK = {
  network: 'vf0',
  type: 'sriov',
  parent: PF,
  subnet: '10.61.0.0/24',
  gateway: '10.61.0.1',
  ipv6: { subnet: 'fd61::/64' },
  reuseDelaySeconds: 0,
};
/** All settings that an igb has. */
const SET = {
  network: 'set0',
  type: 'sriov',
  parent: PF,
  subnet: '10.62.0.0/24',
  vlan: 7,
  spoofCheck: false,
  trust: true,
  rate: { maxMbps: 50 },
};

let stack: Stack;
let before: unknown;

/** What `ip -d link` says of the physical function's virtual ones. */
const vfs = (): Record<string, unknown>[] =>
  only(ip('-d', 'link', 'show', PF))['vfinfo_list'] as Record<string, unknown>[];

/** Everything that an attachment may change and has to put back. */
const state = (): unknown => ({
  vfs: vfs(),
  drivers: virtualFunctions(PF).map(({ pciAddress }) => driverOf(pciAddress)),
  links: ip('link')
    .filter(({ ifname }) => /^eth[1-9]/.test(String(ifname)))
    .map(({ ifname, address, mtu, group, ifalias, flags }) => [
      ...[ifname, address, mtu, group, ifalias, flags.includes('UP')],
    ])
    .toSorted((a, b) => (String(a[0]) < String(b[0]) ? -1 : 1)),
});

const attach = async (id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> => {
  const request = {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'vf0',
    netns: '/run/netns/box',
    ...more,
  } as const;
  return (await stack.client.attach(stack.host, request, { timeoutMs: 60_000 })).attachment;
};

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

const inBox = (...args: string[]): Row[] => ip('-n', 'box', ...args);

const answers = (address: string): boolean =>
  spawnSync('ip', ['netns', 'exec', 'box', 'ping', '-c', '3', '-W', '5', address]).status === 0;

beforeAll(async () => {
  writeFileSync(`/sys/class/net/${PF}/device/sriov_numvfs`, String(FUNCTIONS));
  execFileSync('ip', ['link', 'set', PF, 'up']);
  execFileSync('ip', ['addr', 'add', '10.61.0.1/24', 'dev', PF]);
  addNamespace('box');
  stack = await startStack({ networks: [NETWORK, SET] });
  before = state();
});
afterAll(() => stack[Symbol.asyncDispose]());

afterEach(() => {
  // Nothing that ended left anything on a function.
  assert.deepEqual(state(), before);
});

test('the guest has the functions that it made', () => {
  expect(virtualFunctions(PF)).toHaveLength(FUNCTIONS);
  expect(vfs()).toHaveLength(FUNCTIONS);
});

describe('a container', () => {
  test('has a function inside its namespace, and traffic with the physical one', async () => {
    const attachment = await attach('one', { mtu: 1400 });
    const { device } = attachment;
    expect(attachment).toMatchObject({ type: 'sriov', filter: 'mac' });
    expect(device).toMatchObject({ type: 'vf', name: 'eth0', mtu: 1400, driver: 'igbvf' });
    const link = only(inBox('addr', 'show', 'eth0'));
    expect(link).toMatchObject({ ifindex: device?.ifindex, address: attachment.mac, mtu: 1400 });
    expect(only(inBox('-d', 'link', 'show', 'eth0'))['ifalias']).toBe(
      `volt:one#${attachment.generation}`,
    );
    expect(link.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`)).toEqual(
      expect.arrayContaining(attachment.addresses.map(({ address }) => address)),
    );
    expect(vfs().map(({ address }) => address)).toContain(attachment.mac);
    expect(answers('10.61.0.1')).toBe(true);
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    expect(await attach('one', { mtu: 1400 })).toEqual(attachment);
    expect(answers('10.61.0.1')).toBe(true);
    await detach('one');
    expect(inBox('link').map(({ ifname }) => ifname)).toEqual(['lo']);
  });

  test('has what its network says of it, and leaves what was there', async () => {
    const attachment = await attach('set', { network: 'set0' });
    expect(attachment.filter).toBe('none');
    const own = vfs().find(({ address }) => address === attachment.mac);
    expect(own).toMatchObject({ vlan_list: [{ vlan: 7 }], spoofchk: false, trust: true });
    expect(JSON.stringify(own)).toContain('50');
    await detach('set');
  });

  test('whose namespace lost its name gives its function back once the last process has left', async () => {
    addNamespace('brief');
    await attach('brief', { netns: '/run/netns/brief' });
    const inside = spawn('ip', ['netns', 'exec', 'brief', 'sh', '-c', 'echo in; sleep 2']);
    await once(inside.stdout, 'data');
    removeNamespace('brief');
    await detach('brief');
  });
});

test('a VM has a function that is bound to vfio-pci, and its group file', async () => {
  const vm = { kind: 'vm', workload: 'vm-guest', netns: undefined } as const;
  const attachment = await attach('guest', vm);
  const { device } = attachment;
  expect(device).toMatchObject({ type: 'vf', driver: 'vfio-pci' });
  expect(driverOf(device?.pciAddress ?? '')).toBe('vfio-pci');
  expect(device?.iommuGroup).toMatch(/^\/dev\/vfio\/\d+$/);
  expect(existsSync(device?.iommuGroup ?? '')).toBe(true);
  expect(vfs().map(({ address }) => address)).toContain(attachment.mac);
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  expect(await attach('guest', vm)).toEqual(attachment);
  await detach('guest');
});

test('when all functions are in use, NO_FREE_VF names the parent; one that is given back is used again', async () => {
  const ids = ['a', 'b', 'c'];
  for (const id of ids) await attach(id, { ifname: `eth-${id}` });
  await expect(attach('d', { ifname: 'eth-d' })).rejects.toMatchObject({
    code: 'NO_FREE_VF',
    retryable: true,
    details: { parent: PF, functions: FUNCTIONS },
  });
  await detach('b');
  const again = await attach('d', { ifname: 'eth-d' });
  // A detach of a generation that is no more changes nothing of whoever has the function now.
  await expect(
    stack.client.detach(stack.host, { id: 'd', generation: again.generation - 1 }),
  ).rejects.toMatchObject({ code: 'STALE_GENERATION' });
  expect(only(inBox('link', 'show', 'eth-d'))['address']).toBe(again.mac);
  for (const id of ['a', 'c', 'd']) await detach(id);
});

test.each(['vm', 'container'] as const)(
  'of a %s nothing is left, whichever message to the kernel fails',
  async (kind) => {
    const request = (id: string): AttachRequest => ({
      id,
      workload: `${kind}-${id}`,
      kind,
      network: 'set0',
      ...(kind === 'container' && { netns: '/run/netns/box' }),
    });
    await failEachMessage(stack, request, () => {
      assert.deepEqual(state(), before);
      expect(inBox('link').map(({ ifname }) => ifname)).toEqual(['lo']);
    });
  },
  300_000,
);

const KILLS = 2;
/** What follows an answer, in a guest without hardware virtualisation. */
const AFTERWARDS_MS = 1_500;

/** Has an agent die at some points of an attach or detach, and the request repeated: it is done, and done once. */
async function dieMidway(kind: 'vm' | 'container', operation: 'attach' | 'detach'): Promise<void> {
  const { agent, client, host } = stack;
  const requestOf = (id: string): AttachRequest & { readonly requestId: string } => ({
    id,
    requestId: `r-${id}`,
    workload: `${kind}-${id}`,
    kind,
    network: 'set0',
    ...(kind === 'container' && { netns: '/run/netns/box' }),
  });
  const ask = (id: string, timeoutMs = 60_000): Promise<object> =>
    operation === 'attach'
      ? client.attach(host, requestOf(id), { timeoutMs })
      : client.detach(host, { id, requestId: `d-${id}` }, { timeoutMs });
  const first = `${operation}-${kind}`;
  if (operation === 'detach') await client.attach(host, requestOf(first), { timeoutMs: 60_000 });
  const points = await callsDuring(agent, CALLS, async () => {
    await ask(first);
    await sleep(AFTERWARDS_MS);
  });
  if (operation === 'attach') await detach(first);
  for (let n = 0; n < KILLS; n += 1) {
    const point = points[Math.floor(((n + 0.5) / KILLS) * points.length)];
    assert(point !== undefined);
    const id = `${first}-${n}`;
    if (operation === 'detach') await client.attach(host, requestOf(id), { timeoutMs: 60_000 });
    const waiting = await atCall(agent, point, 'signal=SIGKILL');
    const answered = await ask(id, 5_000).catch(() => null);
    if (answered !== null) await sleep(AFTERWARDS_MS);
    await waiting[Symbol.asyncDispose]();
    await agent.restart('SIGKILL');
    await agent.ready();
    await until('it is answered', async () => (await ask(id)) !== null, 60_000);
    if (operation === 'attach') {
      const views = viewsOf(stack);
      assert(views.records.has(id));
      assert.deepEqual(views.leases, views.records);
      assert.deepEqual((await client.check(host, {})).differences, []);
      await detach(id);
    }
    await stack.gone(id);
    await until('it is given back', () => {
      assert.deepEqual(state(), before, `${point.call} ${point.when}`);
      return true;
    });
    assert.deepEqual(viewsOf(stack).leases, new Map());
  }
}

test.each([
  ['attach', 'vm'],
  ['attach', 'container'],
  ['detach', 'vm'],
  ['detach', 'container'],
] as const)(
  'an agent that is killed midway leaves the %s of a %s to the next',
  async (operation, kind) => dieMidway(kind, operation),
  300_000,
);

test('what cannot be is refused, and changes nothing', async () => {
  const refusals: [Partial<AttachRequest>, string][] = [
    [{ netns: undefined }, 'INVALID_REQUEST'],
    [{ mtu: 9_500 }, 'INVALID_REQUEST'],
    [{ ports: [{ protocol: 'tcp', hostPort: 1, port: 1 }] }, 'UNSUPPORTED'],
    [{ bandwidth: { egressBitsPerSecond: 1e6 } }, 'UNSUPPORTED'],
    [{ ifname: 'lo' }, 'INTERFACE_EXISTS'],
  ];
  for (const [more, code] of refusals) {
    await expect(attach('no', more)).rejects.toMatchObject({ code });
    expect(state()).toEqual(before);
  }
  await stack.client.putNetwork({
    ...NETWORK,
    network: 'gone0',
    subnet: '10.63.0.0/24',
    ipv6: undefined,
    gateway: undefined,
    parent: 'none0',
  });
  await expect(attach('no', { network: 'gone0' })).rejects.toMatchObject({
    code: 'PARENT_NOT_FOUND',
  });
});
