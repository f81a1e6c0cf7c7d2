import { execFileSync, spawnSync, type SpawnSyncReturns } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type NatsConnection, nkeys } from 'nats';
import { connectionOptionsOf, type NatsAccess } from '#agent/bus/nats-access.ts';
import { type Server, startNats } from './servers.ts';

const SHIPPED = new URL('../../deploy/nats', import.meta.url).pathname;
const VOLTNET = new URL('../../deploy/bin/voltnet', import.meta.url).pathname;

export const ROLES = [
  'agent-h1',
  'agent-h2',
  'orchestrator',
  'observer',
  'operator',
  'setup',
] as const;
export type Role = (typeof ROLES)[number];
export type Variant = 'nkeys' | 'passwords';

/** nats-server as deploy/nats/ configures it, for hosts h1 and h2. */
export interface Accounts extends AsyncDisposable {
  readonly server: Server;
  /** The `nats` section of an agent's configuration. */
  readonly access: (role: Role) => NatsAccess & { readonly inboxPrefix: string };
  /** Gives the role another key or password, on disk and in the server. */
  readonly rotate: (role: Role) => void;
  readonly connectAs: (role: Role) => Promise<NatsConnection>;
  readonly voltnet: (role: Role, ...words: string[]) => SpawnSyncReturns<string>;
}

/** What docs/security.md tells an operator to do to all files where the prefix is `acme.net`. */
const renamed = (text: string): string => {
  const page = readFileSync(new URL('../../docs/security.md', import.meta.url), 'utf8');
  const [, script = ''] = /`sed '([^`]*acme-net--[^`]*)'`/.exec(page) ?? [];
  return execFileSync('sed', [script.replaceAll(/\s*\n\s*/g, ' ')], {
    encoding: 'utf8',
    input: text,
  });
};

/**
 * Does what the comments in the files tell an operator to do: a second host, keys or passwords. `isRenamed`: for a fleet
 * whose prefix is `acme.net`.
 */
export async function startAccounts(variant: Variant, isRenamed = false): Promise<Accounts> {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-accounts-'));
  const path = (name: string): string => join(folder, name);
  cpSync(SHIPPED, folder, { recursive: true });
  if (isRenamed) {
    for (const name of readdirSync(folder)) {
      writeFileSync(path(name), renamed(readFileSync(path(name), 'utf8')));
    }
  }
  const rename = 's/h1/h2/g; s/H1/H2/g';
  writeFileSync(path('agent-h2.conf'), execFileSync('sed', [rename, path('agent-h1.conf')]));
  const accounts = path(`${variant}.conf`);
  const lines = readFileSync(accounts, 'utf8').split('\n');
  const doubled = lines.flatMap((line) =>
    /h1/i.test(line) && !line.startsWith('#')
      ? [line, line.replaceAll('h1', 'h2').replaceAll('H1', 'H2')]
      : [line],
  );
  writeFileSync(accounts, doubled.join('\n'));
  const top = readFileSync(path('nats.conf'), 'utf8');
  writeFileSync(
    path('nats.conf'),
    top
      .replace('include "nkeys.conf"', `include "${variant}.conf"`)
      .replace('"/var/lib/nats"', `"${path('store')}"`),
  );
  const lineOf = new Map<Role, string>();
  const give = (...roles: Role[]): void => {
    for (const role of roles) lineOf.set(role, secretOf(role, variant, path(`${role}.secret`)));
    const known = path(variant === 'nkeys' ? 'keys.conf' : 'secrets.conf');
    writeFileSync(known, [...lineOf.values()].join('\n'));
  };
  give(...ROLES);
  const server = await startNats({ configFile: path('nats.conf') });

  const access: Accounts['access'] = (role) => ({
    url: server.url,
    inboxPrefix: `_INBOX.${role}`,
    ...(variant === 'nkeys'
      ? { nkeyFile: path(`${role}.secret`) }
      : { username: role, passwordFile: path(`${role}.secret`) }),
  });
  return {
    server,
    access,
    rotate: (role) => {
      give(role);
      process.kill(server.pid, 'SIGHUP');
    },
    connectAs: (role) => connect(connectionOptionsOf(access(role))),
    voltnet: (role, ...words) => {
      const { nkeyFile, username, passwordFile, inboxPrefix } = access(role);
      const env = {
        ...process.env,
        VOLT_NET_NATS_URL: server.url,
        VOLT_NET_NATS_INBOX_PREFIX: inboxPrefix,
        ...(isRenamed && { VOLT_NET_SUBJECT_PREFIX: 'acme.net' }),
        ...(nkeyFile && { VOLT_NET_NATS_NKEY_FILE: nkeyFile }),
        ...(username && { VOLT_NET_NATS_USERNAME: username }),
        ...(passwordFile && { VOLT_NET_NATS_PASSWORD_FILE: passwordFile }),
      };
      return spawnSync(VOLTNET, words, { encoding: 'utf8', env });
    },
    async [Symbol.asyncDispose]() {
      await server.stop();
      rmSync(folder, { recursive: true });
    },
  };
}

/** Writes what proves that one is `role`; answers the line by which the server knows it. */
function secretOf(role: Role, variant: Variant, file: string): string {
  const name = role.toUpperCase().replaceAll('-', '_');
  if (variant === 'passwords') {
    const password = `pass word ${randomUUID()}`;
    writeFileSync(file, `${password}\n`);
    return `${name}_PASSWORD: "${password}"`;
  }
  const pair = nkeys.createUser();
  writeFileSync(file, `${new TextDecoder().decode(pair.getSeed())}\n`);
  return `${name}_KEY: "${pair.getPublicKey()}"`;
}
