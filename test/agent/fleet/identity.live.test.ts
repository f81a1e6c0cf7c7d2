import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { encode } from '#protocol/envelope.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { openLedger } from '../../ipam-store/fixture.ts';
import { type RunningAgent, startAgent, until } from '../../support/agent.ts';
import { startGate } from '../../support/gate.ts';
import { type Hosts, startHosts } from '../../support/hosts.ts';
import { deviceNames } from '../../support/kernel.ts';
import { onMachine } from '../../support/machine.ts';
import { type Server, startRedis } from '../../support/servers.ts';

import { VOLT0 } from '../../support/stack.ts';

// Two machines under one host id, on one NATS and one Redis. The ledger knows the host by one of them.

const SUBJECT = 'volt.net.v1';

let redis: Server;
let fleet: Hosts;
let ledger: Ledger;
let open: AsyncDisposableStack;

beforeEach(async () => {
  open = new AsyncDisposableStack();
  redis = await startRedis();
  open.defer(() => redis.stop());
  fleet = open.use(await startHosts({ hosts: ['h1'], config: { redis: { url: redis.url } } }));
  await fleet.client.putNetwork({ ...VOLT0, reuseDelaySeconds: 0 });
  ledger = await openLedger(redis.url);
  open.defer(() => ledger.close());
});
afterEach(async () => {
  await open.disposeAsync();
  for (const name of deviceNames()) {
    if (name !== 'lo') execFileSync('ip', ['link', 'delete', name]);
  }
});

const vm = (id: string): Parameters<Hosts['client']['attach']>[1] => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network: 'volt0',
});

/** Another machine that calls itself h1. It stands in the same network namespace, with tables of its own. */
async function startSecond(config: object = {}): Promise<RunningAgent> {
  const agent = await startAgent({
    config: {
      host: 'h1',
      nats: { url: fleet.nats.url },
      redis: { url: redis.url },
      suspectAfterSeconds: 3,
      nftablesTable: 'volt_second',
      ...config,
    },
    wrap: onMachine({ machineId: `${randomBytes(16).toString('hex')}\n` }, open),
  });
  open.defer(async () => void (await agent.stop()));
  return agent;
}

const sessionOf = async (agent: RunningAgent): Promise<{ state: string; reason?: string }> =>
  (await agent.health())['session'] as { state: string; reason?: string };

/** As another machine: a heartbeat that Redis did not answer is no such refusal. */
const isRefused = async (agent: RunningAgent): Promise<boolean> =>
  String((await agent.health())['requests']).includes('HOST_CONFLICT');

/** What the agents of the fleet say of themselves, by `$SRV.INFO`. */
async function surveyed(): Promise<Record<string, string>[]> {
  const found: Record<string, string>[] = [];
  const answers = await fleet.connection.requestMany('$SRV.INFO.volt-network-agent', '', {
    maxWait: 500,
  });
  for await (const { data } of answers) {
    found.push(
      (JSON.parse(new TextDecoder().decode(data)) as { metadata: (typeof found)[0] }).metadata,
    );
  }
  return found;
}

test('the second machine serves nothing, releases nothing, and says so', async () => {
  await fleet.client.attach('h1', vm('before'));
  // Also while it starts, and does not know yet.
  let asking = true;
  const answers = (async () => {
    while (asking) await fleet.client.get('h1', { id: 'before' });
    await fleet.client.detach('h1', { id: 'before' });
  })();
  const second = await startSecond();
  await until('it is refused', () => isRefused(second));
  asking = false;
  await answers;
  const ids = Array.from({ length: 12 }, (_, n) => `vm-${n}`);
  for (const id of ids) await fleet.client.attach('h1', vm(id));
  for (const id of ids) {
    expect((await fleet.client.get('h1', { id })).attachment.id).toBe(id);
  }
  expect((await fleet.client.list('h1', {})).attachments).toHaveLength(ids.length);
  for (const id of ids.slice(0, 6)) {
    // Of one that has a record and a device, the second half follows on its own: the second machine has neither.
    expect(await fleet.client.detach('h1', { id })).toEqual({ detached: true, releasing: true });
  }
  const jetstream = fleet.connection.jetstream();
  for (const id of ids.slice(6, 9)) {
    const payload = encode({ id, requestId: `job-${id}` });
    await jetstream.publish(`${SUBJECT}.job.h1.detach`, payload);
  }
  await until('what was to go is gone', async () => {
    const { leases } = await ledger.listLeases({});
    return (
      leases
        .map(({ id }) => id)
        .toSorted()
        .join() === ids.slice(9).toSorted().join()
    );
  });
  const names = deviceNames().filter((name) => name.startsWith('tap-'));
  expect(names.toSorted()).toEqual(
    ids
      .slice(9)
      .map((id) => `tap-${id}`)
      .toSorted(),
  );

  expect(await sessionOf(second)).toMatchObject({
    state: 'refused',
    open: false,
    reason: expect.stringMatching(/another machine, .*calls itself host h1/),
  });
  const { requests, jobs } = await second.health();
  expect([requests, jobs]).toEqual([
    expect.stringContaining('HOST_CONFLICT'),
    expect.stringContaining('HOST_CONFLICT'),
  ]);
  const metadata = await surveyed();
  expect(metadata.map(({ host, session }) => `${host} ${session}`).toSorted()).toEqual([
    'h1 own',
    'h1 refused',
  ]);
  // Nor after NATS was away.
  await fleet.nats.kill();
  await fleet.nats.restart();
  await until('both are connected', async () => {
    const both = await Promise.all([fleet.agent('h1').health(), second.health()]);
    return both.every(({ nats }) => nats === 'connected');
  });
  await until('the fleet answers again', async () => (await surveyed()).length === 2);
  for (let n = 0; n < 10; n += 1) await fleet.client.get('h1', { id: 'vm-11' });
  const told = second.output().match(/"msg":"HOST_CONFLICT/g) ?? [];
  expect(told).toHaveLength(1);
  expect(second.output()).toMatch(/voltnet host forget h1/);
});

/** All events of the stream, as type and subject. */
async function events(): Promise<string[]> {
  const found: string[] = [];
  const manager = await fleet.connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_EVENTS');
  for (let seq = state.first_seq; seq <= state.last_seq; seq += 1) {
    const { subject, header } = await manager.streams.getMessage('VOLT_NET_EVENTS', { seq });
    found.push(`${subject.split('.').at(-1) ?? ''} ${header.get('ce-subject')}`);
  }
  return found;
}

/** An operator says that the host is gone, as soon as it has been silent for long enough. */
const forgotten = (): Promise<void> =>
  until('the host is forgotten', async () => {
    await fleet.client.forgetHost('h1');
    return true;
  });

test('an owner that is refused later keeps its traffic, holds its events, and serves again without a restart', async () => {
  using gate = await startGate(redis.port);
  await fleet.agent('h1').stop();
  const first = await fleet.start('h1', { redis: { url: `redis://127.0.0.1:${gate.port}` } });
  await first.ready();
  const { attachment } = await fleet.client.attach('h1', vm('mine'));
  gate.shut();
  await until('it is silent', async () => {
    const { forgotten: gone } = await ledger.forgetHost('h1').catch(() => ({ forgotten: false }));
    return gone;
  });
  const second = await startSecond();
  await second.ready();
  gate.open();
  await until('the first is refused', () => isRefused(first));
  await until('the second alone serves', async () => (await surveyed()).length === 2);
  // The host's requests and jobs are the second's.
  for (const id of ['a', 'b', 'c', 'd']) await fleet.client.attach('h1', vm(id));
  expect((await second.health())['attachments']).toBe(4);
  const payload = encode({ id: 'mine', requestId: 'job-mine' });
  await fleet.connection.jetstream().publish(`${SUBJECT}.job.h1.detach`, payload);
  await until('the job is done', async () => (await events()).includes('detached mine'));
  expect(await first.health()).toMatchObject({ attachments: 1, unfinished: 0 });
  // Its own device is kept as recorded, and nobody is told in the host's name.
  execFileSync('ip', ['link', 'delete', 'tap-mine']);
  await until('it is made again', () => deviceNames().includes('tap-mine'));
  await until('its event waits', async () => Number((await first.health())['eventsPending']) > 0);
  expect((await events()).filter((one) => one.startsWith('repaired'))).toEqual([]);

  await second.kill();
  await until('the second is silent', async () => {
    const { forgotten: gone } = await ledger.forgetHost('h1').catch(() => ({ forgotten: false }));
    return gone;
  });
  await first.ready();
  await until('its event is told', async () => (await events()).includes('repaired mine'));
  const held = await ledger.getLease('mine');
  expect(held?.generation).toBe(attachment.generation);
  expect(await fleet.client.detach('h1', { id: 'mine' })).toMatchObject({ releasing: true });
  await until('it is released', async () => (await ledger.getLease('mine')) === null);
});

test('the only agent left is refused: an operator ends that through it', async () => {
  await fleet.client.attach('h1', vm('of-the-first'));
  await fleet.agent('h1').kill();
  const second = await startSecond();
  await until('it is refused', () => isRefused(second));
  await expect(fleet.client.attach('h1', vm('one'))).rejects.toMatchObject({
    code: 'AGENT_UNAVAILABLE',
  });
  expect((await fleet.client.ledgerHosts()).hosts).toMatchObject([{ host: 'h1', leases: 1 }]);
  await forgotten();
  await second.ready();
  await fleet.client.attach('h1', vm('one'));
  await until('it is told', async () => (await events()).includes('host-down h1'));
});

test('an agent that starts while the ledger is away detaches what is its own', async () => {
  const agent = fleet.agent('h1');
  await fleet.client.attach('h1', vm('one'));
  await agent.kill();
  await redis.kill();
  await agent.restart();
  await until('it serves', async () => (await agent.health())['requests'] === 'ready');
  expect(await fleet.client.detach('h1', { id: 'one' })).toMatchObject({ releasing: true });
  await until('the device is gone', () => !deviceNames().includes('tap-one'));
  await redis.restart();
  await agent.ready();
  await until('nothing is left', async () => (await agent.health())['unfinished'] === 0);
  await until('no lease is left', async () => (await ledger.listLeases({})).leases.length === 0);
});
