import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { decode } from '#protocol/envelope.ts';
import type { EventType } from '#protocol/events.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { createLog } from '#agent/log.ts';
import { openVmRecords } from '#agent/storage/journal.ts';
import { type RunningAgent, until } from '../../support/agent.ts';
import { startGate } from '../../support/gate.ts';
import { type Hosts, startHosts } from '../../support/hosts.ts';
import { addNamespace, deviceNames, ip, only, removeNamespace } from '../../support/kernel.ts';
import { type Server, startRedis } from '../../support/servers.ts';
import { VOLT0 } from '../../support/stack.ts';
import { openLedger } from '../../ipam-store/fixture.ts';

// Redis loses what it had, hosts fall silent and come back: real agents, and what becomes of their attachments.

let redis: Server;
let open: AsyncDisposableStack;

beforeEach(async () => {
  open = new AsyncDisposableStack();
  redis = await startRedis();
  open.defer(() => redis.stop());
});
afterEach(async () => {
  await open.disposeAsync();
  // Attachments outlive their agents.
  for (const name of deviceNames()) {
    if (name !== 'lo') execFileSync('ip', ['link', 'delete', name]);
  }
});

async function hostsOf(hosts: readonly string[], config: object = {}): Promise<Hosts> {
  const fleet = await startHosts({ hosts, config: { redis: { url: redis.url }, ...config } });
  open.use(fleet);
  await fleet.client.putNetwork({ ...VOLT0 });
  return fleet;
}

async function ledgerOf(): Promise<Ledger> {
  const ledger = await openLedger(redis.url);
  open.defer(() => ledger.close());
  return ledger;
}

const vm = (id: string, more: object = {}): Parameters<Hosts['client']['attach']>[1] => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network: 'volt0',
  ...more,
});

/** As an orchestrator does it: what is retryable is tried again. */
async function patiently<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof VoltError) || !error.retryable) throw error;
      await sleep(error.retryAfterMs ?? 100);
    }
  }
}

const addressOf = ({ addresses }: Attachment): string => addresses[0]?.address ?? 'none';

/** Whether a file of an agent's state folder names this. */
const hasSeen = ({ stateDir }: RunningAgent, file: string, what: string): boolean =>
  readFileSync(join(stateDir, file), 'utf8').includes(`"${what}"`);

const isUp = (name: string): boolean => only(ip('link', 'show', 'dev', name)).flags.includes('UP');

interface Told {
  readonly subject: string;
  readonly body: Readonly<Record<string, unknown>>;
}

/** All events of a type, in order. */
async function eventsOf(fleet: Hosts, type: EventType): Promise<Told[]> {
  const found: Told[] = [];
  const manager = await fleet.connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_EVENTS');
  for (let seq = state.first_seq; seq <= state.last_seq; seq += 1) {
    const stored = await manager.streams.getMessage('VOLT_NET_EVENTS', { seq });
    if (!stored.subject.endsWith(`.${type}`)) continue;
    const body = decode(stored.data) as Told['body'];
    found.push({ subject: stored.header.get('ce-subject'), body });
  }
  return found;
}

const sessionOf = async (agent: RunningAgent): Promise<{ state: string; awaiting: string[] }> => {
  const { session } = await agent.health();
  return session as { state: string; awaiting: string[] };
};

describe('a Redis that comes back empty', () => {
  test('is filled again by the hosts before it grants, and no device is touched', async () => {
    const { client, agent } = await hostsOf(['h1', 'h2']);
    const before = await Promise.all(
      ['h1', 'h2'].map((host) => client.attach(host, vm(`of-${host}`))),
    );
    const devices = before.map(({ attachment }) => attachment.device?.ifindex);
    await redis.kill();
    await redis.restart();
    const { attachment: after } = await patiently(() => client.attach('h1', vm('after')));
    expect(before.map(({ attachment }) => addressOf(attachment))).not.toContain(addressOf(after));
    expect(after.generation).toBeGreaterThan(2 ** 33);
    const ledger = await ledgerOf();
    for (const { attachment } of before) {
      expect(await ledger.getLease(attachment.id)).toMatchObject({
        generation: attachment.generation,
        addresses: [addressOf(attachment)],
        mac: attachment.mac,
        grantedAt: attachment.lease.grantedAt,
      });
    }
    for (const host of ['h1', 'h2'])
      expect(await client.check(host, {})).toMatchObject({ inSync: true });
    const now = await Promise.all(
      ['h1', 'h2'].map((host) => client.get(host, { id: `of-${host}` })),
    );
    expect(now.map(({ attachment }) => attachment.device?.ifindex)).toEqual(devices);
    await until('both know', async () => (await sessionOf(agent('h2'))).state === 'armed');
  });

  test('grants nothing to a fresh host that speaks first', async () => {
    using gate = await startGate(redis.port);
    const fleet = await hostsOf(['h1'], { redis: { url: `redis://127.0.0.1:${gate.port}` } });
    const { attachment } = await fleet.client.attach('h1', vm('first'));
    gate.shut();
    await redis.kill();
    await redis.restart();
    const fresh = await fleet.start('h2', { redis: { url: redis.url } });
    await until('the fresh host has spoken, and serves', async () => {
      const { nats, requests } = await fresh.health();
      const serves = nats === 'connected' && requests === 'ready';
      return serves && (await sessionOf(fresh)).state === 'unclaimed';
    });
    await expect(fleet.client.attach('h2', vm('second'))).rejects.toMatchObject({
      code: 'RECOVERING',
      retryable: true,
    });
    gate.open();
    await fresh.ready();
    const second = await fleet.client.attach('h2', vm('second'));
    expect(addressOf(second.attachment)).not.toBe(addressOf(attachment));
    expect((await eventsOf(fleet, 'recovering')).length).toBe(1);
    await until(
      'the recovery is told',
      async () => (await eventsOf(fleet, 'recovered')).length === 1,
    );
  });

  test('waits for a host that was not suspect, until it is forgotten', async () => {
    const fleet = await hostsOf(['h1', 'h2']);
    const lost = await fleet.client.attach('h2', vm('lost'));
    await until('h1 has seen h2', () => hasSeen(fleet.agent('h1'), 'ledger.json', 'h2'));
    await until('h1 has seen volt0', () => hasSeen(fleet.agent('h1'), 'networks.json', 'volt0'));
    await fleet.agent('h2').kill();
    await redis.kill();
    await redis.restart();
    await until('h1 waits for h2', async () => {
      const { state, awaiting } = await sessionOf(fleet.agent('h1'));
      return state === 'recovering' && awaiting.join() === 'h2';
    });
    // Longer than it takes to become suspect: while the ledger waits, nobody does.
    await sleep(4_000);
    await expect(fleet.client.attach('h1', vm('one'))).rejects.toMatchObject({
      code: 'RECOVERING',
    });
    const ledger = await ledgerOf();
    expect(await ledger.forgetHost('h2')).toEqual({ forgotten: true, released: 0 });
    await fleet.agent('h1').ready();
    const address = addressOf(lost.attachment).replace('/24', '');
    await fleet.client.attach('h1', vm('one', { addresses: [address] }));
    // It comes back, and somebody else has its address.
    await fleet.agent('h2').restart();
    await until('it is fenced', async () => {
      const { attachment } = await fleet.client.get('h2', { id: 'lost' });
      return attachment.state === 'fenced';
    });
    expect(isUp('tap-lost')).toBe(false);
    expect(isUp('tap-one')).toBe(true);
  });

  test('waits no longer than the operator says', async () => {
    const fleet = await hostsOf(['h1', 'h2'], { recoveryWindowSeconds: 2 });
    const lost = await fleet.client.attach('h2', vm('lost'));
    await until('h1 has seen h2', () => hasSeen(fleet.agent('h1'), 'ledger.json', 'h2'));
    await until('h1 has seen volt0', () => hasSeen(fleet.agent('h1'), 'networks.json', 'volt0'));
    await fleet.agent('h2').kill();
    await redis.kill();
    await redis.restart();
    await fleet.agent('h1').ready();
    const told = async (): Promise<Told[]> => eventsOf(fleet, 'recovered');
    await until('it is told', async () => (await told()).length === 1);
    expect((await told())[0]?.body).toMatchObject({ missed: ['h2'] });
    // Nobody was given its address: it has it again.
    await fleet.agent('h2').restart();
    await fleet.agent('h2').ready();
    const ledger = await ledgerOf();
    expect((await ledger.getLease('lost'))?.generation).toBe(lost.attachment.generation);
    expect(isUp('tap-lost')).toBe(true);
  });
});

test('a host that was forgotten is fenced when it comes back, and serves', async () => {
  const fleet = await hostsOf(['h1', 'h2']);
  const [taken, free] = [
    await fleet.client.attach('h2', vm('taken')),
    await fleet.client.attach('h2', vm('free')),
  ];
  await fleet.agent('h2').kill();
  await until('it is suspect', async () => (await eventsOf(fleet, 'suspect')).length === 1);
  expect((await eventsOf(fleet, 'suspect'))[0]?.body).toMatchObject({ host: 'h2' });
  const ledger = await ledgerOf();
  expect((await ledger.getNetwork('volt0'))?.usage).toMatchObject({ used: 2, suspect: 2 });
  const address = addressOf(taken.attachment).replace('/24', '');
  const ask = vm('heir', { addresses: [address], workload: 'vm-taken' });
  await expect(fleet.client.attach('h1', ask)).rejects.toMatchObject({ code: 'ADDRESS_IN_USE' });
  expect(await ledger.forgetHost('h2')).toEqual({ forgotten: true, released: 2 });
  const heir = await fleet.client.attach('h1', ask);
  await fleet.agent('h2').restart();
  const stateOf = async (id: string): Promise<string> =>
    (await fleet.client.get('h2', { id })).attachment.state;
  await until('it is fenced', async () => (await stateOf('taken')) === 'fenced');
  expect(await stateOf('free')).toBe('attached');
  expect(isUp('tap-taken')).toBe(false);
  expect(isUp('tap-free')).toBe(true);
  await until('it is told', async () => (await eventsOf(fleet, 'failed')).length > 0);
  expect((await eventsOf(fleet, 'failed')).at(-1)?.body).toMatchObject({
    error: {
      code: 'STALE_GENERATION',
      details: { holder: { id: 'heir', host: 'h1', generation: heir.attachment.generation } },
    },
  });
  // A restart does not wake it; a repeated attach makes it anew, with another address.
  await fleet.agent('h2').restart('SIGKILL');
  await fleet.agent('h2').ready();
  expect(await stateOf('taken')).toBe('fenced');
  const again = await fleet.client.attach('h2', vm('taken'));
  expect(again.replayed).toBe(false);
  expect(addressOf(again.attachment)).not.toBe(addressOf(heir.attachment));
  expect(isUp('tap-taken')).toBe(true);
  expect((await ledger.getLease('heir'))?.generation).toBe(heir.attachment.generation);
  expect((await ledger.getLease('free'))?.generation).toBe(free.attachment.generation);
});

test('leases of a silent host are reclaimed where the network says so', async () => {
  const fleet = await hostsOf(['h1', 'h2']);
  await fleet.client.putNetwork({
    network: 'short',
    subnet: '10.77.0.0/24',
    reclaimAfterSeconds: 1,
    reuseDelaySeconds: 0,
  });
  await fleet.client.attach('h2', vm('keeps'));
  const short = await fleet.client.attach('h2', vm('loses', { network: 'short' }));
  await fleet.agent('h2').kill();
  const ended = async (): Promise<Told[]> => eventsOf(fleet, 'detached');
  await until('it is reclaimed', async () => (await ended()).length === 1);
  expect((await ended())[0]).toMatchObject({
    subject: 'loses',
    body: { reason: 'reclaimed', host: 'h2', generation: short.attachment.generation },
  });
  const ledger = await ledgerOf();
  expect(await ledger.getLease('keeps')).not.toBeNull();
  expect(await ledger.getLease('loses')).toBeNull();
});

describe('after a reboot', () => {
  const BOOT_ID = '/proc/sys/kernel/random/boot_id';

  /** What a reboot leaves of a host: another boot id, no runtime folder, no devices. */
  async function reboot(agent: RunningAgent, devices: readonly string[]): Promise<void> {
    await agent.kill();
    for (const name of devices) execFileSync('ip', ['link', 'delete', name]);
    rmSync(join(agent.runtimeDir, 'attachments'), { recursive: true });
    const file = join(agent.stateDir, 'boot_id');
    writeFileSync(file, `${crypto.randomUUID()}\n`);
    execFileSync('mount', ['--bind', file, BOOT_ID]);
    open.defer(() => void execFileSync('umount', [BOOT_ID]));
    await agent.restart();
    await agent.ready();
  }

  test.each([
    ['recreate', ['pair'], ['machine']],
    ['release', ['machine', 'pair'], []],
  ])('with onReboot %s it ends or keeps each lease, and says so', async (onReboot, ended, kept) => {
    const fleet = await hostsOf(['h1'], { onReboot });
    mkdirSync('/run/netns', { recursive: true });
    addNamespace('c1');
    open.defer(() => removeNamespace('c1'));
    const machine = await fleet.client.attach('h1', vm('machine'));
    await fleet.client.attach('h1', {
      ...vm('pair'),
      kind: 'container',
      workload: 'container-pair',
      netns: '/run/netns/c1',
    });
    await reboot(fleet.agent('h1'), ['tap-machine', 'veth-pair-h']);
    // On a busy machine a host may fall silent and arrive again, without a reboot.
    await until('it is told', async () => {
      const arrivals = (await eventsOf(fleet, 'host-up')).map(({ body }) => body);
      const ofReboot = { host: 'h1', rebooted: true, kept, released: ended };
      expect(arrivals).toContainEqual(expect.objectContaining(ofReboot));
      return true;
    });
    const isMade = (): boolean =>
      (JSON.parse(execFileSync('ip', ['-j', 'link'], { encoding: 'utf8' })) as { ifname: string }[])
        .map(({ ifname }) => ifname)
        .includes('tap-machine');
    await until('what is kept has its device', () => isMade() === kept.includes('machine'));
    await until('what ended is told', async () => {
      const told = await eventsOf(fleet, 'detached');
      const reasons = told.map(({ subject, body }) => `${subject}: ${String(body['reason'])}`);
      expect(reasons.toSorted()).toEqual(ended.map((id) => `${id}: reboot`));
      return true;
    });
    const ledger = await ledgerOf();
    const { leases } = await ledger.listLeases({});
    expect(leases.map(({ id }) => id)).toEqual(kept);
    if (kept.length === 0) return;
    // The VM starts again: it has what it had.
    const again = await fleet.client.attach('h1', vm('machine'));
    expect(again.replayed).toBe(true);
    expect({ ...again.attachment, device: null }).toEqual({ ...machine.attachment, device: null });
    // What has ended does not come back with the next reboot.
    await fleet.client.detach('h1', { id: 'machine' });
    await until('it has ended', async () => (await ledger.listLeases({})).leases.length === 0);
    // The record, and its copy, go last.
    const { stateDir } = fleet.agent('h1');
    const copies = (): number => openVmRecords(stateDir, createLog('silent', 'h1')).load().size;
    await until('its copy is gone', () => copies() === 0);
  });
});

test('a lease without a record is left alone where its device stands, and ended where none does', async () => {
  const fleet = await hostsOf(['h1']);
  const agent = fleet.agent('h1');
  for (const id of ['stands', 'leaked']) await fleet.client.attach('h1', vm(id));
  await agent.kill();
  // Somebody has cleaned up a folder too many.
  rmSync(join(agent.runtimeDir, 'attachments'), { recursive: true });
  execFileSync('ip', ['link', 'delete', 'tap-leaked']);
  await agent.restart();
  await agent.ready();
  const ledger = await ledgerOf();
  await until('the leaked one ends', async () => (await ledger.getLease('leaked')) === null);
  expect(await ledger.getLease('stands')).not.toBeNull();
  expect(isUp('tap-stands')).toBe(true);
  // The event follows the release.
  await until('it is told', async () => (await eventsOf(fleet, 'detached')).length > 0);
  const told = await eventsOf(fleet, 'detached');
  expect(told).toMatchObject([{ subject: 'leaked', body: { reason: 'interrupted' } }]);
  const { differences } = await fleet.client.check('h1', {});
  expect(differences).toMatchObject([
    { id: 'stands', what: 'record', observed: { device: 'tap-stands' } },
  ]);
  const { differences: found } = await fleet.client.checkLedger({ repair: true });
  expect(found).toMatchObject([{ id: 'stands', host: 'h1', repaired: false }]);
});

test('two machines under one host id: the second is refused, and says why', async () => {
  const fleet = await hostsOf(['h1']);
  await fleet.client.attach('h1', vm('one'));
  const raw = new Redis(redis.url);
  open.defer(() => raw.disconnect());
  // Another machine has taken the name: its heartbeats came first.
  await raw.hset('volt:{ledger}:host:h1', 'machineId', 'another');
  await until('it is refused', async () => {
    const { session } = await fleet.agent('h1').health();
    const { state, reason } = session as { state: string; reason?: string };
    return state === 'refused' && (reason ?? '').includes('another machine');
  });
});
