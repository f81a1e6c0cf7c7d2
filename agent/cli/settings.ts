import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { fileProblem } from '#protocol/file-problem.ts';
import { DEFAULT_INBOX_PREFIX } from '#protocol/inbox.ts';
import { jsonProblem, keepSecretsOf } from '#protocol/secrets.ts';
import type { TlsFiles } from '#ipam-store/named-files.ts';
import type { NatsAccess } from '../bus/nats-access.ts';
import { CREDENTIAL_KEYS, parseNatsUrl, problemOfUser, SUBJECT } from '../bus/nats-url.ts';
import { UsageError } from './errors.ts';

/** Where the agent is and how it is reached: from `agent.json`, the environment and flags. */
export interface Settings {
  /** The host that requests go to. */
  readonly host: string;
  /** True if a flag or variable named the host; otherwise `watch` shows all hosts. */
  readonly hostGiven: boolean;
  /** True if this is the host id of the agent of this machine. */
  readonly isThisHost: boolean;
  /** Over the agent's local socket, and not over NATS. */
  readonly local: boolean;
  readonly nats: NatsAccess & { readonly inboxPrefix: string };
  /** The values of `nats.streams` in variables and agent.json, unchecked. */
  readonly streams: Readonly<Record<string, unknown>>;
  readonly runtimeDir: string;
  readonly subjectPrefix: string;
  readonly timeoutMs: number;
  readonly traceContext: { readonly traceparent?: string; readonly tracestate?: string };
}

/** The options of every command, as parsed. */
export interface CommonFlags {
  readonly config?: string;
  readonly nats?: string;
  readonly inboxPrefix?: string;
  readonly host?: string;
  readonly local?: boolean;
  readonly timeout?: number;
  readonly json?: boolean;
}

const DEFAULT_CONFIG_FILE = '/etc/volt/network/agent.json';
const DEFAULT_NATS_URL = 'nats://127.0.0.1:4222';
const DEFAULT_TIMEOUT_S = 10;

/**
 * Flags win over variables, variables over the file, the file over the agent's defaults. The file is the agent's own,
 * so that nothing has to be said twice on its host. It is read without the agent's schema, which would cost more time
 * than the rest of a command. So unused keys are not looked at here; the agent refuses to start with wrong ones.
 */
export function loadSettings(
  flags: CommonFlags,
  env: Readonly<Record<string, string | undefined>>,
): Settings {
  const file = readConfig(flags.config);
  const given = flags.host ?? env['VOLT_NET_HOST'];
  const runtimeDir =
    env['VOLT_NET_RUNTIME_DIR'] ?? text(file, 'runtimeDir') ?? '/run/volt-vmm/network';
  const recorded = recordedHost(runtimeDir);
  const host = checkedHost(given ?? text(file, 'host') ?? recorded ?? defaultHost());
  const traceparent = env['TRACEPARENT'];
  const tracestate = env['TRACESTATE'];
  return {
    host,
    hostGiven: given !== undefined,
    isThisHost: host === recorded,
    local: flags.local === true,
    nats: natsAccess(flags, env, section(file, 'nats')),
    streams: { ...section(section(file, 'nats'), 'streams'), ...streamVariables(env) },
    runtimeDir,
    subjectPrefix: env['VOLT_NET_SUBJECT_PREFIX'] ?? text(file, 'subjectPrefix') ?? 'volt.net.v1',
    timeoutMs: (flags.timeout ?? DEFAULT_TIMEOUT_S) * 1_000,
    traceContext: {
      ...(traceparent !== undefined && traceparent !== '' && { traceparent }),
      ...(tracestate !== undefined && tracestate !== '' && { tracestate }),
    },
  };
}

/**
 * If a variable or the address names a user, that user is not the one of agent.json. The credentials and the inbox of
 * agent.json are the agent's then, and none of them is used.
 */
function natsAccess(
  flags: CommonFlags,
  env: Readonly<Record<string, string | undefined>>,
  file: Record<string, unknown>,
): Settings['nats'] {
  const given = flags.nats ?? env['VOLT_NET_NATS_URL'];
  const url = given ?? text(file, 'url') ?? DEFAULT_NATS_URL;
  keepSecretsOf(url);
  const fromEnv = credentials((key) => env[CREDENTIAL_VARIABLES[key]]);
  const isInEnv = Object.keys(fromEnv).length > 0;
  const isOwn = namesUser(given) || isInEnv;
  const isInFlag = namesUser(flags.nats);
  const fromHere = isInFlag ? {} : fromEnv;
  const inboxPrefix =
    flags.inboxPrefix ??
    env['VOLT_NET_NATS_INBOX_PREFIX'] ??
    (isOwn ? undefined : text(file, 'inboxPrefix')) ??
    DEFAULT_INBOX_PREFIX;
  if (!SUBJECT.test(inboxPrefix)) {
    throw new UsageError(
      `"${inboxPrefix}" is no inbox prefix: tokens joined by ".", no "*" or ">"`,
    );
  }
  const who = isOwn ? fromHere : credentials((key) => text(file, key));
  const problem = problemOfUser(who);
  if (problem !== undefined) throw new UsageError(problem);
  return { url: checkedUrl(url), inboxPrefix, ...who, tls: tlsFiles(section(file, 'tls')) };
}

const CREDENTIAL_VARIABLES = {
  username: 'VOLT_NET_NATS_USERNAME',
  passwordFile: 'VOLT_NET_NATS_PASSWORD_FILE',
  tokenFile: 'VOLT_NET_NATS_TOKEN_FILE',
  nkeyFile: 'VOLT_NET_NATS_NKEY_FILE',
  credentialsFile: 'VOLT_NET_NATS_CREDENTIALS_FILE',
} as const;

const STREAM_VARIABLES = {
  replicas: 'VOLT_NET_NATS_STREAM_REPLICAS',
  storage: 'VOLT_NET_NATS_STREAM_STORAGE',
  eventAgeSeconds: 'VOLT_NET_NATS_EVENT_AGE_SECONDS',
  eventBytes: 'VOLT_NET_NATS_EVENT_BYTES',
  jobAgeSeconds: 'VOLT_NET_NATS_JOB_AGE_SECONDS',
  jobBytes: 'VOLT_NET_NATS_JOB_BYTES',
} as const;

const streamVariables = (
  env: Readonly<Record<string, string | undefined>>,
): Record<string, string> =>
  Object.fromEntries(
    Object.entries(STREAM_VARIABLES).flatMap(([key, variable]) => {
      const value = env[variable];
      return value === undefined ? [] : [[key, value]];
    }),
  );

type CredentialKey = keyof typeof CREDENTIAL_VARIABLES;

function credentials(
  read: (key: CredentialKey) => string | undefined,
): Partial<Record<CredentialKey, string>> {
  const found: Partial<Record<CredentialKey, string>> = {};
  for (const key of CREDENTIAL_KEYS) {
    const value = read(key);
    if (value !== undefined && value !== '') found[key] = value;
  }
  return found;
}

const namesUser = (url: string | undefined): boolean => url?.includes('@') === true;

function checkedUrl(url: string): string {
  try {
    parseNatsUrl(url);
    return url;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`the address of NATS: ${reason}`, { cause });
  }
}

function tlsFiles(tls: Record<string, unknown>): TlsFiles | null {
  if (Object.keys(tls).length === 0) return null;
  const [caFile, certFile, keyFile] = ['caFile', 'certFile', 'keyFile'].map((key) =>
    text(tls, key),
  );
  return { caFile: caFile ?? null, certFile: certFile ?? null, keyFile: keyFile ?? null };
}

/** The local socket of the agent of this host. */
export const socketIn = (runtimeDir: string): string => join(runtimeDir, 'agent.sock');

/** The host id of the agent that ran here last, whatever the machine is called now. */
function recordedHost(runtimeDir: string): string | undefined {
  try {
    return readFileSync(join(runtimeDir, 'host'), 'utf8').trim();
  } catch {
    return undefined;
  }
}

const defaultHost = (): string => hostname().replace(/[^A-Za-z0-9_-]/g, '_');

// With a dot or a wildcard, the host would address other subjects than the one that is meant.
function checkedHost(host: string): string {
  if (/^[A-Za-z0-9_-]{1,64}$/.test(host)) return host;
  throw new UsageError(`"${host}" is no host id: letters, digits, "-" and "_", 64 at most`);
}

function readConfig(file: string | undefined): Record<string, unknown> {
  const name = file ?? DEFAULT_CONFIG_FILE;
  let content: string;
  try {
    content = readFileSync(name, 'utf8');
  } catch (cause) {
    const missing = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT';
    if (missing && file === undefined) return {};
    throw new UsageError(`cannot read ${name}: ${fileProblem(cause)}`, { cause });
  }
  return parseJsonObject(content, name);
}

/** Throws UsageError, naming `origin`, if the text is not one JSON object. */
export function parseJsonObject(content: string, origin: string): Record<string, unknown> {
  if (content.trim() === '') throw new UsageError(`${origin} is empty`);
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (cause) {
    throw new UsageError(`${origin}: not JSON: ${jsonProblem(cause)}`);
  }
  if (!isRecord(value)) throw new UsageError(`${origin}: must hold one JSON object`);
  return value;
}

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function section(parent: Record<string, unknown>, key: string): Record<string, unknown> {
  const value = parent[key];
  if (value === undefined || value === null) return {};
  if (!isRecord(value)) throw new UsageError(`the configuration: ${key} must be an object`);
  return value;
}

function text(parent: Record<string, unknown>, key: string): string | undefined {
  const value = parent[key];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'string') throw new UsageError(`the configuration: ${key} must be text`);
  return value;
}
