import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, expect, test } from 'vitest';
import { type Ended, runVoltnet } from '../../support/voltnet.ts';

// `voltnet trace` against stores of traces. The stores are fakes, since neither is in Debian: they answer as Tempo's API
// page and Jaeger's api_v3 have it, ids in base64 and enums by name, as protobuf's own JSON does.

const TRACE = '4bf92f3577b34da6a3ce929d0e0e4736';
const base64 = (hex: string): string => Buffer.from(hex, 'hex').toString('base64');

const folder = mkdtempSync(join(tmpdir(), 'volt-test-stores-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});

let server: Server;
let url: string;
let asked: { path: string; query: URLSearchParams; headers: IncomingMessage['headers'] }[];
/** By path; what is not here is 404. */
let answers: Record<string, unknown>;
let reply: (response: ServerResponse, path: string) => void;

beforeEach(async () => {
  asked = [];
  answers = {};
  reply = (response, path) => {
    const answer = answers[path];
    response.writeHead(answer === undefined ? 404 : 200).end(JSON.stringify(answer));
  };
  server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? '', 'http://store');
    asked.push({ path: pathname, query: searchParams, headers: request.headers });
    reply(response, pathname);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
});

const trace = (...words: string[]): Promise<Ended> => runVoltnet(['trace', ...words]);

const span = (id: (hex: string) => string, spanId: string, more: object = {}): object => ({
  traceId: id(TRACE),
  spanId: id(spanId),
  name: 'attach',
  startTimeUnixNano: '1000000000',
  endTimeUnixNano: '1002000000',
  attributes: [{ key: 'volt.attachment.id', value: { stringValue: 'web' } }],
  ...more,
});
const resources = (id: (hex: string) => string): object[] => [
  {
    scopeSpans: [
      {
        spans: [
          span(id, '00f067aa0ba902b7'),
          span(id, '00f067aa0ba902b8', {
            parentSpanId: id('00f067aa0ba902b7'),
            name: 'kernel',
            attributes: [],
            status: { code: 'STATUS_CODE_ERROR' },
          }),
        ],
      },
    ],
  },
];
const SHOWN = new RegExp(`^trace ${TRACE}\nattach +━.*\n {2}kernel \\(failed\\) +━.*\n$`);

test('Tempo is asked for the traces of an attachment, then for their spans', async () => {
  answers = {
    '/api/search': { traces: [{ traceID: TRACE }] },
    [`/api/v2/traces/${TRACE}`]: { trace: { resourceSpans: resources(base64) } },
  };
  const before = Date.now() / 1_000;
  const { exitCode, stdout, stderr } = await trace('web', '--tempo', url, '--since', '2h');
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
  expect(stdout).toMatch(SHOWN);
  const query = asked[0]?.query;
  expect(query?.get('q')).toBe(
    '{ span.volt.attachment.id = "web" || span.volt.request.id = "web" }',
  );
  expect(Number(query?.get('start'))).toBeGreaterThanOrEqual(Math.floor(before) - 7_200);
  expect(Number(query?.get('end'))).toBeGreaterThanOrEqual(Math.floor(before));
});

test('a Tempo of before 2.7, below a path, by trace id', async () => {
  answers = { [`/tempo/api/traces/${TRACE}`]: { batches: resources(base64) } };
  const { exitCode, stdout } = await trace(TRACE.toUpperCase(), '--tempo', `${url}/tempo`);
  expect(exitCode).toBe(0);
  expect(stdout).toMatch(SHOWN);
});

test('Jaeger is asked by tags, with the headers of a file', async () => {
  const headers = join(folder, 'headers');
  writeFileSync(headers, 'Authorization: Bearer secret\nX-Scope-OrgID:acme\n\n');
  answers = {
    '/api/traces': { data: [{ traceID: TRACE }] },
    [`/api/v3/traces/${TRACE}`]: { result: { resourceSpans: resources((hex) => hex) } },
  };
  const { exitCode, stdout } = await trace('web', '--jaeger', url, '--headers', headers);
  expect(exitCode).toBe(0);
  expect(stdout).toMatch(SHOWN);
  const tags = asked.flatMap(({ query }) => query.getAll('tags'));
  expect(tags.map((one) => JSON.parse(one) as unknown)).toEqual(
    expect.arrayContaining([{ 'volt.attachment.id': 'web' }, { 'volt.request.id': 'web' }]),
  );
  for (const one of asked) {
    expect(one.headers).toMatchObject({ authorization: 'Bearer secret', 'x-scope-orgid': 'acme' });
  }
});

test('an id of a store that is no trace id is not asked for', async () => {
  answers = { '/api/search': { traces: [{ traceID: '../../admin' }, { traceID: 7 }, null] } };
  expect(await trace('web', '--tempo', url)).toMatchObject({ exitCode: 4 });
  expect(asked).toHaveLength(1);
});

test('a store that is away, refuses, fails, is silent or is none is said so', async () => {
  const closed = createServer().listen(0, '127.0.0.1');
  await once(closed, 'listening');
  const { port } = closed.address() as AddressInfo;
  closed.close();
  const away = await trace('web', '--tempo', `http://127.0.0.1:${port}`);
  expect(away).toMatchObject({ exitCode: 6, stderr: expect.stringContaining('ECONNREFUSED') });
  reply = (response) => response.writeHead(401).end();
  expect(await trace('web', '--tempo', url)).toMatchObject({ exitCode: 7 });
  reply = (response) => response.writeHead(503).end('too many\u001b[31m queries');
  const failed = await trace('web', '--jaeger', url);
  expect(failed).toMatchObject({ exitCode: 6, stderr: expect.stringContaining('503 too many') });
  expect(failed.stderr).not.toContain('\u001b');
  reply = (response) => response.end('<html>');
  expect(await trace('web', '--tempo', url)).toMatchObject({
    exitCode: 6,
    stderr: expect.stringContaining('no JSON'),
  });
  reply = () => {};
  const silent = await trace('web', '--tempo', url, '--timeout', '1s');
  expect(silent).toMatchObject({ exitCode: 6, stderr: expect.stringContaining('did not answer') });
});

test.each([
  [['web']],
  [['web', '--tempo', 'tempo:3200']],
  [['web', '--tempo', 'http://me:secret@tempo:3200']],
  [['web', '--tempo', 'http://tempo:3200', '--file', 'traces.jsonl']],
  [['web', '--tempo', 'http://tempo:3200', '--since', 'yesterday']],
  [['web', '--tempo', 'http://tempo:3200', '--headers', '/nowhere']],
])('%j cannot be used', async (words) => {
  const { exitCode, stderr } = await trace(...words);
  expect(exitCode).toBe(2);
  expect(stderr).not.toContain('secret');
});

test('a header that cannot be sent is not shown', async () => {
  const headers = join(folder, 'broken');
  for (const text of ['Authorization Bearer secret', 'Authorization: Bearer secret\u0001']) {
    writeFileSync(headers, text);
    const { exitCode, stderr } = await trace('web', '--tempo', url, '--headers', headers);
    expect(exitCode).toBe(2);
    expect(stderr).toContain('name: value');
    expect(stderr).not.toContain('secret');
  }
});
