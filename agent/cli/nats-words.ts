import { type ErrorCode, VoltError } from '#protocol/errors.ts';
import { fromNatsError } from '#protocol/nats-errors.ts';

// Why NATS cannot be used, in an operator's words.

/** Codes of the package `nats`, of Node's sockets, of its resolver, and of OpenSSL. */
const WORDS: readonly (readonly [codes: RegExp, words: string])[] = [
  [/^(CONNECTION_REFUSED|ECONNREFUSED)$/, 'connection refused'],
  [/^ENOTFOUND$/, 'this name is not known to DNS'],
  [/^EAI_/, 'DNS does not answer'],
  [/^(EHOSTUNREACH|ENETUNREACH|EHOSTDOWN)$/, 'there is no way to this address'],
  [/^(ECONNRESET|EPIPE|DISCONNECT|CONNECTION_CLOSED)$/, 'the server closed the connection'],
  [/^SERVER_OPT_NA$/, 'TLS: the server does not offer it'],
  [/^CERT_HAS_EXPIRED$/, "TLS: the server's certificate has expired"],
  [/^ERR_TLS_CERT_ALTNAME_INVALID$/, "TLS: the server's certificate is for another name"],
  [
    /SELF_SIGNED|UNABLE_TO_(VERIFY|GET)/,
    "TLS: nobody who is trusted vouches for the server's certificate (nats.tls.caFile)",
  ],
];
const REFUSED =
  /^(AUTHORIZATION_VIOLATION|BAD_AUTHENTICATION|AUTHENTICATION_(EXPIRED|TIMEOUT)|ACCOUNT_EXPIRED)$/;
const TLS = /^(TLS|EPROTO|ERR_(SSL|TLS|OSSL)_|CERT_)/;
/** JetStream's answers: not enabled for the account, not enabled at all. */
const NO_JETSTREAM: ReadonlySet<unknown> = new Set([10_039, 10_076]);

/** NATS did not take the question: no agent was asked. */
export class Unasked extends VoltError {}

/** Why there is no connection. */
export function unconnected(
  cause: unknown,
  { servers, timeoutMs }: { readonly servers: readonly string[]; readonly timeoutMs: number },
): Unasked {
  const code = codeOf(cause);
  const [errorCode, words] = REFUSED.test(code)
    ? (['UNAUTHORIZED', refusalOf(code)] as const)
    : (['AGENT_UNAVAILABLE', wordsFor(cause, code, timeoutMs)] as const);
  return unasked(errorCode, `cannot connect to NATS at ${servers.join(', ')}: ${words}`, cause);
}

/** Why a question did not reach anybody, if NATS itself says so; undefined for all other errors. */
export function whyUnasked(error: unknown): VoltError | undefined {
  if (error instanceof Unasked) return error;
  return error instanceof VoltError && codeOf(error.cause) === NO_RESPONDERS ? error : undefined;
}

/** What JetStream has refused. */
export function ofJetStream(cause: unknown, timeoutMs: number): VoltError {
  const apiError = fieldOf(cause, 'api_error');
  const missing =
    codeOf(cause) === NO_RESPONDERS || NO_JETSTREAM.has(fieldOf(apiError, 'err_code'));
  if (!missing) return fromNatsError(cause, { subject: 'JetStream', timeoutMs });
  const words =
    'the NATS server has no JetStream, or not for this account (jetstream in nats.conf)';
  return new VoltError('AGENT_UNAVAILABLE', words, { cause });
}

const NO_RESPONDERS = '503';

const unasked = (code: ErrorCode, message: string, cause: unknown): Unasked =>
  new Unasked(code, message, { cause });

const refusalOf = (code: string): string =>
  code.endsWith('EXPIRED')
    ? 'the credentials have expired'
    : 'wrong user, password, token or key, or none';

function wordsFor(cause: unknown, code: string, timeoutMs: number): string {
  if (code === 'TIMEOUT' || code === 'ETIMEDOUT') return `no answer within ${timeoutMs} ms`;
  const known = WORDS.find(([codes]) => codes.test(code));
  if (known !== undefined) return known[1];
  const message = cause instanceof Error ? cause.message : String(cause);
  return TLS.test(code) ? `TLS: ${message}` : message;
}

function codeOf(cause: unknown): string {
  const code = fieldOf(cause, 'code');
  return typeof code === 'string' ? code : '';
}

const fieldOf = (value: unknown, key: string): unknown =>
  typeof value === 'object' && value !== null ? Reflect.get(value, key) : undefined;
