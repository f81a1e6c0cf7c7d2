import { isAtHome } from '#native/namespace.ts';
import type { Log } from './log.ts';

/** What was thrown where nobody catches, since the start. */
export interface UnexpectedErrors {
  readonly count: number;
  /** Of the last one. */
  readonly at?: string;
  readonly message?: string;
}

const LOG_AT_MOST_EVERY_MS = 1_000;

/**
 * From here on an exception or rejection that nobody catches is logged and counted, and does not end the process.
 * Everything that an agent does for somebody is undone or taken up again by whoever began it, and what it has promised
 * is on disk; so going on is safe, and ending would stop the requests of all others. One state is not: a thread that
 * was left in another network namespace would change that one instead of the host. Then the process ends at once.
 */
export function survive(log: Log): () => UnexpectedErrors {
  let seen: UnexpectedErrors = { count: 0 };
  let quietUntil = 0;
  process.on('uncaughtException', (error, origin) => {
    if (!isAtHome()) {
      log.fatal({ error: describe(error) }, 'stopping: this thread is in a foreign namespace');
      process.abort();
    }
    const count = seen.count + 1;
    seen = { count, at: new Date().toISOString(), message: String(error) };
    // One that comes in every turn of the loop must not fill the log.
    if (performance.now() < quietUntil) return;
    quietUntil = performance.now() + LOG_AT_MOST_EVERY_MS;
    log.error({ origin, count, error: describe(error) }, 'unexpected error: please report it');
  });
  return () => seen;
}

// A rejection's reason may be anything.
const describe = (error: unknown): string =>
  error instanceof Error ? (error.stack ?? error.message) : String(error);
