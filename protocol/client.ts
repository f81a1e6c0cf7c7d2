import { randomUUID } from 'node:crypto';
import type {
  AttachAnswer,
  Attachment,
  AttachRequest,
  CheckAnswer,
  CheckRequest,
  CordonAnswer,
  CordonRequest,
  DetachAnswer,
  DetachRequest,
  FleetListAnswer,
  FleetListRequest,
  GetAnswer,
  GetRequest,
  ListAnswer,
  ListRequest,
  NetworkListRequest,
  DryRunAnswer,
  UpdateAnswer,
  UpdateRequest,
} from './attachment.ts';
import { decodeAnswer, encode } from './envelope.ts';
import { fromErrorBody, VoltError } from './errors.ts';
import { JetStream } from './jetstream.ts';
import { fromNatsError, isOfOtherStream, isTooLarge } from './nats-errors.ts';
import type { EventType } from './events.ts';
import type { NatsHeaders, NatsLike, NatsMessage } from './nats.ts';
import type {
  LedgerCheckAnswer,
  LedgerCheckRequest,
  LedgerForgetAnswer,
  LedgerHostsAnswer,
  LedgerHostsRequest,
  LedgerLease,
  LedgerLeasesAnswer,
  LedgerLeasesRequest,
} from './ledger.ts';
import type {
  NetworkDeleteAnswer,
  NetworkGetAnswer,
  NetworkListAnswer,
  NetworkPutAnswer,
} from './network.ts';
import { DEFAULT_INBOX_PREFIX, requestOnce, unguessableInbox } from './inbox.ts';
import { IS_ANSWER, type IsAnswer } from './outlines.ts';
import {
  DEFAULT_PREFIX,
  EVENT_STREAM,
  eventStreamOf,
  type HostOperation,
  JOB_STREAM,
  jobMessageId,
  jobStreamOf,
  type JobOperation,
  type Subjects,
  subjects,
} from './subjects.ts';
import type { StoredEvent, VoltEvent } from './volt-event.ts';
import { Events, placeIn, type WatchOptions, type WatchPlace } from './watch.ts';

export { VoltError } from './errors.ts';
export type { ErrorCode } from './errors.ts';
export type { EventType } from './events.ts';
export type { NatsHeaders, NatsLike, NatsMessage, NatsSubscription } from './nats.ts';
export type { EventBody, EventOf, StoredEvent, VoltEvent } from './volt-event.ts';
export type { WatchOptions, WatchPlace } from './watch.ts';
export type {
  Attachment,
  AttachAnswer,
  AttachRequest,
  CheckAnswer,
  CheckRequest,
  CordonAnswer,
  CordonRequest,
  DetachAnswer,
  DetachRequest,
  Difference,
  DryRunAnswer,
  FleetAttachment,
  FleetListAnswer,
  FleetListRequest,
  GetAnswer,
  GetRequest,
  ListAnswer,
  ListRequest,
  NetworkListRequest,
  UpdateAnswer,
  UpdateRequest,
} from './attachment.ts';
export type {
  LedgerCheckAnswer,
  LedgerCheckRequest,
  LedgerDifference,
  LedgerForgetAnswer,
  LedgerHostsAnswer,
  LedgerHostsRequest,
  LedgerLease,
  LedgerLeasesAnswer,
  LedgerLeasesRequest,
} from './ledger.ts';
export type {
  Network,
  NetworkDeleteAnswer,
  NetworkGetAnswer,
  NetworkListAnswer,
  NetworkPutAnswer,
  NetworkUsage,
} from './network.ts';

// This file loads no schema. It checks only the outline of an answer, and unknown keys pass through. zod would double
// the time to import this file, at each start of `voltnet`.

/** W3C trace context of the caller's span. */
export interface TraceContext {
  readonly traceparent?: string | undefined;
  readonly tracestate?: string | undefined;
}

export interface ClientOptions {
  /** A connection of the package `nats`, or of `@nats-io/transport-node`. The caller closes it. */
  readonly connection: NatsLike;
  /** `headers` of the same package: it makes the header object that the connection understands. */
  readonly headers: () => NatsHeaders;
  readonly prefix?: string;
  /** The connection's `inboxPrefix`, if it was made with one. Default `_INBOX`. */
  readonly inboxPrefix?: string;
  /** How long a request may take, unless the call says otherwise. Default 10,000. */
  readonly timeoutMs?: number;
  /** Called at each request that names no span: returns the current one. */
  readonly traceContext?: () => TraceContext;
}

export interface CallOptions extends TraceContext {
  readonly timeoutMs?: number;
}

/** The request of `network.put`: the network's keys as an operator writes them, and the revision that it replaces. */
export interface NetworkInput {
  readonly network: string;
  readonly revision?: number;
  readonly [key: string]: unknown;
}

/** A job that the work queue has taken. Its outcome is an event with this `requestId`. */
export interface SubmittedJob {
  readonly requestId: string;
  /** Sequence number in the job stream. */
  readonly sequence: number;
  /** True if a job with this host, operation and request id was stored before. */
  readonly duplicate: boolean;
}

/** What was attached on a host, and everything that happened since. */
export interface Listed<Type extends EventType = EventType> {
  readonly attachments: readonly Attachment[];
  /** An event may tell of what `attachments` shows already, never the other way round. */
  readonly events: AsyncGenerator<StoredEvent<Type>, void, undefined>;
}

/** Also the protocol's default, for a request without `volt-timeout-ms`. */
const DEFAULT_TIMEOUT_MS = 10_000;
// The agent gives up at the caller's deadline; its answer still has to travel.
const ANSWER_GRACE_MS = 500;

/**
 * The client for an orchestrator. Errors are VoltError: those of the agent; AGENT_UNAVAILABLE when no agent serves the
 * host; DEADLINE_EXCEEDED when no answer came in time (the request may have been carried out: repeat it, a repeat is
 * harmless); INVALID_REQUEST for a request that cannot be sent.
 */
export class VoltNetworkClient {
  readonly #connection: NatsLike;
  readonly #headers: () => NatsHeaders;
  readonly #jetStream: JetStream;
  readonly #events: Events;
  readonly #subjects: Subjects;
  /** The stream for jobs: agents take jobs from no other. */
  readonly #ownJobStream: string;
  /** The stream that the last job was sent to. */
  #jobStream: string;
  /** Agents know a caller by its inbox. Each request has a subject of its own below this one. */
  readonly #inbox: string;
  readonly #timeoutMs: number;
  readonly #traceContext: () => TraceContext;

  constructor(options: ClientOptions) {
    this.#connection = options.connection;
    this.#headers = options.headers;
    const prefix = options.prefix ?? DEFAULT_PREFIX;
    this.#subjects = subjects(prefix);
    this.#ownJobStream = jobStreamOf(prefix);
    this.#jobStream = this.#ownJobStream;
    this.#inbox = unguessableInbox(options.inboxPrefix ?? DEFAULT_INBOX_PREFIX);
    this.#jetStream = new JetStream(this.#connection, this.#inbox);
    this.#timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#events = new Events({
      connection: this.#connection,
      jetStream: this.#jetStream,
      subjects: this.#subjects,
      // The fleet's streams may have the names of an earlier release, without the prefix.
      streams: [eventStreamOf(prefix), EVENT_STREAM],
      timeoutMs: this.#timeoutMs,
    });
    this.#traceContext = options.traceContext ?? (() => ({}));
  }

  /** Attaches. For a request with `dryRun`, use `dryRun()`. */
  attach(host: string, request: AttachRequest, options?: CallOptions): Promise<AttachAnswer> {
    return this.#askHost(host, 'attach', request, IS_ANSWER.attach, options);
  }

  /** What an attach would do now, or the error that it would answer. Changes nothing. */
  dryRun(host: string, request: AttachRequest, options?: CallOptions): Promise<DryRunAnswer> {
    const asked = { ...request, dryRun: true };
    return this.#askHost(host, 'attach', asked, IS_ANSWER.dryRun, options);
  }

  detach(host: string, request: DetachRequest, options?: CallOptions): Promise<DetachAnswer> {
    return this.#askHost(host, 'detach', request, IS_ANSWER.detach, options);
  }

  /** Changes a live attachment: ports, bandwidth, labels, filter addresses. */
  update(host: string, request: UpdateRequest, options?: CallOptions): Promise<UpdateAnswer> {
    return this.#askHost(host, 'update', request, IS_ANSWER.update, options);
  }

  get(host: string, request: GetRequest, options?: CallOptions): Promise<GetAnswer> {
    return this.#askHost(host, 'get', request, IS_ANSWER.get, options);
  }

  /** Compares records, kernel and ledger for one attachment, or for all if there is no `id`. */
  check(host: string, request: CheckRequest = {}, options?: CallOptions): Promise<CheckAnswer> {
    return this.#askHost(host, 'check', request, IS_ANSWER.check, options);
  }

  /** Closes a host to new attachments, or opens it again. What is attached stays; HOST_CORDONED is what others get. */
  cordon(host: string, request: CordonRequest, options?: CallOptions): Promise<CordonAnswer> {
    return this.#askHost(host, 'cordon', request, IS_ANSWER.cordon, options);
  }

  /** One page; `cursor` in the answer asks for the next. For a request with `allHosts`, use `listFleet()`. */
  list(host: string, request: ListRequest = {}, options?: CallOptions): Promise<ListAnswer> {
    return this.#askHost(host, 'list', request, IS_ANSWER.list, options);
  }

  /** All pages, one attachment at a time. */
  async *listAll(
    host: string,
    request: Omit<ListRequest, 'cursor'> = {},
    options?: CallOptions,
  ): AsyncGenerator<Attachment, void, undefined> {
    for await (const page of pages((cursor) => this.list(host, { ...request, cursor }, options))) {
      yield* page.attachments;
    }
  }

  /**
   * All attachments of a host, and every event of its attachments since: none is missed between the two. Events are read
   * from the stream, whose place is noted before the list is asked for; with `consumer`, they are what that has.
   */
  async listThenWatch<Type extends EventType = EventType>(
    host: string,
    request: Omit<ListRequest, 'cursor' | 'limit' | 'allHosts'> = {},
    options: CallOptions &
      Omit<WatchOptions<Type>, 'host' | 'network'> & { consumer?: string } = {},
  ): Promise<Listed<Type>> {
    const { types, signal, consumer } = options;
    const place =
      consumer === undefined ? { after: await this.lastSequence(options) } : { consumer };
    const attachments: Attachment[] = [];
    for await (const one of this.listAll(host, request, options)) attachments.push(one);
    const { network } = request;
    const events = this.watch({
      host,
      ...(network !== undefined && { network }),
      ...(types !== undefined && { types }),
      ...(signal !== undefined && { signal }),
      ...place,
    });
    return { attachments, events };
  }

  /** One page of all attachments of the fleet, by network and id. This host's agent reads them from the ledger. */
  listFleet(
    host: string,
    request: FleetListRequest = {},
    options?: CallOptions,
  ): Promise<FleetListAnswer> {
    const asked: ListRequest = { ...request, allHosts: true };
    return this.#askHost(host, 'list', asked, IS_ANSWER.fleetList, options);
  }

  putNetwork(network: NetworkInput, options?: CallOptions): Promise<NetworkPutAnswer> {
    return this.#ask(this.#subjects.network('put'), network, IS_ANSWER.networkPut, options);
  }

  getNetwork(network: string, options?: CallOptions): Promise<NetworkGetAnswer> {
    return this.#ask(this.#subjects.network('get'), { network }, IS_ANSWER.networkGet, options);
  }

  listNetworks(
    request: NetworkListRequest = {},
    options?: CallOptions,
  ): Promise<NetworkListAnswer> {
    return this.#ask(this.#subjects.network('list'), request, IS_ANSWER.networkList, options);
  }

  deleteNetwork(network: string, options?: CallOptions): Promise<NetworkDeleteAnswer> {
    const subject = this.#subjects.network('delete');
    return this.#ask(subject, { network }, IS_ANSWER.networkDelete, options);
  }

  /** One page of the leases of the fleet, filtered by host, network and state. */
  ledgerLeases(
    request: LedgerLeasesRequest = {},
    options?: CallOptions,
  ): Promise<LedgerLeasesAnswer> {
    return this.#ask(this.#subjects.ledger('leases'), request, IS_ANSWER.ledgerLeases, options);
  }

  /** All pages, one lease at a time. */
  async *eachLease(
    request: Omit<LedgerLeasesRequest, 'cursor'> = {},
    options?: CallOptions,
  ): AsyncGenerator<LedgerLease, void, undefined> {
    for await (const page of pages((cursor) =>
      this.ledgerLeases({ ...request, cursor }, options),
    )) {
      yield* page.leases;
    }
  }

  /** One page of the hosts that the ledger knows, and the state of the ledger. */
  ledgerHosts(request: LedgerHostsRequest = {}, options?: CallOptions): Promise<LedgerHostsAnswer> {
    return this.#ask(this.#subjects.ledger('hosts'), request, IS_ANSWER.ledgerHosts, options);
  }

  /** Declares a host gone and ends its leases. HOST_ALIVE while its agent runs. */
  forgetHost(host: string, options?: CallOptions): Promise<LedgerForgetAnswer> {
    return this.#ask(this.#subjects.ledger('forget'), { host }, IS_ANSWER.ledgerForget, options);
  }

  /**
   * Compares the ledger with itself and with every live host. `repair`: repairs the differences that are proven. A
   * large ledger takes several requests, each of which may take `timeoutMs`; `onProgress` is told how far the check is.
   */
  async checkLedger(
    request: LedgerCheckRequest = {},
    options?: CallOptions & { readonly onProgress?: (progress: string) => void },
  ): Promise<LedgerCheckAnswer> {
    const answers: LedgerCheckAnswer[] = [];
    let { cursor } = request;
    do {
      const asked = { ...request, ...(cursor !== undefined && { cursor }) };
      const subject = this.#subjects.ledger('check');
      const answer = await this.#ask(subject, asked, IS_ANSWER.ledgerCheck, options);
      answers.push(answer);
      ({ cursor } = answer);
      if (cursor !== undefined) options?.onProgress?.(answer.progress ?? '');
    } while (cursor !== undefined);
    const differences = answers.flatMap((answer) => answer.differences);
    return {
      inSync:
        answers.at(-1)?.inSync === true &&
        differences.every(({ repaired }) => repaired) &&
        !answers.some(({ truncated }) => truncated),
      differences,
      checked: answers.flatMap(({ checked }) => checked),
      silent: answers.flatMap(({ silent }) => silent),
      truncated: answers.some(({ truncated }) => truncated),
    };
  }

  /** Stores an attach in the work queue. The host's agent takes it now, or when it is back. */
  submitAttach(host: string, request: AttachRequest, options?: CallOptions): Promise<SubmittedJob> {
    return this.#submit(host, 'attach', request, options);
  }

  submitDetach(host: string, request: DetachRequest, options?: CallOptions): Promise<SubmittedJob> {
    return this.#submit(host, 'detach', request, options);
  }

  submitUpdate(host: string, request: UpdateRequest, options?: CallOptions): Promise<SubmittedJob> {
    return this.#submit(host, 'update', request, options);
  }

  /** The place of the last event in the stream: with `watch({ after })` whatever comes later is read. */
  lastSequence(options: CallOptions = {}): Promise<number> {
    return this.#events.lastSequence(options.timeoutMs ?? this.#timeoutMs);
  }

  /**
   * Without a place, live events from now on. The subscription exists when this returns: events of requests that are sent
   * afterwards on the same connection are seen. What happens while the connection is lost is missed.
   *
   * With a place (`after`, `since`, `consumer`), events of the stream, in its order, each once, and then those that
   * come; lost connections and servers that restart are survived. NOT_FOUND if the stream has no longer what follows
   * `after`: list again. An event of a `consumer` is acknowledged when the next one is asked for.
   *
   * Ends when `signal` aborts or the connection is closed; a caller that does not iterate has to end it by `signal`.
   * Messages that are no events of the protocol are skipped.
   */
  watch<Type extends EventType = EventType>(
    options: WatchOptions<Type> & WatchPlace,
  ): AsyncGenerator<StoredEvent<Type>, void, undefined>;
  watch<Type extends EventType = EventType>(
    options?: WatchOptions<Type>,
  ): AsyncGenerator<VoltEvent<Type>, void, undefined>;
  watch(options: WatchOptions & Partial<Record<'after' | 'since' | 'consumer', unknown>> = {}) {
    const place = placeIn(options);
    return place === null ? this.#events.live(options) : this.#events.replayed(options, place);
  }

  // Async, so that an invalid host name rejects the promise, as every other mistake does.
  async #askHost<Answer>(
    host: string,
    operation: HostOperation,
    request: object,
    isAnswer: IsAnswer<Answer>,
    options: CallOptions | undefined,
  ): Promise<Answer> {
    return this.#ask(this.#subjects.host(host, operation), request, isAnswer, options);
  }

  async #ask<Answer>(
    subject: string,
    request: object,
    isAnswer: IsAnswer<Answer>,
    options: CallOptions = {},
  ): Promise<Answer> {
    const timeoutMs = options.timeoutMs ?? this.#timeoutMs;
    const headers = this.#traceHeaders(options);
    // Without this header the agent uses the same default.
    if (timeoutMs !== DEFAULT_TIMEOUT_MS) headers.set('volt-timeout-ms', String(timeoutMs));
    const payload = encoded(request);
    let message: NatsMessage;
    try {
      message = await requestOnce(this.#connection, {
        subject,
        payload,
        reply: unguessableInbox(this.#inbox),
        timeoutMs: timeoutMs + ANSWER_GRACE_MS,
        // The agent would have to parse even an empty header block.
        ...(headers.keys().length > 0 && { headers }),
      });
    } catch (cause) {
      throw this.#notSent(cause, { subject, timeoutMs, payload });
    }
    const answer = decoded(message.data, subject);
    const error = fromErrorBody(answer);
    if (error !== null) throw error;
    if (isAnswer(answer)) return answer;
    throw new VoltError('INTERNAL', `the answer to ${subject} lacks what the protocol promises`);
  }

  async #submit(
    host: string,
    operation: JobOperation,
    request: AttachRequest | DetachRequest | UpdateRequest,
    options: CallOptions = {},
  ): Promise<SubmittedJob> {
    const requestId = request.requestId ?? randomUUID();
    const subject = this.#subjects.job(host, operation);
    const timeoutMs = options.timeoutMs ?? this.#timeoutMs;
    const payload = encoded({ ...request, requestId });
    const store = (streamName: string): Promise<Omit<SubmittedJob, 'requestId'>> => {
      const headers = this.#traceHeaders(options);
      headers.set('Nats-Msg-Id', jobMessageId({ host, operation, requestId }));
      headers.set('Nats-Expected-Stream', streamName);
      return this.#jetStream.publish({ subject, payload, headers, timeoutMs });
    };
    try {
      const [own, tried] = [this.#ownJobStream, this.#jobStream];
      const stored = await store(tried).catch((cause: unknown) => {
        // The fleet's streams may have the names of an earlier release, without the prefix, and change them one day.
        if (!isOfOtherStream(cause) || own === JOB_STREAM) throw cause;
        this.#jobStream = tried === own ? JOB_STREAM : own;
        return store(this.#jobStream);
      });
      return { requestId, ...stored };
    } catch (cause) {
      throw this.#notSent(cause, { subject, timeoutMs, payload });
    }
  }

  #notSent(
    cause: unknown,
    sent: { subject: string; timeoutMs: number; payload: Uint8Array },
  ): VoltError {
    const error = fromNatsError(cause, sent);
    if (!isTooLarge(cause)) return error;
    const bytes = sent.payload.byteLength;
    const limit = this.#connection.info?.max_payload;
    const message = `${sent.subject}: ${bytes} bytes and headers are more than the ${limit} that this NATS server takes (max_payload)`;
    return new VoltError('TOO_LARGE', message, { details: { bytes, limit }, cause });
  }

  #traceHeaders(options: TraceContext): NatsHeaders {
    const context = options.traceparent === undefined ? this.#traceContext() : options;
    const headers = this.#headers();
    if (context.traceparent !== undefined) headers.set('traceparent', context.traceparent);
    if (context.tracestate !== undefined) headers.set('tracestate', context.tracestate);
    return headers;
  }
}

/** Page after page: each but the last says where the next begins. */
async function* pages<Page extends { readonly cursor?: string | undefined }>(
  ask: (cursor: string | undefined) => Promise<Page>,
): AsyncGenerator<Page, void, undefined> {
  let cursor: string | undefined;
  do {
    const page = await ask(cursor);
    yield page;
    ({ cursor } = page);
  } while (cursor !== undefined);
}

function encoded(request: object): Uint8Array {
  try {
    return encode(request);
  } catch (cause) {
    if (cause instanceof VoltError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new VoltError('INVALID_REQUEST', `cannot be sent: ${reason}`, { cause });
  }
}

// An answer that cannot be read is a fault of the agent, not of the request.
function decoded(payload: Uint8Array, subject: string): unknown {
  try {
    return decodeAnswer(payload);
  } catch (cause) {
    throw new VoltError('INTERNAL', `the answer to ${subject} cannot be read`, { cause });
  }
}
