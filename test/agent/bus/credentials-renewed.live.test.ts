import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { nkeys } from 'nats';
import { afterAll, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { startBus } from '../../support/bus.ts';
import { startNats } from '../../support/servers.ts';

// What an agent proves itself by is another by now, and the server knows the new one alone: the file that holds it is read
// anew for the next connection. Until it is replaced, the agent says what it is refused for.

const folder = mkdtempSync(join(tmpdir(), 'volt-test-credentials-'));
const configFile = join(folder, 'nats.conf');
const secretFile = join(folder, 'secret');
afterAll(() => rmSync(folder, { recursive: true }));

type KeyPair = ReturnType<typeof nkeys.createUser>;
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const base64 = (value: string | Uint8Array): string => Buffer.from(value).toString('base64url');

/** As `nsc` makes them (nats-io/jwt, version 2). */
function jwt(subject: KeyPair, issuer: KeyPair, type: string, more: object): string {
  const { exp, ...nats } = more as { exp?: number };
  const claims = {
    jti: randomUUID(),
    iat: Math.floor(Date.now() / 1_000),
    ...(exp !== undefined && { exp }),
    iss: issuer.getPublicKey(),
    name: type,
    sub: subject.getPublicKey(),
    nats: { ...nats, type, version: 2 },
  };
  const head = base64(JSON.stringify({ typ: 'JWT', alg: 'ed25519-nkey' }));
  const signed = `${head}.${base64(JSON.stringify(claims))}`;
  return `${signed}.${base64(issuer.sign(new TextEncoder().encode(signed)))}`;
}

const unlimited = { subs: -1, data: -1, payload: -1 };
const operator = nkeys.createOperator();
const account = nkeys.createAccount();
const accountLimits = {
  ...unlimited,
  imports: -1,
  exports: -1,
  wildcards: true,
  conn: -1,
  leaf: -1,
};

/** How a server knows a user, and what the user's file holds; another one at each call. */
interface Way {
  readonly key: string;
  readonly beside?: object;
  readonly make: () => { readonly server: string; readonly secret: string };
}

const WAYS: Readonly<Record<string, Way>> = {
  password: {
    key: 'passwordFile',
    beside: { username: 'agent' },
    make: () => {
      const secret = randomUUID();
      return { server: `authorization { user: agent, password: "${secret}" }`, secret };
    },
  },
  token: {
    key: 'tokenFile',
    make: () => {
      const secret = randomUUID();
      return { server: `authorization { token: "${secret}" }`, secret };
    },
  },
  'nkey seed': {
    key: 'nkeyFile',
    make: () => {
      const pair = nkeys.createUser();
      const server = `authorization { users: [ { nkey: ${pair.getPublicKey()} } ] }`;
      return { server, secret: text(pair.getSeed()) };
    },
  },
};

test.each(Object.entries(WAYS))('a %s that is replaced', async (_, { key, beside, make }) => {
  const first = make();
  writeFileSync(configFile, first.server);
  writeFileSync(secretFile, first.secret);
  const nats = await startNats({ configFile });
  try {
    await using bus = startBus({ url: nats.url, nats: { ...beside, [key]: secretFile } });
    await until('it is let in', () => bus.bus.state === 'connected');
    const second = make();
    writeFileSync(configFile, second.server);
    await nats.restart();
    await until('it is refused', () => bus.problems().includes('credentials-refused'));
    expect(bus.reasonOf('credentials-refused')).toMatch(/wrong user, password, token or key/);
    expect(bus.reasonOf('credentials-refused')).not.toContain(first.secret);
    writeFileSync(secretFile, second.secret);
    await until('it is let in again', () => bus.bus.state === 'connected');
    rmSync(secretFile);
    await nats.restart();
    await until('it cannot prove itself', () =>
      /ENOENT/.test(bus.reasonOf('credentials-refused') ?? ''),
    );
    writeFileSync(secretFile, second.secret);
    await until('it is let in once more', () => bus.bus.state === 'connected');
  } finally {
    await nats.stop();
  }
});

test('a .creds file whose JWT has expired, and is replaced', async () => {
  const user = nkeys.createUser();
  const write = (lifeSeconds: number): void => {
    const exp = Math.floor(Date.now() / 1_000) + lifeSeconds;
    const token = jwt(user, account, 'user', { ...unlimited, exp });
    writeFileSync(
      secretFile,
      `-----BEGIN NATS USER JWT-----\n${token}\n------END NATS USER JWT------\n\n` +
        `-----BEGIN USER NKEY SEED-----\n${text(user.getSeed())}\n------END USER NKEY SEED------\n`,
    );
  };
  const limits = { limits: accountLimits, default_permissions: { pub: {}, sub: {} } };
  writeFileSync(
    configFile,
    `operator: "${jwt(operator, operator, 'operator', {})}"
resolver: MEMORY
resolver_preload: { ${account.getPublicKey()}: "${jwt(account, operator, 'account', limits)}" }`,
  );
  write(4);
  const nats = await startNats({ configFile });
  try {
    await using bus = startBus({ url: nats.url, nats: { credentialsFile: secretFile } });
    await until('it is let in', () => bus.bus.state === 'connected');
    await until('its time is over', () => bus.problems().includes('credentials-refused'));
    write(600);
    await until('it is let in again', () => bus.bus.state === 'connected');
  } finally {
    await nats.stop();
  }
});
