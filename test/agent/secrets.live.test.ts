import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { loadConfig } from '#agent/config.ts';
import { checkAccess } from '#agent/bus/nats-access.ts';
import { AGENT, type RunningAgent, startAgent, until } from '../support/agent.ts';
import { freePort, type Server, startNats, startRedis } from '../support/servers.ts';

// Whatever is printed, by the agent or the command line, holds no password, token or key.

const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;

/** With all that has a meaning in URL, JSON and regular expressions. */
const NATS_SECRET = 'nats-Se/cr@et:%"1$';
const REDIS_SECRET = 'redis-Se/cr@et:%"2$';
const WRONG = 'wrong-Se/cr@et:%"3$';
const SENTINEL_SECRET = 'sentinel-Secret';
const TOKEN = 'token-Secret-4';
const SEED = 'SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY';
const SECRETS = [NATS_SECRET, REDIS_SECRET, WRONG, SENTINEL_SECRET, TOKEN, SEED];
/** A piece of each is one too many. */
const PIECES = /Se\/cr|cr@et|et:%|et%3A|Se%2Fcr|-Secret|SUACSSL3/;
const inUrl = encodeURIComponent;

const folder = mkdtempSync(join(tmpdir(), 'volt-test-secrets-'));
let files = 0;
const fileWith = (content: string): string => {
  const path = join(folder, `file-${(files += 1)}`);
  writeFileSync(path, content);
  return path;
};
const configWith = (config: object): string => fileWith(JSON.stringify({ host: 'h1', ...config }));

let nats: Server;
let redis: Server;
let closed: number;
let agent: RunningAgent | undefined;

beforeAll(async () => {
  closed = await freePort();
  const password = JSON.stringify(NATS_SECRET);
  const config = `authorization { users: [ { user: "agent", password: ${password} } ] }`;
  nats = await startNats({ config });
  redis = await startRedis({
    args: [
      '--user',
      'volt',
      'on',
      `>${REDIS_SECRET}`,
      '~*',
      '&*',
      '+@all',
      '--user',
      'default',
      'off',
    ],
  });
});
afterEach(async () => {
  await agent?.stop();
  agent = undefined;
});
afterAll(async () => {
  await Promise.all([nats.stop(), redis.stop()]);
  rmSync(folder, { recursive: true });
});

function expectNoSecret(output: string): void {
  expect(output).not.toMatch(PIECES);
  for (const secret of SECRETS) expect(output).not.toContain(secret);
}

/** Everything that a program prints; it must say something, and no secret. */
function printed(program: string, words: string[], env: Record<string, string> = {}): string {
  const options = { encoding: 'utf8', env: { ...process.env, ...env } } as const;
  const { stdout, stderr, status } = spawnSync(program, words, options);
  const output = `${status}: ${stdout}${stderr}`;
  expectNoSecret(output);
  return output;
}

function refusal(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  throw new Error('it was not refused');
}

const natsUrl = (secret: string, port = nats.port): string =>
  `nats://agent:${inUrl(secret)}@127.0.0.1:${port}`;
const redisUrl = (secret: string, port = redis.port): string =>
  `redis://volt:${inUrl(secret)}@127.0.0.1:${port}/0`;

describe('--check-config', () => {
  test('shows addresses without passwords', () => {
    const config = configWith({
      nats: { url: `${natsUrl(NATS_SECRET)},${natsUrl(NATS_SECRET, 4)}` },
      redis: { url: redisUrl(REDIS_SECRET) },
    });
    const output = printed(AGENT, ['--config', config, '--check-config']);
    expect(output).toMatch(/^0: /);
    expect(output).toContain('agent:***@127.0.0.1:4"');
    expect(output).toContain(`redis://volt:***@127.0.0.1:${redis.port}/0`);
    const flags = ['--nats', `nats://${TOKEN}@h`, '--redis', redisUrl(WRONG), '--check-config'];
    expect(printed(AGENT, ['--config', configWith({}), ...flags])).toMatch(/^0: /);
  });

  const wrong: [name: string, config: object | string, said: RegExp][] = [
    [
      'a space in an address',
      { nats: { url: `nats://a:${WRONG}@h h` } },
      /nats\.url: must be addr/,
    ],
    ['a % that is none', { nats: { url: `nats://a:${WRONG}@h` } }, /nats\.url: must have the %/],
    [
      'two passwords',
      { nats: { url: `nats://a:${TOKEN}@h,nats://a:${SENTINEL_SECRET}@h` } },
      /the same user/,
    ],
    ['another scheme', { redis: { url: `http://a:${inUrl(WRONG)}@h` } }, /redis\.url: must begin/],
    ['a port that is none', { redis: { url: `redis://a:${inUrl(WRONG)}@h:99999` } }, /redis\.url/],
    ['a password in place of a file', { nats: { username: 'a', passwordFile: TOKEN } }, /absolute/],
    ['an unknown key', { nats: { password: WRONG } }, /"password"/],
    ['a wrong type', { redis: { url: { password: WRONG } } }, /redis\.url/],
    ['no JSON behind', `{"nats":{"url":"nats://a:${TOKEN}@h"}x}`, /not JSON: .*/],
    ['no JSON before', `{"redis":{"url":"redis://a:${TOKEN}@h"},}`, /not JSON: .*/],
    ['no JSON at all', TOKEN, /not JSON: .*/],
    ['two ways', { nats: { tokenFile: '/a', nkeyFile: '/b' } }, /tokenFile, nats\.nkeyFile: only/],
    ['half of one', { nats: { username: 'a' } }, /passwordFile: must be given together/],
    ['a wildcard', { nats: { inboxPrefix: '_INBOX.*' } }, /nats\.inboxPrefix: must be a subject/],
    ['an empty token', { nats: { inboxPrefix: '_INBOX..a' } }, /nats\.inboxPrefix: must be a subj/],
    ['an inbox among ours', { nats: { inboxPrefix: 'volt.net' } }, /inboxPrefix: must begin with/],
  ];
  test.each(wrong)('says what is wrong, and not the secret: %s', (_, config, said) => {
    const file = typeof config === 'string' ? fileWith(config) : configWith(config);
    const message = refusal(() => loadConfig({ file, env: {} }));
    expect(message).toMatch(said);
    expectNoSecret(message);
  });

  test.each<[string, string, RegExp]>([
    ['nkeyFile', `${SEED.slice(0, -3)}AAA`, /nats\.nkeyFile: .* does not hold what it should/],
    ['credentialsFile', TOKEN, /nats\.credentialsFile: .* does not hold what it should/],
    ['tokenFile', '\n', /nats\.tokenFile: .* is empty/],
  ])('reads what a connection would read: %s', (key, content, said) => {
    const file = fileWith(content);
    const message = refusal(() => checkAccess({ url: nats.url, [key]: file }));
    expect(message).toMatch(said);
    expectNoSecret(message);
  });

  test.each(['nats.nkeyFile', 'redis.passwordFile'])(
    'and says that it is not there: %s',
    (path) => {
      const [section = '', key = ''] = path.split('.');
      const file = configWith({ [section]: { [key]: '/nonexistent' } });
      const output = printed(AGENT, ['--config', file, '--check-config']);
      expect(output).toMatch(/^78: /);
      expect(output).toContain(`${path}: ENOENT`);
    },
  );

  test('takes variables, and quotes none', () => {
    const env = {
      VOLT_NET_NATS_URL: `nats://a:${WRONG}@h h`,
      VOLT_NET_REDIS_URL: `x://a:${WRONG}@h`,
    };
    const output = printed(AGENT, ['--config', configWith({}), '--check-config'], env);
    expect(output).toMatch(/nats\.url: .*\(in VOLT_NET_NATS_URL\); redis\.url: /);
    const unknown = printed(AGENT, ['--check-config'], { VOLT_NET_NATS_PASSWORD: TOKEN });
    expect(unknown).toContain('unknown environment variable VOLT_NET_NATS_PASSWORD');
    expect(printed(AGENT, [`nats://a:${TOKEN}@h`])).toMatch(/^1: /);
  });
});

/** The agent's log at `debug`, its health, and `voltnet status`, when `seen` is in the log. */
async function sees(config: object, seen: RegExp): Promise<string> {
  agent = await startAgent({ config: { logLevel: 'debug', ...config } });
  const { output, runtimeDir } = agent;
  await until(`the log says ${seen}`, () => seen.test(output()));
  const health = JSON.stringify(await agent.health());
  const env = { VOLT_NET_RUNTIME_DIR: runtimeDir };
  const status = printed(VOLTNET, ['status'], env) + printed(VOLTNET, ['status', '--json'], env);
  expectNoSecret(output() + health);
  return health + status;
}

describe('an agent', () => {
  test('that is connected by what is in the addresses', async () => {
    const config = { nats: { url: natsUrl(NATS_SECRET) }, redis: { url: redisUrl(REDIS_SECRET) } };
    expect(await sees(config, /jobs are taken/)).toContain('"nats":"connected"');
    await agent?.ready();
  });

  test('that is connected by what is in files, also when they change', async () => {
    const password = fileWith(`${WRONG}\n`);
    const config = {
      nats: { url: nats.url, username: 'agent', passwordFile: password },
      redis: { url: redis.url, username: 'volt', passwordFile: fileWith(`${REDIS_SECRET}\n`) },
    };
    await sees(config, /authorization violation/i);
    writeFileSync(password, `${NATS_SECRET}\n`);
    await agent?.ready();
    expectNoSecret(agent?.output() ?? '');
  });

  test('whose files are gone', async () => {
    const password = join(folder, 'later');
    const config = {
      nats: { url: nats.url, username: 'agent', passwordFile: password },
      redis: { url: redis.url, username: 'volt', passwordFile: fileWith(REDIS_SECRET) },
    };
    await sees(config, /nats\.passwordFile: ENOENT/);
    writeFileSync(password, NATS_SECRET);
    await agent?.ready();
    await agent?.stop();
  });

  test('whose passwords are wrong', async () => {
    const config = { nats: { url: natsUrl(WRONG) }, redis: { url: redisUrl(WRONG) } };
    expect(await sees(config, /authorization violation/i)).toMatch(
      /WRONGPASS.*\(set redis\.username and redis\.passwordFile\)/,
    );
  });

  test('whose servers are away', async () => {
    const nodes = [{ host: '127.0.0.1', port: closed }];
    const config = {
      nats: { url: natsUrl(NATS_SECRET, closed) },
      redis: {
        ...{ mode: 'sentinel', masterName: 'm', nodes, passwordFile: fileWith(REDIS_SECRET) },
        sentinelPasswordFile: fileWith(SENTINEL_SECRET),
      },
    };
    expect(await sees(config, /ready/)).toContain('ECONNREFUSED');
  });
});

test('an agent that exports traces, and was started with addresses on its command line', async () => {
  const flags = ['--nats', natsUrl(NATS_SECRET), '--redis', redisUrl(WRONG)];
  agent = await startAgent({
    wrap: ['sh', '-c', `exec "$@" ${flags.map((one) => `'${one}'`).join(' ')}`, 'sh'],
    env: {
      ...{ OTEL_TRACES_EXPORTER: 'console,otlp', OTEL_BSP_SCHEDULE_DELAY: '100' },
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${closed}`,
      OTEL_EXPORTER_OTLP_HEADERS: `authorization=Bearer%20${TOKEN}`,
      OTEL_LOG_LEVEL: 'all',
    },
  });
  const { output } = agent;
  await until('a span is exported, with the command line', () =>
    /process\.command_args[^\]]*--redis/.test(output()),
  );
  await agent.stop();
  expectNoSecret(output());
});

describe('voltnet', () => {
  test('connects as whom the address names', () => {
    const { stdout, status } = spawnSync(
      VOLTNET,
      ['--nats', natsUrl(NATS_SECRET), 'watch', '--count', '0'],
      { encoding: 'utf8' },
    );
    expect({ stdout, status }).toEqual({ stdout: '', status: 0 });
  });

  test.each<[string, () => string[], RegExp]>([
    ['a wrong password', () => ['--nats', natsUrl(WRONG), 'list'], /^7: .*wrong user, password/],
    [
      'a server that is away',
      () => ['--nats', natsUrl(WRONG, closed), 'list'],
      /^3: .*connection refused/,
    ],
    ['JSON', () => ['--json', '--nats', natsUrl(WRONG, closed), 'list'], /AGENT_UNAVAILABLE/],
    ['no address', () => ['--nats', `nats://a:${TOKEN}@h h`, 'list'], /^2: .*must be addresses/],
    [
      'a token',
      () => ['--nats', `nats://${TOKEN}@127.0.0.1:${closed}`, 'list'],
      /connection refused/,
    ],
    ['no command', () => [`nats://a:${TOKEN}@h`], /^2: .*unknown command/],
    ['a flag misspelt', () => [`--nast=nats://a:${TOKEN}@h`, 'list'], /^2: .*unknown option/],
    ['an argument', () => ['list', `nats://a:${TOKEN}@h`], /^2: /],
    [
      'Redis',
      () => ['ledger', 'install', '--redis', redisUrl(WRONG), '--config', configWith({})],
      /WRONGPASS/,
    ],
    ['no Redis', () => ['ledger', 'install', '--redis', redisUrl(WRONG, closed)], /ECONNREFUSED/],
    ['no JSON', () => ['--config', fileWith(`{"a":"${TOKEN}"`), 'list'], /^2: .*not JSON/],
  ])('says no secret: %s', (_, words, said) => {
    expect(printed(VOLTNET, words())).toMatch(said);
  });

  test('takes a key from a variable in place of the file', () => {
    const config = configWith({
      nats: { url: nats.url, nkeyFile: fileWith(SEED), inboxPrefix: '_INBOX.agent-h1' },
    });
    const env = {
      VOLT_NET_NATS_USERNAME: 'agent',
      VOLT_NET_NATS_PASSWORD_FILE: fileWith(NATS_SECRET),
    };
    expect(printed(VOLTNET, ['--config', config, 'list'])).toMatch(/wrong user, password/);
    expect(printed(VOLTNET, ['--config', config, 'list'], env)).toMatch(/nobody serves/);
  });
});
