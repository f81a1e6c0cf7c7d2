import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { AckPolicy, connect, headers, type NatsConnection } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectionOptionsOf } from '#agent/bus/nats-access.ts';
import { VoltNetworkClient } from '#protocol/client.ts';
import { decodeAnswer, encodeAnswer } from '#protocol/envelope.ts';
import { type RunningAgent, startAgent, until } from '../../support/agent.ts';
import {
  type Accounts,
  type Role,
  startAccounts,
  type Variant,
} from '../../support/nats-accounts.ts';
import { type Server, startRedis } from '../../support/servers.ts';
import { VOLT0 } from '../../support/stack.ts';

// The accounts of deploy/nats/ as they are shipped: each role can do all it needs, and cannot do what it must not.

let redis: Server;
beforeAll(async () => {
  redis = await startRedis();
});
afterAll(() => redis.stop());

const vm = (id: string) => ({ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' }) as const;

async function agentOf(
  accounts: Accounts,
  host: 'h1' | 'h2',
  prefix: string,
  subjectPrefix = 'volt.net.v1',
): Promise<RunningAgent> {
  const { inboxPrefix: _, ...nats } = accounts.access(`agent-${host}`);
  return startAgent({
    config: {
      host,
      nats,
      subjectPrefix,
      redis: { url: redis.url, keyPrefix: prefix },
      nftablesTable: `volt_${prefix.slice(0, 1)}_${host}`,
    },
  });
}

const secretFile = (accounts: Accounts, role: Role): string => {
  const { nkeyFile, passwordFile } = accounts.access(role);
  return nkeyFile ?? passwordFile ?? '';
};

const clientOf = async (accounts: Accounts, role: Role) => {
  const connection = await accounts.connectAs(role);
  const { inboxPrefix } = accounts.access(role);
  const client = new VoltNetworkClient({ connection, headers, inboxPrefix });
  return { client, connection, [Symbol.asyncDispose]: () => connection.close() };
};

describe.each<Variant>(['nkeys', 'passwords'])('with %s', (variant) => {
  let accounts: Accounts;
  let made: ReturnType<Accounts['voltnet']>;
  const agents: RunningAgent[] = [];

  beforeAll(async () => {
    accounts = await startAccounts(variant);
    made = accounts.voltnet('setup', 'setup', '--json', 'h1', 'h2');
    agents.push(await agentOf(accounts, 'h1', `${variant}:`));
    agents.push(await agentOf(accounts, 'h2', `${variant}:`));
    // An empty ledger: without the right to ask each other it would stay unclaimed.
    for (const agent of agents) await agent.ready();
    accounts.voltnet('operator', 'network', 'put', 'deploy/networks/volt0.json');
  });
  afterAll(async () => {
    for (const agent of agents) await agent.stop();
    await accounts[Symbol.asyncDispose]();
  });

  test('the setup user makes streams and consumers, once, and nobody else does', () => {
    const names = ['VOLT_NET_EVENTS', 'VOLT_NET_JOBS', 'agent-h1', 'agent-h2'];
    expect(made.stderr).toBe('');
    expect(JSON.parse(made.stdout)).toEqual({
      made: names.map((name) => ({ name, outcome: 'made', differences: [] })),
    });
    const again = JSON.parse(accounts.voltnet('setup', 'setup', '--json', 'h1').stdout) as {
      made: { outcome: string }[];
    };
    expect(again.made.map(({ outcome }) => outcome)).toEqual(['there', 'there', 'there']);
    expect(accounts.voltnet('setup', 'setup', 'no.host')).toMatchObject({ status: 2 });
    expect(accounts.voltnet('operator', 'setup', 'h1')).toMatchObject({ status: 7 });
    expect(accounts.voltnet('agent-h1', 'setup', 'h1').stderr).not.toBe('');
  });

  test('agents take jobs and publish events, and miss no right', async () => {
    for (const agent of agents) {
      await until('jobs are taken', async () => (await agent.health())['jobs'] === 'ready');
    }
    await using orchestrator = await clientOf(accounts, 'orchestrator');
    const { client } = orchestrator;
    const events = client.watch({ host: 'h2', types: ['attached'] });
    await client.submitAttach('h2', { ...vm('job'), requestId: 'r-1' });
    const { value } = await events.next();
    expect(value).toMatchObject({ host: 'h2', subject: 'job', type: 'attached' });
    await client.submitDetach('h2', { id: 'job', requestId: 'r-2' });
    await until('it is detached', async () => (await client.list('h2')).attachments.length === 0);
    for (const agent of agents) {
      await until('events are out', async () => (await agent.health())['eventsPending'] === 0);
      expect(agent.output()).not.toMatch(/NATS refuses|permissions.violation/i);
    }
  });

  test('an orchestrator attaches, updates, reads and detaches', async () => {
    await using orchestrator = await clientOf(accounts, 'orchestrator');
    const { client } = orchestrator;
    await client.attach('h1', vm('asked'));
    await client.update('h1', { id: 'asked', labels: { a: 'b' } });
    expect((await client.get('h1', { id: 'asked' })).attachment.id).toBe('asked');
    expect((await client.check('h1')).inSync).toBe(true);
    expect((await client.getNetwork('volt0')).usage.used).toBe(1);
    await client.detach('h1', { id: 'asked' });
    await until('gone', async () => (await client.list('h1')).attachments.length === 0);
    await expect(client.putNetwork({ ...VOLT0 })).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
    await expect(client.forgetHost('h2')).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
  });

  test('an orchestrator misses no event, by a consumer that the setup user has made', async () => {
    const setup = await accounts.connectAs('setup');
    const manager = await setup.jetstreamManager();
    const consumer = 'orchestrator';
    await manager.consumers.add('VOLT_NET_EVENTS', {
      durable_name: consumer,
      ack_policy: AckPolicy.Explicit,
    });
    await using orchestrator = await clientOf(accounts, 'orchestrator');
    const { client } = orchestrator;
    const { attachments, events } = await client.listThenWatch('h1', {}, { consumer });
    expect(attachments).toEqual([]);
    await client.attach('h1', vm('seen'));
    await client.detach('h1', { id: 'seen' });
    const told: string[] = [];
    for await (const { type, subject } of events) {
      if (subject === 'seen') told.push(type);
      if (told.length === 2) break;
    }
    expect(told).toEqual(['attached', 'detached']);
    // A consumer of its own it may not make.
    await expect(client.watch({ after: 0 }).next()).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
    await manager.consumers.delete('VOLT_NET_EVENTS', consumer);
    await setup.close();
  });

  test('whoever may listen hears of what agents change, and misses no right', async () => {
    await using orchestrator = await clientOf(accounts, 'orchestrator');
    await using observer = await clientOf(accounts, 'observer');
    const heard = new Set<string>();
    observer.connection.subscribe('volt.net.v1.changed.*.*', {
      callback: (_, message) => heard.add(message.subject),
    });
    await observer.connection.flush();
    await orchestrator.client.attach('h1', vm('rung'));
    await until('it rings', () => heard.has('volt.net.v1.changed.volt0.leases'));
    await orchestrator.client.detach('h1', { id: 'rung' });
    await until(
      'gone',
      async () => (await orchestrator.client.list('h1')).attachments.length === 0,
    );
    const bell = { network: 'bell', subnet: '10.43.0.0/24' };
    await using operator = await clientOf(accounts, 'operator');
    await operator.client.putNetwork(bell);
    await until('it rings', () => heard.has('volt.net.v1.changed.bell.definition'));
    await operator.client.deleteNetwork('bell');
    for (const agent of agents)
      expect(agent.output()).not.toMatch(/NATS refuses|permissions.violation/i);
  });

  test('an operator sees the fleet, and has agents check each other', () => {
    const checked = accounts.voltnet('operator', '--json', 'ledger', 'check');
    expect(checked.stderr).toBe('');
    expect(JSON.parse(checked.stdout)).toMatchObject({ checked: ['h1', 'h2'], silent: [] });
    expect(accounts.voltnet('operator', 'host', 'list').stdout).toContain('h2');
  });

  test('a key or password that is replaced is taken up, and the old one is worth nothing', async () => {
    const [agent] = agents;
    const before = readFileSync(secretFile(accounts, 'agent-h1'), 'utf8');
    accounts.rotate('agent-h1');
    await until('the agent was away', () => agent?.output().includes('"connecting"') === true);
    await agent?.ready();
    const old = mkdtempSync(join(tmpdir(), 'volt-test-old-'));
    const file = join(old, 'secret');
    writeFileSync(file, before);
    const access = accounts.access('agent-h1');
    const stolen = access.nkeyFile ? { nkeyFile: file } : { passwordFile: file };
    const options = connectionOptionsOf({ ...access, ...stolen });
    await expect(connect(options)).rejects.toMatchObject({ code: 'AUTHORIZATION_VIOLATION' });
    rmSync(old, { recursive: true });
  });

  test('an observer reads, and changes nothing', async () => {
    await using observer = await clientOf(accounts, 'observer');
    const { client } = observer;
    expect((await client.list('h1')).attachments).toEqual([]);
    expect((await client.listNetworks()).networks).toHaveLength(1);
    expect((await client.ledgerHosts()).hosts).toHaveLength(2);
    for (const attempt of [
      client.attach('h1', vm('not')),
      client.detach('h1', { id: 'not' }),
      client.submitAttach('h1', vm('not')),
      client.putNetwork({ ...VOLT0 }),
      client.checkLedger({ repair: true }),
      client.forgetHost('h1'),
    ]) {
      await expect(attempt).rejects.toMatchObject({ code: 'UNAUTHORIZED' });
    }
  });
});

describe('with another prefix, as the page says', () => {
  test('agents have their jobs and events, and miss no right', async () => {
    await using accounts = await startAccounts('nkeys', true);
    const made = accounts.voltnet('setup', 'setup', '--json', 'h1');
    const names = ['VOLT_NET_EVENTS-acme-net', 'VOLT_NET_JOBS-acme-net', 'agent-acme-net--h1'];
    expect(JSON.parse(made.stdout)).toEqual({
      made: names.map((name) => ({ name, outcome: 'made', differences: [] })),
    });
    const agent = await agentOf(accounts, 'h1', 'acme:', 'acme.net');
    try {
      await agent.ready();
      await until('jobs are taken', async () => (await agent.health())['jobs'] === 'ready');
      accounts.voltnet('operator', 'network', 'put', 'deploy/networks/volt0.json');
      const connection = await accounts.connectAs('orchestrator');
      const { inboxPrefix } = accounts.access('orchestrator');
      const prefix = 'acme.net';
      const client = new VoltNetworkClient({ connection, headers, inboxPrefix, prefix });
      const events = client.watch({ types: ['attached'] });
      await client.submitAttach('h1', { ...vm('job'), requestId: 'r-1' });
      expect((await events.next()).value).toMatchObject({ subject: 'job' });
      await until('events are out', async () => (await agent.health())['eventsPending'] === 0);
      await client.detach('h1', { id: 'job' });
      expect(agent.output()).not.toMatch(/NATS refuses|permissions.violation/i);
      await connection.close();
    } finally {
      await agent.stop();
    }
  });
});

describe('a stolen credential', () => {
  let accounts: Accounts;
  let store: NatsConnection;
  const opened: NatsConnection[] = [];
  const as = async (role: Role): Promise<NatsConnection> => {
    const connection = await accounts.connectAs(role);
    opened.push(connection);
    return connection;
  };

  beforeAll(async () => {
    accounts = await startAccounts('nkeys');
    accounts.voltnet('setup', 'setup', 'h1', 'h2');
    store = await as('setup');
  });
  afterAll(async () => {
    for (const connection of opened) await connection.close();
    await accounts[Symbol.asyncDispose]();
  });

  /** What the server refused of this connection, a line each. */
  function refusals(connection: NatsConnection): string[] {
    const lines: string[] = [];
    const note = async (): Promise<void> => {
      for await (const { permissionContext } of connection.status()) {
        if (permissionContext === undefined) continue;
        const { operation, subject } = permissionContext;
        lines.push(`${operation} ${subject}`);
      }
    };
    void note();
    return lines;
  }

  const jobs = async () => {
    const manager = await store.jetstreamManager();
    const { state } = await manager.streams.info('VOLT_NET_JOBS', { subjects_filter: '>' });
    const { num_ack_pending, num_pending } = await manager.consumers.info(
      'VOLT_NET_JOBS',
      'agent-h2',
    );
    return { stored: state.subjects, waiting: num_ack_pending + num_pending };
  };

  test.each<[Role, string[]]>([
    [
      'agent-h1',
      [
        'volt.net.v1.event.h2.volt0.attached',
        'volt.net.v1.job.h1.attach',
        'volt.net.v1.job.h2.detach',
        'volt.net.v1.host.h2.attach',
        'volt.net.v1.network.delete',
        'volt.net.v1.ledger.forget',
        '$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS.agent-h2',
        '$JS.ACK.VOLT_NET_JOBS.agent-h2.1.1.1.0.0',
        '$JS.API.STREAM.DELETE.VOLT_NET_JOBS',
        '$JS.API.STREAM.PURGE.VOLT_NET_EVENTS',
        '$JS.API.CONSUMER.DELETE.VOLT_NET_JOBS.agent-h2',
        '_INBOX.agent-h2.any',
        '_INBOX.setup.any',
        '$SRV.INFO.volt-network-agent.id',
      ],
    ],
    [
      'orchestrator',
      [
        'volt.net.v1.event.h1.volt0.attached',
        'volt.net.v1.ledger.forget',
        'volt.net.v1.network.put',
        '$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS.agent-h1',
        '$JS.ACK.VOLT_NET_JOBS.agent-h1.1.1.1.0.0',
        '_INBOX.operator.any',
      ],
    ],
    ['observer', ['volt.net.v1.host.h1.attach', 'volt.net.v1.job.h1.attach', '$JS.API.INFO']],
    ['operator', ['volt.net.v1.event.h1.volt0.attached', '$JS.API.STREAM.DELETE.VOLT_NET_JOBS']],
  ])('of %s may not publish where it must not', async (role, subjects) => {
    const thief = await as(role);
    const refused = refusals(thief);
    for (const subject of subjects) thief.publish(subject);
    await until('all are refused', () => refused.length >= subjects.length);
    expect(refused).toEqual(subjects.map((subject) => `publish ${subject}`));
  });

  test.each<[Role, string[]]>([
    [
      'agent-h1',
      [
        '>',
        '_INBOX.>',
        '_INBOX.agent-h2.>',
        '_INBOX.orchestrator.>',
        '_INBOX.*.peer.*',
        'volt.net.v1.host.h1.attach',
        'volt.net.v1.host.h2.attach',
        'volt.net.v1.host.h2.attach host-h2',
        'volt.net.v1.host.*.check host-h1',
        'volt.net.v1.network.put',
        'volt.net.v1.event.>',
        'volt.net.v1.job.>',
      ],
    ],
    [
      'orchestrator',
      ['volt.net.v1.host.h1.attach host-h1', 'volt.net.v1.job.>', '_INBOX.agent-h1.>', '_INBOX.>'],
    ],
    ['observer', ['volt.net.v1.host.h1.list host-h1', '_INBOX.orchestrator.>', 'volt.net.v1.>']],
    ['operator', ['volt.net.v1.network.put agents', '_INBOX.agent-h1.>', 'volt.net.v1.job.>']],
  ])('of %s may not listen where it must not', async (role, subjects) => {
    const thief = await as(role);
    const refused = refusals(thief);
    for (const one of subjects) {
      const [subject = '', queue] = one.split(' ');
      const subscription = thief.subscribe(subject, {
        callback: () => {},
        ...(queue !== undefined && { queue }),
      });
      subscription.closed.catch(() => {});
    }
    await until('all are refused', () => refused.length >= subjects.length);
    expect(refused.map((line) => line.replace(/^subscription /, ''))).toEqual(
      subjects.map((one) => one.split(' ')[0]),
    );
  });

  test("of a host cannot have the server, or itself, speak where it may not, nor end another's job", async () => {
    await using orchestrator = await clientOf(accounts, 'orchestrator');
    await orchestrator.client.submitAttach('h2', { ...vm('of-h2'), requestId: 'r-2' });
    await orchestrator.client.submitAttach('h1', { ...vm('of-h1'), requestId: 'r-1' });
    const before = await jobs();
    const victim = await as('agent-h2');
    const heard: { subject: string; payload: unknown }[] = [];
    const note = (subject: string, payload: Uint8Array): void => {
      heard.push({ subject, payload: read(payload) });
    };
    victim.subscribe('volt.net.v1.host.h2.*', {
      queue: 'host-h2',
      callback: (_, { subject, data }) => note(subject, data),
    });
    orchestrator.connection.subscribe('volt.net.v1.event.h2.>', {
      callback: (_, { subject, data }) => note(subject, data),
    });
    await Promise.all([victim.flush(), orchestrator.connection.flush()]);
    const thief = await as('agent-h1');
    thief.subscribe('volt.net.v1.host.h1.check', {
      queue: 'host-h1',
      callback: (_, message) => message.respond(FORGED),
    });
    for (const target of [
      'volt.net.v1.event.h2.volt0.attached',
      'volt.net.v1.host.h2.attach',
      'volt.net.v1.job.h2.attach',
      '$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS.agent-h2',
      '$JS.API.CONSUMER.DELETE.VOLT_NET_JOBS.agent-h2',
      '$JS.API.STREAM.PURGE.VOLT_NET_JOBS',
      '$JS.API.STREAM.DELETE.VOLT_NET_JOBS',
      '$JS.ACK.VOLT_NET_JOBS.agent-h2.1.1.1.0.0',
    ]) {
      for (const [subject, payload] of DEPUTIES) thief.publish(subject, payload, { reply: target });
    }
    await thief.flush();
    await sleep(SETTLE_MS);
    expect(await jobs()).toEqual(before);
    // What comes is no request and no event: the server's words, without a map, or a job of h1's own that is as it was.
    for (const { payload } of heard) expect([NOT_A_MAP, vmJob('of-h1')]).toContainEqual(payload);
    // The victim's queue still gives it its job, once.
    const { consumers } = store.jetstream();
    const next = await (await consumers.get('VOLT_NET_JOBS', 'agent-h2')).next({ expires: 2_000 });
    expect(read(next?.data ?? new Uint8Array())).toMatchObject({ id: 'of-h2' });
    expect(next?.info.deliveryCount).toBe(1);
  });

  test('of a host that answers in the name of another would have to guess where', async () => {
    const thief = await as('agent-h1');
    const seen: string[] = [];
    thief.subscribe('volt.net.v1.host.h1.list', {
      queue: 'host-h1',
      callback: (_, message) => {
        seen.push(message.reply ?? '');
        message.respond(FORGED);
      },
    });
    await thief.flush();
    await using orchestrator = await clientOf(accounts, 'orchestrator');
    for (let n = 0; n < 3; n += 1) await orchestrator.client.list('h1').catch(() => {});
    const tokens = seen.map((reply) => reply.split('.').at(-1) ?? '');
    expect(new Set(tokens).size).toBe(3);
    for (const token of tokens) {
      expect(token).toHaveLength(22); // 16 random bytes
      // nuid's counter would leave most of it as it was.
      expect(tokens.filter((one) => one.slice(0, 8) === token.slice(0, 8))).toHaveLength(1);
    }
  });
});

const SETTLE_MS = 300;
const FORGED = encodeAnswer({ id: 'forged' });
const NOT_A_MAP = 'no map';
const text = (content: string): Uint8Array => new TextEncoder().encode(content);

/** Requests of which host h1 may choose the subject of the answer. */
const DEPUTIES: readonly [string, Uint8Array][] = [
  ['volt.net.v1.host.h1.check', text('')],
  ['$SRV.INFO.volt-network-agent', text('')],
  ['volt.net.v1.event.h1.volt0.attached', text('x')],
  ['$JS.API.CONSUMER.INFO.VOLT_NET_JOBS.agent-h1', text('')],
  ['$JS.API.CONSUMER.MSG.NEXT.VOLT_NET_JOBS.agent-h1', text('{"batch":1,"no_wait":true}')],
  ['$JS.ACK.VOLT_NET_JOBS.agent-h1.1.99.99.0.0', text('+ACK')],
];

const vmJob = (id: string): unknown => expect.objectContaining({ id });

function read(payload: Uint8Array): unknown {
  try {
    const value = decodeAnswer(payload);
    return typeof value === 'object' ? value : NOT_A_MAP;
  } catch {
    return NOT_A_MAP;
  }
}
