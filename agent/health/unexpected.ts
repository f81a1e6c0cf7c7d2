import { isAtHome } from '#native/namespace.ts';
import type { Log } from '../log.ts';

const LOG_AT_MOST_EVERY_MS = 1_000;

/** What was thrown where nobody catches, since the start; of the last one when and what. */
export interface Seen {
  readonly count: number;
  readonly at?: string;
  readonly message?: string;
}

/**
 * Exceptions and rejections that nobody catches. Once `survive` was called they are logged and counted, and do not end
 * the process. Everything that an agent does for somebody is undone or taken up again by whoever began it, and what it
 * has promised is on disk; so going on is safe, and ending would stop the requests of all others. One state is not: a
 * thread that was left in another network namespace would change that one instead of the host. Then the process ends
 * at once.
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
      this.#log.fatal({ error }, 'stopping: this thread is in a foreign namespace');
      process.abort();
    }
    const count = this.#seen.count + 1;
    this.#seen = { count, at: new Date().toISOString(), message: String(reason) };
    // One that comes in every turn of the loop must not fill the log.
    if (performance.now() < this.#quietUntil) return;
    this.#quietUntil = performance.now() + LOG_AT_MOST_EVERY_MS;
    this.#log.error({ origin, count, error }, 'unexpected error: please report it');
  }
}
