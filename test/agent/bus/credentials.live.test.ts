import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nkeys } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type RunningAgent, startAgent } from '../../support/agent.ts';
import { createOperator } from '../../support/nats-operator.ts';
import { type Server, startNats, startRedis } from '../../support/servers.ts';
import { runVoltnet } from '../../support/voltnet.ts';

// Every way to say as whom to connect, with servers that let in nobody else.

const PASSWORD = 'pass-Se/cr@et:%"1$';
const TOKEN = 'token-Se/cr@et:%"2$';
const PIECES = /Se\/cr|cr@et|Se%2Fcr|SUA/;
const inUrl = encodeURIComponent;

const folder = mkdtempSync(join(tmpdir(), 'volt-test-credentials-'));
let files = 0;
const fileWith = (content: string): string => {
  const path = join(folder, `file-${(files += 1)}`);
  writeFileSync(path, content);
  return path;
};

const key = nkeys.createUser();
const seed = new TextDecoder().decode(key.getSeed());
const operator = createOperator();
const ofUser = `authorization { user: "agent", password: ${JSON.stringify(PASSWORD)} }`;
const ofToken = `authorization { token: ${JSON.stringify(TOKEN)} }`;
const ofKey = `authorization { users: [ { nkey: ${key.getPublicKey()} } ] }`;

interface Way {
  /** What nats-server demands. */
  readonly config: string;
  /** The `nats` section of agent.json. */
  readonly nats: (port: number) => Readonly<Record<string, string>>;
  /** The same as variables of voltnet. */
  readonly env: (port: number) => Readonly<Record<string, string>>;
}

const byFile = (
  config: string,
  more: Record<string, string>,
  env: Record<string, string>,
): Way => ({
  config,
  nats: (port) => ({ url: `nats://127.0.0.1:${port}`, ...more }),
  env: (port) => ({ VOLT_NET_NATS_URL: `nats://127.0.0.1:${port}`, ...env }),
});
const byUrl = (config: string, urlAt: (port: number) => string): Way => ({
  config,
  nats: (port) => ({ url: urlAt(port) }),
  env: (port) => ({ VOLT_NET_NATS_URL: urlAt(port) }),
});

const passwordFile = fileWith(`${PASSWORD}\n`);
const tokenFile = fileWith(`${TOKEN}\n`);
const nkeyFile = fileWith(`${seed}\n`);
const credentialsFile = fileWith(operator.credentials);
/** The lines of dashes and what is between them, and nothing behind the last. */
const bareFile = fileWith(operator.credentials.replaceAll(/\n\n\*[^-]*/g, '\n').trim());
const WAYS: [name: string, way: Way][] = [
  [
    'user and password file',
    byFile(
      ofUser,
      { username: 'agent', passwordFile },
      { VOLT_NET_NATS_USERNAME: 'agent', VOLT_NET_NATS_PASSWORD_FILE: passwordFile },
    ),
  ],
  ['token file', byFile(ofToken, { tokenFile }, { VOLT_NET_NATS_TOKEN_FILE: tokenFile })],
  ['nkey seed', byFile(ofKey, { nkeyFile }, { VOLT_NET_NATS_NKEY_FILE: nkeyFile })],
  [
    'credentials file',
    byFile(
      operator.config,
      { credentialsFile },
      { VOLT_NET_NATS_CREDENTIALS_FILE: credentialsFile },
    ),
  ],
  [
    'credentials file that nsc did not write',
    byFile(
      operator.config,
      { credentialsFile: bareFile },
      { VOLT_NET_NATS_CREDENTIALS_FILE: bareFile },
    ),
  ],
  [
    'user and password in the address',
    byUrl(ofUser, (port) => `nats://agent:${inUrl(PASSWORD)}@127.0.0.1:${port}`),
  ],
  [
    'user and password in an address by name',
    byUrl(ofUser, (port) => `nats://agent:${inUrl(PASSWORD)}@localhost:${port}`),
  ],
  [
    'user and password in an address without a scheme',
    byUrl(ofUser, (port) => `agent:${inUrl(PASSWORD)}@127.0.0.1:${port}`),
  ],
  [
    'user and password in each of two addresses',
    byUrl(ofUser, (port) => {
      const user = `nats://agent:${inUrl(PASSWORD)}`;
      return `${user}@127.0.0.1:1,${user}@127.0.0.1:${port}`;
    }),
  ],
  [
    'user and password in the first of two addresses',
    byUrl(ofUser, (port) => {
      const user = `nats://agent:${inUrl(PASSWORD)}`;
      return `${user}@127.0.0.1:1,nats://127.0.0.1:${port}`;
    }),
  ],
  ['token in the address', byUrl(ofToken, (port) => `nats://${inUrl(TOKEN)}@127.0.0.1:${port}`)],
];

let redis: Server;
beforeAll(async () => {
  redis = await startRedis();
});
afterAll(async () => {
  await redis.stop();
  rmSync(folder, { recursive: true });
});

describe.each(WAYS)('%s', (_name, { config, nats, env }) => {
  let server: Server;
  let agent: RunningAgent;
  beforeAll(async () => {
    server = await startNats({ config });
    agent = await startAgent({
      config: { nats: nats(server.port), redis: { url: redis.url }, logLevel: 'debug' },
    });
  });
  afterAll(async () => {
    await agent.stop();
    await server.stop();
  });

  test('lets the agent in', async () => {
    await agent.ready();
    expect(agent.output() + JSON.stringify(await agent.health())).not.toMatch(PIECES);
  });

  test('lets voltnet in, with the file of the agent, variables, or the address as a flag', async () => {
    const variables = env(server.port);
    const { VOLT_NET_NATS_URL: url = '' } = variables;
    const others = Object.fromEntries(
      Object.entries(variables).filter(([name]) => name !== 'VOLT_NET_NATS_URL'),
    );
    const runs = await Promise.all([
      runVoltnet(['--config', agent.configFile, 'list']),
      runVoltnet(['--host', agent.host, 'list'], { env: variables }),
      runVoltnet(['--host', agent.host, '--nats', url, 'list'], { env: others }),
    ]);
    for (const { exitCode, stdout, stderr } of runs) {
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
      expect(stdout).toMatch(/^ID /);
    }
  });

  test('is demanded', async () => {
    const words = ['--host', agent.host, '--nats', server.url, 'list'];
    const { exitCode, stderr } = await runVoltnet(words);
    expect({ exitCode, stderr }).toMatchObject({
      exitCode: 7,
      stderr: expect.stringMatching(/wrong user, password, token or key, or none/),
    });
  });
});
