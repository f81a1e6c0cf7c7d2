import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { runVoltnet } from '../../support/voltnet.ts';

// Every option, variable and setting that names a file, with a file that cannot be used: the sentence names the file, and
// the exit code says that a repeat cannot help. No server is there, and none is asked.

const AGENT = new URL('../../../deploy/bin/volt-network-agent', import.meta.url).pathname;
const STRANGER = 65_534;
const EX_CONFIG = 78;

const folder = mkdtempSync(join(tmpdir(), 'volt-named-files-'));
chmodSync(folder, 0o755);
const NONE = join(folder, 'none');
const FOLDER = join(folder, 'folder');
const EMPTY = join(folder, 'empty');
const SECRET = join(folder, 'secret');
mkdirSync(FOLDER);
writeFileSync(EMPTY, '');
writeFileSync(SECRET, '{}');
chmodSync(SECRET, 0o600);

const KINDS = [
  ['that is missing', NONE, 'ENOENT: there is no such file'],
  ['that is a folder', FOLDER, 'EISDIR: it is a folder'],
  ['that is empty', EMPTY, 'is empty'],
  ['that the user may not read', SECRET, 'EACCES: this user may not read it'],
] as const;

/** A configuration that names the file under a key: `nats.tls.caFile`. */
function configWith(key: string, file: string): string {
  const config = join(folder, `${key}.json`);
  const value = key
    .split('.')
    .reduceRight<unknown>((inner, part) => ({ [part]: inner }), file) as object;
  writeFileSync(config, JSON.stringify(value));
  return config;
}

const PASSWORD_VARIABLE = 'VOLT_NET_NATS_PASSWORD_FILE';

const USAGES: [name: string, words: (file: string) => string[], variable?: string][] = [
  ['--config', (file) => ['--config', file, 'list']],
  ['attach --file', (file) => ['attach', '--file', file]],
  ['network put', (file) => ['network', 'put', file]],
  ['network diff', (file) => ['network', 'diff', file]],
  [
    'trace --headers',
    (file) => ['trace', 'web', '--tempo', 'http://127.0.0.1:9', '--headers', file],
  ],
  [
    'ledger install --password-file',
    (file) => ['ledger', 'install', '--username', 'admin', '--password-file', file],
  ],
  ['VOLT_NET_NATS_CREDENTIALS_FILE', () => ['list'], 'VOLT_NET_NATS_CREDENTIALS_FILE'],
  ['VOLT_NET_NATS_NKEY_FILE', () => ['list'], 'VOLT_NET_NATS_NKEY_FILE'],
  ['VOLT_NET_NATS_TOKEN_FILE', () => ['list'], 'VOLT_NET_NATS_TOKEN_FILE'],
  [PASSWORD_VARIABLE, () => ['list'], PASSWORD_VARIABLE],
  ...['caFile', 'certFile', 'keyFile'].map((key): (typeof USAGES)[number] => [
    `nats.tls.${key}`,
    (file) => ['--config', configWith(`nats.tls.${key}`, file), 'list'],
  ]),
  ...[
    'redis.passwordFile',
    'redis.sentinelPasswordFile',
    'redis.tls.caFile',
    'redis.tls.certFile',
    'redis.tls.keyFile',
  ].map((key): (typeof USAGES)[number] => [
    key,
    (file) => ['--config', configWith(key, file), 'ledger', 'install'],
  ]),
];

describe.each(USAGES)('voltnet: %s', (_, wordsFor, variable) => {
  test.each(KINDS)('names a file %s', async (_kind, file, said) => {
    const { exitCode, stdout, stderr } = await runVoltnet(wordsFor(file), {
      uid: STRANGER,
      env: {
        ...(variable !== undefined && { [variable]: file }),
        ...(variable === PASSWORD_VARIABLE && { VOLT_NET_NATS_USERNAME: 'somebody' }),
      },
    });
    expect(stderr).toContain(said);
    expect(stderr).toContain(file);
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
  });
});

// Files of spans may be empty: nothing was traced yet.
test.each([
  ['trace', (file: string) => ['trace', 'web', '--file', file]],
  ['dashboard', (file: string) => ['dashboard', '--traces', file]],
])('voltnet %s: a file of spans that cannot be read', async (_, wordsFor) => {
  for (const [, file, said] of KINDS.filter(([, path]) => path !== EMPTY)) {
    const { exitCode, stderr } = await runVoltnet(wordsFor(file), { uid: STRANGER });
    expect(stderr).toContain(file);
    expect(stderr).toContain(said);
    expect(exitCode).toBe(2);
  }
});

test('what is no certificate or key is said so, before any server is asked', async () => {
  const garbage = join(folder, 'garbage');
  writeFileSync(garbage, '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n');
  for (const key of ['caFile', 'certFile', 'keyFile']) {
    for (const [section, ...words] of [
      ['nats', 'list'],
      ['redis', 'ledger', 'install'],
    ]) {
      const config = configWith(`${section}.tls.${key}`, garbage);
      const { exitCode, stderr } = await runVoltnet(['--config', config, ...words]);
      expect(stderr).toContain(`${section}.tls.${key}: ${garbage} cannot be used`);
      expect(exitCode).toBe(2);
    }
  }
});

describe('volt-network-agent --check-config', () => {
  test.each([
    'nats.credentialsFile',
    'nats.tls.caFile',
    'redis.passwordFile',
    'redis.tls.certFile',
  ])('%s', (key) => {
    for (const [kind, file, said] of KINDS.filter(([, path]) => path !== SECRET)) {
      const words = ['--check-config', '--config', configWith(key, file)];
      const { status, stderr } = spawnSync(AGENT, words, { encoding: 'utf8' });
      expect(stderr, kind).toContain(`${key}: `);
      expect(stderr, kind).toContain(said);
      expect(stderr, kind).toContain(file);
      expect(status).toBe(EX_CONFIG);
    }
  });

  test.each(KINDS.filter(([, path]) => path !== SECRET))('a configuration %s', (_, file, said) => {
    const words = ['--check-config', '--config', file];
    const { status, stderr } = spawnSync(AGENT, words, { encoding: 'utf8' });
    expect(stderr).toContain(file);
    expect(stderr).toContain(said);
    expect(status).toBe(EX_CONFIG);
  });
});
