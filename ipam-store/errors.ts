import { ReplyError } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import type { Fields } from './fields.ts';
import { fromHex } from './pool.ts';

/** The network's definition has changed since the request was checked: read it again, and check again. */
export class RevisionChanged extends Error {
  readonly code = 'REVISION_CHANGED';
}

/**
 * Redis did not answer. `details.sent` is false where the call has certainly not been done; otherwise it may
 * have been, and only a repeat or a read tells.
 */
export const unavailable = (reason: string, sent: boolean, cause?: unknown): VoltError =>
  new VoltError('STORE_UNAVAILABLE', `Redis: ${reason}`, { details: { sent }, cause });

// Replies with which a server says that it will not do anything for now.
const NOT_NOW =
  /^(READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|OOM|MISCONF|NOREPLICAS|MOVED|ASK|UNBLOCKED)\b/;
// Those after which the ledger may be on another server.
const ELSEWHERE = /^(READONLY|MASTERDOWN|CLUSTERDOWN|MOVED|UNBLOCKED)\b/;
const NOT_ALLOWED = /^(NOPERM|NOAUTH|WRONGPASS)\b/;

// Replies of a server that does not know who asks.
const NOT_KNOWN = /^(NOAUTH|WRONGPASS)\b/;
const USER_SETTINGS = 'redis.username and redis.passwordFile';

/**
 * What went wrong, and where the server does not know who asks, which settings say it. An AggregateError, of a host name
 * with several addresses, has no message of its own.
 */
export const messageOf = (error: unknown, userSettings = USER_SETTINGS): string => {
  if (error instanceof AggregateError) {
    return error.errors.map((one) => messageOf(one, userSettings)).join(', ');
  }
  const message = error instanceof Error ? error.message : String(error);
  const isUnknown = error instanceof ReplyError && NOT_KNOWN.test(message);
  return isUnknown ? `${message} (set ${userSettings})` : message;
};

/** True when the server refused for reasons that an operator has to mend. */
export const isForbidden = (error: unknown): boolean =>
  error instanceof ReplyError && NOT_ALLOWED.test(messageOf(error));

/** True when the server has answered, and waiting will not change the answer. */
export const isFinal = (error: unknown): boolean =>
  error instanceof ReplyError && !NOT_NOW.test(messageOf(error));

/** True when the server has said that it is not, or not any more, the one to ask. */
export const isElsewhere = (error: unknown): boolean =>
  error instanceof ReplyError && ELSEWHERE.test(messageOf(error));

/** True when the server has not answered in time: a command, a connection, or a connection's first check. */
export const isTimeout = (error: unknown): boolean =>
  !(error instanceof ReplyError) && /timed out|timeout|ETIMEDOUT/i.test(messageOf(error));

export const isMissingFunction = (error: unknown): boolean =>
  error instanceof ReplyError && messageOf(error).includes('Function not found');

/** What a call ended with, as an error of the protocol. */
export function storeError(error: unknown): VoltError {
  if (error instanceof VoltError) return error;
  const reason = messageOf(error);
  if (isForbidden(error) || isMissingFunction(error)) return unavailable(reason, false, error);
  // A key of the ledger has a type that no function gives it: the audit names the key.
  if (error instanceof ReplyError && reason.includes('WRONGTYPE'))
    return unavailable(reason, false, error);
  if (isFinal(error)) return new VoltError('INTERNAL', `Redis: ${reason}`, { cause: error });
  // With these words ioredis refuses a command that it has not written.
  const kept = reason.includes('enableOfflineQueue');
  return unavailable(reason, !(error instanceof ReplyError) && !kept, error);
}

/** A message of the ledger's; the address in it is hex by itself. */
export const withAddress = (message: string, hex: string): string =>
  message.replace('{address}', fromHex(hex).toString());

/** The error that a function answered. Addresses come as hex, generations as text. */
export function refusalError(refusal: Fields): Error {
  const code = refusal.text('code');
  let message = refusal.text('message');
  if (code === 'REVISION_CHANGED') return new RevisionChanged(message);
  const details = refusal.has('details') ? { ...refusal.object('details').all() } : {};
  const { address, generation } = details;
  if (typeof address === 'string') {
    details['address'] = fromHex(address).toString();
    message = withAddress(message, address);
  }
  if (generation !== undefined) details['generation'] = Number(generation);
  return new VoltError(code, message, {
    details,
    ...(refusal.has('retryAfterMs') && { retryAfterMs: refusal.number('retryAfterMs') }),
  });
}
