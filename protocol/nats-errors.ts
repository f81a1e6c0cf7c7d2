import { type ErrorCode, VoltError } from './errors.ts';

// The libraries are not imported. Errors of `nats` 2 are known by their `code` (its enum ErrorCode), those of version 3 by
// their `name`, and those of JetStream by the number in `api_error`.
const CODES: Readonly<Record<string, ErrorCode>> = {
  TIMEOUT: 'DEADLINE_EXCEEDED',
  PERMISSIONS_VIOLATION: 'UNAUTHORIZED',
  AUTHORIZATION_VIOLATION: 'UNAUTHORIZED',
  MAX_PAYLOAD_EXCEEDED: 'TOO_LARGE',
  BAD_SUBJECT: 'INVALID_REQUEST',
  PermissionViolationError: 'UNAUTHORIZED',
  AuthorizationError: 'UNAUTHORIZED',
  UserAuthenticationExpiredError: 'UNAUTHORIZED',
  InvalidSubjectError: 'INVALID_REQUEST',
};
/** How each library says that a message is larger than the server takes. */
const TOO_LARGE = new Set(['MAX_PAYLOAD_EXCEEDED', 'InvalidArgumentError']);
const NO_RESPONDERS = '503';
const STREAM_NOT_FOUND = 10_059;
const EXPECTED_OTHER_STREAM = 10_060;

// JSApiError numbers of nats-server: 10023 insufficient resources, 10047 storage, 10054 a message larger than
// the stream takes, 10077 a limit of the stream with discard new.
const JETSTREAM_CODES: Readonly<Record<number, ErrorCode>> = {
  10023: 'OVERLOADED',
  10047: 'OVERLOADED',
  10054: 'TOO_LARGE',
  10077: 'OVERLOADED',
};

/** An error of the NATS client as one of ours; AGENT_UNAVAILABLE where nothing else fits. */
export function fromNatsError(
  cause: unknown,
  { subject, timeoutMs }: { readonly subject: string; readonly timeoutMs?: number },
): VoltError {
  if (cause instanceof VoltError) return cause;
  const natsCode = natsCodeOf(cause);
  const code = JETSTREAM_CODES[jetStreamNumber(cause)] ?? CODES[natsCode] ?? 'AGENT_UNAVAILABLE';
  return new VoltError(code, `${subject}: ${reasonOf(cause, natsCode, timeoutMs)}`, { cause });
}

/** The stream that would have stored the message is not the one that its sender expected. */
export const isOfOtherStream = (cause: unknown): boolean =>
  jetStreamNumber(cause) === EXPECTED_OTHER_STREAM;

/** Of a publication: the server takes no message of this size. */
export const isTooLarge = (cause: unknown): boolean => TOO_LARGE.has(natsCodeOf(cause));

function natsCodeOf(cause: unknown): string {
  if (!(cause instanceof Error)) return '';
  return 'code' in cause ? String(cause.code) : cause.name;
}

export const isNoStream = (cause: unknown): boolean => jetStreamNumber(cause) === STREAM_NOT_FOUND;

function jetStreamNumber(cause: unknown): number {
  if (!(cause instanceof Error) || !('api_error' in cause)) return 0;
  const error = cause.api_error;
  if (typeof error !== 'object' || error === null || !('err_code' in error)) return 0;
  return Number(error.err_code);
}

function reasonOf(cause: unknown, natsCode: string, timeoutMs: number | undefined): string {
  if (natsCode === NO_RESPONDERS) return 'nobody serves this subject';
  if (natsCode === 'TIMEOUT') {
    return timeoutMs === undefined ? 'no answer' : `no answer within ${timeoutMs} ms`;
  }
  return cause instanceof Error ? cause.message : String(cause);
}
