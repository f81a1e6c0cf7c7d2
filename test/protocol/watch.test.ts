import * as transport3 from '@nats-io/transport-node';
import * as nats2 from 'nats';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type StoredEvent, VoltNetworkClient } from '#protocol/client.ts';
import { encodeAnswer } from '#protocol/envelope.ts';
import { eventHeaders } from '#protocol/events.ts';
import type { NatsLike } from '#protocol/nats.ts';
import { EVENT_STREAM, subjects } from '#protocol/subjects.ts';
import { until } from '../support/agent.ts';
import { type Server, startNats } from '../support/servers.ts';
import { attachment } from './samples.ts';

// The stream of events, read with each of NATS's two client libraries.

const FOREVER = { maxReconnectAttempts: -1, reconnectTimeWait: 50 };
const LIBRARIES = {
  'nats 2': {
    open: (servers: string) => nats2.connect({ servers, ...FOREVER }),
    headers: nats2.headers,
  },
  '@nats-io/transport-node 3': {
    open: (servers: string) => transport3.connect({ servers, ...FOREVER }),
    headers: () => transport3.headers(),
  },
} as const;

let server: Server;
let admin: nats2.NatsConnection;
let manager: nats2.JetStreamManager;

beforeAll(async () => {
  server = await startNats();
  admin = await nats2.connect({ servers: server.url, ...FOREVER });
  manager = await admin.jetstreamManager();
});
afterAll(async () => {
  await admin.close();
  await server.stop();
});
beforeEach(async () => {
  await manager.streams.add({ name: EVENT_STREAM, subjects: [subjects().events()] });
});
afterEach(async () => {
  await manager.streams.delete(EVENT_STREAM);
});

/** Stores events as an agent does, one for each name, and returns the sequence of the last. */
async function store(names: readonly string[], network = 'volt0', type = 'attached') {
  let sequence = 0;
  for (const name of names) {
    const headers = nats2.headers();
    const named = eventHeaders({
      id: name,
      type,
      source: '/volt/network/h1',
      subject: name,
      time: '2026-01-02T03:04:05.678Z',
    });
    for (const [key, value] of Object.entries(named)) headers.set(key, value);
    const body = encodeAnswer({ ...attachment, requestId: name, durationMs: {} });
    const subject = subjects().event('h1', network, type);
    sequence = (await admin.jetstream().publish(subject, body, { headers })).seq;
  }
  return sequence;
}

async function take(events: AsyncGenerator<StoredEvent>, count: number): Promise<StoredEvent[]> {
  const taken: StoredEvent[] = [];
  while (taken.length < count) {
    const { value, done } = await events.next();
    if (done === true) break;
    taken.push(value);
  }
  return taken;
}

const ids = (events: readonly StoredEvent[]): string[] => events.map(({ id }) => id);
const numbered = (from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, index) => `e${from + index}`);

describe.each(Object.entries(LIBRARIES))('with %s', (_, { open, headers }) => {
  let connection: NatsLike & { close(): Promise<unknown> };
  let client: VoltNetworkClient;

  beforeEach(async () => {
    connection = await open(server.url);
    client = new VoltNetworkClient({ connection, headers, timeoutMs: 2_000 });
  });
  afterEach(async () => {
    await connection.close();
  });

  test('a watch gives what the stream has, and then what comes, each once and in order', async () => {
    await store(numbered(1, 450));
    const events = client.watch({ after: 0 });
    const before = await take(events, 450);
    expect(ids(before)).toEqual(numbered(1, 450));
    expect(before.map(({ sequence }) => sequence)).toEqual(before.map((_event, n) => n + 1));
    const next = take(events, 2);
    await store(['e451', 'e452']);
    expect(ids(await next)).toEqual(['e451', 'e452']);
    await events.return();
  });

  test('it goes on behind a sequence, or from a time, or from now', async () => {
    const third = await store(numbered(1, 3));
    const { timestamp } = await manager.streams.getMessage(EVENT_STREAM, { seq: third });
    const since = client.watch({ since: timestamp });
    expect(ids(await take(since, 1))).toEqual(['e3']);
    await since.return();
    const after = client.watch({ after: third - 1 });
    expect(ids(await take(after, 1))).toEqual(['e3']);
    await after.return();
    expect(await client.lastSequence()).toBe(third);

    const now = client.watch({ after: 'last' });
    const first = take(now, 1);
    await until('it reads', async () => (await consumers()) === 3);
    await store(['e4']);
    expect(ids(await first)).toEqual(['e4']);
    await now.return();

    // Nanoseconds since 1970 do not go back so far.
    for (const long of ['0885-01-01T00:00:00Z', new Date(-1e14)]) {
      const all = client.watch({ since: long });
      expect(ids(await take(all, 1))).toEqual(['e1']);
      await all.return();
    }
  });

  const consumers = async (): Promise<number> =>
    (await manager.streams.info(EVENT_STREAM)).state.consumer_count;

  test.each([
    { since: 'noon' },
    { after: -1 },
    { after: 1.5 },
    { consumer: 'a.b' },
    { consumer: '' },
    { after: 1, consumer: 'a' },
  ])('a place that is none is refused: %j', (place) => {
    const code = 'INVALID_REQUEST';
    expect(() => client.watch(place)).toThrow(expect.objectContaining({ code }));
  });

  test('host, network and types filter; the body is that of the type', async () => {
    await store(['other'], 'volt1');
    await store(['wrong'], 'volt0', 'failed');
    await store(['right']);
    const events = client.watch({ after: 0, host: 'h1', network: 'volt0', types: ['attached'] });
    const [event] = await take(events, 1);
    expect(event?.id).toBe('right');
    // Type-checked: no cast.
    expect(event?.type === 'attached' ? event.body.device?.name : '').toBe('veth-xyz-h');
    await events.return();
  });

  test('a server that restarts, and forgets who read, does not end it', async () => {
    await store(numbered(1, 2));
    const events = client.watch({ after: 0 });
    expect(ids(await take(events, 2))).toEqual(['e1', 'e2']);
    const next = take(events, 2);
    await server.kill();
    await server.restart();
    await until('the stream is back', () => store(['e3']).then(() => true));
    await store(['e4']);
    expect(ids(await next)).toEqual(['e3', 'e4']);
    await events.return();
  });

  test('what the stream has lost is told: NOT_FOUND, also in a stream made anew', async () => {
    await store(numbered(1, 5));
    await manager.streams.purge(EVENT_STREAM, { seq: 4 });
    await expect(client.watch({ after: 2 }).next()).rejects.toMatchObject({
      code: 'NOT_FOUND',
      details: { path: 'after', first: 4, last: 5 },
    });
    await expect(client.watch({ after: 6 }).next()).rejects.toMatchObject({ code: 'NOT_FOUND' });
    const events = client.watch({ after: 3 });
    expect(ids(await take(events, 2))).toEqual(['e4', 'e5']);
    await events.return();
  });

  test('a durable consumer gives again what was not acknowledged, and nothing else', async () => {
    await manager.consumers.add(EVENT_STREAM, {
      durable_name: 'orchestrator',
      ack_policy: nats2.AckPolicy.Explicit,
      ack_wait: nats2.nanos(1_000),
    });
    await store(numbered(1, 3));
    const first = client.watch({ consumer: 'orchestrator' });
    expect(ids(await take(first, 2))).toEqual(['e1', 'e2']);
    await first.return();
    const second = client.watch({ consumer: 'orchestrator' });
    expect(ids(await take(second, 2)).toSorted()).toEqual(['e2', 'e3']);
    await second.return();
  });

  test('without the stream, or the consumer, a watch says so at once', async () => {
    await expect(client.watch({ consumer: 'nobody' }).next()).rejects.toMatchObject({
      code: 'AGENT_UNAVAILABLE',
    });
    await manager.streams.delete(EVENT_STREAM);
    await expect(client.watch({ after: 0 }).next()).rejects.toMatchObject({
      code: 'AGENT_UNAVAILABLE',
    });
    await manager.streams.add({ name: EVENT_STREAM, subjects: [subjects().events()] });
  });

  test('it ends by signal, and with the connection', async () => {
    const controller = new AbortController();
    const one = client.watch({ after: 0, signal: controller.signal }).next();
    const other = client.watch({ after: 'last' }).next();
    await until('both read', async () => (await consumers()) === 2);
    controller.abort();
    expect(await one).toEqual({ done: true, value: undefined });
    await connection.close();
    expect((await other).done).toBe(true);
  });

  test('errors of the library are told as ours', async () => {
    const labels = { long: 'x'.repeat(70_000) };
    const call = client.attach('h1', { id: 'a', workload: 'w', kind: 'vm', network: 'n', labels });
    await expect(call).rejects.toMatchObject({ code: 'TOO_LARGE' });
    await expect(client.get('h9', { id: 'a' })).rejects.toMatchObject({
      code: 'AGENT_UNAVAILABLE',
    });
    await connection.close();
    await expect(client.get('h9', { id: 'a' })).rejects.toMatchObject({
      code: 'AGENT_UNAVAILABLE',
    });
  });
});
