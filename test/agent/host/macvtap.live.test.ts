import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import { type AttachmentRecord, Journal } from '#agent/storage/journal.ts';
import { Kernel } from '#agent/host/kernel.ts';
import { createLog } from '#agent/log.ts';
import { Macvtap } from '#agent/host/networks/macvtap.ts';
import { Removal } from '#agent/host/networks/removal.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip, only, removeNamespace } from '../../support/kernel.ts';
import {
  addressOf,
  answers,
  deviceOf,
  KINDS,
  MODES,
  PARENT_MAC,
  run,
  type Segment,
  shown,
  startSegment,
} from '../../support/segment.ts';
import { atCall } from '../../support/strace.ts';
import { DEVICE_GROUP } from '#agent/host/ownership.ts';

// Networks of type macvtap, from request to device and back, of VMs and containers in all modes.

let segment: Segment;

beforeAll(async () => {
  segment = await startSegment();
});
afterAll(() => segment[Symbol.asyncDispose]());

describe.each(KINDS)('a %s', (kind) => {
  test.each(MODES)(
    'in mode %s is attached, kept over a kill of the agent, and leaves nothing',
    async (mode) => {
      const id = `${kind}-${mode}`;
      const asked = segment.request(id, { kind, network: `mv-${mode}` });
      const { attachment, replayed } = await segment.stack.client.attach(segment.stack.host, asked);
      expect(replayed).toBe(false);
      const device = deviceOf(attachment);
      const type = kind === 'vm' ? 'macvtap' : 'macvlan';
      const netns = kind === 'vm' ? undefined : '/run/netns/box';
      expect(device).toMatchObject({ type, mac: attachment.mac, mtu: 1450 });
      expect(attachment).toMatchObject({
        type: 'macvtap',
        filter: kind === 'vm' ? 'full' : 'none',
      });
      expect(attachment.netns).toBe(netns);
      const link = shown(attachment);
      expect(link).toMatchObject({
        ifindex: device.ifindex,
        address: attachment.mac,
        mtu: 1450,
        group: String(DEVICE_GROUP),
        ifalias: `volt:${id}#${attachment.generation}`,
        linkinfo: { info_kind: type, info_data: { mode } },
      });
      expect(link.flags).toContain('UP');
      const parent = only(ip('link', 'show', 'nic0'));
      const lent = mode === 'passthru' ? attachment.mac : PARENT_MAC;
      expect(parent['address']).toBe(lent);

      await segment.stack.agent.restart('SIGKILL');
      await segment.stack.agent.ready();
      const again = await segment.stack.client.attach(segment.stack.host, asked);
      expect(again).toEqual({ attachment, replayed: true });
      expect((await segment.stack.client.check(segment.stack.host, {})).differences).toEqual([]);
      expect((await segment.stack.client.list(segment.stack.host, {})).attachments).toEqual([
        attachment,
      ]);
      if (kind === 'container') {
        expect(answers(attachment.addresses[0]?.gateway ?? '', 'box')).toBe(true);
      }

      expect(await segment.stack.client.detach(segment.stack.host, { id })).toMatchObject({
        detached: true,
      });
      await segment.stack.gone(id);
      expect(await segment.stack.client.detach(segment.stack.host, { id })).toMatchObject({
        detached: false,
      });
      if (device.path !== undefined) expect(existsSync(device.path)).toBe(false);
      await segment.nothingIsLeft();
    },
  );
});

describe('a container', () => {
  beforeEach(() => addNamespace('other'));
  afterEach(() => removeNamespace('other'));

  test('has what the request says: name, MTU, both families, a default route', async () => {
    const attachment = await segment.attach('dual', {
      ...{ kind: 'container', network: 'mv-dual', ifname: 'lan0', mtu: 1400 },
    });
    const link = shown(attachment);
    expect(link).toMatchObject({ ifname: 'lan0', mtu: 1400 });
    expect(link.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`)).toEqual(
      expect.arrayContaining(attachment.addresses.map(({ address }) => address)),
    );
    expect(ip('-n', 'box', 'route', 'show', 'default')).toMatchObject([{ dev: 'lan0' }]);
    expect(answers('10.60.15.1', 'box')).toBe(true);
    expect(answers('fd00:60::1', 'box')).toBe(true);
    await segment.detach('dual');
    await segment.nothingIsLeft();
  });

  test.each([
    ['bridge', true],
    ['private', false],
  ])('in mode %s reaches another: %s', async (mode, result) => {
    const extra = { kind: 'container', network: `mv-${mode}` } as const;
    const one = await segment.attach('one', extra);
    const two = await segment.attach('two', { ...extra, netns: '/run/netns/other' });
    expect(answers(addressOf(two), 'box')).toBe(result);
    expect(answers(addressOf(one), 'other')).toBe(result);
    await segment.detach('one');
    await segment.detach('two');
    await segment.nothingIsLeft();
  });

  test('loses its interface also when it has been renamed and its tag taken away', async () => {
    await segment.attach('disguised', { kind: 'container' });
    run('-n box link set eth0 down');
    run('-n box link set eth0 name lan7 alias mine');
    run('-n box link set lan7 up');
    const { differences } = await segment.stack.client.check(segment.stack.host, {
      id: 'disguised',
    });
    expect(differences).toMatchObject([{ what: 'device', expected: 'eth0', observed: null }]);
    await segment.detach('disguised');
    await segment.nothingIsLeft();
  });

  test('is reached from the host by way of a macvlan of its own alone', async () => {
    const attachment = await segment.attach('near', { kind: 'container' });
    expect(answers(addressOf(attachment))).toBe(false);
    run('link add link nic0 name host0 type macvlan mode bridge');
    run('link set host0 up');
    run(`route add ${addressOf(attachment)} dev host0 src 10.60.0.100`);
    expect(answers(addressOf(attachment))).toBe(true);
    run('link delete host0');
    await segment.detach('near');
    await segment.nothingIsLeft();
  });

  test('frees its name at once, for the next', async () => {
    await segment.attach('before', { kind: 'container' });
    await segment.stack.client.detach(segment.stack.host, { id: 'before' });
    await segment.attach('after', { kind: 'container' });
    await segment.stack.gone('before');
    expect((await segment.stack.client.check(segment.stack.host, {})).differences).toEqual([]);
    await segment.detach('after');
    await segment.nothingIsLeft();
  });

  test('whose namespace is gone is detached', async () => {
    addNamespace('brief');
    const { id } = await segment.attach('orphan', { kind: 'container', netns: '/run/netns/brief' });
    removeNamespace('brief');
    const { differences } = await segment.stack.client.check(segment.stack.host, { id });
    expect(differences).toMatchObject([{ what: 'netns', observed: null }]);
    await segment.detach(id);
    await segment.nothingIsLeft();
  });

  test('whose namespace is another by now keeps what that one has', async () => {
    addNamespace('brief');
    const { id } = await segment.attach('replaced', {
      kind: 'container',
      netns: '/run/netns/brief',
    });
    removeNamespace('brief');
    addNamespace('brief');
    run('link add link nic0 name eth0 netns brief type macvlan mode bridge');
    await segment.detach(id);
    expect(ip('-n', 'brief', 'link').map(({ ifname }) => ifname)).toEqual(['lo', 'eth0']);
    removeNamespace('brief');
    await segment.nothingIsLeft();
  });
});

test.each([
  ['dhcp', { dhcp: true }],
  ['dns.names', { dns: { names: true } }],
])(
  'a network with %s is refused when it is put: no host has an address there',
  async (path, keys) => {
    const network = { network: 'mv-asked', type: 'macvtap', parent: 'nic0', ...keys } as const;
    const put = segment.stack.client.putNetwork({
      ...network,
      subnet: '10.60.13.0/24',
      gateway: '10.60.13.1',
    });
    await expect(put).rejects.toMatchObject({ code: 'UNSUPPORTED', details: { path } });
  },
);

describe('a refused attach leaves everything as it was', () => {
  const cases: [name: string, code: string, details: object, extra: Partial<AttachRequest>][] = [
    ['no such parent', 'PARENT_NOT_FOUND', { parent: 'nic9' }, { network: 'mv-gone' }],
    ['loopback as parent', 'UNSUPPORTED', { parent: 'lo' }, { network: 'mv-lo' }],
    ['a bridge port as parent', 'DEVICE_BUSY', { parent: 'port0' }, { network: 'mv-port' }],
    ['isolation', 'UNSUPPORTED', { path: 'network.portIsolation' }, { network: 'mv-isolated' }],
    ['a large MTU', 'INVALID_REQUEST', { path: 'mtu', limit: 1450 }, { mtu: 1451 }],
    [
      'a port map',
      'UNSUPPORTED',
      { path: 'ports' },
      { ports: [{ protocol: 'tcp', hostPort: 80, port: 80 }] },
    ],
    [
      'bandwidth',
      'UNSUPPORTED',
      { path: 'bandwidth' },
      { bandwidth: { ingressBitsPerSecond: 1_000_000 } },
    ],
    ["the parent's own MAC", 'MAC_IN_USE', { parent: 'nic0' }, { mac: PARENT_MAC }],
  ];
  test.each(KINDS.flatMap((kind) => cases.map((one) => [kind, ...one] as const)))(
    'of a %s: %s is %s',
    async (kind, _name, code, details, extra) => {
      expect(await segment.refusal(segment.request('bad', { ...extra, kind }))).toMatchObject({
        code,
        details,
      });
      await segment.nothingIsLeft();
    },
  );

  test('a container without a namespace, in one that is not there, or under a name that is taken', async () => {
    const { netns: _, ...homeless } = segment.request('bad', { kind: 'container' });
    expect(await segment.refusal(homeless)).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path: 'netns' },
    });
    const nowhere = segment.request('bad', { kind: 'container', netns: '/run/netns/nowhere' });
    expect(await segment.refusal(nowhere)).toMatchObject({ code: 'NAMESPACE_NOT_FOUND' });
    const taken = segment.request('bad', { kind: 'container', ifname: 'lo' });
    expect(await segment.refusal(taken)).toMatchObject({ code: 'INTERFACE_EXISTS' });
    await segment.nothingIsLeft();
  });

  test('passthru beside another, also one out of sight, and another beside passthru', async () => {
    await segment.attach('first', { kind: 'container' });
    const alone = segment.request('alone', { network: 'mv-passthru' });
    const refused = { code: 'DEVICE_BUSY', retryable: true, details: { parent: 'nic0' } };
    expect(await segment.refusal(alone)).toMatchObject(refused);
    await segment.detach('first');
    await segment.nothingIsLeft();
    await segment.attach('alone', { network: 'mv-passthru' });
    for (const kind of KINDS) {
      expect(await segment.refusal(segment.request('second', { kind }))).toMatchObject(refused);
    }
    await segment.detach('alone');
    await segment.nothingIsLeft();
  });
});

const whereOf = (kind: (typeof KINDS)[number]): string[] => (kind === 'vm' ? [] : ['-n', 'box']);

/** Kills the agent when it has made a device and not tagged it yet, and starts it again. */
async function crashAt(kind: (typeof KINDS)[number], message: number): Promise<void> {
  const { agent, client, host } = segment.stack;
  const killed = await atCall(agent, { call: 'sendto', when: message }, 'signal=SIGKILL');
  const asked = segment.request('crash', { kind, network: 'mv-passthru' });
  const attaching = client.attach(host, asked, { timeoutMs: 300 });
  await expect(attaching).rejects.toMatchObject({ retryable: true });
  const made = only(ip(...whereOf(kind), 'link', 'show', 'group', String(DEVICE_GROUP)));
  expect(made['ifalias']).toBeUndefined();
  await agent.restart('SIGKILL');
  await killed[Symbol.asyncDispose]();
  await agent.ready();
}

async function nothingIsLeft(): Promise<void> {
  const { agent } = segment.stack;
  await until('it is undone', async () => (await agent.health())['unfinished'] === 0);
  await segment.nothingIsLeft();
}

test.each(KINDS)(
  'an agent killed before it tags the device of a %s leaves nothing',
  async (kind) => {
    // What an agent looks at once for each network is behind it then.
    await segment.attach('warm', { kind, network: 'mv-passthru' });
    await segment.detach('warm');
    await segment.nothingIsLeft();
    // The first messages look at the host's addresses and the parent, the last before makes the device; a container's
    // namespace gets a number between.
    await crashAt(kind, kind === 'vm' ? 4 : 5);
    await nothingIsLeft();
  },
);

// A VM's device is made again by itself; what lies in a workload's namespace, by a repeated attach alone.
test('an agent killed where a container got its device again leaves it to the next repeat', async () => {
  const { device, addresses } = await segment.attach('crash', {
    kind: 'container',
    network: 'mv-passthru',
  });
  run([...whereOf('container'), 'link', 'delete', device?.name].join(' '));
  // The first look for the device that was there.
  await crashAt('container', 12);
  const again = await segment.attach('crash', { kind: 'container', network: 'mv-passthru' });
  expect(again.addresses).toEqual(addresses);
  await segment.detach('crash');
  await segment.nothingIsLeft();
});

test.each(KINDS)('a fenced %s is down', async (kind) => {
  const attachment = await segment.attach('fenced', { kind });
  const file = join(segment.stack.agent.runtimeDir, 'attachments', 'fenced.json');
  const record = JSON.parse(readFileSync(file, 'utf8')) as AttachmentRecord;
  using kernel = new Kernel();
  const log = createLog('error', 'h1');
  const { runtimeDir, stateDir } = segment.stack.agent;
  const journal = new Journal({ runtimeDir, stateDir, bootId: '', log });
  const firewall = new Firewall({ log, table: 'unused' });
  const removal = new Removal(kernel, log);
  const type = new Macvtap({
    ...{ kernel, removal, journal, firewall },
    bridges: { release: () => {} },
  });
  // The agent knows nothing of a fence, and would set the device up again.
  process.kill(segment.stack.agent.pid, 'SIGSTOP');
  type.setDown(record);
  const { flags } = shown(attachment);
  process.kill(segment.stack.agent.pid, 'SIGCONT');
  expect(flags).not.toContain('UP');
  if (kind === 'vm') {
    await until('it is set up again', () => shown(attachment).flags.includes('UP'));
  } else {
    const { differences } = await segment.stack.client.check(segment.stack.host, { id: 'fenced' });
    expect(differences).toMatchObject([{ what: 'device.up', expected: true, observed: false }]);
  }
  type.setDown({ ...record, namespaceIdentity: '1:1' });
  await segment.detach('fenced');
  type.setDown(record);
  await segment.nothingIsLeft();
});
