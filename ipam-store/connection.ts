import { readFileSync } from 'node:fs';
import { Cluster, Redis } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import {
  isFinal,
  isForbidden,
  isMissingFunction,
  messageOf,
  storeError,
  unavailable,
} from './errors.ts';
import { compareVersions, librarySource, libraryVersion, NEXT_MAJOR } from './library.ts';

/** The `redis` section of agent.json, with the password itself. */
export interface LedgerOptions {
  readonly url: string;
  readonly mode: 'single' | 'sentinel' | 'cluster';
  readonly nodes: readonly { readonly host: string; readonly port: number }[] | null;
  readonly masterName: string | null;
  readonly username: string | null;
  readonly password: string | null;
  readonly tls: {
    readonly caFile: string | null;
    readonly certFile: string | null;
    readonly keyFile: string | null;
  } | null;
  readonly keyPrefix: string;
  readonly minReplicas: number;
  /** How long one command may take. Default 2,000. */
  readonly commandTimeoutMs?: number;
}

export interface LedgerStatus {
  /** `incompatible`: connected, but the function library or a setting of the server forbids its use. */
  readonly state: 'connecting' | 'ready' | 'unavailable' | 'incompatible';
  readonly reason?: string;
}

const COMMAND_TIMEOUT_MS = 2_000;
const CONNECT_TIMEOUT_MS = 2_000;
const RECONNECT_WAIT_MS = 250;
const CHECK_RETRY_MS = 2_000;
/** A connection on which nothing came for this long beyond a command's time is given up. */
const SILENCE_GRACE_MS = 500;

/**
 * The connection to Redis: made in the background, kept for ever, used for function calls alone. A call is
 * sent at once or refused; nothing waits in a queue for a server to come back, and nothing is sent twice.
 */
export class Connection {
  readonly #client: Redis | Cluster;
  readonly #minReplicas: number;
  readonly #commandTimeoutMs: number;
  readonly #listeners = new Set<(status: LedgerStatus) => void>();
  #status: LedgerStatus = { state: 'connecting' };
  #verifying: Promise<void> | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;

  /** Throws for options that cannot be meant; never because a server is away. */
  constructor(options: LedgerOptions) {
    const { mode, minReplicas, commandTimeoutMs = COMMAND_TIMEOUT_MS } = options;
    if (mode === 'cluster' && minReplicas > 0) {
      throw new VoltError('UNSUPPORTED', 'redis.minReplicas does not work with mode "cluster"');
    }
    this.#minReplicas = minReplicas;
    this.#commandTimeoutMs = commandTimeoutMs;
    this.#client = createClient(options, commandTimeoutMs);
    this.#client.on('ready', () => void this.#verify());
    this.#client.on('error', (error: Error) => this.#lost(error.message));
    this.#client.on('close', () => this.#lost('the connection was closed'));
  }

  get status(): LedgerStatus {
    return this.#status;
  }

  onStatus(listener: (status: LedgerStatus) => void): void {
    this.#listeners.add(listener);
  }

  start(): void {
    this.#client.connect().catch(() => {}); // The error event has said it, and the next try follows.
  }

  /** Calls one function of the library; `root` is its only key. */
  async call(name: string, root: string, args: readonly string[]): Promise<string> {
    this.#refuseUnready();
    try {
      return await this.#fcall(name, root, args);
    } catch (error) {
      if (!isMissingFunction(error)) throw storeError(error);
    }
    // The server was emptied, and lost the library with the rest. It has done nothing of this call.
    await this.#verify();
    this.#refuseUnready();
    try {
      return await this.#fcall(name, root, args);
    } catch (error) {
      throw storeError(error);
    }
  }

  /** Waits until enough replicas have what this connection wrote; WAIT on another one would tell nothing. */
  async replicated(): Promise<void> {
    if (this.#minReplicas === 0 || this.#client instanceof Cluster) return;
    let count: number;
    try {
      count = await this.#client.wait(this.#minReplicas, Math.ceil(this.#commandTimeoutMs / 2));
    } catch (error) {
      throw storeError(error);
    }
    if (count >= this.#minReplicas) return;
    throw unavailable(`${count} of ${this.#minReplicas} replicas have the lease`, true);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#client.disconnect();
    this.#setStatus({ state: 'unavailable', reason: 'closed' });
  }

  async #fcall(name: string, root: string, args: readonly string[]): Promise<string> {
    const reply = await this.#client.fcall(name, 1, root, ...args);
    if (typeof reply === 'string') return reply;
    throw new TypeError(`${name} answered no text`);
  }

  #refuseUnready(): void {
    const { state, reason = 'not connected yet' } = this.#status;
    if (state === 'ready') return;
    if (state === 'incompatible') {
      throw new VoltError('STORE_VERSION', `Redis cannot be used: ${reason}`);
    }
    throw unavailable(reason, false);
  }

  /** After every connect: the server's settings and the library are what the ledger needs. */
  #verify(): Promise<void> {
    this.#verifying ??= this.#check().finally(() => {
      this.#verifying = undefined;
    });
    return this.#verifying;
  }

  async #check(): Promise<void> {
    clearTimeout(this.#retry);
    try {
      const servers =
        this.#client instanceof Cluster ? this.#client.nodes('master') : [this.#client];
      for (const server of servers) {
        await refuseEviction(server);
        await loadLibrary(server);
      }
      if (!this.#closed) this.#setStatus({ state: 'ready' });
    } catch (error) {
      if (this.#closed) return;
      const state = error instanceof IncompatibleError ? 'incompatible' : 'unavailable';
      this.#setStatus({ state, reason: messageOf(error) });
      this.#retry = setTimeout(() => void this.#verify(), CHECK_RETRY_MS).unref();
    }
  }

  #lost(reason: string): void {
    clearTimeout(this.#retry);
    if (!this.#closed) this.#setStatus({ state: 'unavailable', reason });
  }

  #setStatus(status: LedgerStatus): void {
    const { state, reason } = this.#status;
    // A server that is away is refused four times a second: the first reason is told, the rest is noise.
    if (status.state === state && (state === 'unavailable' || status.reason === reason)) return;
    this.#status = status;
    for (const listener of this.#listeners) listener(status);
  }
}

class IncompatibleError extends Error {}

function createClient(options: LedgerOptions, commandTimeoutMs: number): Redis | Cluster {
  const { url, mode, nodes, masterName, username, password, tls } = options;
  const common = {
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    connectTimeout: CONNECT_TIMEOUT_MS,
    commandTimeout: commandTimeoutMs,
    // A server that hangs must not gather commands that nobody waits for any more.
    socketTimeout: commandTimeoutMs + SILENCE_GRACE_MS,
    retryStrategy: () => RECONNECT_WAIT_MS,
    // After a fail-over the old master answers READONLY: whom to ask has to be found anew.
    reconnectOnError: (error: Error) => error.message.startsWith('READONLY'),
    ...(username !== null && { username }),
    ...(password !== null && { password }),
    ...(tls !== null && { tls: tlsOptions(tls) }),
  };
  if (mode === 'cluster') {
    return new Cluster([...(nodes ?? [])], {
      lazyConnect: true,
      enableOfflineQueue: false,
      clusterRetryStrategy: () => RECONNECT_WAIT_MS,
      redisOptions: common,
    });
  }
  if (mode === 'sentinel') {
    return new Redis({ ...common, sentinels: [...(nodes ?? [])], name: masterName ?? '' });
  }
  return new Redis(url.replace(/^unix:\/\//, ''), common);
}

function tlsOptions(tls: NonNullable<LedgerOptions['tls']>): Record<string, Buffer> {
  const { caFile, certFile, keyFile } = tls;
  return {
    ...(caFile !== null && { ca: readFileSync(caFile) }),
    ...(certFile !== null && { cert: readFileSync(certFile) }),
    ...(keyFile !== null && { key: readFileSync(keyFile) }),
  };
}

/** A server that evicts keys when it is full would forget leases. */
async function refuseEviction(server: Redis): Promise<void> {
  let info: string;
  try {
    info = await server.info('memory');
  } catch (error) {
    if (!isForbidden(error)) throw error;
    throw new IncompatibleError(`maxmemory-policy cannot be read: ${messageOf(error)}`);
  }
  const policy = /^maxmemory_policy:(\S+)/m.exec(info)?.[1];
  if (policy === undefined || policy === 'noeviction') return;
  throw new IncompatibleError(`maxmemory-policy is ${policy}; it must be noeviction`);
}

/** Loads the library where it is missing or older. A newer one of this major is used as it is. */
async function loadLibrary(server: Redis): Promise<void> {
  const source = librarySource();
  const wanted = libraryVersion(source);
  const next = await versionOf(server, NEXT_MAJOR);
  if (next !== null) {
    throw new IncompatibleError(`its ledger is of version ${next}, newer than ${wanted}`);
  }
  const loaded = await versionOf(server, 'volt1_version');
  if (loaded !== null && compareVersions(loaded, wanted) >= 0) return;
  try {
    // Without REPLACE where nothing was: of two agents that load at once, the older must not be the later.
    await (loaded === null
      ? server.function('LOAD', source)
      : server.function('LOAD', 'REPLACE', source));
  } catch (error) {
    if (!isFinal(error)) throw error;
    const now = await versionOf(server, 'volt1_version');
    if (now !== null && compareVersions(now, wanted) >= 0) return;
    const have = now === null ? 'the function library is missing' : `its library is ${now}`;
    throw new IncompatibleError(
      `${have}, ${wanted} is needed, and loading it failed: ${messageOf(error)}`,
    );
  }
}

async function versionOf(server: Redis, name: string): Promise<string | null> {
  try {
    return String(await server.fcall_ro(name, 0));
  } catch (error) {
    if (isMissingFunction(error)) return null;
    if (!isForbidden(error)) throw error;
    throw new IncompatibleError(messageOf(error));
  }
}
