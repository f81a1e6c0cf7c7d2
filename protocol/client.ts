import { randomUUID } from 'node:crypto';
import type { Msg, MsgHdrs, NatsConnection } from 'nats';
import type {
  AttachAnswer,
  Attachment,
  AttachRequest,
  CheckAnswer,
  CheckRequest,
  DetachAnswer,
  DetachRequest,
  GetRequest,
  ListAnswer,
  ListRequest,
  NetworkListRequest,
} from './attachment.ts';
import { decodeAnswer, encode } from './envelope.ts';
import { fromErrorBody, VoltError } from './errors.ts';
import type { EventType } from './events.ts';
import type { Network } from './network.ts';
import {
  DEFAULT_PREFIX,
  JOB_STREAM,
  type JobOperation,
  type Subjects,
  subjects,
} from './subjects.ts';

// Nothing here loads a schema: what an agent answers is typed, not parsed again, and unknown keys pass
// through. That keeps the import of an orchestrator, and the start of `voltnet`, to a few milliseconds.

/** W3C trace context of the caller's span. */
export interface TraceContext {
  readonly traceparent?: string | undefined;
  readonly tracestate?: string | undefined;
}

export interface ClientOptions {
  /** A connection of the package `nats`; it stays the caller's, who closes it. */
  readonly connection: NatsConnection;
  /** `headers` of the same package: it makes the header object that the connection understands. */
  readonly headers: () => MsgHdrs;
  readonly prefix?: string;
  /** How long a request may take, unless the call says otherwise. Default 10,000. */
  readonly timeoutMs?: number;
  /** Asked at each request for the span that is current, where the call does not name one. */
  readonly traceContext?: () => TraceContext;
}

export interface CallOptions extends TraceContext {
  readonly timeoutMs?: number;
}

/** What a `network.put` takes: the network's keys as an operator writes them, and the revision it replaces. */
export interface NetworkInput {
  readonly network: string;
  readonly revision?: number;
  readonly [key: string]: unknown;
}

export interface NetworkUsage {
  readonly size: number;
  readonly used: number;
  readonly free: number;
  readonly reserved: number;
  readonly cooling: number;
  readonly suspect: number;
}

export interface PutNetworkAnswer {
  readonly network: Network;
  readonly revision: number;
  readonly created: boolean;
}

export interface NetworkAnswer {
  readonly network: Network;
  readonly revision: number;
  readonly usage: NetworkUsage;
}

export interface NetworkListAnswer {
  readonly networks: readonly { readonly network: Network; readonly revision: number }[];
  readonly cursor?: string;
}

/** A job that the work queue has taken. Its outcome is an event with this `requestId`. */
export interface SubmittedJob {
  readonly requestId: string;
  /** Sequence number in the job stream. */
  readonly sequence: number;
  /** True: a job of this host, operation and request id was stored before. */
  readonly duplicate: boolean;
}

/** One event, as it came. */
export interface VoltEvent {
  readonly id: string;
  readonly type: EventType;
  /** Who published it. */
  readonly host: string;
  readonly network: string;
  /** The attachment, network or host that it is about. */
  readonly subject: string;
  readonly time: string;
  readonly traceparent?: string;
  readonly body: Readonly<Record<string, unknown>>;
}

export interface WatchOptions {
  readonly host?: string;
  readonly network?: string;
  readonly types?: readonly EventType[];
  /** Ends the iteration. */
  readonly signal?: AbortSignal;
}

const DEFAULT_TIMEOUT_MS = 10_000;
// The agent gives up at the caller's deadline; its answer still has to travel.
const ANSWER_GRACE_MS = 500;

/**
 * What an orchestrator uses. Errors are VoltError: those of the agent, AGENT_UNAVAILABLE when nobody serves
 * the host, DEADLINE_EXCEEDED when no answer came in time (then nobody knows whether it was done: repeat it,
 * a repeat is harmless).
 */
export class VoltNetworkClient {
  readonly #connection: NatsConnection;
  readonly #headers: () => MsgHdrs;
  readonly #subjects: Subjects;
  readonly #timeoutMs: number;
  readonly #traceContext: () => TraceContext;

  constructor(options: ClientOptions) {
    this.#connection = options.connection;
    this.#headers = options.headers;
    this.#subjects = subjects(options.prefix ?? DEFAULT_PREFIX);
    this.#timeoutMs = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
    this.#traceContext = options.traceContext ?? (() => ({}));
  }

  attach(host: string, request: AttachRequest, options?: CallOptions): Promise<AttachAnswer> {
    return this.#ask(this.#subjects.host(host, 'attach'), request, 'attachment', options);
  }

  detach(host: string, request: DetachRequest, options?: CallOptions): Promise<DetachAnswer> {
    return this.#ask(this.#subjects.host(host, 'detach'), request, 'detached', options);
  }

  get(
    host: string,
    request: GetRequest,
    options?: CallOptions,
  ): Promise<{ attachment: Attachment }> {
    return this.#ask(this.#subjects.host(host, 'get'), request, 'attachment', options);
  }

  check(host: string, request: CheckRequest, options?: CallOptions): Promise<CheckAnswer> {
    return this.#ask(this.#subjects.host(host, 'check'), request, 'inSync', options);
  }

  /** One page; `cursor` in the answer asks for the next. */
  list(host: string, request: ListRequest, options?: CallOptions): Promise<ListAnswer> {
    return this.#ask(this.#subjects.host(host, 'list'), request, 'attachments', options);
  }

  /** All pages, one attachment at a time. */
  async *listAll(
    host: string,
    request: Omit<ListRequest, 'cursor'> = {},
    options?: CallOptions,
  ): AsyncGenerator<Attachment, void, undefined> {
    let cursor: string | undefined;
    do {
      const page = await this.list(host, { ...request, cursor }, options);
      yield* page.attachments;
      ({ cursor } = page);
    } while (cursor !== undefined);
  }

  putNetwork(network: NetworkInput, options?: CallOptions): Promise<PutNetworkAnswer> {
    return this.#ask(this.#subjects.network('put'), network, 'revision', options);
  }

  getNetwork(network: string, options?: CallOptions): Promise<NetworkAnswer> {
    return this.#ask(this.#subjects.network('get'), { network }, 'usage', options);
  }

  listNetworks(
    request: NetworkListRequest = {},
    options?: CallOptions,
  ): Promise<NetworkListAnswer> {
    return this.#ask(this.#subjects.network('list'), request, 'networks', options);
  }

  deleteNetwork(network: string, options?: CallOptions): Promise<{ deleted: boolean }> {
    return this.#ask(this.#subjects.network('delete'), { network }, 'deleted', options);
  }

  /** Stores an attach in the work queue: it is done as soon as the host's agent takes it, even if that is later. */
  submitAttach(host: string, request: AttachRequest, options?: CallOptions): Promise<SubmittedJob> {
    return this.#submit(host, 'attach', request, options);
  }

  submitDetach(host: string, request: DetachRequest, options?: CallOptions): Promise<SubmittedJob> {
    return this.#submit(host, 'detach', request, options);
  }

  /**
   * Events from now on, live. What happened before, and what happens while nobody watches, the stream
   * VOLT_NET_EVENTS keeps.
   */
  async *watch(options: WatchOptions = {}): AsyncGenerator<VoltEvent, void, undefined> {
    const { host, network, types, signal } = options;
    const filter = {
      ...(host !== undefined && { host }),
      ...(network !== undefined && { network }),
    };
    const subscription = this.#connection.subscribe(this.#subjects.events(filter));
    const end = (): void => subscription.unsubscribe();
    signal?.addEventListener('abort', end, { once: true });
    try {
      if (signal?.aborted === true) return;
      for await (const message of subscription) {
        const event = this.#eventOf(message);
        if (event !== null && (types?.includes(event.type) ?? true)) yield event;
      }
    } finally {
      signal?.removeEventListener('abort', end);
      subscription.unsubscribe();
    }
  }

  async #ask<Answer>(
    subject: string,
    request: object,
    key: keyof Answer & string,
    options: CallOptions = {},
  ): Promise<Answer> {
    const timeoutMs = options.timeoutMs ?? this.#timeoutMs;
    const headers = this.#traceHeaders(options);
    headers.set('volt-timeout-ms', String(timeoutMs));
    let message: Msg;
    try {
      message = await this.#connection.request(subject, encode(request), {
        timeout: timeoutMs + ANSWER_GRACE_MS,
        headers,
      });
    } catch (cause) {
      throw fromNatsError(cause, subject, timeoutMs);
    }
    const answer = decodeAnswer(message.data);
    const error = fromErrorBody(answer);
    if (error !== null) throw error;
    if (typeof answer !== 'object' || answer === null || !(key in answer)) {
      throw new VoltError('INTERNAL', `the answer to ${subject} has no ${key}`);
    }
    // The one place where an answer is believed to be what the protocol says it is.
    return answer as Answer;
  }

  async #submit(
    host: string,
    operation: JobOperation,
    request: AttachRequest | DetachRequest,
    options: CallOptions = {},
  ): Promise<SubmittedJob> {
    const requestId = request.requestId ?? randomUUID();
    const subject = this.#subjects.job(host, operation);
    const timeout = options.timeoutMs ?? this.#timeoutMs;
    try {
      const stored = await this.#connection
        .jetstream()
        .publish(subject, encode({ ...request, requestId }), {
          msgID: `${host}.${operation}.${requestId}`,
          headers: this.#traceHeaders(options),
          expect: { streamName: JOB_STREAM },
          timeout,
        });
      return { requestId, sequence: stored.seq, duplicate: stored.duplicate };
    } catch (cause) {
      throw fromNatsError(cause, subject, timeout);
    }
  }

  #traceHeaders(options: TraceContext): MsgHdrs {
    const context = options.traceparent === undefined ? this.#traceContext() : options;
    const headers = this.#headers();
    if (context.traceparent !== undefined) headers.set('traceparent', context.traceparent);
    if (context.tracestate !== undefined) headers.set('tracestate', context.tracestate);
    return headers;
  }

  #eventOf(message: Msg): VoltEvent | null {
    const subject = this.#subjects.match(message.subject);
    if (subject?.kind !== 'event') return null;
    const body = decodeAnswer(message.data);
    if (typeof body !== 'object' || body === null) return null;
    const header = (name: string): string => message.headers?.get(name) ?? '';
    const traceparent = header('traceparent');
    return {
      id: header('ce-id'),
      // Types of newer agents pass through; a reader that does not know one ignores it.
      type: subject.type as EventType,
      host: subject.host,
      network: subject.network,
      subject: header('ce-subject'),
      time: header('ce-time'),
      ...(traceparent !== '' && { traceparent }),
      body: { ...body },
    };
  }
}

function fromNatsError(cause: unknown, subject: string, timeoutMs: number): VoltError {
  if (cause instanceof VoltError) return cause;
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  if (code === 'TIMEOUT') {
    return new VoltError('DEADLINE_EXCEEDED', `no answer to ${subject} in ${timeoutMs} ms`, {
      cause,
    });
  }
  const reason = code === '503' ? 'nobody serves it' : String(cause);
  return new VoltError('AGENT_UNAVAILABLE', `${subject}: ${reason}`, { cause });
}
