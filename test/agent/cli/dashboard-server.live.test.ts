import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { request } from 'node:http';
import { connect as connectTcp } from 'node:net';
import { connect, headers as natsHeaders } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { encodeAnswer } from '#protocol/envelope.ts';
import { type RunningDashboard, startDashboard } from '../../support/dashboard.ts';
import { type Server, startNats } from '../../support/servers.ts';
import { requireTool } from '../../support/tools.ts';
import { runVoltnet } from '../../support/voltnet.ts';

// Whom the server of `voltnet dashboard` lets in, and what it answers while there is no agent.

const OUTSIDE = '10.99.0.1';
/** One user may do everything, without a password; the other may not read streams. */
const USERS = `no_auth_user: all
authorization { users: [
  { user: all, password: all }
  { user: blind, password: blind, permissions: { publish: { deny: [ "$JS.>" ] } } }
] }`;

let nats: Server;
let loopback: RunningDashboard;
let outside: RunningDashboard;

beforeAll(async () => {
  execFileSync(requireTool('ip'), ['address', 'add', `${OUTSIDE}/24`, 'dev', 'lo']);
  nats = await startNats({ config: USERS });
  [loopback, outside] = await Promise.all([
    startDashboard({ natsUrl: nats.url }),
    startDashboard({ natsUrl: nats.url, listen: `${OUTSIDE}:0` }),
  ]);
});
afterAll(async () => {
  await Promise.all([loopback.interrupt(), outside.interrupt()]);
  await nats.stop();
});

interface Answered {
  readonly status: number | undefined;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

/** As it is written: `fetch` would follow, and mend paths and headers. */
async function ask(
  base: string,
  path: string,
  { method = 'GET', headers = {} }: { method?: string; headers?: Record<string, string> } = {},
): Promise<Answered> {
  const { hostname, port } = new URL(base);
  const asked = request({ hostname, port, path, method, headers, agent: false });
  asked.end();
  const [response] = (await once(asked, 'response')) as [
    NodeJS.ReadableStream & { statusCode?: number; headers: Answered['headers'] },
  ];
  let body = '';
  for await (const chunk of response) body += String(chunk);
  return { status: response.statusCode, headers: response.headers, body };
}

describe('on loopback', () => {
  test('it gives the page, with a policy that allows nothing from elsewhere', async () => {
    expect(loopback.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/$/);
    const { status, headers, body } = await ask(loopback.url, '/');
    expect(status).toBe(200);
    expect(body).toMatch(/^<!doctype html>/);
    expect(headers['content-security-policy']).toMatch(/^default-src 'self';/);
    expect(headers['content-security-policy']).not.toMatch(/unsafe|https?:|\*/);
    expect(headers).toMatchObject({
      'content-type': 'text/html; charset=utf-8',
      'x-content-type-options': 'nosniff',
      'x-frame-options': 'DENY',
      'referrer-policy': 'no-referrer',
    });
    expect(headers['access-control-allow-origin']).toBeUndefined();
  });

  test.each(['evil.example', 'evil.example:8180', '127.0.0.1.evil.example', OUTSIDE])(
    'a Host header %s is refused',
    async (host) => {
      for (const path of ['/', '/api/hosts', '/api/events', '/app.js']) {
        expect(await ask(loopback.url, path, { headers: { host } })).toMatchObject({ status: 421 });
      }
    },
  );

  test('a tunnel may have another port', async () => {
    const headers = { host: 'localhost:9999' };
    expect(await ask(loopback.url, '/', { headers })).toMatchObject({ status: 200 });
  });

  test.each(['POST', 'PUT', 'DELETE', 'PATCH', 'HEAD', 'OPTIONS'])(
    '%s is refused',
    async (method) => {
      const { status, headers } = await ask(loopback.url, '/api/hosts', { method });
      expect({ status, allow: headers['allow'] }).toEqual({ status: 405, allow: 'GET' });
    },
  );

  test.each([
    '/../server.ts',
    '/%2e%2e/server.ts',
    '/page/index.html',
    '/index.html',
    '/api',
    '/api/nothing',
    '/app.js/',
    '//evil.example/app.js%00',
  ])('%s leads nowhere', async (path) => {
    expect(await ask(loopback.url, path)).toMatchObject({ status: 404 });
  });

  test.each([
    '/api/attachments?offset=-1',
    '/api/attachments?limit=201',
    '/api/attachments?limit=all',
    '/api/attachment?host=h1&network=volt0&id=a%20b',
    '/api/attachment?host=h1.attach&network=volt0&id=web',
    '/api/attachment?host=%3E&network=volt0&id=web',
    '/api/life?host=*&network=volt0&id=web',
    '/api/trace?id=../../etc/passwd',
  ])('%s is an invalid request', async (path) => {
    const { status, body } = await ask(loopback.url, path);
    expect(status).toBe(400);
    expect(JSON.parse(body)).toMatchObject({ error: { code: 'INVALID_REQUEST' } });
  });

  test('another page may not ask', async () => {
    for (const site of ['cross-site', 'same-site']) {
      const headers = { 'sec-fetch-site': site };
      expect(await ask(loopback.url, '/api/events', { headers })).toMatchObject({ status: 403 });
    }
  });

  test('without an agent it says why there is nothing', async () => {
    const { body } = await ask(loopback.url, '/api/hosts');
    expect(JSON.parse(body)).toMatchObject({
      value: null,
      problem: { code: 'AGENT_UNAVAILABLE' },
    });
  });

  test('the pages that follow events are few, and a place is free when one has gone', async () => {
    const { hostname, port } = new URL(loopback.url);
    const open = Array.from({ length: 16 }, () => {
      const socket = connectTcp(Number(port), hostname);
      socket.write(`GET /api/events HTTP/1.1\r\nHost: ${hostname}\r\n\r\n`);
      return socket;
    });
    await Promise.all(open.map((socket) => once(socket, 'data')));
    expect(await ask(loopback.url, '/api/events')).toMatchObject({ status: 503 });
    expect(await ask(loopback.url, '/')).toMatchObject({ status: 200 });
    open[0]?.destroy();
    const again = async (): Promise<number | undefined> => {
      const asked = request({ hostname, port, path: '/api/events', agent: false });
      asked.end();
      const [{ statusCode }] = (await once(asked, 'response')) as [{ statusCode?: number }];
      asked.destroy();
      return statusCode;
    };
    await expect.poll(again, { timeout: 10_000 }).toBe(200);
    for (const socket of open) socket.destroy();
  });
});

describe('on another address', () => {
  const token = (): string => new URL(outside.url).searchParams.get('token') ?? '';

  test.each(['/', '/app.js', '/api/hosts', '/api/events', '/nothing'])(
    '%s needs the token',
    async (path) => {
      const wrong = 'x'.repeat(token().length);
      const port = new URL(outside.url).port;
      expect(await ask(outside.url, path)).toMatchObject({ status: 401 });
      expect(await ask(outside.url, `${path}?token=${wrong}`)).toMatchObject({ status: 401 });
      const headers = { cookie: `voltnet-${port}=${wrong}; voltnet-${port}x=${token()}` };
      expect(await ask(outside.url, path, { headers })).toMatchObject({ status: 401 });
    },
  );

  test('which is long, in the address once and in a cookie from then on', async () => {
    expect(token()).toMatch(/^[\w-]{43}$/);
    const { status, headers, body } = await ask(outside.url, `/?token=${token()}`);
    expect({ status, location: headers['location'] }).toEqual({ status: 303, location: '/' });
    expect(body).not.toContain(token());
    const [cookie = ''] = headers['set-cookie'] ?? [];
    expect(cookie).toMatch(/; HttpOnly; SameSite=Strict; Path=\//);
    const [pair = ''] = cookie.split(';');
    const page = await ask(outside.url, '/', { headers: { cookie: `other=1; ${pair}` } });
    expect(page).toMatchObject({ status: 200 });
    const hosts = await ask(outside.url, '/api/hosts', { headers: { cookie: pair } });
    expect(hosts).toMatchObject({ status: 200 });
  });

  test('is not asked for anything but the page with a token in its address', async () => {
    expect(await ask(outside.url, `/api/hosts?token=${token()}`)).toMatchObject({ status: 401 });
    const posted = await ask(outside.url, `/?token=${token()}`, { method: 'POST' });
    expect(posted).toMatchObject({ status: 405 });
  });
});

test('a user who may not read the stream sees events from now on, and why', async () => {
  const { host } = new URL(nats.url);
  const dashboard = await startDashboard({ natsUrl: `nats://blind:blind@${host}` });
  const stream = connectTcp(Number(new URL(dashboard.url).port), '127.0.0.1');
  let heard = '';
  stream.on('data', (chunk: Buffer) => (heard += chunk.toString()));
  stream.write('GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n');
  await expect
    .poll(() => heard, { timeout: 30_000 })
    .toMatch(/event: state\ndata: .*"problem":\{"code"/);
  const connection = await connect({ servers: nats.url });
  const made = natsHeaders();
  made.set('ce-source', '/volt/network/h1');
  made.set('ce-subject', 'web');
  made.set('ce-time', new Date().toISOString());
  const tell = (): boolean => {
    const payload = encodeAnswer({ requestId: 'r', durationMs: {} });
    connection.publish('volt.net.v1.event.h1.volt0.attached', payload, { headers: made });
    return heard.includes('"subject":"web"');
  };
  await expect.poll(tell, { timeout: 30_000 }).toBe(true);
  // The same event, told many times, is one.
  expect(heard.match(/"subject":"web"/g)).toHaveLength(1);
  stream.destroy();
  await connection.close();
  await dashboard.interrupt();
});

describe('the command', () => {
  test('ends on Ctrl-C', async () => {
    const dashboard = await startDashboard({ natsUrl: nats.url });
    const stream = connectTcp(Number(new URL(dashboard.url).port), '127.0.0.1');
    stream.write('GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n');
    await once(stream, 'data');
    expect(await dashboard.interrupt()).toBe('SIGINT');
    stream.destroy();
  });

  test('says what is wrong with its options, and who has its port', async () => {
    const dashboard = (...words: string[]): ReturnType<typeof runVoltnet> =>
      runVoltnet(['--nats', nats.url, 'dashboard', ...words]);
    expect(await dashboard('--listen', 'everywhere')).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('must be an IP address and a port'),
    });
    expect(await dashboard('--traces', '/nowhere/traces.json')).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('--traces /nowhere/traces.json: ENOENT'),
    });
    expect(await dashboard('--listen', new URL(loopback.url).host)).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining('EADDRINUSE'),
    });
  });

  test('without NATS it ends at once, as others do', async () => {
    const words = ['--nats', 'nats://127.0.0.1:1', '--timeout', '2s', 'dashboard'];
    expect(await runVoltnet([...words, '--listen', '127.0.0.1:0'])).toMatchObject({ exitCode: 3 });
  });
});
