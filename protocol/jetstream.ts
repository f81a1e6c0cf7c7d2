import { NO_RESPONDERS, RequestError, requestOnce, unguessableInbox } from './inbox.ts';
import type { NatsHeaders, NatsLike, NatsMessage } from './nats.ts';

// JetStream in plain messages. The libraries have it in two ways: as a part of the connection in version 2, as a package
// of its own in version 3. What is sent is the same
// (https://github.com/nats-io/nats.docs/blob/master/reference/reference-protocols/nats_api_reference.md).

/** How many messages a pull asks for. They wait in this process until they are read. */
const BATCH = 200;
const EXPIRES_MS = 30_000;
const HEARTBEAT_MS = 1_000;
/** A server that sends no heartbeat for so long has lost the pull, or the connection is gone. */
const SILENCE_MS = 3 * HEARTBEAT_MS;
/** A consumer that nobody pulls from for so long is removed by the server. */
const INACTIVE_MS = 60_000;

const STATUS_HEARTBEAT = 100;
/** The end of a pull: no messages, or its time is over. */
const STATUS_DRAINED: ReadonlySet<unknown> = new Set([404, 408]);

const nanos = (ms: number): number => ms * 1_000_000;

/** Where a consumer begins: after a sequence number, or at a time (RFC 3339). */
export type StreamPlace = { readonly after: number } | { readonly since: string };

export interface StoredMessage {
  readonly message: NatsMessage;
  /** Place in the stream. */
  readonly sequence: number;
  /** Place among what this consumer has delivered: without a gap, 1 more than that of the message before. */
  readonly delivery: number;
}

/** With the field by which `fromNatsError` knows an error of JetStream, as the libraries' errors have it. */
class JetStreamError extends Error {
  readonly api_error: Readonly<Record<string, unknown>>;

  constructor(error: Readonly<Record<string, unknown>>) {
    const { description } = error;
    super(typeof description === 'string' ? description : 'JetStream refuses');
    this.name = 'JetStreamError';
    this.api_error = error;
  }
}

/** A caller of JetStream. Errors are those of `requestOnce`, or have JetStream's `api_error`. */
export class JetStream {
  readonly #connection: NatsLike;
  readonly #inbox: string;

  constructor(connection: NatsLike, inbox: string) {
    this.#connection = connection;
    this.#inbox = inbox;
  }

  /** Stores a message; resolves when the stream has it. `headers` say in which stream, and by what a repeat is known. */
  async publish(message: {
    readonly subject: string;
    readonly payload: Uint8Array;
    readonly headers: NatsHeaders;
    readonly timeoutMs: number;
  }): Promise<{ readonly sequence: number; readonly duplicate: boolean }> {
    const answer = await this.#ask(message);
    return { sequence: Number(answer['seq']), duplicate: answer['duplicate'] === true };
  }

  /** Sequence numbers of the first and the last message of a stream. The last is 0 if it never had one. */
  async ends(stream: string, timeoutMs: number): Promise<{ first: number; last: number }> {
    const { state } = await this.#api(`STREAM.INFO.${stream}`, {}, timeoutMs);
    const { first_seq: first, last_seq: last } = isRecord(state) ? state : {};
    return { first: Number(first ?? 0), last: Number(last ?? 0) };
  }

  /** Makes a consumer that keeps no account of what was read, and that the server forgets by itself. Returns its name. */
  async consumer(
    of: { readonly stream: string; readonly filter: string; readonly place: StreamPlace },
    timeoutMs: number,
  ): Promise<string> {
    const { stream, filter, place } = of;
    const begin =
      'since' in place
        ? { deliver_policy: 'by_start_time', opt_start_time: place.since }
        : { deliver_policy: 'by_start_sequence', opt_start_seq: place.after + 1 };
    const config = {
      ...begin,
      filter_subject: filter,
      ack_policy: 'none',
      replay_policy: 'instant',
      max_deliver: 1,
      num_replicas: 1,
      mem_storage: true,
      inactive_threshold: nanos(INACTIVE_MS),
    };
    const request = { stream_name: stream, config };
    const made = await this.#api(`CONSUMER.CREATE.${stream}`, request, timeoutMs);
    return String(made['name']);
  }

  /**
   * What a consumer has, from now on. `alive`: the server says that it will send what comes. `drained`: it had nothing more
   * when a pull ended, and the next begins. Ends when nothing is heard of the server any more: whoever reads then makes sure
   * that nothing is missing. `batch` messages at most wait here. Throws where there is no such consumer.
   */
  async *read(
    of: { readonly stream: string; readonly consumer: string; readonly batch?: number },
    signal: AbortSignal | undefined,
  ): AsyncGenerator<StoredMessage | 'alive' | 'drained', void, undefined> {
    const { stream, consumer, batch = BATCH } = of;
    const subject = `$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`;
    const request = { batch, expires: nanos(EXPIRES_MS), idle_heartbeat: nanos(HEARTBEAT_MS) };
    while (signal?.aborted !== true) {
      const reply = unguessableInbox(this.#inbox);
      using pull = new Pull(this.#connection, { subject, reply, signal });
      this.#connection.publish(subject, toJson(request), { reply });
      for (let left = batch; left > 0;) {
        const message = await pull.next();
        if (message === undefined) return;
        const place = placeOf(message.reply ?? '');
        if (place !== undefined) {
          left -= 1;
          yield { message, ...place };
          continue;
        }
        const status = message.headers?.code;
        if (status === NO_RESPONDERS) throw new RequestError(String(NO_RESPONDERS));
        if (status === STATUS_HEARTBEAT) {
          yield 'alive';
        } else if (STATUS_DRAINED.has(status)) {
          yield 'drained';
          break;
        } else {
          return;
        }
      }
    }
  }

  acknowledge({ message }: StoredMessage): void {
    if (message.reply !== undefined) this.#connection.publish(message.reply);
  }

  #api(operation: string, request: object, timeoutMs: number): Promise<Record<string, unknown>> {
    return this.#ask({ subject: `$JS.API.${operation}`, payload: toJson(request), timeoutMs });
  }

  async #ask(question: {
    readonly subject: string;
    readonly payload: Uint8Array;
    readonly headers?: NatsHeaders;
    readonly timeoutMs: number;
  }): Promise<Record<string, unknown>> {
    const reply = unguessableInbox(this.#inbox);
    const { data } = await requestOnce(this.#connection, { ...question, reply });
    const answer: unknown = JSON.parse(new TextDecoder().decode(data));
    if (!isRecord(answer)) throw new TypeError(`${question.subject}: JetStream answered no object`);
    if (isRecord(answer['error'])) throw new JetStreamError(answer['error']);
    return answer;
  }
}

/** Messages on one reply subject, one at a time. */
class Pull implements Disposable {
  readonly #unsubscribe: () => void;
  readonly #messages: NatsMessage[] = [];
  #failed: { readonly error: unknown } | undefined;
  #arrived = Promise.withResolvers<void>();

  constructor(
    connection: NatsLike,
    of: { subject: string; reply: string; signal: AbortSignal | undefined },
  ) {
    const { subject, reply, signal } = of;
    const fail = (error: unknown): void => {
      this.#failed ??= { error };
      this.#arrived.resolve();
    };
    const subscription = connection.subscribe(reply, {
      callback: (error, message) => {
        if (error !== null) return fail(error);
        this.#messages.push(message);
        this.#arrived.resolve();
      },
    });
    // As in requestOnce: by this the library finds whom to tell of a publication that is not permitted.
    Object.assign(subscription, { requestSubject: subject });
    const end = (): void => fail(undefined);
    subscription.closed.then(end, fail);
    signal?.addEventListener('abort', end, { once: true });
    this.#unsubscribe = () => {
      signal?.removeEventListener('abort', end);
      if (!subscription.isClosed()) subscription.unsubscribe();
    };
  }

  /** Undefined after SILENCE_MS without any, and when the subscription has ended. */
  async next(): Promise<NatsMessage | undefined> {
    if (this.#messages.length === 0 && this.#failed === undefined) {
      const timer = setTimeout(() => this.#arrived.resolve(), SILENCE_MS);
      await this.#arrived.promise;
      clearTimeout(timer);
    }
    this.#arrived = Promise.withResolvers<void>();
    const message = this.#messages.shift();
    if (message === undefined && this.#failed?.error !== undefined) throw this.#failed.error;
    return message;
  }

  [Symbol.dispose](): void {
    this.#unsubscribe();
  }
}

const toJson = (value: object): Uint8Array => new TextEncoder().encode(JSON.stringify(value));

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Both numbers are in the reply subject, which a message of the server's own does not have: `$JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<delivery>.…`,
 * in newer servers with the domain and the account before the stream.
 */
function placeOf(reply: string): { sequence: number; delivery: number } | undefined {
  const tokens = reply.split('.');
  if (!reply.startsWith('$JS.ACK.') || tokens.length < 9) return undefined;
  const [sequence, delivery] = tokens.slice(tokens.length === 9 ? 5 : 7).map(Number);
  return sequence === undefined || delivery === undefined ? undefined : { sequence, delivery };
}
