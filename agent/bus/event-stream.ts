import { ErrorCode, headers as createHeaders, type NatsConnection, type PubAck } from 'nats';
import {
  type BusProblem,
  cannotBeAsked,
  hasCode,
  jetStreamProblem,
  jetStreamReason,
} from './bus-problems.ts';
import type { Log } from '../log.ts';
import { PublishError } from '../storage/pending-event.ts';
import { jittered } from '../schedule/rhythm.ts';
import { ensureEventStream, type Fleet, whyNotStored } from './streams.ts';

/** An event as it is published. A repeat with the same `id` within ten minutes is ignored by the stream. */
export interface PublishedEvent {
  readonly subject: string;
  readonly id: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly payload: Uint8Array;
}

const ACK_TIMEOUT_MS = 5_000;
/** How often the agent looks at the stream, if it may. */
const LOOK_MS = 8_000;
const LOOK_TIMEOUT_MS = 5_000;
/** After a failure to publish, the agent asks for the reason no more often than this. */
const ASKED_AGAIN_MS = 1_000;

/**
 * This host's end of the event stream. The stream is made whenever it is missing. A stream that somebody made in such
 * a way that it would lose events gets none: they wait on the disk, and `problem` says why.
 */
export class EventStream {
  readonly #fleet: Fleet;
  readonly #log: Log;
  #connection: NatsConnection | undefined;
  /** Of the last look. */
  #found: BusProblem | undefined;
  /** Why the last publication failed, if it did. */
  #unpublished: BusProblem | undefined;
  #told: string | undefined;
  /** JetStream tells this user nothing about the stream: events are published all the same. */
  #isUnseen = false;
  #looking: Promise<void> | undefined;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #isStale = true;
  #timer: NodeJS.Timeout | undefined;
  #toldDifferences = '';

  constructor(fleet: Fleet, log: Log) {
    this.#fleet = fleet;
    this.#log = log;
  }

  /** What is wrong with the stream, as of the last look or publication. */
  get problem(): BusProblem | undefined {
    return this.#found ?? this.#unpublished;
  }

  useConnection(connection: NatsConnection | undefined): void {
    this.#connection = connection;
    this.#isStale = true;
    this.#isUnseen = false;
    this.#lookedMs = Number.NEGATIVE_INFINITY;
    clearTimeout(this.#timer);
    this.#found = undefined;
    this.#unpublished = undefined;
    this.#told = undefined;
    if (connection !== undefined) this.#lookSoon(0);
  }

  /** Resolves once JetStream has acknowledged the event. Throws PublishError. */
  async publish(connection: NatsConnection, event: PublishedEvent): Promise<void> {
    const isDue = performance.now() - this.#lookedMs > ASKED_AGAIN_MS;
    if (this.#isStale && isDue) await this.#look(connection);
    if (this.#found?.name === 'stream-unfit') {
      throw new PublishError('later', this.#found.reason);
    }
    let stored: PubAck;
    try {
      const headers = createHeaders();
      for (const [name, value] of Object.entries(event.headers)) headers.set(name, value);
      stored = await connection.jetstream().publish(event.subject, event.payload, {
        msgID: event.id,
        headers,
        timeout: ACK_TIMEOUT_MS,
      });
    } catch (cause) {
      this.#noteFailure(connection, cause);
      throw new PublishError(whyNotStored(cause), jetStreamReason(cause), { cause });
    }
    if (connection !== this.#connection) return;
    // Another stream may take these subjects, too. Its answer says nothing about the one that is missing.
    const isOther = this.#found?.name === 'stream-missing' && this.#found.subject !== stored.stream;
    if (!isOther) this.#found = undefined;
    this.#unpublished = undefined;
    this.#tell();
  }

  /** The stream may be gone, or have no leader: before the next publication the agent looks. */
  #noteFailure(connection: NatsConnection, cause: unknown): void {
    if (connection !== this.#connection || connection.isClosed()) return;
    if (whyNotStored(cause) === 'never') return;
    // What is refused is told with its subject.
    if (hasCode(cause, ErrorCode.PermissionsViolation)) return;
    this.#isStale = true;
    const reason = hasCode(cause, ErrorCode.NoResponders)
      ? 'no stream takes events: JetStream is off on this server, or the stream is not there'
      : `events are not stored: ${jetStreamReason(cause)}`;
    this.#unpublished = { name: 'jetstream-away', reason };
    this.#tell();
  }

  #lookSoon(waitMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const connection = this.#connection;
      if (connection === undefined || connection.isClosed()) return;
      void this.#look(connection).then(() => {
        if (connection === this.#connection && !this.#isUnseen) this.#lookSoon(jittered(LOOK_MS));
      });
    }, waitMs);
    this.#timer.unref();
  }

  /** One look at a time. Throws nothing. */
  #look(connection: NatsConnection): Promise<void> {
    this.#looking ??= this.#lookNow(connection).finally(() => {
      this.#looking = undefined;
      this.#lookedMs = performance.now();
    });
    return this.#looking;
  }

  async #lookNow(connection: NatsConnection): Promise<void> {
    const problem = await this.#find(connection);
    if (connection !== this.#connection) return;
    if (problem === 'unseen') {
      this.#isUnseen = true;
      return;
    }
    this.#isUnseen = false;
    this.#isStale = problem !== undefined;
    this.#found = problem;
    this.#tell();
  }

  async #find(connection: NatsConnection): Promise<BusProblem | 'unseen' | undefined> {
    try {
      const options = { checkAPI: false, timeout: LOOK_TIMEOUT_MS };
      const manager = await connection.jetstreamManager(options);
      const { name, outcome, differences } = await ensureEventStream(manager, this.#fleet);
      const [first = ''] = differences;
      if (outcome === 'unfit') return { name: 'stream-unfit', subject: name, reason: first };
      if (outcome === 'made') this.#log.info({ stream: name }, 'event stream made: it was missing');
      if (outcome === 'differs' && this.#toldDifferences !== first) {
        this.#toldDifferences = first;
        this.#log.warn(
          { name, differences },
          'JetStream: the stream or consumer is configured otherwise than asked for, and used as it is',
        );
      }
      return undefined;
    } catch (error) {
      if (cannotBeAsked(error)) return 'unseen';
      return jetStreamProblem(error);
    }
  }

  /** Once for each reason. */
  #tell(): void {
    const reason = this.problem?.reason;
    if (reason === this.#told) return;
    this.#told = reason;
    if (reason === undefined) this.#log.info({}, 'events can be stored');
    else this.#log.warn({ problem: reason }, 'events are not stored');
  }
}
