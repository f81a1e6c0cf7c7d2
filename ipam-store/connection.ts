import type { Redis } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import {
  checkOptions,
  COMMAND_TIMEOUT_MS,
  createClient,
  type LedgerOptions,
  type Opened,
} from './client.ts';
import {
  isElsewhere,
  isMissingFunction,
  isTimeout,
  messageOf,
  storeError,
  unavailable,
} from './errors.ts';
import { rootKey } from './keys.ts';
import { installLibrary, logProblem } from './library.ts';
import { Replicas } from './replicas.ts';
import { checkServer, Unfit } from './server.ts';
import { Silence } from './silence.ts';

export interface LedgerStatus {
  /** `incompatible`: connected, but the function library or a setting of the server forbids its use. */
  readonly state: 'connecting' | 'ready' | 'unavailable' | 'incompatible';
  /** Why; in state `ready`, what is missing all the same. */
  readonly reason?: string;
}

/** What a function answered. */
export interface Reply {
  readonly text: string;
  /** Settles when as many replicas as are wanted have what the call wrote; at once where none are wanted. */
  readonly stored: Promise<void>;
}

const FIRST_RECONNECT_MS = 100;
const LAST_RECONNECT_MS = 1_000;
/** To a server that is there and does not answer in time. */
const LAST_SLOW_RECONNECT_MS = 8_000;
/** A connection that was ready for less counts as another try: the next one waits longer. */
const STEADY_MS = 5_000;
const CHECK_RETRY_MS = 1_000;
/** Rights are given by an operator; until then only the change logs are missing. */
const RIGHTS_RETRY_MS = 30_000;
const MAX_REQUESTS = 10_000;

/** One connection, from when it is begun until it has ended. */
interface Link {
  readonly client: Redis;
  readonly replicas: Replicas;
  readonly silence: Silence;
  /** Ends it; the first cause is what the status tells. */
  readonly fail: (cause: unknown) => void;
}

/**
 * The connection to the server that has the ledger: made in the background, again whenever it ends, and used for
 * function calls alone. A call is sent at once or refused: nothing waits in a queue for a server to come back,
 * and nothing is sent twice.
 */
export class Connection {
  readonly #options: LedgerOptions;
  readonly #listeners = new Set<(status: LedgerStatus) => void>();
  #link: Link | undefined;
  #status: LedgerStatus = { state: 'connecting' };
  #outdated = false;
  #verifying: Promise<void> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #attempts = 0;
  /** Since when the connection is ready, `performance.now()` time. */
  #readyMs: number | undefined;
  #requests = 0;
  #closed = false;

  /** Throws for options that cannot be meant; never because a server is away. */
  constructor(options: LedgerOptions) {
    checkOptions(options);
    this.#options = options;
  }

  get status(): LedgerStatus {
    return this.#status;
  }

  onStatus(listener: (status: LedgerStatus) => void): void {
    this.#listeners.add(listener);
  }

  start(): void {
    void this.#connect();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#link?.client.disconnect();
    this.#setStatus({ state: 'unavailable', reason: 'closed' });
  }

  /** Looks again whether the server is fit for the ledger: something says that it is not any more. */
  look(): void {
    if (this.#status.state === 'ready' && this.#link !== undefined) void this.#verify(this.#link);
  }

  /**
   * Calls one function of the library; `root` is its only key. `durable`: what it writes must outlive a server;
   * `requests`: how many it carries.
   */
  async call(
    name: string,
    root: string,
    args: readonly string[],
    options: { durable: boolean; requests: number },
  ): Promise<Reply> {
    const { requests } = options;
    if (this.#requests >= MAX_REQUESTS) {
      throw unavailable(`${MAX_REQUESTS} requests are under way`, false);
    }
    this.#requests += requests;
    try {
      try {
        return await this.#send(name, root, args, options);
      } catch (error) {
        if (!isMissingFunction(error)) throw error;
      }
      // The server was emptied, and lost the library with the rest. It has done nothing of this call.
      await this.#verify(this.#ready());
      return await this.#send(name, root, args, options);
    } catch (error) {
      throw storeError(error);
    } finally {
      this.#requests -= requests;
    }
  }

  async #send(
    name: string,
    root: string,
    args: readonly string[],
    { durable }: { durable: boolean },
  ): Promise<Reply> {
    const { client, replicas, silence, fail } = this.#ready();
    const { mark } = silence;
    const reply = client.fcall(name, 1, root, ...args);
    const stored = durable ? replicas.acknowledged() : Promise.resolve();
    // A caller may ignore `stored`: its rejection must not go unhandled.
    stored.catch(() => {});
    try {
      const text = await reply;
      if (typeof text === 'string') return { text, stored };
    } catch (error) {
      if (isElsewhere(error)) fail(error);
      if (isTimeout(error)) silence.noteTimeout(mark);
      throw error;
    }
    throw new TypeError(`${name} answered no text`);
  }

  #ready(): Link {
    const { state, reason = 'not connected yet' } = this.#status;
    if (state === 'incompatible' && this.#outdated) {
      throw new VoltError('STORE_VERSION', `Redis: ${reason}`);
    }
    if (state !== 'ready') throw unavailable(reason, false);
    if (this.#link?.client.status !== 'ready') throw unavailable('the connection has ended', false);
    if (this.#link.silence.isSilent) throw unavailable('no answer in time, nor since', false);
    return this.#link;
  }

  async #connect(): Promise<void> {
    let opened: Opened;
    try {
      opened = await createClient(this.#options, this.#attempts);
    } catch (error) {
      this.#ended(error);
      return;
    }
    if (this.#closed) return;
    const link = linkOf(opened, this.#options, (cause) => this.#ended(cause));
    this.#link = link;
    link.client.once('ready', () => void this.#verify(link));
    link.client.connect().catch(() => {}); // Its events say it.
  }

  /** The wait grows, and differs from agent to agent: a server that comes back is not met by all at once. */
  #ended(cause: unknown): void {
    if (this.#closed) return;
    this.#link = undefined;
    if (this.#readyMs !== undefined && performance.now() - this.#readyMs > STEADY_MS) {
      this.#attempts = 0;
    }
    this.#readyMs = undefined;
    this.#setStatus({ state: 'unavailable', reason: messageOf(cause) });
    const most = isTimeout(cause) ? LAST_SLOW_RECONNECT_MS : LAST_RECONNECT_MS;
    const longest = Math.min(FIRST_RECONNECT_MS * 2 ** this.#attempts, most);
    this.#attempts += 1;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#connect(), longest * (0.5 + Math.random() / 2));
  }

  /** After every connect: the server, its settings and the library are what the ledger needs. */
  #verify(link: Link): Promise<void> {
    this.#verifying ??= this.#check(link).finally(() => {
      this.#verifying = undefined;
    });
    return this.#verifying;
  }

  async #check(link: Link): Promise<void> {
    clearTimeout(this.#timer);
    let again = false;
    try {
      await checkServer(link.client, this.#options);
      const { before, after } = await installLibrary(link.client);
      if (link !== this.#link) return;
      this.#readyMs ??= performance.now();
      const reason = await logProblem(link.client, rootKey(this.#options));
      if (link !== this.#link) return;
      this.#setStatus({ state: 'ready', ...(reason !== undefined && { reason }) });
      // Two agents may replace the library at once, and the older agent last: so the newer one looks again.
      again = before !== after;
      if (reason !== undefined) this.#verifyAfter(RIGHTS_RETRY_MS, link);
    } catch (error) {
      if (link !== this.#link) return;
      this.#outdated = error instanceof VoltError && error.code === 'STORE_VERSION';
      const wrong = this.#outdated || error instanceof Unfit;
      if (wrong) this.#setStatus({ state: 'incompatible', reason: messageOf(error) });
      // A slow server is asked again on this connection, which ends by itself if nothing comes.
      else if (!isTimeout(error)) link.fail(error);
      again = wrong || isTimeout(error);
    }
    if (again) this.#verifyAfter(CHECK_RETRY_MS, link);
  }

  #verifyAfter(ms: number, link: Link): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#verify(link), ms).unref();
  }

  #setStatus(status: LedgerStatus): void {
    const { state, reason } = this.#status;
    if (status.state === state && status.reason === reason) return;
    this.#status = status;
    for (const listener of this.#listeners) listener(status);
  }
}

/** Calls `onEnd` once, with why. */
function linkOf(
  { client, watch }: Opened,
  options: LedgerOptions,
  onEnd: (cause: unknown) => void,
): Link {
  const { minReplicas: wanted, commandTimeoutMs = COMMAND_TIMEOUT_MS } = options;
  let first: unknown;
  let watching: Disposable | undefined;
  const silence = new Silence(client);
  const fail = (cause: unknown): void => {
    if (first !== undefined) return;
    first = cause;
    client.disconnect();
  };
  client.on('error', fail);
  client.once('ready', () => {
    watching = watch(({ host, port }) => fail(`the sentinels' master is ${host}:${port} now`));
  });
  client.once('end', () => {
    watching?.[Symbol.dispose]();
    onEnd(first ?? 'the connection was closed');
  });
  return {
    client,
    replicas: new Replicas({ client, wanted, timeoutMs: commandTimeoutMs / 2 }),
    silence,
    fail,
  };
}
