import { readFileSync } from 'node:fs';
import { Cluster, Redis, ReplyError } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import { compareVersions, librarySource, libraryVersion } from './library.ts';

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
const CHECK_RETRY_MS = 5_000;

/**
 * The connection to Redis: made in the background, kept for ever, used for function calls alone. A call is
 * sent at once or refused; nothing waits in a queue for a server to come back, and nothing is sent twice.
 */
export class Connection {
  readonly #options: LedgerOptions;
  readonly #listeners = new Set<(status: LedgerStatus) => void>();
  #client: Redis | Cluster | undefined;
  #status: LedgerStatus = { state: 'connecting' };
  #retry: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: LedgerOptions) {
    this.#options = options;
  }

  get status(): LedgerStatus {
    return this.#status;
  }

  onStatus(listener: (status: LedgerStatus) => void): void {
    this.#listeners.add(listener);
  }

  start(): void {
    const client = createClient(this.#options);
    this.#client = client;
    client.on('ready', () => void this.#verify());
    client.on('error', (error: Error) => this.#lost(error.message));
    client.on('close', () => this.#lost('the connection was closed'));
    client.connect().catch(() => {}); // reported by the error event
  }

  /**
   * Calls one function of the library. A server that does not answer is STORE_UNAVAILABLE; `details.sent`
   * says whether the call may have been done.
   */
  async call(name: string, root: string, args: unknown): Promise<unknown> {
    if (this.#status.state === 'incompatible') {
      throw new VoltError('STORE_VERSION', `Redis cannot be used: ${this.#status.reason ?? ''}`);
    }
    const client = this.#client;
    if (this.#status.state !== 'ready' || client === undefined) {
      throw unavailable(this.#status.reason ?? 'not connected', { sent: false });
    }
    const json = JSON.stringify(args);
    try {
      return await client.fcall(name, 1, root, json);
    } catch (error) {
      if (!isMissingFunction(error)) throw storeError(error);
    }
    // The server was emptied, and lost the library with the rest. It did nothing: loading and one more
    // try is safe.
    await this.#verify();
    try {
      return await client.fcall(name, 1, root, json);
    } catch (error) {
      throw storeError(error);
    }
  }

  /** Waits until enough replicas have what this connection wrote. */
  async replicated(): Promise<void> {
    const { minReplicas, commandTimeoutMs = COMMAND_TIMEOUT_MS } = this.#options;
    if (minReplicas === 0 || !(this.#client instanceof Redis)) return;
    let count: number;
    try {
      count = await this.#client.wait(minReplicas, Math.ceil(commandTimeoutMs / 2));
    } catch (error) {
      throw storeError(error);
    }
    if (count >= minReplicas) return;
    throw unavailable(`${count} of ${minReplicas} replicas have the lease`, { sent: true });
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#client?.disconnect();
    this.#setStatus({ state: 'unavailable', reason: 'closed' });
  }

  /** After every connect: the server's settings and the library are what the ledger needs. */
  async #verify(): Promise<void> {
    const client = this.#client;
    if (client === undefined || this.#closed) return;
    try {
      await refuseEviction(client);
      await loadLibrary(client);
      this.#setStatus({ state: 'ready' });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      const state = error instanceof IncompatibleError ? 'incompatible' : 'unavailable';
      this.#setStatus({ state, reason });
      clearTimeout(this.#retry);
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

function createClient(options: LedgerOptions): Redis | Cluster {
  const { url, mode, nodes, masterName, username, password, tls } = options;
  const common = {
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    connectTimeout: CONNECT_TIMEOUT_MS,
    commandTimeout: options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS,
    retryStrategy: () => RECONNECT_WAIT_MS,
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
async function refuseEviction(client: Redis | Cluster): Promise<void> {
  const info = await client.info('memory');
  const policy = /^maxmemory_policy:(\S+)/m.exec(info)?.[1];
  if (policy === undefined || policy === 'noeviction') return;
  throw new IncompatibleError(`maxmemory-policy is ${policy}; it must be noeviction`);
}

async function loadLibrary(client: Redis | Cluster): Promise<void> {
  const source = librarySource();
  const wanted = libraryVersion(source);
  const loaded = await loadedVersion(client);
  if (loaded !== null && compareVersions(loaded, wanted) >= 0) return;
  try {
    await client.function('LOAD', 'REPLACE', source);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    const have = loaded === null ? 'no library' : `library ${loaded}`;
    throw new IncompatibleError(`has ${have}, needs ${wanted}, and loading it failed: ${reason}`);
  }
}

async function loadedVersion(client: Redis | Cluster): Promise<string | null> {
  try {
    return String(await client.fcall_ro('volt1_version', 0));
  } catch (error) {
    if (isMissingFunction(error)) return null;
    throw error;
  }
}

const isMissingFunction = (error: unknown): boolean =>
  isReply(error) && error.message.includes('Function not found');

/** An error that the server answered, as opposed to one of the connection. */
const isReply = (error: unknown): error is Error =>
  error instanceof Error && error instanceof ReplyError;

const unavailable = (reason: string, details: { sent: boolean }): VoltError =>
  new VoltError('STORE_UNAVAILABLE', `Redis: ${reason}`, { details });

// Replies with which the server says that it did not do what it was told.
const NOT_DONE =
  /^(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|BUSY|OOM|NOPERM|NOAUTH|MISCONF|NOREPLICAS)/;

function storeError(error: unknown): VoltError {
  const reason = error instanceof Error ? error.message : String(error);
  const queued = reason.includes('enableOfflineQueue');
  if (isReply(error) && !NOT_DONE.test(reason)) {
    return new VoltError('INTERNAL', `Redis: ${reason}`, { cause: error });
  }
  return unavailable(reason, { sent: !isReply(error) && !queued });
}
