import { VoltError } from './errors.ts';
import type { EventType } from './events.ts';
import type { JetStream, StoredMessage, StreamPlace } from './jetstream.ts';
import { fromNatsError } from './nats-errors.ts';
import type { NatsLike, NatsMessage, NatsSubscription } from './nats.ts';
import { consumed, replay, type ReplayOptions, streamOf } from './replay.ts';
import type { Subjects } from './subjects.ts';
import { eventOf, type StoredEvent, type VoltEvent } from './volt-event.ts';

export interface WatchOptions<Type extends EventType = EventType> {
  readonly host?: string;
  readonly network?: string;
  readonly types?: readonly Type[];
  /** Ends the iteration. */
  readonly signal?: AbortSignal;
}

/**
 * Where a watch of the stream begins: with the events after a sequence number (`0`: all that the stream has; `'last'`:
 * those from now on), with those since a time (RFC 3339), or with what a durable consumer of the stream has not
 * acknowledged yet.
 */
export type WatchPlace =
  | { readonly after: number | 'last' }
  | { readonly since: string | Date }
  | { readonly consumer: string };

/** The place in the options of a watch; null for a live one. Throws INVALID_REQUEST for more than one, or for nonsense. */
export function placeIn(
  options: Partial<Record<'after' | 'since' | 'consumer', unknown>>,
): WatchPlace | null {
  const { after, since, consumer } = options;
  const given = [after, since, consumer].filter((one) => one !== undefined);
  if (given.length === 0) return null;
  if (given.length > 1) throw invalid('after', 'one of after, since and consumer is a place');
  if (since !== undefined) return { since: timeOf(since) };
  if (consumer !== undefined) {
    if (typeof consumer === 'string' && CONSUMER.test(consumer)) return { consumer };
    throw invalid('consumer', 'must be the name of a consumer');
  }
  const isNumber = typeof after === 'number' && Number.isSafeInteger(after) && after >= 0;
  if (after === 'last' || isNumber) return { after };
  throw invalid('after', "must be a sequence number, or 'last'");
}

/** As JetStream takes them. Another character would address another subject. */
const CONSUMER = /^[^\s.*>/\\]{1,256}$/;

/**
 * Text stays as it is: a Date would round what is finer than a millisecond. What nanoseconds since 1970 cannot tell,
 * nats-server takes for some other time.
 */
function timeOf(since: unknown): string {
  const at = since instanceof Date || typeof since === 'string' ? new Date(since).getTime() : NaN;
  if (Number.isNaN(at)) throw invalid('since', 'must be a Date, or RFC 3339');
  if (at < EARLIEST_MS || at > LATEST_MS) {
    return new Date(Math.min(Math.max(at, EARLIEST_MS), LATEST_MS)).toISOString();
  }
  return since instanceof Date ? since.toISOString() : String(since);
}

const EARLIEST_MS = 0;
const LATEST_MS = Date.parse('2262-01-01T00:00:00Z');

const invalid = (path: string, message: string): VoltError =>
  new VoltError('INVALID_REQUEST', `${path}: ${message}`, { details: { path } });

/** The events of a fleet, as they come and as its stream has them. What they promise stands at `watch` of the client. */
export class Events {
  readonly #connection: NatsLike;
  readonly #jetStream: JetStream;
  readonly #subjects: Subjects;
  readonly #streams: readonly [string, string];
  readonly #timeoutMs: number;

  constructor(options: {
    connection: NatsLike;
    jetStream: JetStream;
    subjects: Subjects;
    /** The name of the stream, and the one that it may have instead. */
    streams: readonly [string, string];
    timeoutMs: number;
  }) {
    this.#connection = options.connection;
    this.#jetStream = options.jetStream;
    this.#subjects = options.subjects;
    this.#streams = options.streams;
    this.#timeoutMs = options.timeoutMs;
  }

  async lastSequence(timeoutMs: number): Promise<number> {
    return (await streamOf(this.#replayOptions({}, timeoutMs))).last;
  }

  live(options: WatchOptions): AsyncGenerator<VoltEvent, void, undefined> {
    const { signal } = options;
    const subject = this.#filter(options);
    let subscription: NatsSubscription;
    try {
      subscription = this.#connection.subscribe(subject);
    } catch (cause) {
      throw fromNatsError(cause, { subject });
    }
    const end = (): void => subscription.unsubscribe();
    if (signal?.aborted === true) end();
    signal?.addEventListener('abort', end, { once: true });
    return this.#read(subscription, options, () => {
      signal?.removeEventListener('abort', end);
      end();
    });
  }

  async *#read(
    subscription: NatsSubscription,
    options: WatchOptions,
    end: () => void,
  ): AsyncGenerator<VoltEvent, void, undefined> {
    try {
      for await (const message of subscription) {
        const event = this.#asked(message, options);
        if (event !== null) yield event;
      }
    } catch (cause) {
      throw fromNatsError(cause, { subject: this.#filter(options) });
    } finally {
      end();
    }
  }

  replayed(options: WatchOptions, place: WatchPlace): AsyncGenerator<StoredEvent, void, undefined> {
    const replayOptions = this.#replayOptions(options, this.#timeoutMs);
    if ('consumer' in place) {
      return this.#stored(consumed({ ...replayOptions, consumer: place.consumer }), options);
    }
    const begin = 'since' in place ? { since: timeOf(place.since) } : this.#behind(place.after);
    return this.#stored(replay({ ...replayOptions, place: begin }), options);
  }

  #behind(after: number | 'last'): StreamPlace | Promise<StreamPlace> {
    if (after !== 'last') return { after };
    // Asked for now, and not when somebody begins to iterate, who then learns of an error.
    const place = this.lastSequence(this.#timeoutMs).then((last) => ({ after: last }));
    place.catch(() => {});
    return place;
  }

  async *#stored(
    messages: AsyncGenerator<StoredMessage, void, undefined>,
    options: WatchOptions,
  ): AsyncGenerator<StoredEvent, void, undefined> {
    for await (const { message, sequence } of messages) {
      const event = this.#asked(message, options);
      if (event !== null) yield { ...event, sequence };
    }
  }

  #replayOptions(options: WatchOptions, timeoutMs: number): ReplayOptions {
    return {
      jetStream: this.#jetStream,
      streams: this.#streams,
      filter: this.#filter(options),
      timeoutMs,
      signal: options.signal,
      isClosed: () => this.#connection.isClosed(),
    };
  }

  #filter({ host, network }: WatchOptions): string {
    return this.#subjects.events({
      ...(host !== undefined && { host }),
      ...(network !== undefined && { network }),
    });
  }

  /** Null for what is no event, or none that was asked for: a durable consumer has a filter of its own. */
  #asked(message: NatsMessage, { host, network, types }: WatchOptions): VoltEvent | null {
    const event = eventOf(message, this.#subjects);
    const isAsked =
      event !== null &&
      (host === undefined || event.host === host) &&
      (network === undefined || event.network === network) &&
      (types === undefined || types.includes(event.type));
    return isAsked ? event : null;
  }
}
