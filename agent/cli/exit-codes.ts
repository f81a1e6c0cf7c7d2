import type { VoltError } from '#protocol/errors.ts';

/**
 * The exit codes of `voltnet`. They never change: scripts branch on them. Once `voltnet exec` has started its
 * command, the code is the command's own.
 */
export const EXIT = {
  ok: 0,
  /** The agent answered with an error that has no code of its own here. */
  failed: 1,
  /** The command line, a file that it names, or the request itself is wrong: a repeat cannot help. */
  usage: 2,
  /** No agent answered: NATS or JetStream is away, no agent serves this host, or its local socket is not there. */
  unreachable: 3,
  /** What the request names does not exist. */
  notFound: 4,
  /** Somebody else has it, or it is attached with other content. */
  conflict: 5,
  /** The same request may succeed later: a retryable error, or a deadline that has passed. */
  retry: 6,
  /** The agent, or NATS, refuses this caller. */
  denied: 7,
  /**
   * `check` found differences or could not compare everything; `status` found an agent that cannot serve now;
   * `doctor` found a problem.
   */
  differs: 8,
  /** `exec`: the command is there and cannot be executed. */
  cannotExecute: 126,
  /** `exec`: there is no such command. */
  commandNotFound: 127,
} as const;

/** The exit codes of `volt-network-agent`, by sysexits.h. systemd's unit goes by them. */
export const AGENT_EXIT = {
  ok: 0,
  failed: 1,
  /** EX_UNAVAILABLE, which `deploy/bin/node` ends with. */
  noNode: 69,
  /** EX_TEMPFAIL. */
  locked: 75,
  /** EX_CONFIG. */
  configuration: 78,
} as const;

export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

const BY_ERROR_CODE: Readonly<Record<string, ExitCode>> = {
  INVALID_REQUEST: EXIT.usage,
  TOO_LARGE: EXIT.usage,
  AGENT_UNAVAILABLE: EXIT.unreachable,
  NOT_FOUND: EXIT.notFound,
  UNKNOWN_NETWORK: EXIT.notFound,
  NAMESPACE_NOT_FOUND: EXIT.notFound,
  PARENT_NOT_FOUND: EXIT.notFound,
  ALREADY_ATTACHED: EXIT.conflict,
  NETWORK_CONFLICT: EXIT.conflict,
  NETWORK_IN_USE: EXIT.conflict,
  WRONG_HOST: EXIT.conflict,
  HOST_CONFLICT: EXIT.conflict,
  HOST_CORDONED: EXIT.conflict,
  HOST_ALIVE: EXIT.conflict,
  STALE_GENERATION: EXIT.conflict,
  SUPERSEDED: EXIT.conflict,
  ADDRESS_IN_USE: EXIT.conflict,
  MAC_IN_USE: EXIT.conflict,
  INTERFACE_EXISTS: EXIT.conflict,
  PORT_IN_USE: EXIT.conflict,
  DEADLINE_EXCEEDED: EXIT.retry,
  UNAUTHORIZED: EXIT.denied,
};

/** Unreachable comes first: it is retryable, too, and tells a script where to look. */
export function exitCodeOf(error: Pick<VoltError, 'code' | 'retryable'>): ExitCode {
  const known = BY_ERROR_CODE[error.code];
  if (known === EXIT.unreachable) return known;
  if (error.retryable) return EXIT.retry;
  return known ?? EXIT.failed;
}

/** The end of `voltnet --help`. */
export const EXIT_CODES_HELP = `
Exit codes:
  0  done                                  5  somebody else has it, or its content differs
  1  the agent answered an error           6  try again: a server is away, the device is busy, ...
  2  wrong usage or invalid request        7  not permitted
  3  no agent answered, or NATS is away    8  check, status, doctor, setup found a fault
  4  not found                             126, 127  exec: command not executable, not found`;
