import { AckPolicy, connect, headers, type NatsConnection, RetentionPolicy } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { deleteWaitingJobs, listWaitingJobs } from '#agent/bus/waiting-jobs.ts';
import { VoltNetworkClient } from '#protocol/client.ts';
import {
  EVENT_STREAM,
  eventStreamOf,
  JOB_STREAM,
  jobStreamOf,
  subjects,
} from '#protocol/subjects.ts';
import { until } from '../../support/agent.ts';
import { startBus } from '../../support/bus.ts';
import { type Server, startNats } from '../../support/servers.ts';

// Two fleets on one NATS, with a host name in common: neither hears, takes or keeps what is the other's.

const OTHER = 'acme-net.prod';
let nats: Server;
let connection: NatsConnection;

beforeAll(async () => {
  nats = await startNats();
  connection = await connect({ servers: nats.url });
});
afterAll(async () => {
  await connection.close();
  await nats.stop();
});

const clientOf = (prefix: string): VoltNetworkClient =>
  new VoltNetworkClient({ connection, headers, prefix });

async function storedIn(stream: string): Promise<number> {
  const manager = await connection.jetstreamManager();
  return (await manager.streams.info(stream)).state.messages;
}

describe('two fleets', () => {
  test('have all their jobs and events, and see only their own agents', async () => {
    const prefix = 'volt.net.v1';
    await using one = startBus({ url: nats.url, prefix });
    await using other = startBus({ url: nats.url, prefix: OTHER });
    for (const { bus } of [one, other]) {
      await until('jobs are taken', () => bus.jobProblem === undefined);
    }
    for (let n = 0; n < 10; n += 1) {
      const asked = { id: `a${n}`, workload: 'w', kind: 'vm', network: 'volt0' } as const;
      await clientOf(prefix).submitAttach('h1', asked);
      await clientOf(OTHER).submitAttach('h1', asked);
    }
    const all = (subject: string): string[] => Array.from({ length: 10 }, () => subject);
    await until('all are taken', () => one.jobs.length + other.jobs.length >= 20);
    expect(one.jobs).toEqual(all(`${prefix}.job.h1.attach`));
    expect(other.jobs).toEqual(all(`${OTHER}.job.h1.attach`));

    await Promise.all(['1', '2', '3'].map((id) => one.publish('attached', id)));
    await other.publish('attached', '1');
    expect(await storedIn(EVENT_STREAM)).toBe(3);
    expect(await storedIn(eventStreamOf(OTHER))).toBe(1);
    expect([eventStreamOf(OTHER), jobStreamOf(OTHER)]).toEqual([
      'VOLT_NET_EVENTS-acme_-net-prod',
      'VOLT_NET_JOBS-acme_-net-prod',
    ]);

    expect((await one.bus.survey())?.map(({ fleet }) => fleet)).toEqual([prefix]);
    expect((await other.bus.survey())?.map(({ fleet }) => fleet)).toEqual([OTHER]);
    expect([...one.problems(), ...other.problems()]).toEqual([]);
  });
});

describe('jobs that wait', () => {
  test('are listed and deleted in the stream of their own fleet', async () => {
    await using server = await own();
    const { url, manager, outer } = server;
    await using one = startBus({ url });
    await using other = startBus({ url, prefix: OTHER });
    for (const { bus } of [one, other]) {
      await until('jobs are taken', () => bus.jobProblem === undefined);
    }
    const client = new VoltNetworkClient({ connection: outer, headers, prefix: OTHER });
    await client.submitDetach('h9', { id: 'a' });
    expect(await listWaitingJobs(manager, 'volt.net.v1')).toMatchObject({ hosts: [] });
    const waiting = [{ host: 'h9', jobs: 1, consumer: false }];
    expect(await listWaitingJobs(manager, OTHER)).toMatchObject({ hosts: waiting });
    expect(await listWaitingJobs(manager, OTHER, 'h1')).toMatchObject({
      hosts: [{ host: 'h1', jobs: 0, consumer: true }],
    });
    expect(await deleteWaitingJobs(manager, 'volt.net.v1', 'h9')).toBe(0);
    expect(await deleteWaitingJobs(manager, OTHER, 'h9')).toBe(1);
  });
});

describe('a fleet whose streams were made before their names had the prefix', () => {
  test('goes on with them, and its jobs are taken once', async () => {
    await using server = await own();
    const { url, manager, outer } = server;
    const ours = subjects(OTHER);
    await manager.streams.add({ name: EVENT_STREAM, subjects: [ours.events()] });
    await manager.streams.add({
      name: JOB_STREAM,
      subjects: [ours.allJobs()],
      retention: RetentionPolicy.Workqueue,
    });
    await manager.consumers.add(JOB_STREAM, {
      durable_name: 'agent-h1',
      filter_subject: ours.jobs('h1'),
      ack_policy: AckPolicy.Explicit,
    });
    const client = new VoltNetworkClient({ connection: outer, headers, prefix: OTHER });
    await client.submitDetach('h1', { id: 'a' });
    await using fleet = startBus({ url, prefix: OTHER });
    await until('the job is taken', () => fleet.jobs.length === 1);
    await fleet.publish('attached', '1');
    expect((await manager.streams.info(EVENT_STREAM)).state.messages).toBe(1);
    expect(await manager.streams.names().next()).toEqual([EVENT_STREAM, JOB_STREAM]);
    expect(fleet.problems()).toEqual([]);

    await client.submitDetach('h9', { id: 'a' });
    const waiting = { hosts: [{ host: 'h9', jobs: 1, consumer: false }] };
    expect(await listWaitingJobs(manager, OTHER)).toMatchObject(waiting);

    await manager.streams.delete(JOB_STREAM);
    await until('the stream has the prefix', async () => {
      return (await manager.streams.info(jobStreamOf(OTHER))).config.name === jobStreamOf(OTHER);
    });
    await client.submitDetach('h1', { id: 'b' });
    await until('the client has found it', () => fleet.jobs.length === 2);
  });
});

// Where JetStream may not be asked, an agent tries both names.
describe('an agent that may ask JetStream for nothing but jobs', () => {
  const RIGHTS = `authorization { users: [
    { user: boss, password: boss }
    { user: agent, password: agent, permissions: { subscribe: ">", publish: { allow: [
      "*.*.event.>", "acme-net.prod.event.>", "_INBOX.>", "$JS.ACK.>", "$SRV.>"
      "$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS.agent-h1"
      "$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS-acme_-net-prod.agent-acme_-net-prod--h1"
    ] } } }
  ] }`;
  const boss = { user: 'boss', pass: 'boss' };
  const agentAt = (url: string): string => url.replace('nats://', 'nats://agent:agent@');

  test('takes those of a stream from before', async () => {
    await using server = await own(RIGHTS, boss);
    const { url, manager, outer } = server;
    const ours = subjects(OTHER);
    const retention = RetentionPolicy.Workqueue;
    await manager.streams.add({ name: JOB_STREAM, subjects: [ours.allJobs()], retention });
    await manager.consumers.add(JOB_STREAM, {
      durable_name: 'agent-h1',
      filter_subject: ours.jobs('h1'),
      ack_policy: AckPolicy.Explicit,
    });
    await using fleet = startBus({ url: agentAt(url), prefix: OTHER });
    const client = new VoltNetworkClient({ connection: outer, headers, prefix: OTHER });
    for (let n = 0; n < 5; n += 1) await client.submitDetach('h1', { id: `a${n}` });
    await until('all are taken', () => fleet.jobs.length === 5, 90_000);
    await until('all are gone', async () => {
      return (await manager.streams.info(JOB_STREAM)).state.messages === 0;
    });
  });

  test('does not end jobs that are those of another fleet', async () => {
    await using server = await own(RIGHTS, boss);
    const { url, manager, outer } = server;
    const theirs = subjects();
    const retention = RetentionPolicy.Workqueue;
    await manager.streams.add({ name: JOB_STREAM, subjects: [theirs.allJobs()], retention });
    await manager.consumers.add(JOB_STREAM, {
      durable_name: 'agent-h1',
      filter_subject: theirs.jobs('h1'),
      ack_policy: AckPolicy.Explicit,
    });
    const client = new VoltNetworkClient({ connection: outer, headers });
    for (let n = 0; n < 5; n += 1) await client.submitDetach('h1', { id: `a${n}` });
    await using fleet = startBus({ url: agentAt(url), prefix: OTHER });
    await until(
      'it has seen one',
      () => fleet.problems().includes('consumer-unfit agent-h1'),
      90_000,
    );
    expect(fleet.jobs).toEqual([]);
    await fleet[Symbol.asyncDispose]();
    await using other = startBus({ url: url.replace('nats://', 'nats://boss:boss@') });
    await until('all are taken', () => other.jobs.length === 5);
  });
});

async function own(config?: string, user: { user?: string; pass?: string } = {}) {
  const server = await startNats(config === undefined ? {} : { config });
  const outer = await connect({ servers: server.url, ...user });
  return {
    url: server.url,
    outer,
    manager: await outer.jetstreamManager(),
    async [Symbol.asyncDispose]() {
      await outer.close();
      await server.stop();
    },
  };
}
