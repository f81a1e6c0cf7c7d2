import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { z } from 'zod';
import { fileProblem } from '#protocol/file-problem.ts';
import { jsonProblem, keepSecretsOf } from '#protocol/secrets.ts';
import { parseNatsUrl, problemOfUser, SUBJECT } from './bus/nats-url.ts';
import { DEFAULT_STREAMS, STREAM_LIMITS } from './bus/stream-settings.ts';
import { parseListen } from './telemetry/listen-address.ts';
import { namesIn } from './telemetry/telemetry.ts';

const path = z.string().startsWith('/', 'must be an absolute path');
const nullablePath = path.nullable().default(null);
const seconds = z.number().positive().max(86_400);

const tls = z
  .strictObject({
    caFile: nullablePath,
    certFile: nullablePath,
    keyFile: nullablePath,
  })
  .nullable()
  .default(null);

const within = ({ least, most }: { readonly least: number; readonly most: number }) =>
  z.int().min(least).max(most);

// How the streams of jobs and events are made, where the agent makes them.
const streamsSection = z.strictObject({
  replicas: within(STREAM_LIMITS.replicas).default(DEFAULT_STREAMS.replicas),
  storage: z.enum(['file', 'memory']).default(DEFAULT_STREAMS.storage),
  eventAgeSeconds: within(STREAM_LIMITS.eventAgeSeconds).default(DEFAULT_STREAMS.eventAgeSeconds),
  eventBytes: within(STREAM_LIMITS.eventBytes).default(DEFAULT_STREAMS.eventBytes),
  jobAgeSeconds: within(STREAM_LIMITS.jobAgeSeconds).default(DEFAULT_STREAMS.jobAgeSeconds),
  jobBytes: within(STREAM_LIMITS.jobBytes).default(DEFAULT_STREAMS.jobBytes),
});

const natsSection = z.strictObject({
  url: z
    .string()
    .superRefine((text, context) => {
      try {
        parseNatsUrl(text);
      } catch (error) {
        context.addIssue(error instanceof Error ? error.message : String(error));
      }
    })
    .default('nats://127.0.0.1:4222'),
  username: z.string().min(1).nullable().default(null),
  passwordFile: nullablePath,
  tokenFile: nullablePath,
  nkeyFile: nullablePath,
  credentialsFile: nullablePath,
  inboxPrefix: z
    .string()
    .max(128)
    .regex(SUBJECT, 'must be a subject: tokens joined by ".", no "*", ">" or space')
    .optional(),
  // All of NATS's own: _INBOX, _R_ of an imported service, _GR_ of another cluster.
  replyPrefixes: z
    .array(z.string().regex(/^[A-Za-z0-9_-][A-Za-z0-9_.-]*$/, 'must be the beginning of a subject'))
    .min(1)
    .default(['_']),
  tls,
  streams: streamsSection.prefault({}),
});

const redisSection = z.strictObject({
  url: z
    .string()
    .regex(/^(rediss?|unix):\/\//, 'must begin with redis://, rediss:// or unix://')
    .refine((text) => text.startsWith('unix://') || URL.canParse(text), {
      message: 'must be an address like redis://host:6379/0, special characters percent-encoded',
    })
    .default('redis://127.0.0.1:6379/0'),
  mode: z.enum(['single', 'sentinel', 'cluster']).default('single'),
  nodes: z
    .array(z.strictObject({ host: z.string().min(1), port: z.int().min(1).max(65_535) }))
    .min(1)
    .nullable()
    .default(null),
  masterName: z.string().min(1).nullable().default(null),
  username: z.string().min(1).nullable().default(null),
  passwordFile: nullablePath,
  sentinelUsername: z.string().min(1).nullable().default(null),
  sentinelPasswordFile: nullablePath,
  tls,
  // The ledger's own part of a key has the braces, which make all its keys one slot of a cluster.
  keyPrefix: z
    .string()
    .min(1)
    .max(64)
    .regex(/^[^{}]*$/, 'must not hold braces')
    .default('volt:'),
  cell: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,32}$/, 'must be letters, digits, "-" and "_", 32 at most')
    .nullable()
    .default(null),
  minReplicas: z.int().min(0).max(16).default(0),
});

const metricsSection = z.strictObject({
  listen: z
    .string()
    .superRefine((text, context) => {
      try {
        parseListen(text);
      } catch (error) {
        context.addIssue(error instanceof Error ? error.message : String(error));
      }
    })
    .nullable()
    .default(null),
  // How often each network's usage is read from the ledger, while there is somebody to tell it to.
  poolSeconds: seconds.min(1).default(60),
});

/** `agent.json`: every key optional, unknown keys refused. docs/reference/configuration.md is made of it. */
export const configSchema = z.strictObject({
  host: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be letters, digits, "-" and "_", 64 at most')
    .optional(),
  nats: natsSection.prefault({}),
  redis: redisSection.prefault({}),
  runtimeDir: path.default('/run/volt-vmm/network'),
  stateDir: path.default('/var/lib/volt/network'),
  networksDir: path.default('/etc/volt/network/networks'),
  subjectPrefix: z
    .string()
    .regex(/^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$/, 'must be NATS subject tokens joined by "."')
    .default('volt.net.v1'),
  heartbeatSeconds: seconds.default(5),
  suspectAfterSeconds: seconds.default(20),
  recoveryWindowSeconds: seconds.nullable().default(null),
  reconcileSeconds: seconds.default(30),
  onReboot: z.enum(['recreate', 'release']).default('recreate'),
  nftablesTable: z
    .string()
    .regex(/^[a-z][a-z0-9_]{0,31}$/, 'must match [a-z][a-z0-9_]{0,31}')
    .default('volt'),
  logLevel: z.enum(['debug', 'info', 'warn', 'error']).default('info'),
  logFormat: z.enum(['auto', 'json', 'text']).default('auto'),
  metrics: metricsSection.prefault({}),
});

type Checked = z.infer<typeof configSchema>;

export type Config = Omit<Checked, 'host' | 'nats'> & {
  readonly host: string;
  /** Whether a host was given; otherwise it is made of the host name. */
  readonly hostGiven: boolean;
  readonly nats: Omit<Checked['nats'], 'inboxPrefix'> & { readonly inboxPrefix: string };
};

/** The configuration cannot be used. The message names the key, what is wrong, and where it was given. */
export class ConfigError extends Error {
  readonly code = 'INVALID_CONFIG';
}

export const DEFAULT_CONFIG_FILE = '/etc/volt/network/agent.json';

/** One row a setting that can also be given by variable and flag. Flags win over variables, which win over the file. */
export const OVERRIDES = [
  { key: 'host', variable: 'VOLT_NET_HOST', flag: '--host' },
  { key: 'nats.url', variable: 'VOLT_NET_NATS_URL', flag: '--nats' },
  { key: 'nats.username', variable: 'VOLT_NET_NATS_USERNAME' },
  { key: 'nats.passwordFile', variable: 'VOLT_NET_NATS_PASSWORD_FILE' },
  { key: 'nats.tokenFile', variable: 'VOLT_NET_NATS_TOKEN_FILE' },
  { key: 'nats.nkeyFile', variable: 'VOLT_NET_NATS_NKEY_FILE' },
  { key: 'nats.credentialsFile', variable: 'VOLT_NET_NATS_CREDENTIALS_FILE' },
  { key: 'nats.inboxPrefix', variable: 'VOLT_NET_NATS_INBOX_PREFIX' },
  { key: 'nats.streams.replicas', variable: 'VOLT_NET_NATS_STREAM_REPLICAS', isNumber: true },
  { key: 'nats.streams.storage', variable: 'VOLT_NET_NATS_STREAM_STORAGE' },
  {
    key: 'nats.streams.eventAgeSeconds',
    variable: 'VOLT_NET_NATS_EVENT_AGE_SECONDS',
    isNumber: true,
  },
  { key: 'nats.streams.eventBytes', variable: 'VOLT_NET_NATS_EVENT_BYTES', isNumber: true },
  { key: 'nats.streams.jobAgeSeconds', variable: 'VOLT_NET_NATS_JOB_AGE_SECONDS', isNumber: true },
  { key: 'nats.streams.jobBytes', variable: 'VOLT_NET_NATS_JOB_BYTES', isNumber: true },
  { key: 'redis.url', variable: 'VOLT_NET_REDIS_URL', flag: '--redis' },
  { key: 'redis.username', variable: 'VOLT_NET_REDIS_USERNAME' },
  { key: 'redis.passwordFile', variable: 'VOLT_NET_REDIS_PASSWORD_FILE' },
  { key: 'redis.keyPrefix', variable: 'VOLT_NET_REDIS_KEY_PREFIX' },
  { key: 'runtimeDir', variable: 'VOLT_NET_RUNTIME_DIR', flag: '--runtime-dir' },
  { key: 'stateDir', variable: 'VOLT_NET_STATE_DIR', flag: '--state-dir' },
  { key: 'networksDir', variable: 'VOLT_NET_NETWORKS_DIR', flag: '--networks-dir' },
  { key: 'subjectPrefix', variable: 'VOLT_NET_SUBJECT_PREFIX' },
  { key: 'onReboot', variable: 'VOLT_NET_ON_REBOOT' },
  { key: 'logLevel', variable: 'VOLT_NET_LOG_LEVEL', flag: '--log-level' },
  { key: 'logFormat', variable: 'VOLT_NET_LOG_FORMAT', flag: '--log-format' },
  { key: 'metrics.listen', variable: 'VOLT_NET_METRICS_LISTEN' },
] as const;

export type OverrideKey = (typeof OVERRIDES)[number]['key'];

export interface ConfigSources {
  /** Given by `--config`; without it the default file is read where it exists. */
  readonly file?: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly flags?: Partial<Record<OverrideKey, string>>;
}

/** Reads and checks the configuration. Throws ConfigError; never returns a value that was not checked. */
export function loadConfig({ file, env, flags = {} }: ConfigSources): Config {
  const settings = readSettings(file);
  const origins = new Map<string, string>();
  for (const { key, variable, ...one } of OVERRIDES) {
    const flag = flags[key];
    const value = flag ?? env[variable];
    if (value === undefined) continue;
    const isNumber = 'isNumber' in one && /^\d+$/.test(value);
    put(settings, key.split('.'), isNumber ? Number(value) : value);
    origins.set(key, flag === undefined ? variable : 'the command line');
  }
  const variables = listenAsOpenTelemetrySays(settings, env);
  if (variables !== undefined) origins.set('metrics.listen', variables);
  noteSecrets(settings);
  refuseUnknownVariables(env);
  const checked = configSchema.safeParse(settings);
  if (!checked.success) {
    const problems = checked.error.issues.map(({ path: keys, message }) => {
      const key = keys.join('.');
      const origin = origins.get(key) ?? file ?? DEFAULT_CONFIG_FILE;
      return `${key === '' ? 'the configuration' : key}: ${message} (in ${origin})`;
    });
    throw new ConfigError(problems.join('; '));
  }
  refuseContradictions(checked.data);
  const { nats } = checked.data;
  const host = checked.data.host ?? defaultHost();
  const inboxPrefix = nats.inboxPrefix ?? `_INBOX.agent-${host}`;
  const hostGiven = checked.data.host !== undefined;
  return { ...checked.data, host, hostGiven, nats: { ...nats, inboxPrefix } };
}

/**
 * OTEL_METRICS_EXPORTER=prometheus, where no address is configured: puts the address of OpenTelemetry's variables into the
 * settings, and returns where it is from.
 */
function listenAsOpenTelemetrySays(
  settings: Record<string, unknown>,
  env: ConfigSources['env'],
): string | undefined {
  const exporters = namesIn(env['OTEL_METRICS_EXPORTER']);
  const { metrics } = settings;
  const isGiven = isRecord(metrics) && (metrics['listen'] ?? null) !== null;
  if (!exporters.includes('prometheus') || exporters.includes('none') || isGiven) return undefined;
  const host = env['OTEL_EXPORTER_PROMETHEUS_HOST'] || '127.0.0.1';
  const port = env['OTEL_EXPORTER_PROMETHEUS_PORT'] || '9464';
  const address = host.includes(':') ? `[${host}]` : host;
  put(settings, ['metrics', 'listen'], `${address}:${port}`);
  return 'OTEL_EXPORTER_PROMETHEUS_HOST and _PORT';
}

/** What each key alone does not show. */
function refuseContradictions(config: Checked): void {
  const { nats, redis, subjectPrefix, heartbeatSeconds, suspectAfterSeconds } = config;
  for (const prefix of nats.replyPrefixes) {
    const ours = `${subjectPrefix}.`;
    if (!ours.startsWith(prefix) && !prefix.startsWith(ours)) continue;
    throw new ConfigError(`nats.replyPrefixes: "${prefix}" takes replies to subjects of ours`);
  }
  const own = nats.inboxPrefix;
  if (own !== undefined && !nats.replyPrefixes.some((prefix) => own.startsWith(prefix))) {
    throw new ConfigError('nats.inboxPrefix: must begin with one of nats.replyPrefixes');
  }
  const problem = problemOfUser(nats);
  if (problem !== undefined) throw new ConfigError(problem);
  if (suspectAfterSeconds < 2 * heartbeatSeconds) {
    throw new ConfigError('suspectAfterSeconds: must be twice heartbeatSeconds at least');
  }
  if (redis.mode !== 'single' && redis.nodes === null) {
    throw new ConfigError(`redis.nodes: must be given with redis.mode "${redis.mode}"`);
  }
  if (redis.mode === 'sentinel' && redis.masterName === null) {
    throw new ConfigError('redis.masterName: must be given with redis.mode "sentinel"');
  }
}

/** What an address of a server holds is in no message, whatever is wrong with it. */
function noteSecrets(settings: Record<string, unknown>): void {
  for (const section of [settings['nats'], settings['redis']]) {
    const url = isRecord(section) ? section['url'] : undefined;
    if (typeof url === 'string') keepSecretsOf(url);
  }
}

/** What a host is called that is given no id, until it has one (`identity.ts`). */
export const defaultHost = (): string => hostId(hostname());

/** A host name as a host id: `node1.example.org` is `node1_example_org`. */
const hostId = (name: string): string => name.replace(/[^A-Za-z0-9_-]/g, '_').slice(0, 64);

function readSettings(file: string | undefined): Record<string, unknown> {
  const name = file ?? DEFAULT_CONFIG_FILE;
  let text: string;
  try {
    text = readFileSync(name, 'utf8');
  } catch (cause) {
    const missing = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT';
    if (missing && file === undefined) return {};
    throw new ConfigError(`cannot read ${name}: ${fileProblem(cause)}`, { cause });
  }
  const value = parseJson(text, name);
  if (!isRecord(value)) throw new ConfigError(`${name}: must hold one JSON object`);
  return value;
}

function parseJson(text: string, name: string): unknown {
  if (text.trim() === '') throw new ConfigError(`${name} is empty`);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${name}: not JSON: ${jsonProblem(cause)}`);
  }
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function put(
  settings: Record<string, unknown>,
  keys: readonly string[],
  value: string | number,
): void {
  const [key, ...rest] = keys;
  if (key === undefined) return;
  if (rest.length === 0) {
    settings[key] = value;
    return;
  }
  const section = settings[key] ?? {};
  if (!isRecord(section)) return; // wrong already, and reported by the check that follows
  settings[key] = section;
  put(section, rest, value);
}

// A misspelt variable would otherwise be a setting that silently has no effect.
function refuseUnknownVariables(env: ConfigSources['env']): void {
  const known = new Set<string>(OVERRIDES.map(({ variable }) => variable));
  const unknown = Object.keys(env).filter((n) => n.startsWith('VOLT_NET_') && !known.has(n));
  if (unknown.length === 0) return;
  throw new ConfigError(`unknown environment variable ${unknown.join(', ')}`);
}
