import { Redis, type RedisOptions } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import { keepSecretsOf, secretIn } from '#protocol/secrets.ts';
import { type Address, type Master, mastersOf } from './cluster.ts';
import { messageOf } from './errors.ts';
import { slotOf } from './keys.ts';
import { readNamed, readTls } from './named-files.ts';
import { findMaster, watchMaster } from './sentinels.ts';

/** The `redis` section of agent.json. */
export interface LedgerOptions {
  /** With mode `single`: redis://, rediss:// or unix://. */
  readonly url: string;
  readonly mode: 'single' | 'sentinel' | 'cluster';
  /** The sentinels, or some nodes of the cluster. */
  readonly nodes: readonly Address[] | null;
  readonly masterName: string | null;
  readonly username: string | null;
  readonly passwordFile: string | null;
  readonly sentinelUsername?: string | null;
  readonly sentinelPasswordFile?: string | null;
  readonly tls: {
    readonly caFile: string | null;
    readonly certFile: string | null;
    readonly keyFile: string | null;
  } | null;
  readonly keyPrefix: string;
  /** Of several ledgers in one Redis Cluster; null for the only one. */
  readonly cell?: string | null;
  readonly minReplicas: number;
  /** How long one command may take. Default 2,000. */
  readonly commandTimeoutMs?: number;
}

export const COMMAND_TIMEOUT_MS = 2_000;
const CONNECT_TIMEOUT_MS = 2_000;
const DISCONNECT_TIMEOUT_MS = 500;
const LOADING_RETRY_MS = 500;
/** A connection on which nothing came for so many times a command's time is given up; not by all agents at once. */
const SILENCE = { least: 2, most: 3 };

/** Throws for options that cannot be meant. */
export function checkOptions({ url, mode, nodes, masterName }: LedgerOptions): void {
  keepSecretsOf(url);
  if (mode === 'single') return;
  if (nodes === null || nodes.length === 0) refuse('nodes', mode);
  if (mode === 'sentinel' && masterName === null) refuse('masterName', mode);
}

/** A client for one connection to the server that has the ledger. It is not connected yet. */
export interface Opened {
  readonly client: Redis;
  /** Tells when the ledger is elsewhere, where that would not be noticed on the connection itself. */
  readonly watch: (onMoved: (to: Address) => void) => Disposable;
}

/**
 * A client is connected once: whatever was sent through it went to one server, in order. Passwords and TLS files
 * are read anew for each, which is how changed ones are taken up. `turn` says which node of a cluster is asked
 * first: one that has missed a fail-over must not be asked for ever.
 *
 * A cluster is not left to ioredis, which follows ASK: half of a slot that is being moved looks like a ledger
 * of which half was never written. All keys are in one slot, so the connection to its master is all it takes.
 */
export async function createClient(options: LedgerOptions, turn: number): Promise<Opened> {
  const settings = settingsOf(options);
  const { mode, masterName, url } = options;
  const nodes = options.nodes ?? [];
  if (mode === 'single') {
    return { client: new Redis(locationOf(url, options), settings), watch: watchNothing };
  }
  if (mode === 'cluster') {
    const masters = await findMasters(rotated(nodes, turn), settings, slotOf(options.cell));
    const master = masters.find(({ hasLedger }) => hasLedger);
    if (master === undefined) throw new Error("no master has the ledger's slot");
    return { client: new Redis({ ...settings, ...addressOf(master) }), watch: watchNothing };
  }
  const watching = {
    nodes,
    masterName: masterName ?? '',
    settings: { ...settings, ...sentinelUserOf(options) },
  };
  const master = await findMaster(watching);
  return {
    client: new Redis({ ...settings, ...addressOf(master) }),
    watch: (onMoved) => watchMaster(watching, master, onMoved),
  };
}

/** A client for each master that there is: of a cluster all, otherwise the one. */
export async function createMasterClients(options: LedgerOptions): Promise<Redis[]> {
  if (options.mode !== 'cluster') return [(await createClient(options, 0)).client];
  const settings = settingsOf(options);
  const masters = await findMasters(options.nodes ?? [], settings, slotOf(options.cell));
  return masters.map((master) => new Redis({ ...settings, ...addressOf(master) }));
}

const watchNothing = (): Disposable => ({ [Symbol.dispose]: () => {} });

type Settings = Omit<RedisOptions, 'replyMapping'> & { readonly commandTimeout: number };

/** What every client of the ledger is made with. */
export function settingsOf(options: LedgerOptions): Settings {
  const { username, passwordFile, tls, commandTimeoutMs = COMMAND_TIMEOUT_MS } = options;
  return {
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    retryStrategy: null,
    connectTimeout: CONNECT_TIMEOUT_MS,
    disconnectTimeout: DISCONNECT_TIMEOUT_MS,
    maxLoadingRetryTime: LOADING_RETRY_MS,
    commandTimeout: commandTimeoutMs,
    // A slow server is waited for: if every agent connected anew, it would get slower.
    socketTimeout:
      commandTimeoutMs * (SILENCE.least + (SILENCE.most - SILENCE.least) * Math.random()),
    // It would need the right to run CLIENT, which allows much else.
    disableClientInfo: true,
    ...(username !== null && { username }),
    ...(passwordFile !== null && { password: readPassword('passwordFile', passwordFile) }),
    ...(tls !== null && { tls: readTls('redis.tls', tls) }),
  };
}

/** The sentinels' own user, in place of the one for Redis. */
function sentinelUserOf(options: LedgerOptions): Pick<RedisOptions, 'username' | 'password'> {
  const { sentinelUsername = null, sentinelPasswordFile: file = null } = options;
  return {
    username: sentinelUsername ?? undefined,
    password: file === null ? undefined : readPassword('sentinelPasswordFile', file),
  };
}

/** Reads what a connection would read now. Throws FileError where it would fail. */
export function checkFiles({
  passwordFile,
  sentinelPasswordFile = null,
  tls,
}: LedgerOptions): void {
  if (passwordFile !== null) readPassword('passwordFile', passwordFile);
  if (sentinelPasswordFile !== null) readPassword('sentinelPasswordFile', sentinelPasswordFile);
  if (tls !== null) readTls('redis.tls', tls);
}

function readPassword(key: string, file: string): string {
  return secretIn(readNamed(`redis.${key}`, file));
}

/** ioredis would let a user in the URL win over the one that is configured beside it. */
function locationOf(url: string, { username, passwordFile }: LedgerOptions): string {
  if (url.startsWith('unix://')) return url.slice('unix://'.length);
  if (username === null && passwordFile === null) return url;
  const location = new URL(url);
  location.username = '';
  location.password = '';
  return location.href;
}

/** Asks the nodes of a cluster one after the other, until one answers. */
async function findMasters(
  nodes: readonly Address[],
  settings: Settings,
  slot: number,
): Promise<Master[]> {
  const reasons = new Set<string>();
  for (const asked of nodes) {
    const node = new Redis({ ...settings, ...addressOf(asked), enableReadyCheck: false });
    let reason: string | undefined;
    node.on('error', (error: Error) => {
      reason ??= messageOf(error);
    });
    try {
      await node.connect();
      return await mastersOf(node, { asked, tls: settings.tls !== undefined, slot });
    } catch (error) {
      reasons.add(reason ?? messageOf(error));
    } finally {
      node.disconnect();
    }
  }
  throw new Error(`no node of the cluster answers: ${[...reasons].toSorted().join('; ')}`);
}

const addressOf = ({ host, port }: Address): Address => ({ host, port });

const rotated = <T>(items: readonly T[], turn: number): T[] => {
  const start = items.length === 0 ? 0 : turn % items.length;
  return [...items.slice(start), ...items.slice(0, start)];
};

function refuse(key: string, mode: string): never {
  const path = `redis.${key}`;
  throw new VoltError('INVALID_REQUEST', `${path}: must be given with redis.mode "${mode}"`, {
    details: { path },
  });
}
