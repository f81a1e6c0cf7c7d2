import { isAtHome } from '#native/namespace.ts';
import type { Log } from '../log.ts';

const LOG_AT_MOST_EVERY_MS = 1_000;

/** Errors that nobody caught since the start: how many, and of the last one when and what. */
export interface Seen {
  readonly count: number;
  readonly at?: string;
  readonly message?: string;
}

/**
 * Exceptions and rejections that nobody catches. After `survive` they are logged and counted, and do not end the
 * process. Whoever began some work in the agent undoes it or takes it up again, and whatever the agent has promised
 * is on disk: so it is safe to go on, while ending would stop the requests of everybody else. One state is not safe:
 * a thread that was left in another network namespace would change that namespace in place of the host. Then the
 * process ends at once.
 */
export class UnexpectedErrors {
  readonly #log: Log;
  #seen: Seen = { count: 0 };
  #quietUntil = 0;

  constructor(log: Log) {
    this.#log = log;
  }

  get seen(): Seen {
    return this.#seen;
  }

  survive(): void {
    process.on('uncaughtException', (error, origin) => this.#note(error, origin));
  }

  // A rejection's reason may be anything.
  #note(reason: unknown, origin: string): void {
    const error = reason instanceof Error ? (reason.stack ?? reason.message) : String(reason);
    if (!isAtHome()) {
      this.#log.fatal(
        { error },
        'the main thread was left in a foreign network namespace: the agent ends at once',
      );
      process.abort();
    }
    const count = this.#seen.count + 1;
    this.#seen = { count, at: new Date().toISOString(), message: String(reason) };
    // An error in every turn of the event loop must not fill the log.
    if (performance.now() < this.#quietUntil) return;
    this.#quietUntil = performance.now() + LOG_AT_MOST_EVERY_MS;
    this.#log.error({ origin, count, error }, 'unexpected error: please report it');
  }
}
