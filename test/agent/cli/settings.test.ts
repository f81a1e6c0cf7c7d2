import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
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
    nats: {
      url: 'nats://file',
      tls: { caFile: '/ca.pem', certFile: null },
      streams: { replicas: 3, storage: 'memory' },
    },
    runtimeDir: '/run/file',
    subjectPrefix: 'file.v1',
    redis: { url: 'redis://not-ours' },
  });
  expect(loadSettings({ config: file }, {})).toEqual({
    host: 'file',
    hostGiven: false,
    isThisHost: false,
    local: false,
    nats: {
      url: 'nats://file',
      inboxPrefix: '_INBOX',
      tls: { caFile: '/ca.pem', certFile: null, keyFile: null },
    },
    streams: { replicas: 3, storage: 'memory' },
    runtimeDir: '/run/file',
    subjectPrefix: 'file.v1',
    timeoutMs: 10_000,
    traceContext: {},
  });
  const env = {
    VOLT_NET_HOST: 'variable',
    VOLT_NET_NATS_URL: 'nats://variable',
    VOLT_NET_NATS_CREDENTIALS_FILE: '/creds',
    VOLT_NET_NATS_STREAM_REPLICAS: '5',
    VOLT_NET_RUNTIME_DIR: '/run/variable',
    VOLT_NET_SUBJECT_PREFIX: 'variable.v1',
    TRACEPARENT: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01',
    TRACESTATE: '',
  };
  expect(loadSettings({ config: file }, env)).toMatchObject({
    host: 'variable',
    hostGiven: true,
    nats: { url: 'nats://variable', credentialsFile: '/creds' },
    streams: { replicas: '5', storage: 'memory' },
    runtimeDir: '/run/variable',
    subjectPrefix: 'variable.v1',
    traceContext: { traceparent: env.TRACEPARENT },
  });
  expect(
    loadSettings({ config: file, host: 'flag', nats: 'nats://flag', timeout: 3 }, env),
  ).toMatchObject({ host: 'flag', nats: { url: 'nats://flag' }, timeoutMs: 3_000 });
});

describe('as whom one connects', () => {
  const nats = { url: 'nats://file', nkeyFile: '/seed', inboxPrefix: '_INBOX.agent-h1' };
  const settingsOf = (env: Record<string, string>, flags = {}, section: object = nats) =>
    loadSettings({ config: config({ nats: section }), ...flags }, env).nats;

  test.each<[string, Record<string, string>, object, object]>([
    ['the file, with its inbox', {}, {}, { ...nats, tls: null }],
    [
      'a variable, and nothing of the file',
      { VOLT_NET_NATS_CREDENTIALS_FILE: '/creds' },
      {},
      { url: 'nats://file', credentialsFile: '/creds', inboxPrefix: '_INBOX', tls: null },
    ],
    [
      'an address of a variable',
      { VOLT_NET_NATS_URL: 'nats://a:b@h' },
      {},
      { url: 'nats://a:b@h', inboxPrefix: '_INBOX', tls: null },
    ],
    [
      'an address on the command line, whatever variables say',
      { VOLT_NET_NATS_TOKEN_FILE: '/token', VOLT_NET_NATS_URL: 'nats://h' },
      { nats: 'nats://a:b@h', inboxPrefix: '_INBOX.me' },
      { url: 'nats://a:b@h', inboxPrefix: '_INBOX.me', tls: null },
    ],
    [
      'an inbox alone is beside what the file says',
      { VOLT_NET_NATS_INBOX_PREFIX: '_INBOX.me' },
      {},
      { ...nats, inboxPrefix: '_INBOX.me', tls: null },
    ],
  ])('%s', (_, env, flags, expected) => {
    expect(settingsOf(env, flags)).toEqual(expected);
  });

  test('what contradicts itself is refused', () => {
    expect(() => settingsOf({ VOLT_NET_NATS_USERNAME: 'a' })).toThrow(/given together/);
    expect(() => settingsOf({}, {}, { nkeyFile: '/a', tokenFile: '/b' })).toThrow(/only one/);
    for (const prefix of ['_INBOX.*', '_INBOX..a', 'a b', '>', '.a']) {
      expect(() => settingsOf({}, { inboxPrefix: prefix })).toThrow(/no inbox prefix/);
    }
    expect(() => settingsOf({}, { nats: 'nats://a:hunter2@h h' })).toThrow(
      /^(?!.*hunter2).*addresses/,
    );
  });
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
