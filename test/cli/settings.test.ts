import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { loadSettings } from '#agent/cli/settings.ts';

const folder = mkdtempSync(join(tmpdir(), 'voltnet-'));
afterAll(() => rmSync(folder, { recursive: true }));
const config = (content: unknown): string => {
  const path = join(folder, 'agent.json');
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content));
  return path;
};

test('flags win over variables, variables over the file', () => {
  const file = config({
    host: 'file',
    nats: { url: 'nats://file', tls: { caFile: '/ca.pem', certFile: null } },
    runtimeDir: '/run/file',
    subjectPrefix: 'file.v1',
    redis: { url: 'redis://not-ours' },
  });
  expect(loadSettings({ config: file }, {})).toEqual({
    host: 'file',
    hostGiven: false,
    nats: {
      url: 'nats://file',
      inboxPrefix: '_INBOX',
      tls: { caFile: '/ca.pem', certFile: null, keyFile: null },
    },
    runtimeDir: '/run/file',
    subjectPrefix: 'file.v1',
    timeoutMs: 10_000,
    traceContext: {},
  });
  const env = {
    VOLT_NET_HOST: 'variable',
    VOLT_NET_NATS_URL: 'nats://variable',
    VOLT_NET_NATS_CREDENTIALS_FILE: '/creds',
    VOLT_NET_RUNTIME_DIR: '/run/variable',
    VOLT_NET_SUBJECT_PREFIX: 'variable.v1',
    TRACEPARENT: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    TRACESTATE: '',
  };
  expect(loadSettings({ config: file }, env)).toMatchObject({
    host: 'variable',
    hostGiven: true,
    nats: { url: 'nats://variable', credentialsFile: '/creds' },
    runtimeDir: '/run/variable',
    subjectPrefix: 'variable.v1',
    traceContext: { traceparent: env.TRACEPARENT },
  });
  expect(
    loadSettings({ config: file, host: 'flag', nats: 'nats://flag', timeout: 3 }, env),
  ).toMatchObject({ host: 'flag', nats: { url: 'nats://flag' }, timeoutMs: 3_000 });
});

test('a file that was named must be there and be JSON', () => {
  expect(() => loadSettings({ config: '/nonexistent' }, {})).toThrow(/cannot read \/nonexistent/);
  expect(() => loadSettings({ config: config('{') }, {})).toThrow(/not JSON/);
  expect(() => loadSettings({ config: config({ nats: 'x' }) }, {})).toThrow(
    /nats must be an object/,
  );
  expect(() => loadSettings({ config: config({ host: 1 }) }, {})).toThrow(/host must be text/);
});

test.each(['*', 'a.b', '>', '', 'a b'])(
  'host %j would be another subject and is refused',
  (host) => {
    expect(() => loadSettings({ host }, {})).toThrow(/is no host id/);
  },
);
