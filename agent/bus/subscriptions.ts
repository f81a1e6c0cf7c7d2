import type { Msg, NatsConnection, Subscription } from 'nats';
import type { Log } from '../log.ts';
import { jittered } from '../schedule/rhythm.ts';

export interface Wanted {
  readonly subject: string;
  /** Members of one queue share the messages: each goes to one of them. */
  readonly queue?: string;
  readonly hear: (message: Msg) => void;
}

/** A subscription of `Subscriptions`, as its user holds it. */
export interface Held {
  /** Why nothing is heard there; undefined if it is heard, or if there is no connection. */
  readonly isRefused: boolean;
  /** Hears no more messages; those that have come are handled. */
  end(): Promise<void>;
}

interface Entry extends Wanted {
  subscription: Subscription | undefined;
  isRefused: boolean;
  tries: number;
  retry: NodeJS.Timeout | undefined;
}

const RETRY_FIRST_MS = 500;
/** A right that was given is used at most this long after. */
const RETRY_MOST_MS = 8_000;

/**
 * Lasting subscriptions: made again with each connection, and tried again, each by itself, if the server refuses
 * them. A refused one keeps no other from being heard.
 */
export class Subscriptions {
  readonly #log: Log;
  readonly #entries = new Set<Entry>();
  #connection: NatsConnection | undefined;
  #asked: Promise<void> = Promise.resolve();

  constructor(log: Log) {
    this.#log = log;
  }

  /** Moves all subscriptions to this connection; those of the one before ended with it. */
  useConnection(connection: NatsConnection | undefined): void {
    this.#connection = connection;
    for (const entry of this.#entries) {
      clearTimeout(entry.retry);
      entry.subscription = undefined;
      entry.tries = 0;
      this.#subscribe(entry);
    }
  }

  add(wanted: Wanted): Held {
    const entry: Entry = {
      ...wanted,
      subscription: undefined,
      isRefused: false,
      tries: 0,
      retry: undefined,
    };
    this.#entries.add(entry);
    this.#subscribe(entry);
    return {
      get isRefused() {
        return entry.isRefused;
      },
      end: async () => {
        this.#entries.delete(entry);
        clearTimeout(entry.retry);
        const { subscription } = entry;
        if (subscription?.isClosed() === false) await subscription.drain().catch(() => {});
      },
    };
  }

  /** Subjects that the server does not let this user listen on. */
  get refused(): readonly string[] {
    const subjects = [...this.#entries].filter(({ isRefused }) => isRefused);
    return [...new Set(subjects.map(({ subject }) => subject))];
  }

  /** The server has refused a subject. False if it is none of these subscriptions. */
  noteRefused(subject: string): boolean {
    const entries = [...this.#entries].filter((entry) => entry.subject === subject);
    for (const entry of entries) this.#refuse(entry);
    return entries.length > 0;
  }

  /** Resolves when the server has taken or refused every subscription that was sent before, or is gone. */
  settled(): Promise<void> {
    return this.#asked;
  }

  #subscribe(entry: Entry): void {
    const connection = this.#connection;
    if (connection === undefined || connection.isClosed() || connection.isDraining()) return;
    const { subject, queue, hear } = entry;
    const subscription = connection.subscribe(subject, {
      ...(queue !== undefined && { queue }),
      callback: (error, message) => {
        if (error === null) hear(message);
        else if (entry.subscription === subscription) this.#refuse(entry);
      },
    });
    // It rejects with what the callback is told.
    subscription.closed.catch(() => {});
    entry.subscription = subscription;
    this.#asked = Promise.all([this.#asked, this.#confirm(connection, entry)]).then(() => {});
  }

  /** The answer to a ping comes after the refusals of everything that was sent before it. */
  async #confirm(connection: NatsConnection, entry: Entry): Promise<void> {
    const { subscription } = entry;
    await Promise.race([connection.flush().catch(() => {}), connection.closed()]);
    // If the library cannot find whose a refusal is, it comes in a later turn of this loop.
    await new Promise((resolve) => setImmediate(resolve));
    if (connection.isClosed() || subscription === undefined) return;
    if (entry.subscription !== subscription) return;
    entry.tries = 0;
    if (!entry.isRefused) return;
    entry.isRefused = false;
    this.#log.info({ subject: entry.subject }, 'NATS takes a subscription that it had refused');
  }

  #refuse(entry: Entry): void {
    const { subscription, subject, queue } = entry;
    if (subscription === undefined || !this.#entries.has(entry)) return;
    entry.subscription = undefined;
    if (!subscription.isClosed()) subscription.unsubscribe();
    if (!entry.isRefused) {
      this.#log.warn(
        { subject, ...(queue !== undefined && { queue }) },
        'NATS refuses a subscription: tried again until it is taken',
      );
    }
    entry.isRefused = true;
    const waitMs = Math.min(RETRY_FIRST_MS * 2 ** Math.min(entry.tries, 16), RETRY_MOST_MS);
    entry.tries += 1;
    clearTimeout(entry.retry);
    entry.retry = setTimeout(() => this.#subscribe(entry), jittered(waitMs));
  }
}
