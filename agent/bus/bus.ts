import { setTimeout as sleep } from 'node:timers/promises';
import type { NatsConnection } from 'nats';
import { redacted } from '#protocol/secrets.ts';
import { SERVICE_NAME, serviceNameOf } from '#protocol/subjects.ts';
import type { BusProblem } from './bus-problems.ts';
import type { Config } from '../config.ts';
import { EventStream, type PublishedEvent } from './event-stream.ts';
import { guardInbound } from './inbound.ts';
import { JobQueue } from './job-queue.ts';
import type { Delivery } from './jobs.ts';
import type { Log } from '../log.ts';
import { NatsLink, type Refused } from './nats-connection.ts';
import { askPeer, surveyPeers } from './peers.ts';
import { PublishError } from '../storage/pending-event.ts';
import { fleetUnheard, Refusals, subscriptionRefused } from './refusals.ts';
import { type BusEndpoint, Serving } from './serving.ts';
import { type Held, Subscriptions } from './subscriptions.ts';

export type { BusProblem, BusProblemName } from './bus-problems.ts';
export type { BusAnswer, BusEndpoint, BusRequest } from './serving.ts';

export interface BusOptions {
  readonly config: Config['nats'];
  readonly host: string;
  readonly version: string;
  /** Read anew for each answer to `$SRV`. */
  readonly metadata: () => Readonly<Record<string, string>>;
  readonly endpoints: readonly BusEndpoint[];
  readonly subjectPrefix: string;
  /** `hear` is told the subject of each message on `subject`, and on the subjects of `listen`. */
  readonly notices: { readonly subject: string; readonly hear: (subject: string) => void };
  /** Handles one delivery of a job; throws nothing. */
  readonly takeJob: (delivery: Delivery) => Promise<void>;
  readonly log: Log;
  /** Called with every change of state. */
  readonly onState: (state: BusState) => void;
}

/** The reason why the agent may not act as its host; undefined if it may. */
export type Refusal = { readonly code: string; readonly message: string } | undefined;

export type BusState = 'connecting' | 'connected' | 'closed';

const DRAIN_TIMEOUT_MS = 1_000;
/** Of nats-server, https://docs.nats.io/running-a-nats-service/configuration. */
const MAX_PAYLOAD_BY_DEFAULT = 1 << 20;
/** The first release line in which the advisories against 2.9 and 2.10 are fixed. */
const FIXED_SERVER = '2.10.27';
const DROPS_TOLD_EVERY_MS = 1_000;

/**
 * The one adapter to NATS. It connects in the background and never gives up: that NATS is away is a state, and never
 * an error of `start`. From `act(undefined)` on it serves the requests to the host and takes the host's jobs.
 */
export class Bus {
  readonly #options: BusOptions;
  readonly #link: NatsLink;
  readonly #subscriptions: Subscriptions;
  readonly #serving: Serving;
  readonly #events: EventStream;
  readonly #jobs: JobQueue;
  #refusal: Refusal = { code: 'STORE_UNAVAILABLE', message: 'the host id is not known to be free' };
  #state: BusState = 'connecting';
  /** Whether the server has answered to all subscriptions of this connection. */
  #isConfirmed = false;
  readonly #refusals: Refusals;
  #isClosing = false;
  #dropped = 0;
  #dropsQuietUntil = 0;

  constructor(options: BusOptions) {
    this.#options = options;
    const { config, host, version, subjectPrefix: prefix, takeJob, notices, log } = options;
    this.#subscriptions = new Subscriptions(log);
    this.#refusals = new Refusals(prefix, log);
    this.#link = new NatsLink({
      config,
      name: `volt-network-agent ${host}`,
      onOpen: (connection) => this.#use(connection),
      onState: (isOpen) => this.#noteOpen(isOpen),
      onRefused: (refused) => this.#noteRefused(refused),
      log,
    });
    this.#serving = new Serving({
      service: { name: serviceNameOf(prefix), version },
      metadata: options.metadata,
      endpoints: options.endpoints,
      subscriptions: this.#subscriptions,
      send: (subject, payload, headers) => this.#link.send(subject, payload, headers),
      log,
    });
    this.listen(notices.subject);
    const { streams } = config;
    this.#events = new EventStream({ prefix, host, settings: streams }, log);
    this.#jobs = new JobQueue({ host, subjectPrefix: prefix, streams, take: takeJob, log });
    this.#jobs.act(reasonOf(this.#refusal));
  }

  /**
   * Acts as the host from now on, or, with a refusal, stops doing so: the host's subjects and jobs then belong to
   * another machine.
   */
  act(refusal: Refusal): void {
    this.#refusal = refusal;
    this.#jobs.act(reasonOf(refusal));
    this.#serving.act(refusal === undefined);
    this.#isConfirmed = false;
    void this.#subscriptions.settled().then(() => {
      this.#isConfirmed = this.#refusal === refusal;
    });
  }

  /** Why requests to the host are not served; undefined when they are. */
  get requestProblem(): string | undefined {
    if (this.#refusal !== undefined) return reasonOf(this.#refusal);
    if (this.#state !== 'connected') return this.#awayReason();
    if (!this.#isConfirmed) return 'NATS has not taken the subscriptions yet';
    const refused = this.#serving.refusedOfHost ?? [];
    return refused.length === 0 ? undefined : `NATS refuses to listen on ${refused.join(', ')}`;
  }

  /** Why no jobs are taken; undefined when they are. */
  get jobProblem(): string | undefined {
    if (this.#refusal !== undefined) return reasonOf(this.#refusal);
    return this.#state === 'connected' ? this.#jobs.problem?.reason : this.#awayReason();
  }

  /** Undefined while no jobs are taken: then nobody tells how many wait. */
  get jobs(): JobQueue['jobs'] | undefined {
    return this.jobProblem === undefined ? this.#jobs.jobs : undefined;
  }

  /** All problems between this agent and NATS now, in words, without secrets. */
  problems(): readonly BusProblem[] {
    const away = this.#link.problem;
    const found = away === undefined ? this.#problemsConnected() : [away];
    // A problem of the connection or of the session is listed already: it is the reason why no jobs are taken.
    const reason = (this.#refusal ?? away) ? undefined : this.jobProblem;
    if (reason !== undefined) found.push({ name: 'jobs-not-taken', reason });
    return found.map((problem) => ({ ...problem, reason: redacted(problem.reason) }));
  }

  #problemsConnected(): BusProblem[] {
    const ofHost = new Set(this.#serving.refusedOfHost);
    const listening = this.#subscriptions.refused.map((subject) =>
      ofHost.has(subject) ? subscriptionRefused(subject) : fleetUnheard(subject),
    );
    const streams = [this.#events.problem, this.#jobs.problem].filter(
      (problem) => problem !== undefined && problem.name !== 'jobs-not-taken',
    );
    const all = [...listening, ...this.#refusals.problems(), ...streams].filter(
      (problem) => problem !== undefined,
    );
    const known = new Set<string>();
    return all.filter(({ name, subject, reason }) => {
      const key = `${name} ${subject ?? reason}`;
      if (known.has(key)) return false;
      known.add(key);
      return true;
    });
  }

  #awayReason(): string {
    const { problem } = this.#link;
    return problem === undefined ? 'NATS is away' : `NATS is away: ${problem.reason}`;
  }

  get state(): BusState {
    return this.#state;
  }

  /** The largest message that the server takes, headers included. */
  get maxPayload(): number {
    return this.#link.connection?.info?.max_payload ?? MAX_PAYLOAD_BY_DEFAULT;
  }

  /** Host and port of the server that the agent is connected to. */
  get server(): string | undefined {
    return this.#link.connection?.getServer();
  }

  start(): void {
    this.#serving.start(this.#refusal === undefined);
    this.#link.start();
  }

  /** Stores one event in the event stream. Resolves once JetStream has acknowledged it. Throws PublishError. */
  async publishEvent(event: PublishedEvent): Promise<void> {
    const { connection } = this.#link;
    if (connection === undefined) throw new PublishError('away', 'NATS is away');
    await this.#events.publish(connection, event);
    this.#refusals.notePublished(event.subject);
  }

  /** Publishes a message without content, if that is possible now. Nobody relies on it. */
  notify(subject: string): void {
    if (this.#refusals.refusesNotices) return;
    this.#link.connection?.publish(subject);
  }

  /** Also hears the notices on this subject, on this and later connections, until the returned function is called. */
  listen(subject: string): () => void {
    const { hear } = this.#options.notices;
    const held: Held = this.#subscriptions.add({
      subject,
      hear: (message) => hear(message.subject),
    });
    return () => void held.end();
  }

  /** The metadata of all agents of this fleet that answer `$SRV.INFO`, this one too; null while there is no connection. */
  async survey(): Promise<Readonly<Record<string, string>>[] | null> {
    const { connection } = this.#link;
    if (connection === undefined) return null;
    const { config, subjectPrefix } = this.#options;
    // Agents of an earlier release, whose service name has no prefix, answer to the other name alone.
    const services = [...new Set([serviceNameOf(subjectPrefix), SERVICE_NAME])];
    const found = await surveyPeers(connection, { services, inboxPrefix: config.inboxPrefix });
    return found.filter(({ fleet }) => fleet === subjectPrefix);
  }

  /** The answer of whoever serves the subject. Rejects if nobody does, or not in time. */
  async request(subject: string, payload: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    const { connection } = this.#link;
    if (connection === undefined) throw new Error('NATS is away');
    const { inboxPrefix } = this.#options.config;
    return askPeer(connection, { subject, payload, timeoutMs, inboxPrefix });
  }

  /** Takes no more requests. Requests under way go on, and their answers are still sent. */
  async stopTaking(): Promise<void> {
    this.#jobs.stop();
    // Without a connection nothing can come, and a drain would wait for one.
    if (this.#state !== 'connected') return;
    await Promise.race([this.#serving.stop(), sleep(DRAIN_TIMEOUT_MS)]);
  }

  async close(): Promise<void> {
    this.#isClosing = true;
    this.#events.useConnection(undefined);
    await this.#link.close();
    this.#setState('closed');
  }

  async #use(connection: NatsConnection): Promise<void> {
    this.#guard(connection);
    this.#refusals.clear();
    this.#isConfirmed = false;
    this.#subscriptions.useConnection(connection);
    await this.#subscriptions.settled();
    this.#isConfirmed = true;
    this.#warnOfOldServer(connection);
    this.#events.useConnection(connection);
    void this.#jobs.serve(connection);
  }

  #noteOpen(isOpen: boolean): void {
    if (!isOpen) {
      this.#subscriptions.useConnection(undefined);
      this.#events.useConnection(undefined);
    }
    if (!this.#isClosing) this.#setState(isOpen ? 'connected' : 'connecting');
  }

  #noteRefused({ operation, subject }: Refused): void {
    if (operation === 'publish') this.#jobs.noteRefused(subject);
    else if (this.#subscriptions.noteRefused(subject)) return;
    this.#refusals.note({ operation, subject });
  }

  #guard(connection: NatsConnection): void {
    const { config } = this.#options;
    guardInbound(connection, {
      replyPrefixes: config.replyPrefixes,
      inboxPrefix: config.inboxPrefix,
      onDropped: (dropped) => this.#noteDropped(dropped),
      onThrown: (message, cause) => this.#serving.answerFailure(message, cause),
    });
  }

  /** Logged at most once a second: whoever sends such messages may send very many. */
  #noteDropped(dropped: { subject: string; reason: string }): void {
    this.#dropped += 1;
    if (performance.now() < this.#dropsQuietUntil) return;
    this.#dropsQuietUntil = performance.now() + DROPS_TOLD_EVERY_MS;
    this.#options.log.warn({ ...dropped, sinceStart: this.#dropped }, 'message from NATS dropped');
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
      log.error(
        { state, error: String(error) },
        'NATS: the agent failed to handle a change of state',
      );
    }
  }
}

const reasonOf = (refusal: Refusal): string | undefined =>
  refusal && `${refusal.code}: ${refusal.message}`;

/** `2.9.10` before `2.10.27`. A version that cannot be read counts as not older. */
function isOlder(version: string, than: string): boolean {
  const [own = [], other = []] = [version, than].map((text) => text.split('.').map(Number));
  for (const [index, number] of other.entries()) {
    const mine = own[index] ?? Number.NaN;
    if (mine !== number) return mine < number;
  }
  return false;
}
