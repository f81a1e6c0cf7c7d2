import { setTimeout as sleep } from 'node:timers/promises';
import {
  connect,
  type ConnectionOptions,
  Events,
  headers as createHeaders,
  type NatsConnection,
  type Service,
  ServiceErrorCodeHeader,
  ServiceErrorHeader,
  type ServiceMsg,
  type Subscription,
} from 'nats';
import { subjects } from '#protocol/subjects.ts';
import type { Config } from './config.ts';
import { errorAnswer } from './error-answer.ts';
import { guardInbound, type Headers, headersOf } from './inbound.ts';
import { JobQueue } from './job-queue.ts';
import type { Delivery } from './jobs.ts';
import type { Log } from './log.ts';
import { connectionOptionsOf } from './nats-access.ts';
import { askPeer, surveyPeers } from './peers.ts';
import { PublishError } from './pending-event.ts';
import { ensureEventStream, whyNotStored } from './streams.ts';

/** A request as it came. */
export interface BusRequest {
  readonly subject: string;
  /** Who asks, as far as NATS tells: the same for all requests of one connection of its client libraries. */
  readonly caller: string;
  readonly payload: Uint8Array;
  readonly headers: Headers;
}

/** What goes back. An error travels in the payload and, by number and text, in the NATS service headers. */
export interface BusAnswer {
  readonly payload: Uint8Array;
  readonly error?: { readonly status: number; readonly code: string };
}

export interface BusEndpoint {
  readonly name: string;
  readonly subject: string;
  /** Endpoints of several agents with the same queue share the requests: each goes to one of them. */
  readonly queue: string;
  /** Served only while the agent acts as its host; another agent, or the machine whose the host id is, may serve it. */
  readonly asHost: boolean;
  readonly answer: (request: BusRequest) => Promise<BusAnswer>;
}

export interface BusOptions {
  readonly config: Config['nats'];
  readonly host: string;
  readonly service: { readonly name: string; readonly version: string };
  /** Read anew for each `$SRV.INFO`; a ping is answered with what it was at the start. */
  readonly metadata: () => Readonly<Record<string, string>>;
  readonly endpoints: readonly BusEndpoint[];
  readonly subjectPrefix: string;
  /** Told the subject of each message on `subject`, and on those of `listen`. */
  readonly doorbell: { readonly subject: string; readonly hear: (subject: string) => void };
  /** Deals with one delivery of a job; throws nothing. */
  readonly takeJob: (delivery: Delivery) => Promise<void>;
  readonly log: Log;
  /** Called with every change of state. */
  readonly onState: (state: BusState) => void;
}

/** What keeps the agent from acting as its host; undefined where nothing does. */
export type Refusal = { readonly code: string; readonly message: string } | undefined;

export type BusState = 'connecting' | 'connected' | 'closed';

const RECONNECT_WAIT_MS = 250;
/** At random beside: a server that comes back is not met by all at once. */
const RECONNECT_JITTER_MS = 500;
const DRAIN_TIMEOUT_MS = 1_000;
const EVENT_ACK_TIMEOUT_MS = 5_000;
/** Of nats-server, https://docs.nats.io/running-a-nats-service/configuration. */
const MAX_PAYLOAD_BY_DEFAULT = 1 << 20;
/** The first release line in which the advisories against 2.9 and 2.10 are mended. */
const FIXED_SERVER = '2.10.27';
/** Of a server, or a reader of its connection, that has fallen silent. */
const PING_INTERVAL_MS = 4_000;
const MAX_PINGS_UNANSWERED = 2;
const DROPS_TOLD_EVERY_MS = 1_000;

/**
 * The one adapter to NATS. It connects in the background and stays at it for ever: NATS being away is a
 * state, never an error of `start`. The service and its endpoints live as long as a connection. What is meant for the
 * host is served, and its jobs are taken, from `act(undefined)` on.
 */
export class Bus {
  readonly #options: BusOptions;
  #connection: NatsConnection | undefined;
  #service: Service | undefined;
  #refusal: Refusal = { code: 'STORE_UNAVAILABLE', message: 'the host id is not known to be free' };
  /** Whether the service has the endpoints that are served as the host. */
  #servesHost = false;
  /** Whether the server has all subscriptions. */
  #confirmed = false;
  /** Changes of what is served, one after the other. */
  #serving: Promise<void> = Promise.resolve();
  #state: BusState = 'connecting';
  #streamEnsured = false;
  /** Why there is no connection. */
  #away: string | undefined;
  #stopping = false;
  #dropped = 0;
  #dropsQuietUntil = 0;
  /** Subjects of doorbells, with what hears them on the connection that there is. */
  readonly #doorbells: Map<string, Subscription | undefined>;
  /** The server does not let us ring. */
  #muted = false;
  readonly #jobs: JobQueue;

  constructor(options: BusOptions) {
    this.#options = options;
    const { host, subjectPrefix, takeJob, doorbell, log } = options;
    this.#doorbells = new Map([[doorbell.subject, undefined]]);
    this.#jobs = new JobQueue({ host, subjectPrefix, take: takeJob, log });
    this.#jobs.act(reasonOf(this.#refusal));
  }

  /** Acts as the host from now on, or not any more: subjects and jobs of the host are then somebody else's. */
  act(refusal: Refusal): void {
    this.#refusal = refusal;
    this.#jobs.act(reasonOf(refusal));
    const connection = this.#connection;
    if (connection === undefined) return;
    this.#serveNext(connection).catch((error: unknown) => {
      const { log } = this.#options;
      log.warn({ error: messageOf(error) }, 'NATS: what is served was not changed');
    });
  }

  #serveNext(connection: NatsConnection): Promise<void> {
    const serving = this.#serving.then(async () => {
      if (connection !== this.#connection || this.#stopping) return;
      // A connection that is closed never says that what was sent has arrived.
      await Promise.race([this.#serve(connection), connection.closed()]);
    });
    this.#serving = serving.catch(() => {});
    return serving;
  }

  /** Why what is meant for the host is not served; undefined when it is. */
  get requestProblem(): string | undefined {
    if (this.#refusal !== undefined) return reasonOf(this.#refusal);
    const serves = this.#state === 'connected' && this.#servesHost && this.#confirmed;
    return serves ? undefined : this.#awayReason();
  }

  /** Why no jobs are taken; undefined when they are. */
  get jobProblem(): string | undefined {
    if (this.#refusal !== undefined) return reasonOf(this.#refusal);
    return this.#state === 'connected' ? this.#jobs.problem : this.#awayReason();
  }

  problems(): readonly { name: 'bus-away' | 'jobs-not-taken'; reason: string }[] {
    const [requests, jobs] = [this.requestProblem, this.jobProblem];
    return [
      ...(requests === undefined ? [] : [{ name: 'bus-away' as const, reason: requests }]),
      ...(jobs === undefined ? [] : [{ name: 'jobs-not-taken' as const, reason: jobs }]),
    ];
  }

  #awayReason(): string {
    return this.#away === undefined ? 'NATS is away' : `NATS is away: ${this.#away}`;
  }

  get state(): BusState {
    return this.#state;
  }

  /** The largest message that the server takes, headers included. */
  get maxPayload(): number {
    return this.#connection?.info?.max_payload ?? MAX_PAYLOAD_BY_DEFAULT;
  }

  start(): void {
    void this.#run();
  }

  /**
   * Stores one event in the event stream; resolves once JetStream acknowledged it. Throws PublishError. `id` makes a
   * repeat harmless within ten minutes.
   */
  async publishEvent(event: {
    subject: string;
    id: string;
    headers: Readonly<Record<string, string>>;
    payload: Uint8Array;
  }): Promise<void> {
    const connection = this.#connection;
    if (connection === undefined || this.#state !== 'connected') {
      throw new PublishError('away', 'NATS is away');
    }
    await this.#ensureEventStream(connection);
    try {
      const headers = createHeaders();
      for (const [name, value] of Object.entries(event.headers)) headers.set(name, value);
      await connection.jetstream().publish(event.subject, event.payload, {
        msgID: event.id,
        headers,
        timeout: EVENT_ACK_TIMEOUT_MS,
      });
    } catch (cause) {
      throw new PublishError(whyNotStored(cause), messageOf(cause), { cause });
    }
  }

  /** Publishes a message without content, if that is possible now: nobody relies on it. */
  ring(subject: string): void {
    if (this.#muted || this.#state !== 'connected') return;
    this.#connection?.publish(subject);
  }

  /** Hears the doorbell of a subject, too, on this and later connections, until what it answers is called. */
  listen(subject: string): () => void {
    this.#hear(subject, this.#connection);
    return () => {
      const subscription = this.#doorbells.get(subject);
      this.#doorbells.delete(subject);
      if (subscription?.isClosed() === false) subscription.unsubscribe();
    };
  }

  /** The metadata of all agents that answer `$SRV.INFO`, this one too; null while there is no connection. */
  async survey(): Promise<Readonly<Record<string, string>>[] | null> {
    const connection = this.#connection;
    if (connection === undefined || this.#state !== 'connected') return null;
    const { service, config } = this.#options;
    return surveyPeers(connection, { service: service.name, inboxPrefix: config.inboxPrefix });
  }

  /** The answer of whoever serves the subject. Rejects when nobody does, or not in time. */
  async request(subject: string, payload: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    const connection = this.#connection;
    if (connection === undefined || this.#state !== 'connected') throw new Error('NATS is away');
    const { inboxPrefix } = this.#options.config;
    return askPeer(connection, { subject, payload, timeoutMs, inboxPrefix });
  }

  /** Stops taking requests; those under way go on, and their answers are still sent. */
  async stopTaking(): Promise<void> {
    this.#jobs.stop();
    // Without a connection nothing can come, and a drain would wait for one.
    if (this.#state !== 'connected') return;
    const stopped = this.#service?.stop().catch(() => {});
    await Promise.race([stopped, sleep(DRAIN_TIMEOUT_MS)]);
  }

  async close(): Promise<void> {
    this.#stopping = true;
    const connection = this.#connection;
    this.#connection = undefined;
    if (connection !== undefined && !connection.isClosed()) {
      // A drain flushes the answers; it waits for ever where the server is away.
      await Promise.race([connection.drain().catch(() => {}), sleep(DRAIN_TIMEOUT_MS)]);
      if (!connection.isClosed()) await connection.close().catch(() => {});
    }
    this.#setState('closed');
  }

  async #run(): Promise<void> {
    const { log } = this.#options;
    while (!this.#stopping) {
      try {
        const connection = await connect(this.#connectionOptions());
        if (this.#stopping) return await connection.close();
        this.#connection = connection;
        this.#guard(connection);
        void this.#watch(connection);
        this.#muted = false;
        for (const subject of this.#doorbells.keys()) this.#hear(subject, connection);
        this.#service = undefined;
        await this.#serveNext(connection);
        this.#setState('connected');
        this.#warnOfOldServer(connection);
        void this.#jobs.serve(connection);
        this.#away = undefined;
        const reason = await connection.closed();
        if (!this.#stopping) log.warn({ reason: reason?.message }, 'NATS connection closed');
      } catch (error) {
        // Told once for each reason: it is tried four times a second.
        if (messageOf(error) !== this.#away) {
          this.#away = messageOf(error);
          log.warn({ error: this.#away }, 'cannot connect to NATS');
        }
        // One that was lost before it served would be made again beside the next.
        const failed = this.#connection;
        this.#connection = undefined;
        await failed?.close().catch(() => {});
      }
      this.#setState('connecting');
      if (!this.#stopping) await sleep(RECONNECT_WAIT_MS + Math.random() * RECONNECT_JITTER_MS);
    }
  }

  #connectionOptions(): ConnectionOptions {
    const { config, host } = this.#options;
    return {
      ...connectionOptionsOf(config),
      name: `volt-network-agent ${host}`,
      maxReconnectAttempts: -1,
      reconnectTimeWait: RECONNECT_WAIT_MS,
      reconnectJitter: RECONNECT_JITTER_MS,
      reconnectJitterTLS: RECONNECT_JITTER_MS,
      pingInterval: PING_INTERVAL_MS,
      maxPingOut: MAX_PINGS_UNANSWERED,
      // A wrong or rotated credential is repaired by an operator while we wait, not by our exit.
      ignoreAuthErrorAbort: true,
    };
  }

  async #watch(connection: NatsConnection): Promise<void> {
    for await (const { type, data, permissionContext } of connection.status()) {
      if (type === Events.Disconnect) {
        this.#setState('connecting');
      } else if (type === Events.Reconnect) {
        // The stream may be gone with the server's storage.
        this.#streamEnsured = false;
        this.#setState('connected');
        this.#jobs.again();
      } else if (type === Events.Error) {
        this.#noteError(data, permissionContext);
      }
    }
  }

  #noteError(error: unknown, context: { operation: string; subject: string } | undefined): void {
    const { log, subjectPrefix } = this.#options;
    log.warn({ error, ...context }, 'NATS reports an error');
    // Told once, and not with each change.
    const isRing = context?.operation === 'publish' && isChangeOf(subjectPrefix, context.subject);
    if (isRing) this.#muted = true;
  }

  #hear(subject: string, connection: NatsConnection | undefined): void {
    const { hear } = this.#options.doorbell;
    const isOpen = connection !== undefined && !connection.isClosed() && !connection.isDraining();
    const subscription = isOpen
      ? connection.subscribe(subject, {
          callback: (error, message) => {
            if (error === null) hear(message.subject);
          },
        })
      : undefined;
    this.#doorbells.set(subject, subscription);
  }

  /** Brings what is served in line with whether the agent acts as its host. */
  async #serve(connection: NatsConnection): Promise<void> {
    const { service, metadata, endpoints } = this.#options;
    const asHost = this.#refusal === undefined;
    // An endpoint cannot be taken away from a service.
    if (this.#service !== undefined && this.#servesHost && !asHost) {
      const before = this.#service;
      this.#service = undefined;
      this.#servesHost = false;
      await before.stop().catch(() => {});
    }
    const isNew = this.#service === undefined;
    this.#service ??= await connection.services.add({
      name: service.name,
      version: service.version,
      description: 'Network of virtual machines and containers on this host',
      metadata: liveMetadata(metadata),
    });
    if (isNew) this.#servesHost = false;
    for (const endpoint of endpoints) {
      const there = endpoint.asHost ? this.#servesHost || !asHost : !isNew;
      if (!there) this.#addEndpoint(this.#service, endpoint);
    }
    this.#servesHost = asHost;
    this.#confirmed = false;
    // Where the connection is lost meanwhile, it subscribes again by itself.
    await connection.flush().finally(() => {
      this.#confirmed = true;
    });
  }

  #addEndpoint(service: Service, { name, subject, queue, answer }: BusEndpoint): void {
    service.addEndpoint(name, {
      subject,
      queue,
      handler: (error, message) => {
        if (error === null) void this.#answer(message, answer);
      },
    });
  }

  async #answer(message: ServiceMsg, answer: BusEndpoint['answer']): Promise<void> {
    try {
      send(message, await answer(requestOf(message)));
    } catch (cause) {
      this.#answerFailure(message, cause);
    }
  }

  /** Whoever asked hears of it, as long as the connection takes an answer. */
  #answerFailure(message: Answerable, cause: unknown): void {
    const { log } = this.#options;
    const { subject } = message;
    log.error({ subject, error: messageOf(cause) }, 'a message failed outside its operation');
    try {
      send(message, errorAnswer(cause));
    } catch (error) {
      log.warn({ subject, error: messageOf(error) }, 'a request cannot be answered');
    }
  }

  #guard(connection: NatsConnection): void {
    const { config } = this.#options;
    guardInbound(connection, {
      replyPrefixes: config.replyPrefixes,
      inboxPrefix: config.inboxPrefix,
      onDropped: (dropped) => this.#noteDropped(dropped),
      onThrown: (message, cause) => this.#answerFailure(message, cause),
    });
  }

  /** Told at most once a second: whoever sends such messages may send very many. */
  #noteDropped(dropped: { subject: string; reason: string }): void {
    this.#dropped += 1;
    if (performance.now() < this.#dropsQuietUntil) return;
    this.#dropsQuietUntil = performance.now() + DROPS_TOLD_EVERY_MS;
    this.#options.log.warn({ ...dropped, sinceStart: this.#dropped }, 'message from NATS dropped');
  }

  async #ensureEventStream(connection: NatsConnection): Promise<void> {
    if (this.#streamEnsured) return;
    const { subjectPrefix, log } = this.#options;
    try {
      const manager = await connection.jetstreamManager({ checkAPI: false });
      await ensureEventStream(manager, subjectPrefix);
    } catch (error) {
      // Where the agent's permissions do not allow it, an administrator made the stream, or the
      // publication that follows says what is wrong.
      log.debug({ error: messageOf(error) }, 'cannot look after the event stream');
    }
    this.#streamEnsured = true;
  }

  #warnOfOldServer({ info }: NatsConnection): void {
    const version = info?.version ?? '';
    if (!isOlder(version, FIXED_SERVER)) return;
    this.#options.log.warn(
      { version, fixed: FIXED_SERVER },
      'this nats-server has known holes (CVE-2025-30215): give agents no rights on $JS.API but their own consumer',
    );
  }

  #setState(state: BusState): void {
    if (state === this.#state) return;
    this.#state = state;
    const { onState, log } = this.#options;
    try {
      onState(state);
    } catch (error) {
      log.error({ state, error: messageOf(error) }, 'NATS: a change of state was not dealt with');
    }
  }
}

const reasonOf = (refusal: Refusal): string | undefined =>
  refusal && `${refusal.code}: ${refusal.message}`;

/** The service keeps the object that it is given: its values are those of the time at which they are read. */
const liveMetadata = (read: () => Readonly<Record<string, string>>): Record<string, string> =>
  Object.defineProperties(
    {},
    Object.fromEntries(
      Object.keys(read()).map((key) => [key, { enumerable: true, get: () => read()[key] }]),
    ),
  );

const requestOf = (message: ServiceMsg): BusRequest => ({
  subject: message.subject,
  caller: inboxOf(message.reply),
  payload: message.data,
  headers: headersOf(message),
});

type Answerable = Pick<ServiceMsg, 'subject' | 'respond'>;

function send(message: Answerable, { payload, error }: BusAnswer): void {
  if (error === undefined) {
    message.respond(payload);
    return;
  }
  const headers = createHeaders();
  headers.set(ServiceErrorCodeHeader, String(error.status));
  headers.set(ServiceErrorHeader, error.code);
  message.respond(payload, { headers });
}

/** Client libraries have one inbox a connection, `_INBOX.x`, and below it one subject a request. */
const inboxOf = (reply = ''): string => reply.slice(0, reply.lastIndexOf('.') + 1);

const messageOf = (error: unknown): string =>
  error instanceof Error ? error.message : String(error);

const isChangeOf = (prefix: string, subject: string): boolean =>
  subjects(prefix).match(subject)?.kind === 'changed';

/** `2.9.10` before `2.10.27`; a version that cannot be read is not older. */
function isOlder(version: string, than: string): boolean {
  const [own = [], other = []] = [version, than].map((text) => text.split('.').map(Number));
  for (const [index, number] of other.entries()) {
    const mine = own[index] ?? Number.NaN;
    if (mine !== number) return mine < number;
  }
  return false;
}
