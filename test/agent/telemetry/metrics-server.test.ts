import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, test } from 'vitest';
import { MetricsServer } from '#agent/telemetry/metrics-server.ts';
import { until } from '../../support/agent.ts';
import { freePort } from '../../support/servers.ts';

// The server of metrics by itself: what it answers, and what strangers cannot have of it.

const THIRTY_TWO_MIB = 32 * 1_024 * 1_024;
const toClose: (() => void)[] = [];
afterEach(() => {
  for (const close of toClose.splice(0)) close();
});

async function serve(
  text: () => Promise<string> = async () => 'volt 1\n',
): Promise<{ server: MetricsServer; port: number; url: string }> {
  const port = await freePort();
  const server = new MetricsServer({ listen: `127.0.0.1:${port}`, text });
  toClose.push(() => server.stop());
  server.start();
  await until('it listens', () => server.problem === undefined);
  return { server, port, url: `http://127.0.0.1:${port}` };
}

function socketTo(port: number): Socket {
  const socket = connect({ host: '127.0.0.1', port });
  socket.on('error', () => {});
  toClose.push(() => socket.destroy());
  return socket;
}

const closed = async (socket: Socket): Promise<void> => {
  if (!socket.closed) await once(socket, 'close');
};

test.each([
  ['GET', '/metrics', 200],
  ['GET', '/metrics?name[]=up', 200],
  ['HEAD', '/metrics', 405],
  ['POST', '/metrics', 405],
  ['DELETE', '/metrics', 405],
  ['GET', '/', 404],
  ['GET', '/metrics/', 404],
  ['GET', '//metrics', 404],
  ['POST', '/-/reload', 404],
] as const)('%s %s is answered with %i', async (method, path, status) => {
  const { url } = await serve();
  const body = method === 'POST' ? { body: 'x'.repeat(100_000) } : {};
  const response = await fetch(url + path, { method, ...body });
  expect(response.status).toBe(status);
  const text = await response.text();
  expect(text).toBe(status === 200 ? 'volt 1\n' : '');
  if (status === 200) {
    expect(response.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8');
  }
});

test('an error of the metrics is an answer, and not the end of the server', async () => {
  let fails = true;
  const { url } = await serve(async () => {
    if (fails) throw new Error('no');
    return 'volt 1\n';
  });
  expect((await fetch(`${url}/metrics`)).status).toBe(500);
  fails = false;
  await until('it answers', async () => (await fetch(`${url}/metrics`)).status === 200);
});

test('however many ask, the metrics are collected once a second', async () => {
  let collected = 0;
  const { url } = await serve(async () => `volt ${(collected += 1)}\n`);
  const started = performance.now();
  for (let n = 0; n < 50; n += 1) await (await fetch(`${url}/metrics`)).text();
  const seconds = (performance.now() - started) / 1_000;
  expect(collected).toBeLessThanOrEqual(1 + seconds);
});

test('connections beyond sixteen are closed, and free ones are given again', async () => {
  const { url, port } = await serve();
  const idle = Array.from({ length: 60 }, () => socketTo(port));
  await until('those beyond are closed', () => idle.filter(({ closed: is }) => is).length >= 44);
  await Promise.all(idle.map((socket) => (socket.destroy(), closed(socket))));
  await until('others are served', async () => (await fetch(`${url}/metrics`)).ok);
});

test('a request that does not end, a header that is too large, and an answer that nobody takes end', async () => {
  const { port } = await serve(async () => 'x'.repeat(THIRTY_TWO_MIB));
  const slow = socketTo(port);
  slow.write('GET /metrics HTTP/1.1\r\nhost: x\r\n');
  const large = socketTo(port);
  large.write(`GET /metrics HTTP/1.1\r\nhost: x\r\nx: ${'x'.repeat(20_000)}\r\n\r\n`);
  const body = socketTo(port);
  body.write('GET /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx');
  const reader = socketTo(port);
  // Read by `read` alone, so much at a time.
  reader.on('readable', () => {});
  reader.write('GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n');
  for (const socket of [slow, large, body]) socket.resume();
  await Promise.all([closed(slow), closed(large), closed(body)]);
  let got = 0;
  // Half a mebibyte a second at most: all of it would take a minute.
  await until('the answer is broken off', async () => {
    const chunk = reader.read() as Buffer | null;
    got += chunk?.length ?? 0;
    await sleep(100);
    return reader.closed;
  });
  expect(got).toBeLessThan(THIRTY_TWO_MIB);
});

test('an address in use is a problem that names it, until it is free', async () => {
  const first = await serve();
  const second = new MetricsServer({
    listen: `127.0.0.1:${first.port}`,
    text: async () => 'second',
  });
  toClose.push(() => second.stop());
  second.start();
  await until('the problem is told', () => /EADDRINUSE/.test(second.problem ?? ''));
  expect(second.problem).toContain(`metrics.listen 127.0.0.1:${first.port}`);
  first.server.stop();
  await until('it listens', () => second.problem === undefined);
  expect(await (await fetch(`${first.url}/metrics`)).text()).toBe('second');
});

test('an address that the host does not have is a problem', async () => {
  const server = new MetricsServer({ listen: '192.0.2.1:9464', text: async () => '' });
  toClose.push(() => server.stop());
  server.start();
  await until('the problem is told', () => /EADDRNOTAVAIL/.test(server.problem ?? ''));
});
