import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { UsageError } from './errors.ts';

/** Where the agent is and how to reach it, from `agent.json`, the environment and flags. */
export interface Settings {
  /** The host that requests go to. */
  readonly host: string;
  /** True when a flag or variable named the host; `watch` shows all hosts otherwise. */
  readonly hostGiven: boolean;
  readonly natsUrl: string;
  readonly credentialsFile: string | undefined;
  readonly tls: TlsFiles | undefined;
  readonly runtimeDir: string;
  readonly subjectPrefix: string;
  readonly timeoutMs: number;
  readonly traceContext: { readonly traceparent?: string; readonly tracestate?: string };
}

export interface TlsFiles {
  readonly caFile?: string;
  readonly certFile?: string;
  readonly keyFile?: string;
}

/** The options of every command, as parsed. */
export interface CommonFlags {
  readonly config?: string;
  readonly nats?: string;
  readonly host?: string;
  readonly timeout?: number;
  readonly json?: boolean;
}

const DEFAULT_CONFIG_FILE = '/etc/volt/network/agent.json';
const DEFAULT_TIMEOUT_S = 10;

/**
 * Flags win over variables, variables over the file, the file over the defaults of the agent. The file is
 * the agent's own, so that on its host nothing needs to be said twice. It is read without the agent's
 * schema, which would cost more time than the rest of a command: keys that are not used here are not
 * looked at, and the agent refuses to start with wrong ones.
 */
export function loadSettings(
  flags: CommonFlags,
  env: Readonly<Record<string, string | undefined>>,
): Settings {
  const file = readConfig(flags.config);
  const nats = section(file, 'nats');
  const tls = section(nats, 'tls');
  const caFile = text(tls, 'caFile');
  const certFile = text(tls, 'certFile');
  const keyFile = text(tls, 'keyFile');
  const host = flags.host ?? env['VOLT_NET_HOST'];
  const traceparent = env['TRACEPARENT'];
  const tracestate = env['TRACESTATE'];
  return {
    host: checkedHost(host ?? text(file, 'host') ?? hostname().replace(/[^A-Za-z0-9_-]/g, '_')),
    hostGiven: host !== undefined,
    natsUrl: flags.nats ?? env['VOLT_NET_NATS_URL'] ?? text(nats, 'url') ?? 'nats://127.0.0.1:4222',
    credentialsFile: env['VOLT_NET_NATS_CREDENTIALS_FILE'] ?? text(nats, 'credentialsFile'),
    tls:
      Object.keys(tls).length === 0
        ? undefined
        : {
            ...(caFile !== undefined && { caFile }),
            ...(certFile !== undefined && { certFile }),
            ...(keyFile !== undefined && { keyFile }),
          },
    runtimeDir: env['VOLT_NET_RUNTIME_DIR'] ?? text(file, 'runtimeDir') ?? '/run/volt-vmm/network',
    subjectPrefix: env['VOLT_NET_SUBJECT_PREFIX'] ?? text(file, 'subjectPrefix') ?? 'volt.net.v1',
    timeoutMs: (flags.timeout ?? DEFAULT_TIMEOUT_S) * 1_000,
    traceContext: {
      ...(traceparent !== undefined && traceparent !== '' && { traceparent }),
      ...(tracestate !== undefined && tracestate !== '' && { tracestate }),
    },
  };
}

// A dot or a wildcard in the host would address other subjects than the one meant.
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
    throw new UsageError(`cannot read ${name}: ${reasonOf(cause)}`, { cause });
  }
  return parseJsonObject(content, name);
}

/** Throws UsageError, naming `origin`, for what is not one JSON object. */
export function parseJsonObject(content: string, origin: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(content);
  } catch (cause) {
    throw new UsageError(`${origin}: not JSON: ${reasonOf(cause)}`, { cause });
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

const reasonOf = (cause: unknown): string =>
  cause instanceof Error ? cause.message : String(cause);
