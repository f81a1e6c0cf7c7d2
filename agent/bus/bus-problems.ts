import { ErrorCode, NatsError } from 'nats';
import { FileError } from '#ipam-store/named-files.ts';

/**
 * What can be wrong between the agent and NATS. The names never change:
 * - `bus-away`: there is no connection to any server. No request is served, no job taken, no event published.
 * - `credentials-refused`: there is no connection, since no server lets this user in, or the credentials cannot be
 *   read.
 * - `subscription-refused`: the user may not listen on `subject`: requests to the host are not heard there. Tried
 *   again until it may.
 * - `fleet-unheard`: the user may not listen on any other subject: questions and notices to all agents, or answers to
 *   this agent's own questions.
 * - `publish-refused`: the user may not publish on `subject`: messages there are lost, or wait.
 * - `jetstream-away`: JetStream is off, does not answer, has no leader, or stores nothing: no jobs come, or events
 *   wait on the host's disk.
 * - `stream-missing`: the stream `subject` is missing, and the agent cannot make it.
 * - `stream-unfit`: somebody made the stream `subject` in a way in which it cannot serve; it is not used.
 * - `consumer-missing`, `consumer-unfit`: the same for this host's consumer `subject`.
 * - `jobs-not-taken`: this host's jobs wait in the stream. If the reason is one of these problems, it is listed
 *   beside.
 */
export const BUS_PROBLEMS = [
  'bus-away',
  'credentials-refused',
  'subscription-refused',
  'fleet-unheard',
  'publish-refused',
  'jetstream-away',
  'stream-missing',
  'stream-unfit',
  'consumer-missing',
  'consumer-unfit',
  'jobs-not-taken',
] as const;

export type BusProblemName = (typeof BUS_PROBLEMS)[number];

export interface BusProblem {
  readonly name: BusProblemName;
  /** In words, for an operator. It may hold a secret from an address: `Bus.problems` takes it out. */
  readonly reason: string;
  /** The subject, stream or consumer that the problem is about. */
  readonly subject?: string;
}

export class BusProblemError extends Error {
  override readonly name = 'BusProblemError';
  readonly problem: BusProblem;

  constructor(problem: BusProblem, options?: ErrorOptions) {
    super(problem.reason, options);
    this.problem = problem;
  }
}

/** Numbers of JetStream's errors (nats-server, errors.json). */
export const JETSTREAM = {
  noPeers: 10_005,
  consumerNotFound: 10_014,
  notEnabledForAccount: 10_039,
  streamNotFound: 10_059,
  subjectsOverlap: 10_065,
  noCluster: 10_074,
  notEnabled: 10_076,
} as const;

export const isApiError = (error: unknown, code: number): boolean =>
  error instanceof NatsError && error.api_error?.err_code === code;

/** True for this error of the library, whose type for codes is text. */
export function hasCode(error: unknown, code: ErrorCode): boolean {
  const text: string = code;
  return error instanceof NatsError && error.code === text;
}

/** The user may not ask this, or the streams are in another account, and JetStream knows nothing of them here. */
export const cannotBeAsked = (error: unknown): boolean =>
  isApiError(error, JETSTREAM.notEnabledForAccount) ||
  hasCode(error, ErrorCode.PermissionsViolation);

/** True if JetStream is there and will not make something: it has a limit, or an administrator has set one. */
export const isRefusal = (error: unknown): error is BusProblemError =>
  error instanceof BusProblemError &&
  error.cause instanceof NatsError &&
  error.cause.api_error !== undefined &&
  !isApiError(error.cause, JETSTREAM.notEnabled) &&
  !isApiError(error.cause, JETSTREAM.notEnabledForAccount);

/** What an error of JetStream means that is about no stream or consumer in particular. */
export function jetStreamProblem(error: unknown): BusProblem {
  if (error instanceof BusProblemError) return error.problem;
  return { name: 'jetstream-away', reason: jetStreamReason(error) };
}

export function jetStreamReason(error: unknown): string {
  if (!(error instanceof NatsError)) return textOf(error);
  const { api_error: said } = error;
  // The message of such an error may be only its number.
  if (said !== undefined) {
    return JETSTREAM_WORDS.get(said.err_code ?? 0) ?? `JetStream: ${said.description}`;
  }
  if (hasCode(error, ErrorCode.NoResponders)) {
    return 'JetStream is off on this server: add jetstream {} to its configuration';
  }
  if (hasCode(error, ErrorCode.Timeout)) {
    return 'JetStream does not answer: it has no leader while too few of its servers are there';
  }
  return error.message;
}

const JETSTREAM_WORDS: ReadonlyMap<number, string> = new Map([
  [JETSTREAM.noPeers, 'too few servers have JetStream, and room, for so many replicas'],
  [
    JETSTREAM.notEnabledForAccount,
    'JetStream is not enabled for this account: add jetstream: enabled to it',
  ],
  [JETSTREAM.noCluster, 'a server that is alone keeps one replica: nats.streams.replicas is more'],
  [JETSTREAM.notEnabled, 'JetStream is off on this server: add jetstream {} to its configuration'],
]);

/** Why a connection to a server failed, as `server: reason`. */
export function connectProblem(server: string, error: unknown): BusProblem {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  const credentials = CREDENTIAL_WORDS.get(code);
  if (credentials !== undefined) {
    return { name: 'credentials-refused', reason: `${server}: ${credentials}` };
  }
  // The authenticator reads files.
  const name = error instanceof FileError ? 'credentials-refused' : 'bus-away';
  return { name, reason: `${server}: ${CONNECT_WORDS.get(code) ?? textOf(error)}` };
}

const CREDENTIAL_WORDS: ReadonlyMap<string, string> = new Map([
  [
    ErrorCode.AuthorizationViolation,
    'wrong user, password, token or key (authorization violation)',
  ],
  [ErrorCode.BadAuthentication, 'wrong user, password, token or key'],
  [ErrorCode.BadCreds, 'nats.credentialsFile does not hold a JWT and a seed'],
  [ErrorCode.AuthenticationExpired, 'the credentials of this user have expired'],
  [ErrorCode.AccountExpired, "the credentials of this user's account have expired"],
  [ErrorCode.AuthenticationTimeout, 'the server has waited too long for the credentials'],
]);

const CONNECT_WORDS: ReadonlyMap<string, string> = new Map([
  [ErrorCode.ConnectionRefused, 'connection refused'],
  ['ECONNREFUSED', 'connection refused'],
  ['ECONNRESET', 'the server has closed the connection'],
  ['EHOSTUNREACH', 'no route to that host'],
  ['ENETUNREACH', 'no route to that network'],
  ['ENOTFOUND', 'no host has this name (DNS)'],
  ['EAI_AGAIN', 'DNS does not answer'],
  [ErrorCode.Timeout, 'no answer: the server, or what is between, is silent'],
  [
    ErrorCode.ServerOptionNotAvailable,
    'the server offers no TLS, and nats.tls is set; or it wants TLS, and nats.tls is null',
  ],
]);

const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));
