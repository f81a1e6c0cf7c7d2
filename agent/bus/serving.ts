import { headers as createHeaders, type Msg, type MsgHdrs, nuid } from 'nats';
import { ServiceErrorCodeHeader, ServiceErrorHeader } from 'nats';
import { errorAnswer } from './error-answer.ts';
import { type Headers, headersOf } from './inbound.ts';
import type { Log } from '../log.ts';
import type { Held, Subscriptions } from './subscriptions.ts';

/** A request as it came. */
export interface BusRequest {
  readonly subject: string;
  /** Who asks, as far as NATS tells: the same for all requests of one connection of the client libraries. */
  readonly caller: string;
  readonly payload: Uint8Array;
  readonly headers: Headers;
}

/** The reply. An error travels in the payload and, as number and text, in the NATS service headers. */
export interface BusAnswer {
  readonly payload: Uint8Array;
  readonly error?: { readonly status: number; readonly code: string };
}

export interface BusEndpoint {
  readonly name: string;
  readonly subject: string;
  /** Endpoints of several agents with the same queue share the requests: each goes to one of them. */
  readonly queue: string;
  /**
   * Served only while the agent acts as its host. Another agent, or the machine that has the host id, may serve it
   * otherwise.
   */
  readonly asHost: boolean;
  readonly answer: (request: BusRequest) => Promise<BusAnswer>;
}

export interface ServingOptions {
  readonly service: { readonly name: string; readonly version: string };
  /** Read anew for each answer. */
  readonly metadata: () => Readonly<Record<string, string>>;
  readonly endpoints: readonly BusEndpoint[];
  readonly subscriptions: Subscriptions;
  /** Sends an answer on whatever connection there is. Throws if it cannot. */
  readonly send: (subject: string, payload: Uint8Array, headers?: MsgHdrs) => void;
  readonly log: Log;
}

const DESCRIPTION = 'Network of virtual machines and containers on this host';

/** Counters of an endpoint since its start. */
interface Counts {
  requests: number;
  errors: number;
  lastError: string | undefined;
  processingNs: number;
}

/**
 * The agent as a NATS service: its endpoints, and `$SRV.PING`, `.INFO` and `.STATS` (the micro protocol of NATS's
 * client libraries, ADR-32). The library's own service ends with the first subscription that is refused, and cannot
 * give up a single endpoint; here each subject stands by itself.
 */
export class Serving {
  readonly #options: ServingOptions;
  readonly #id = nuid.next();
  readonly #started = new Date().toISOString();
  readonly #served = new Map<BusEndpoint, Held>();
  readonly #control: Held[] = [];
  readonly #counts = new Map<BusEndpoint, Counts>();
  #asHost = false;
  #isStopped = false;

  constructor(options: ServingOptions) {
    this.#options = options;
  }

  /** Answers from now on, as the host or not. */
  start(asHost: boolean): void {
    const { service, subscriptions } = this.#options;
    for (const [verb, answer] of [
      ['PING', () => this.#ping()],
      ['INFO', () => this.#info()],
      ['STATS', () => this.#stats()],
    ] as const) {
      for (const whom of ['', `.${service.name}`, `.${service.name}.${this.#id}`]) {
        const subject = `$SRV.${verb}${whom}`;
        const hear = (message: Msg): void => this.#answerControl(message, answer());
        this.#control.push(subscriptions.add({ subject, hear }));
      }
    }
    this.act(asHost);
  }

  /** Serves the host's endpoints, or stops doing so. Endpoints of any agent are served all the time. */
  act(asHost: boolean): void {
    if (this.#isStopped) return;
    this.#asHost = asHost;
    for (const endpoint of this.#options.endpoints) {
      const held = this.#served.get(endpoint);
      const isWanted = asHost || !endpoint.asHost;
      if (isWanted === (held !== undefined)) continue;
      if (held === undefined) {
        this.#served.set(endpoint, this.#serve(endpoint));
      } else {
        this.#served.delete(endpoint);
        void held.end();
      }
    }
  }

  /** Subjects of the host that the server does not let the agent serve; null if the agent does not act as the host. */
  get refusedOfHost(): readonly string[] | null {
    if (!this.#asHost) return null;
    return [...this.#served]
      .filter(([{ asHost }, { isRefused }]) => asHost && isRefused)
      .map(([{ subject }]) => subject);
  }

  /** Takes no new requests; those that have come are answered. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    const held = [...this.#served.values(), ...this.#control];
    this.#served.clear();
    await Promise.all(held.map((one) => one.end()));
  }

  /** An exception while a message was handled: the caller gets it as an answer, as long as there is a connection. */
  answerFailure(message: Pick<Msg, 'subject' | 'reply'>, cause: unknown): void {
    const { log } = this.#options;
    const { subject } = message;
    log.error(
      { subject, error: messageOf(cause) },
      'request failed outside its operation: please report it',
    );
    try {
      this.#send(message, errorAnswer(cause));
    } catch (error) {
      log.warn({ subject, error: messageOf(error) }, 'answer to a request could not be sent');
    }
  }

  #serve(endpoint: BusEndpoint): Held {
    const { subject, queue } = endpoint;
    const hear = (message: Msg): void => void this.#answer(message, endpoint);
    return this.#options.subscriptions.add({ subject, queue, hear });
  }

  async #answer(message: Msg, endpoint: BusEndpoint): Promise<void> {
    const began = performance.now();
    const counts = this.#countsOf(endpoint);
    counts.requests += 1;
    try {
      const answer = await endpoint.answer(requestOf(message));
      if (answer.error !== undefined) {
        counts.errors += 1;
        counts.lastError = answer.error.code;
      }
      this.#send(message, answer);
    } catch (cause) {
      counts.errors += 1;
      counts.lastError = messageOf(cause);
      this.answerFailure(message, cause);
    } finally {
      counts.processingNs += Math.round((performance.now() - began) * 1e6);
    }
  }

  #send({ reply }: Pick<Msg, 'reply'>, { payload, error }: BusAnswer): void {
    if (reply === undefined || reply === '') return;
    const { send } = this.#options;
    if (error === undefined) return send(reply, payload);
    const headers = createHeaders();
    headers.set(ServiceErrorCodeHeader, String(error.status));
    headers.set(ServiceErrorHeader, error.code);
    send(reply, payload, headers);
  }

  #answerControl({ reply }: Msg, answer: object): void {
    if (reply === undefined || reply === '') return;
    this.#options.send(reply, new TextEncoder().encode(JSON.stringify(answer)));
  }

  #countsOf(endpoint: BusEndpoint): Counts {
    const known = this.#counts.get(endpoint);
    if (known !== undefined) return known;
    const counts = { requests: 0, errors: 0, lastError: undefined, processingNs: 0 };
    this.#counts.set(endpoint, counts);
    return counts;
  }

  #self(kind: 'ping' | 'info' | 'stats'): object {
    const { service, metadata } = this.#options;
    const { name, version } = service;
    const type = `io.nats.micro.v1.${kind}_response`;
    return { type, name, id: this.#id, version, metadata: metadata() };
  }

  #ping(): object {
    return this.#self('ping');
  }

  #info(): object {
    const endpoints = [...this.#served.keys()].map(({ name, subject, queue }) => ({
      name,
      subject,
      queue_group: queue,
    }));
    return { ...this.#self('info'), description: DESCRIPTION, endpoints };
  }

  #stats(): object {
    const endpoints = [...this.#served.keys()].map((endpoint) => {
      const { requests, errors, lastError, processingNs } = this.#countsOf(endpoint);
      return {
        name: endpoint.name,
        subject: endpoint.subject,
        queue_group: endpoint.queue,
        num_requests: requests,
        num_errors: errors,
        ...(lastError !== undefined && { last_error: lastError }),
        processing_time: processingNs,
        average_processing_time: requests === 0 ? 0 : Math.round(processingNs / requests),
      };
    });
    return { ...this.#self('stats'), started: this.#started, endpoints };
  }
}

const requestOf = (message: Msg): BusRequest => ({
  subject: message.subject,
  caller: inboxOf(message.reply),
  payload: message.data,
  headers: headersOf(message),
});

/** Client libraries have one inbox for each connection, `_INBOX.x`, and below it one subject for each request. */
const inboxOf = (reply = ''): string => reply.slice(0, reply.lastIndexOf('.') + 1);

const messageOf = (error: unknown): string =>
  error instanceof Error ? error.message : String(error);
