import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  AckPolicy,
  connect,
  type ConsumerConfig,
  type JetStreamManager,
  type NatsConnection,
  RetentionPolicy,
  StorageType,
  type StreamConfig,
} from 'nats';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { EVENT_STREAM, JOB_STREAM } from '#protocol/subjects.ts';
import { until } from '../../support/agent.ts';
import { startBus, type TestBus } from '../../support/bus.ts';
import { type Server, startNats, startNatsCluster } from '../../support/servers.ts';

// Streams and consumers that are gone, that somebody else has made, or that have no leader.

const VOLTNET = new URL('../../../deploy/bin/voltnet', import.meta.url).pathname;
const JOBS = 'volt.net.v1.job.*.*';
const EVENTS = 'volt.net.v1.event.*.*.*';

const isCalm = (bus: TestBus): Promise<void> =>
  until('nothing is wrong', () => bus.problems().length === 0, 60_000);

describe('with one server', () => {
  let nats: Server;
  let connection: NatsConnection;
  let manager: JetStreamManager;
  beforeEach(async () => {
    nats = await startNats();
    connection = await connect({ servers: nats.url, maxReconnectAttempts: -1 });
    manager = await connection.jetstreamManager();
  });
  afterEach(async () => {
    await connection.close();
    await nats.stop();
  });

  const stored = async (stream: string): Promise<number> =>
    (await manager.streams.info(stream)).state.messages;

  test('a stream of events that is deleted is made again, whether an event comes or not', async () => {
    await using bus = startBus({ url: nats.url });
    await bus.publish('attached', '0').catch(() => {});
    await until('it is made', async () => (await stored(EVENT_STREAM)) >= 0);
    await manager.streams.delete(EVENT_STREAM);
    await until('it is made again', async () => (await stored(EVENT_STREAM)) === 0);
    await manager.streams.delete(EVENT_STREAM);
    await until('an event is stored', () => bus.publish('attached', '1').then(() => true));
    expect(await stored(EVENT_STREAM)).toBe(1);
    await isCalm(bus);
  });

  test('a stream that is missing is told as long as it is, also when another one stores the events', async () => {
    await manager.streams.add({ name: 'AUDIT', subjects: ['volt.net.v1.event.>', 'audit'] });
    await using bus = startBus({ url: nats.url });
    const missing = `stream-missing ${EVENT_STREAM}`;
    await until('it is told', () => bus.problems().includes(missing));
    await bus.publish('attached', '1');
    expect(bus.problems()).toContain(missing);
    await manager.streams.delete('AUDIT');
    await isCalm(bus);
    await bus.publish('attached', '2');
    expect(await stored(EVENT_STREAM)).toBe(1);
  });

  test('a server that comes back with an empty store gets streams and consumer again', async () => {
    await using bus = startBus({ url: nats.url });
    await isCalm(bus);
    await bus.publish('attached', '1');
    await nats.kill();
    rmSync(join(nats.folder, 'jetstream'), { recursive: true });
    await nats.restart();
    await until('an event is stored', () => bus.publish('attached', '2').then(() => true));
    await isCalm(bus);
    const again = await connect({ servers: nats.url });
    await again.jetstream().publish('volt.net.v1.job.h1.attach', '');
    await again.close();
    await until('a job is taken', () => bus.jobs.length === 1);
  });

  test.each<[string, Partial<StreamConfig>, string]>([
    ['whose jobs stay', { retention: RetentionPolicy.Limits }, 'has retention limits'],
    ['that drops jobs', { retention: RetentionPolicy.Interest }, 'has retention interest'],
    ['of other subjects', { subjects: ['else.>'] }, 'takes else.>'],
    ['that confirms nothing', { no_ack: true }, 'has no_ack'],
  ])('a stream of jobs %s is refused by name, until it is another', async (_, config, reason) => {
    await manager.streams.add({
      name: JOB_STREAM,
      subjects: [JOBS],
      retention: RetentionPolicy.Workqueue,
      ...config,
    });
    await using bus = startBus({ url: nats.url });
    await until('it is told', () => bus.problems().includes(`stream-unfit ${JOB_STREAM}`));
    expect(bus.reasonOf('stream-unfit')).toContain(`stream ${JOB_STREAM} ${reason}`);
    expect(bus.bus.jobProblem).toContain(reason);
    await connection
      .jetstream()
      .publish('volt.net.v1.job.h1.attach', '')
      .catch(() => {});
    expect(bus.jobs).toEqual([]);
    await manager.streams.delete(JOB_STREAM);
    await isCalm(bus);
    await connection.jetstream().publish('volt.net.v1.job.h1.attach', '');
    await until('the job is taken', () => bus.jobs.length === 1);
    await until('and is gone', async () => (await stored(JOB_STREAM)) === 0);
  });

  test.each<[string, Partial<ConsumerConfig>, string]>([
    ['that pushes', { deliver_subject: 'x' }, 'is a push consumer'],
    ['of another host', { filter_subject: 'volt.net.v1.job.h2.*' }, 'delivers'],
    ['of all hosts', { filter_subject: JOBS }, 'delivers'],
  ])('a consumer %s is refused by name, until it is another', async (_, config, reason) => {
    await using first = startBus({ url: nats.url });
    await isCalm(first);
    await first[Symbol.asyncDispose]();
    await manager.consumers.delete(JOB_STREAM, 'agent-h1');
    await manager.consumers.add(JOB_STREAM, {
      durable_name: 'agent-h1',
      filter_subject: 'volt.net.v1.job.h1.*',
      ack_policy: AckPolicy.Explicit,
      ...config,
    });
    await using bus = startBus({ url: nats.url });
    await until('it is told', () => bus.problems().includes('consumer-unfit agent-h1'));
    expect(bus.reasonOf('consumer-unfit')).toContain(`consumer agent-h1 ${reason}`);
    await connection.jetstream().publish('volt.net.v1.job.h2.attach', '');
    await manager.consumers.delete(JOB_STREAM, 'agent-h1');
    await isCalm(bus);
    expect(bus.jobs).toEqual([]);
    expect(await stored(JOB_STREAM)).toBe(1);
  });

  test('a stream of events that gives each to one reader gets none, until it is another', async () => {
    await manager.streams.add({
      name: EVENT_STREAM,
      subjects: [EVENTS],
      retention: RetentionPolicy.Workqueue,
    });
    await using bus = startBus({ url: nats.url });
    await until('it is told', () => bus.problems().includes(`stream-unfit ${EVENT_STREAM}`));
    await expect(bus.publish('attached', '1')).rejects.toMatchObject({ why: 'later' });
    expect(await stored(EVENT_STREAM)).toBe(0);
    await manager.streams.delete(EVENT_STREAM);
    await until('an event is stored', () => bus.publish('attached', '1').then(() => true));
    await isCalm(bus);
  });

  test('streams with other limits are used, and left as they are', async () => {
    const limits = { max_age: 3_600e9, max_bytes: 5_000_000, storage: StorageType.Memory };
    await manager.streams.add({ name: EVENT_STREAM, subjects: ['volt.net.v1.event.>'], ...limits });
    const retention = RetentionPolicy.Workqueue;
    await manager.streams.add({ name: JOB_STREAM, subjects: [JOBS], retention, ...limits });
    await using bus = startBus({ url: nats.url });
    await bus.publish('attached', '1').catch(() => {});
    await isCalm(bus);
    for (const name of [EVENT_STREAM, JOB_STREAM]) {
      const { max_age, max_bytes, storage } = (await manager.streams.info(name)).config;
      expect({ max_age, max_bytes, storage }).toEqual(limits);
    }
  });

  const setup = (...words: string[]) => {
    const env = { ...process.env, VOLT_NET_NATS_URL: nats.url };
    const all = ['setup', '--json', ...words, 'h1'];
    const { status, stdout, stderr } = spawnSync(VOLTNET, all, { env, encoding: 'utf8' });
    expect(stderr).toBe('');
    const { made } = JSON.parse(stdout) as { made: { outcome: string; differences: string[] }[] };
    return { status, outcomes: made.map(({ outcome }) => outcome), made };
  };

  test('settings say how the agent makes them, and setup changes those that are there', async () => {
    const streams = { storage: 'memory', eventAgeSeconds: 7_200, jobBytes: 3_000_000 };
    await using bus = startBus({ url: nats.url, nats: { streams } });
    await isCalm(bus);
    await until('both are there', async () => (await stored(EVENT_STREAM)) === 0);
    const configs = async () => {
      const events = (await manager.streams.info(EVENT_STREAM)).config;
      const jobs = (await manager.streams.info(JOB_STREAM)).config;
      return [events.max_age / 1e9, jobs.max_bytes, jobs.storage];
    };
    expect(await configs()).toEqual([7_200, 3_000_000, 'memory']);
    expect(setup()).toMatchObject({ status: 0, outcomes: ['there', 'there', 'there'] });
    const changes = ['--event-age-seconds', '3600', '--job-bytes', '4000000'];
    expect(setup(...changes)).toMatchObject({
      status: 0,
      outcomes: ['updated', 'updated', 'there'],
    });
    expect(await configs()).toEqual([3_600, 4_000_000, 'memory']);
    const differs = setup('--storage', 'file');
    expect(differs).toMatchObject({ status: 8, outcomes: ['differs', 'differs', 'there'] });
    expect(differs.made[0]?.differences).toEqual(['storage: "memory", not "file"']);
  });

  test('setup of more replicas than a server that is alone keeps is no success', async () => {
    expect(setup('--replicas', '3')).toMatchObject({ status: 8, outcomes: ['refused', 'refused'] });
    expect(setup()).toMatchObject({ status: 0, outcomes: ['made', 'made', 'made'] });
    const alone: unknown = expect.stringMatching(/alone keeps one replica/);
    const changes = ['--replicas', '3', '--event-bytes', '2000000'];
    const found = setup(...changes);
    expect(found).toMatchObject({ status: 8, outcomes: ['differs', 'differs', 'there'] });
    expect(found.made[0]?.differences).toEqual(['num_replicas: 1, not 3', alone]);
    // What else was asked for is done.
    const config = async () => (await manager.streams.info(EVENT_STREAM)).config;
    expect(await config()).toMatchObject({ num_replicas: 1, max_bytes: 2_000_000 });
    // An earlier release has asked such a server for three, and the server has taken that down.
    await manager.streams.update(EVENT_STREAM, { num_replicas: 3 });
    expect((await config()).num_replicas).toBe(3);
    expect(setup('--replicas', '3')).toMatchObject({
      status: 8,
      outcomes: ['differs', 'differs', 'there'],
    });
    expect(setup('--replicas', '1')).toMatchObject({
      status: 0,
      outcomes: ['there', 'there', 'there'],
    });
  });

  test('setup shortens the window in which repeats are recognised together with the age', async () => {
    expect(setup().status).toBe(0);
    const seconds = async () => {
      const { max_age, duplicate_window } = (await manager.streams.info(EVENT_STREAM)).config;
      return [max_age / 1e9, duplicate_window / 1e9];
    };
    expect(setup('--event-age-seconds', '60')).toMatchObject({
      status: 0,
      outcomes: ['updated', 'there', 'there'],
    });
    expect(await seconds()).toEqual([60, 60]);
    expect(setup('--event-age-seconds', '7200').status).toBe(0);
    expect(await seconds()).toEqual([7_200, 600]);
  });

  test('setup says what else the server does not take', async () => {
    expect(setup().status).toBe(0);
    const found = setup('--job-bytes', String(2 ** 50));
    expect(found).toMatchObject({ status: 8, outcomes: ['there', 'differs', 'there'] });
    expect(found.made[1]?.differences.at(-1)).toMatch(/not changed: .*insufficient storage/);
    const words = [...['--replicas', '9'], ...['--nats', nats.url]];
    const { status, stderr } = spawnSync(VOLTNET, ['setup', ...words], { encoding: 'utf8' });
    expect([status, stderr]).toEqual([2, 'voltnet: replicas: must be a whole number, 1 to 5\n']);
  });

  test('more replicas than there are servers are told as the reason', async () => {
    await using bus = startBus({ url: nats.url, nats: { streams: { replicas: 3 } } });
    await until('it is told', () => bus.problems().includes(`stream-missing ${JOB_STREAM}`));
    await until('of events, too', () => bus.problems().includes(`stream-missing ${EVENT_STREAM}`));
    expect(bus.bus.jobProblem).toMatch(/is not there, and is not made: .*nats\.streams\.replicas/);
  });
});

describe('without JetStream', () => {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-plain-'));
  const configFile = join(folder, 'nats.conf');
  let nats: Server;
  beforeAll(async () => {
    writeFileSync(configFile, '');
    nats = await startNats({ configFile });
  });
  afterAll(async () => {
    await nats.stop();
    rmSync(folder, { recursive: true });
  });

  test('the agent says so, in words, and goes on when it is there', async () => {
    await using bus = startBus({ url: nats.url });
    await until('it is told', () => bus.problems().includes('jetstream-away'));
    await until('of jobs, too', () => bus.problems().includes('jobs-not-taken'));
    expect(bus.reasonOf('jetstream-away')).toMatch(/JetStream is off.*jetstream \{\}/);
    expect(bus.bus.jobProblem).toMatch(/JetStream is off/);
    expect(bus.bus.requestProblem).toBeUndefined();
    writeFileSync(configFile, `jetstream { store_dir: "${folder}" }`);
    await nats.restart();
    await isCalm(bus);
    await bus.publish('attached', '1');
  });
});

describe('with a cluster of three', () => {
  let servers: readonly [Server, Server, Server];
  beforeEach(async () => {
    servers = await startNatsCluster();
  });
  afterEach(async () => {
    await Promise.all(servers.map((server) => server.stop()));
  });
  const url = (): string => servers.map((server) => server.url).join(',');

  test('streams have as many replicas as settings say, and outlive the loss of two servers', async () => {
    await using bus = startBus({ url: url(), nats: { streams: { replicas: 3 } } });
    await until('an event is stored', () => bus.publish('attached', '1').then(() => true), 60_000);
    await isCalm(bus);
    const [first, ...others] = servers;
    for (const server of others) await server.kill();
    await until('it is told', () => bus.problems().includes('jetstream-away'), 60_000);
    await until('of jobs, too', () => bus.problems().includes('jobs-not-taken'), 60_000);
    await expect(bus.publish('attached', '2')).rejects.toMatchObject({ why: 'later' });
    for (const server of others) await server.restart();
    await until('it is stored', () => bus.publish('attached', '2').then(() => true), 60_000);
    await isCalm(bus);
    const connection = await connect({ servers: first.url });
    // A cluster whose leaders change answers some questions with 503, or not at all: they are asked again.
    await until('the stream has three replicas and both events', async () => {
      const manager = await connection.jetstreamManager();
      const { config, state } = await manager.streams.info(EVENT_STREAM);
      return config.num_replicas === 3 && state.messages === 2;
    });
    await until('a job is stored', async () => {
      await connection.jetstream().publish('volt.net.v1.job.h1.attach', '');
      return true;
    });
    await until('a job is taken', () => bus.jobs.length > 0);
    await connection.close();
  });

  test('setup gives streams that are there more replicas', async () => {
    await using bus = startBus({ url: url() });
    await until('an event is stored', () => bus.publish('attached', '1').then(() => true), 60_000);
    await isCalm(bus);
    const env = { ...process.env, VOLT_NET_NATS_URL: url() };
    const words = ['--timeout', '60s', 'setup', '--json', '--replicas', '3', 'h1'];
    const { status, stdout, stderr } = spawnSync(VOLTNET, words, { env, encoding: 'utf8' });
    expect(status, stderr).toBe(0);
    const { made } = JSON.parse(stdout) as { made: { outcome: string }[] };
    // A stream whose update had no answer is found with what was asked for: `there`.
    const changed: unknown = expect.stringMatching(/^(updated|there)$/);
    expect(made.map(({ outcome }) => outcome)).toEqual([changed, changed, 'there']);
    await until('an event is stored', () => bus.publish('attached', '2').then(() => true), 60_000);
    await isCalm(bus);
    const connection = await connect({ servers: url() });
    for (const stream of [EVENT_STREAM, JOB_STREAM]) {
      await until(`${stream} has three replicas`, async () => {
        const manager = await connection.jetstreamManager();
        return (await manager.streams.info(stream)).config.num_replicas === 3;
      });
    }
    await connection.close();
  });
});
