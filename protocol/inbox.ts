import { randomBytes } from 'node:crypto';
import type { NatsHeaders, NatsLike, NatsMessage } from './nats.ts';

/** The inbox prefix of NATS's client libraries. */
export const DEFAULT_INBOX_PREFIX = '_INBOX';

const BYTES = 16;
/** The status of the server's own message: nobody listens to the subject. */
export const NO_RESPONDERS = 503;

/**
 * A random subject for one answer. Client libraries number their inboxes: whoever has seen some of them knows the next
 * ones, and every agent may publish to inboxes, so it could answer a request that was sent to another.
 */
export const unguessableInbox = (prefix: string): string =>
  `${prefix}.${randomBytes(BYTES).toString('base64url')}`;

/** With the `code` that the package `nats` would give it. */
export class RequestError extends Error {
  readonly code: string;

  constructor(code: string) {
    super(code);
    this.code = code;
  }
}

/**
 * Sends a request and resolves with the first answer on `reply`, a subject that nothing else is sent to. Rejects with an
 * error that has the `code` of the library's own. The library's request is not used: with a given reply subject it waits
 * for ever when the connection is closed, and leaves a rejection unhandled when it cannot publish.
 */
export async function requestOnce(
  connection: NatsLike,
  question: {
    readonly subject: string;
    readonly payload: Uint8Array;
    readonly reply: string;
    readonly timeoutMs: number;
    readonly headers?: NatsHeaders;
  },
): Promise<NatsMessage> {
  const { subject, payload, reply, timeoutMs, headers } = question;
  const { promise, resolve, reject } = Promise.withResolvers<NatsMessage>();
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
  // The library finds by this whom to tell when the server does not permit a publication.
  Object.assign(subscription, { requestSubject: subject });
  subscription.closed.then(
    (reason) => reject(reason ?? new RequestError('CONNECTION_CLOSED')),
    reject,
  );
  const timer = setTimeout(() => reject(new RequestError('TIMEOUT')), timeoutMs);
  try {
    connection.publish(subject, payload, { reply, ...(headers !== undefined && { headers }) });
    return await promise;
  } finally {
    clearTimeout(timer);
    if (!subscription.isClosed()) subscription.unsubscribe();
  }
}
