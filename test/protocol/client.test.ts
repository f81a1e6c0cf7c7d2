import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { connect, headers as createHeaders, type Msg, type NatsConnection } from 'nats';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { VoltNetworkClient } from '#protocol/client.ts';
import { decode, encodeAnswer } from '#protocol/envelope.ts';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import { eventHeaders } from '#protocol/events.ts';
import { JOB_STREAM, subjects } from '#protocol/subjects.ts';
import { RawNats } from '../support/raw-nats.ts';
import { type Server, startNats } from '../support/servers.ts';
import { attachment, containerRequest, VOLT0, vmRequest } from './samples.ts';

const TRACEPARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
const known = subjects();

let server: Server;
/** Of the client, and of what stands in for an agent. */
let connection: NatsConnection;
let agent: NatsConnection;
let client: VoltNetworkClient;

beforeAll(async () => {
  server = await startNats();
});
afterAll(async () => {
  await server.stop();
});
beforeEach(async () => {
  connection = await connect({ servers: server.url });
  agent = await connect({ servers: server.url });
  client = new VoltNetworkClient({ connection, headers: createHeaders, timeoutMs: 2_000 });
});
afterEach(async () => {
  await connection.close();
  await agent.close();
});

/** Answers a subject as an agent does; what was asked is collected in the result. */
async function answering(
  subject: string,
  answer: (request: unknown) => Uint8Array | object,
): Promise<{ request: unknown; message: Msg }[]> {
  const asked: { request: unknown; message: Msg }[] = [];
  agent.subscribe(subject, {
    callback: (_, message) => {
      const request = decode(message.data);
      asked.push({ request, message });
      const payload = answer(request);
      message.respond(payload instanceof Uint8Array ? payload : encodeAnswer(payload));
    },
  });
  await agent.flush();
  return asked;
}

const errorOf = async (call: Promise<unknown>): Promise<VoltError> => {
  const error = await call.then(
    () => new Error('resolved'),
    (reason: unknown) => reason,
  );
  if (error instanceof VoltError) return error;
  throw error;
};

/** Publishes an event as an agent does, on the client's own connection: it arrives in order. */
const publish = (
  event: { type: string; host?: string; network?: string; id?: string; source?: string },
  body: unknown = { requestId: 'r-1' },
): void => {
  const { type, host = 'h1', network = 'volt0', id = 'e-1' } = event;
  const headers = createHeaders();
  const { source = `/volt/network/${host}` } = event;
  const time = '2026-01-02T03:04:05.678Z';
  const named = eventHeaders({
    id,
    type,
    source,
    subject: 'att-1',
    time,
    traceparent: TRACEPARENT,
  });
  for (const [name, value] of Object.entries(named)) headers.set(name, value);
  const payload = body instanceof Uint8Array ? body : encodeAnswer(body);
  connection.publish(`volt.net.v1.event.${host}.${network}.${type}`, payload, { headers });
};

describe('requests', () => {
  const attachSubject = known.host('h1', 'attach');

  test('attach sends the request and gives the answer', async () => {
    const answer = { attachment, replayed: false };
    const asked = await answering(attachSubject, () => answer);
    expect(await client.attach('h1', containerRequest)).toEqual(answer);
    expect(asked.map(({ request }) => request)).toEqual([containerRequest]);
  });

  test('keys of a newer agent, and nil, come through', async () => {
    const answer = { attachment: { ...attachment, device: null, newer: 1 }, replayed: true };
    await answering(attachSubject, () => answer);
    expect(await client.attach('h1', vmRequest)).toEqual(answer);
  });

  test('the caller’s trace and deadline travel in headers', async () => {
    const asked = await answering(attachSubject, () => ({ attachment, replayed: false }));
    await client.attach('h1', vmRequest, {
      traceparent: TRACEPARENT,
      tracestate: 'a=b',
      timeoutMs: 1_500,
    });
    const sent = asked[0]?.message.headers;
    expect(sent?.get('traceparent')).toBe(TRACEPARENT);
    expect(sent?.get('tracestate')).toBe('a=b');
    expect(sent?.get('volt-timeout-ms')).toBe('1500');
  });

  test('where the call names no trace, the current one is asked for', async () => {
    const traced = new VoltNetworkClient({
      connection,
      headers: createHeaders,
      traceContext: () => ({ traceparent: TRACEPARENT }),
    });
    const asked = await answering(attachSubject, () => ({ attachment, replayed: false }));
    await traced.attach('h1', vmRequest);
    expect(asked[0]?.message.headers?.get('traceparent')).toBe(TRACEPARENT);
  });

  test('another prefix is another set of subjects', async () => {
    const other = new VoltNetworkClient({
      connection,
      headers: createHeaders,
      prefix: 'lab.net',
      timeoutMs: 1_000,
    });
    await answering('lab.net.host.h1.get', () => ({ attachment }));
    expect(await other.get('h1', { id: 'att-2' })).toEqual({ attachment });
    expect((await errorOf(client.get('h1', { id: 'att-2' }))).code).toBe('AGENT_UNAVAILABLE');
  });

  test('each other operation has its subject, its request and its answer', async () => {
    const usage = { size: 253, used: 1, free: 252, reserved: 2, cooling: 0, suspect: 0 };
    const cases: [string, object, object, () => Promise<unknown>][] = [
      [
        known.host('h1', 'detach'),
        { id: 'a', generation: 3 },
        { detached: true, releasing: true },
        () => client.detach('h1', { id: 'a', generation: 3 }),
      ],
      [known.host('h1', 'get'), { id: 'a' }, { attachment }, () => client.get('h1', { id: 'a' })],
      [
        known.host('h1', 'check'),
        {},
        { inSync: false, differences: [{ id: 'a', what: 'mtu', expected: 1, observed: null }] },
        () => client.check('h1'),
      ],
      [known.host('h1', 'list'), {}, { attachments: [attachment] }, () => client.list('h1')],
      [
        known.network('put'),
        { ...VOLT0, revision: 1 },
        { network: VOLT0, revision: 2, created: false },
        () => client.putNetwork({ ...VOLT0, revision: 1 }),
      ],
      [
        known.network('get'),
        { network: 'volt0' },
        { network: VOLT0, revision: 1, usage },
        () => client.getNetwork('volt0'),
      ],
      [
        known.network('list'),
        { limit: 5 },
        { networks: [{ network: VOLT0, revision: 1 }] },
        () => client.listNetworks({ limit: 5 }),
      ],
      [
        known.network('delete'),
        { network: 'volt0' },
        { deleted: true },
        () => client.deleteNetwork('volt0'),
      ],
    ];
    for (const [subject, request, answer, call] of cases) {
      const asked = await answering(subject, () => answer);
      expect(await call()).toEqual(answer);
      expect(asked.map((one) => one.request)).toEqual([request]);
    }
  });

  test('listAll asks for page after page', async () => {
    const pages = [
      { attachments: [{ ...attachment, id: 'a' }], cursor: 'a' },
      { attachments: [{ ...attachment, id: 'b' }], cursor: 'b' },
      { attachments: [] },
    ];
    let page = 0;
    const asked = await answering(known.host('h1', 'list'), () => pages[page++] ?? {});
    const ids: string[] = [];
    for await (const { id } of client.listAll('h1', { network: 'volt0' })) ids.push(id);
    expect(ids).toEqual(['a', 'b']);
    expect(asked.map(({ request }) => request)).toEqual([
      { network: 'volt0' },
      { network: 'volt0', cursor: 'a' },
      { network: 'volt0', cursor: 'b' },
    ]);
  });
});

test('each request has a reply subject that nobody can guess, below one of the client', async () => {
  const asked = await answering(known.host('h1', 'get'), () => ({ attachment }));
  const one = new VoltNetworkClient({
    connection,
    headers: createHeaders,
    inboxPrefix: '_INBOX.x',
  });
  for (let n = 0; n < 3; n += 1) await one.get('h1', { id: 'a' });
  const replies = asked.map(({ message }) => message.reply?.split('.') ?? []);
  expect(new Set(replies.map((tokens) => tokens.slice(0, -1).join('.'))).size).toBe(1);
  for (const tokens of replies) {
    expect(tokens).toHaveLength(4);
    expect(tokens.slice(0, 2)).toEqual(['_INBOX', 'x']);
    // 16 random bytes; those of the library would differ in their last characters alone.
    const alike = replies.filter((other) => other[3]?.slice(0, 8) === tokens[3]?.slice(0, 8));
    expect(alike).toHaveLength(1);
  }
});

describe('errors', () => {
  const subject = known.host('h1', 'get');

  test('the agent’s error is thrown as it was, of a newer agent too', async () => {
    const sent = new VoltError('WRONG_HOST', 'a is on h2', { details: { host: 'h2' } });
    await answering(subject, () => toErrorBody(sent));
    const error = await errorOf(client.get('h1', { id: 'a' }));
    expect(error).toMatchObject({ code: 'WRONG_HOST', message: 'a is on h2', retryable: false });
    expect(error.details).toEqual({ host: 'h2' });
  });

  test('a host that nobody serves is AGENT_UNAVAILABLE, at once and retryable', async () => {
    const started = performance.now();
    const error = await errorOf(client.get('h9', { id: 'a' }, { timeoutMs: 30_000 }));
    expect(error).toMatchObject({ code: 'AGENT_UNAVAILABLE', retryable: true });
    expect(error.message).toContain('volt.net.v1.host.h9.get');
    expect(performance.now() - started).toBeLessThan(15_000);
  });

  test('no answer in time is DEADLINE_EXCEEDED, retryable', async () => {
    agent.subscribe(subject, { callback: () => {} });
    await agent.flush();
    const error = await errorOf(client.get('h1', { id: 'a' }, { timeoutMs: 50 }));
    expect(error).toMatchObject({ code: 'DEADLINE_EXCEEDED', retryable: true });
    expect(error.message).toContain('50 ms');
  });

  test('a closed connection is AGENT_UNAVAILABLE', async () => {
    await connection.close();
    expect((await errorOf(client.get('h1', { id: 'a' }))).code).toBe('AGENT_UNAVAILABLE');
    expect(() => client.watch()).toThrow(expect.objectContaining({ code: 'AGENT_UNAVAILABLE' }));
  });

  test('a connection that is closed meanwhile ends the request', async () => {
    const heard = Promise.withResolvers<void>();
    agent.subscribe(subject, { callback: () => heard.resolve() });
    await agent.flush();
    const error = errorOf(client.get('h1', { id: 'a' }));
    await heard.promise;
    await connection.close();
    expect((await error).code).toBe('AGENT_UNAVAILABLE');
  });

  test.for([
    ['not MessagePack', new Uint8Array([0xc1])],
    ['what a stream acknowledges', Buffer.from('{"stream":"X","seq":1}')],
    ['a list', encodeAnswer([1])],
    ['nil', encodeAnswer(null)],
    ['without its key', encodeAnswer({ ok: true })],
    ['with its key of another type', encodeAnswer({ attachment: 'a' })],
    ['with nil at its key', encodeAnswer({ attachment: null })],
  ] as const)('an answer that is %s is INTERNAL', async ([, payload]) => {
    await answering(subject, () => payload);
    expect((await errorOf(client.get('h1', { id: 'a' }))).code).toBe('INTERNAL');
  });

  test.for(['*', 'h1.x', '>', ''])('host %j is refused before anything is sent', async (host) => {
    const asked = await answering('volt.net.v1.host.>', () => ({ attachment }));
    expect(await errorOf(client.get(host, { id: 'a' }))).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path: 'host' },
    });
    expect((await errorOf(client.submitDetach(host, { id: 'a' }))).code).toBe('INVALID_REQUEST');
    expect(asked).toEqual([]);
  });

  test('what cannot be encoded, or is too large, is refused before anything is sent', async () => {
    const dated = client.putNetwork({ network: 'n', dhcp: new Date(0) });
    expect((await errorOf(dated)).code).toBe('INVALID_REQUEST');
    const labels = { long: 'x'.repeat(70_000) };
    expect((await errorOf(client.attach('h1', { ...vmRequest, labels }))).code).toBe('TOO_LARGE');
  });
});

describe('jobs', () => {
  test('without a stream that takes them, submitting is AGENT_UNAVAILABLE', async () => {
    expect(await errorOf(client.submitAttach('h1', vmRequest))).toMatchObject({
      code: 'AGENT_UNAVAILABLE',
      retryable: true,
    });
  });

  describe('with the work queue', () => {
    beforeAll(async () => {
      const admin = await connect({ servers: server.url });
      const manager = await admin.jetstreamManager();
      await manager.streams.add({ name: JOB_STREAM, subjects: [known.allJobs()] });
      await admin.close();
    });

    test('a job is stored once, with its id in body and header', async () => {
      const request = { ...vmRequest, requestId: 'r-1' };
      const first = await client.submitAttach('h1', request, { traceparent: TRACEPARENT });
      expect(first).toEqual({ requestId: 'r-1', sequence: first.sequence, duplicate: false });
      expect(await client.submitAttach('h1', request)).toEqual({ ...first, duplicate: true });

      const manager = await agent.jetstreamManager();
      const stored = await manager.streams.getMessage(JOB_STREAM, { seq: first.sequence });
      expect(stored.subject).toBe('volt.net.v1.job.h1.attach');
      expect(stored.header.get('Nats-Msg-Id')).toBe('h1.attach.r-1');
      expect(stored.header.get('traceparent')).toBe(TRACEPARENT);
      expect(decode(stored.data)).toEqual(request);
    });

    test('the same request id for another host or operation is another job', async () => {
      const jobs = [
        await client.submitAttach('h2', { ...vmRequest, requestId: 'r-2' }),
        await client.submitAttach('h3', { ...vmRequest, requestId: 'r-2' }),
        await client.submitDetach('h2', { id: vmRequest.id, requestId: 'r-2' }),
      ];
      expect(jobs.map(({ duplicate }) => duplicate)).toEqual([false, false, false]);
    });

    test('a job without a request id is given one', async () => {
      const { requestId, duplicate } = await client.submitDetach('h1', { id: 'att-1' });
      expect(requestId).toMatch(/^[0-9a-f-]{36}$/);
      expect(duplicate).toBe(false);
    });
  });
});

describe('watch', () => {
  test('an event comes with its headers and its body', async () => {
    const events = client.watch();
    publish({ type: 'attached' }, { ...attachment, requestId: 'r-1' });
    expect(await events.next()).toEqual({
      done: false,
      value: {
        id: 'e-1',
        type: 'attached',
        host: 'h1',
        network: 'volt0',
        subject: 'att-1',
        time: '2026-01-02T03:04:05.678Z',
        traceparent: TRACEPARENT,
        body: { ...attachment, requestId: 'r-1' },
      },
    });
    await events.return();
  });

  test('what happens between watch and the first look at it is seen', async () => {
    const events = client.watch();
    publish({ type: 'attached' });
    await connection.flush();
    expect((await events.next()).value).toMatchObject({ type: 'attached' });
    await events.return();
  });

  test('host, network and types filter', async () => {
    const events = client.watch({ host: 'h1', network: 'volt0', types: ['failed', 'detached'] });
    publish({ type: 'failed', host: 'h2' });
    publish({ type: 'failed', network: 'volt1' });
    publish({ type: 'attached' });
    publish({ type: 'detached', id: 'e-7' });
    expect((await events.next()).value).toMatchObject({ type: 'detached', id: 'e-7' });
    await events.return();
  });

  test('what is no event is passed over, the type of a newer agent is not', async () => {
    const events = client.watch();
    publish({ type: 'attached' }, new Uint8Array([0xc1]));
    publish({ type: 'attached' }, [1, 2]);
    publish({ type: 'moved' });
    expect((await events.next()).value).toMatchObject({ type: 'moved' });
    await events.return();
  });

  test('an event that another host tells in this one’s name is passed over', async () => {
    const events = client.watch({ host: 'h1' });
    connection.publish('volt.net.v1.event.h1.-.host-up', encodeAnswer({}));
    publish({ type: 'attached', id: 'e-2', source: '/volt/network/h2' });
    publish({ type: 'attached', id: 'e-3' });
    expect((await events.next()).value).toMatchObject({ type: 'attached', id: 'e-3' });
    await events.return();
  });

  test('headers that cannot be read do not end the watch', async () => {
    using stranger = await RawNats.open(server.url);
    const events = client.watch();
    const first = events.next();
    await connection.flush();
    const subject = 'volt.net.v1.event.h1.volt0.attached';
    stranger.publish({ subject, headers: 'x: a\nb', data: encodeAnswer({}) });
    await stranger.flush();
    publish({ type: 'detached', id: 'e-4' });
    expect((await first).value).toMatchObject({ type: 'detached', id: 'e-4' });
    await events.return();
  });

  test.for(['before', 'while'])('it ends by signal, given %s it waits', async (when) => {
    const controller = new AbortController();
    if (when === 'before') controller.abort();
    const next = client.watch({ signal: controller.signal }).next();
    controller.abort();
    expect(await next).toEqual({ done: true, value: undefined });
  });

  test('it ends with the connection', async () => {
    const next = client.watch().next();
    await connection.close();
    expect((await next).done).toBe(true);
  });
});

test('importing the client loads neither zod nor nats', () => {
  const url = createRequire(import.meta.url).resolve('../../protocol/client.ts');
  const script = `
    import { registerHooks } from 'node:module';
    const loaded = [];
    registerHooks({ load: (url, context, next) => (loaded.push(url), next(url, context)) });
    await import(${JSON.stringify(url)});
    console.log(loaded.join('\\n'));`;
  const output = execFileSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
  });
  expect(output).toContain('protocol/envelope.ts');
  expect(output).not.toMatch(/node_modules\/(zod|nats)\//);
});
