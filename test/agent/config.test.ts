import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { ConfigError, loadConfig } from '#agent/config.ts';

const folder = mkdtempSync(join(tmpdir(), 'volt-config-'));
afterAll(() => rmSync(folder, { recursive: true }));

const fileWith = (text: string): string => {
  const path = join(folder, `${Math.random()}.json`);
  writeFileSync(path, text);
  return path;
};

test('an empty file is the documented defaults', () => {
  const config = loadConfig({ file: fileWith('{"host":"h1"}'), env: {} });
  expect(config).toEqual({
    host: 'h1',
    hostGiven: true,
    nats: {
      url: 'nats://127.0.0.1:4222',
      username: null,
      passwordFile: null,
      tokenFile: null,
      nkeyFile: null,
      credentialsFile: null,
      inboxPrefix: '_INBOX.agent-h1',
      replyPrefixes: ['_'],
      tls: null,
      streams: {
        replicas: 1,
        storage: 'file',
        eventAgeSeconds: 604_800,
        eventBytes: 1_073_741_824,
        jobAgeSeconds: 43_200,
        jobBytes: 1_073_741_824,
      },
    },
    redis: {
      url: 'redis://127.0.0.1:6379/0',
      mode: 'single',
      nodes: null,
      masterName: null,
      username: null,
      passwordFile: null,
      sentinelUsername: null,
      sentinelPasswordFile: null,
      tls: null,
      keyPrefix: 'volt:',
      cell: null,
      minReplicas: 0,
    },
    runtimeDir: '/run/volt-vmm/network',
    stateDir: '/var/lib/volt/network',
    networksDir: '/etc/volt/network/networks',
    subjectPrefix: 'volt.net.v1',
    heartbeatSeconds: 5,
    suspectAfterSeconds: 20,
    recoveryWindowSeconds: null,
    reconcileSeconds: 30,
    onReboot: 'recreate',
    nftablesTable: 'volt',
    logLevel: 'info',
    logFormat: 'auto',
    metrics: { listen: null, poolSeconds: 60 },
  });
});

test('flags win over variables, variables over the file', () => {
  const file = fileWith('{"host":"file","nats":{"url":"nats://file:1"},"stateDir":"/file"}');
  const env = { VOLT_NET_NATS_URL: 'nats://variable:1', VOLT_NET_STATE_DIR: '/variable' };
  const config = loadConfig({ file, env, flags: { stateDir: '/flag' } });
  expect(config).toMatchObject({
    host: 'file',
    nats: { url: 'nats://variable:1' },
    stateDir: '/flag',
  });
});

describe('what is wrong is named with its key and where it was given', () => {
  const cases: [name: string, file: string, env: Record<string, string>, message: RegExp][] = [
    ['an unknown key', '{"hots":"h1"}', {}, /"hots".*\.json/],
    ['a key of a section', '{"nats":{"uri":"x"}}', {}, /^nats: .*"uri"/],
    ['a wrong type', '{"heartbeatSeconds":"5"}', {}, /^heartbeatSeconds: /],
    ['a relative path', '{"runtimeDir":"run"}', {}, /^runtimeDir: must be an absolute path/],
    ['a host with dots', '{"host":"a.b"}', {}, /^host: must be letters/],
    ['a section that is none', '{"nats":5}', { VOLT_NET_NATS_URL: 'x' }, /^nats: /],
    ['a variable', '{}', { VOLT_NET_RUNTIME_DIR: 'run' }, /\(in VOLT_NET_RUNTIME_DIR\)/],
    [
      'metrics without a port',
      '{"metrics":{"listen":"127.0.0.1"}}',
      {},
      /^metrics\.listen: must be/,
    ],
    ['metrics on no port', '{"metrics":{"listen":"127.0.0.1:0"}}', {}, /^metrics\.listen: must be/],
    ['a bare IPv6 address', '{"metrics":{"listen":"::1:9464"}}', {}, /^metrics\.listen: must be/],
    ['IPv4 in brackets', '{"metrics":{"listen":"[127.0.0.1]:1"}}', {}, /^metrics\.listen: must be/],
    [
      'an address in a variable',
      '{}',
      { VOLT_NET_METRICS_LISTEN: 'http://127.0.0.1:9464' },
      /^metrics\.listen: .*\(in VOLT_NET_METRICS_LISTEN\)/,
    ],
    [
      "a port in OpenTelemetry's variable",
      '{}',
      { OTEL_METRICS_EXPORTER: 'prometheus', OTEL_EXPORTER_PROMETHEUS_PORT: 'http' },
      /^metrics\.listen: .*\(in OTEL_EXPORTER_PROMETHEUS_HOST and _PORT\)/,
    ],
    ['an unknown variable', '{}', { VOLT_NET_HOTS: 'x' }, /VOLT_NET_HOTS/],
    [
      'a host that is suspect between two heartbeats',
      '{"heartbeatSeconds":10,"suspectAfterSeconds":15}',
      {},
      /^suspectAfterSeconds: must be twice heartbeatSeconds/,
    ],
    [
      'a key prefix with braces',
      '{"redis":{"keyPrefix":"{a}:"}}',
      {},
      /^redis\.keyPrefix: must not hold braces/,
    ],
    ['a port that is none', '{"nats":{"url":"nats://h:99999"}}', {}, /^nats\.url: .*addresses/],
    ['a port in words', '{"nats":{"url":"nats://a:1,h:nats"}}', {}, /^nats\.url: .*addresses/],
    ['a word', '{"nats":{"url":"foo"}}', {}, /^nats\.url: .*addresses/],
    ['an open bracket', '{"nats":{"url":"nats://[::1"}}', {}, /^nats\.url: .*addresses/],
    ['no JSON', '{', {}, /not JSON/],
    ['no object', '[]', {}, /one JSON object/],
    ['sentinel without nodes', '{"redis":{"mode":"sentinel"}}', {}, /^redis\.nodes: /],
    [
      'sentinel without a master',
      '{"redis":{"mode":"sentinel","nodes":[{"host":"a","port":26379}]}}',
      {},
      /^redis\.masterName: /,
    ],
  ];
  test.each(cases)('%s', (_name, text, env, message) => {
    expect(() => loadConfig({ file: fileWith(text), env })).toThrow(message);
    expect(() => loadConfig({ file: fileWith(text), env })).toThrow(ConfigError);
  });

  test('a file that was asked for must be there', () => {
    expect(() => loadConfig({ file: join(folder, 'none.json'), env: {} })).toThrow(/cannot read/);
  });
});

describe('where metrics are served', () => {
  const prometheus = { OTEL_METRICS_EXPORTER: 'otlp, prometheus' };
  const cases: [name: string, file: string, env: Record<string, string>, listen: string | null][] =
    [
      ['nowhere', '{}', {}, null],
      ['nowhere for other exporters', '{}', { OTEL_METRICS_EXPORTER: 'otlp' }, null],
      ['where the file says', '{"metrics":{"listen":"[::1]:9464"}}', prometheus, '[::1]:9464'],
      ['on loopback, by default', '{}', prometheus, '127.0.0.1:9464'],
      [
        'where the variables of OpenTelemetry say',
        '{"metrics":{"listen":null,"poolSeconds":5}}',
        {
          ...prometheus,
          OTEL_EXPORTER_PROMETHEUS_HOST: 'fd00::1',
          OTEL_EXPORTER_PROMETHEUS_PORT: '9999',
        },
        '[fd00::1]:9999',
      ],
      ['nowhere with none', '{}', { OTEL_METRICS_EXPORTER: 'prometheus,none' }, null],
    ];
  test.each(cases)('%s', (_name, text, env, listen) => {
    expect(loadConfig({ file: fileWith(text), env }).metrics.listen).toBe(listen);
  });
});

test.for([['volt.net.'], ['volt.net.v1.event'], ['v']])(
  'nats.replyPrefixes %j takes subjects of ours',
  (prefixes) => {
    const file = fileWith(JSON.stringify({ nats: { replyPrefixes: prefixes } }));
    expect(() => loadConfig({ file, env: {} })).toThrow(/nats\.replyPrefixes/);
  },
);
