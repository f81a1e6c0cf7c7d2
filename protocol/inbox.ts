import { randomBytes } from 'node:crypto';
import type { Msg, MsgHdrs, NatsConnection } from 'nats';

/** The inbox prefix of NATS's client libraries. */
export const DEFAULT_INBOX_PREFIX = '_INBOX';

const BYTES = 16;
const NO_RESPONDERS = 503;

/**
 * A subject for one answer. Client libraries count: whoever has seen some of their inboxes knows the next ones, and where
 * he may speak in inboxes, as every agent may, could answer a request that was sent to another.
 */
export const unguessableInbox = (prefix: string): string =>
  `${prefix}.${randomBytes(BYTES).toString('base64url')}`;

/** With the `code` that the package `nats` would give it. */
class RequestError extends Error {
  readonly code: string;

  constructor(code: string) {
    super(code);
    this.code = code;
  }
}

/**
 * Asks, and answers what comes first on `reply`, a subject that nothing else is sent to. Rejects with an error that has the
 * `code` of one of the library's, which itself, asked for a reply subject of its own, waits for ever when the connection is
 * closed and leaves a rejection behind when it cannot publish.
 */
export async function requestOnce(
  connection: NatsConnection,
  question: {
    readonly subject: string;
    readonly payload: Uint8Array;
    readonly reply: string;
    readonly timeoutMs: number;
    readonly headers?: MsgHdrs;
  },
): Promise<Msg> {
  const { subject, payload, reply, timeoutMs, headers } = question;
  const { promise, resolve, reject } = Promise.withResolvers<Msg>();
  promise.catch(() => {}); // Nobody waits for it where the publication throws.
  const subscription = connection.subscribe(reply, {
    max: 1,
    callback: (error, message) => {
      if (error !== null) return reject(error);
      try {
        const nobody = message.data.length === 0 && message.headers?.code === NO_RESPONDERS;
        if (nobody) reject(new RequestError(String(NO_RESPONDERS)));
        else resolve(message);
      } catch (cause) {
        reject(cause); // The library reads headers when they are looked at.
      }
    },
  });
  // By this the library finds whom to tell that a publication was not permitted.
  Object.assign(subscription, { requestSubject: subject });
  subscription.closed.then(() => reject(new RequestError('CONNECTION_CLOSED')), reject);
  const timer = setTimeout(() => reject(new RequestError('TIMEOUT')), timeoutMs);
  try {
    connection.publish(subject, payload, { reply, ...(headers !== undefined && { headers }) });
    return await promise;
  } finally {
    clearTimeout(timer);
    if (!subscription.isClosed()) subscription.unsubscribe();
  }
}
