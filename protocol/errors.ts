import { redacted } from './secrets.ts';

interface ErrorKind {
  /** True when the same request may succeed later without anybody changing it. */
  readonly retryable: boolean;
  /** The number in the header `Nats-Service-Error-Code`; HTTP's meaning, as NATS services use it. */
  readonly status: number;
}

/** Every code of the protocol. A code is never given another meaning; new ones may be added. */
export const ERRORS = {
  INVALID_REQUEST: { retryable: false, status: 400 },
  TOO_LARGE: { retryable: false, status: 413 },
  UNAUTHORIZED: { retryable: false, status: 403 },
  NOT_FOUND: { retryable: false, status: 404 },
  UNKNOWN_NETWORK: { retryable: false, status: 404 },
  NETWORK_CONFLICT: { retryable: false, status: 409 },
  NETWORK_IN_USE: { retryable: false, status: 409 },
  ALREADY_ATTACHED: { retryable: false, status: 409 },
  WRONG_HOST: { retryable: false, status: 421 },
  HOST_CONFLICT: { retryable: false, status: 409 },
  /** An operator has closed the host to new attachments. */
  HOST_CORDONED: { retryable: false, status: 409 },
  /** `ledger.forget` of a host that sends heartbeats. */
  HOST_ALIVE: { retryable: false, status: 409 },
  POOL_EXHAUSTED: { retryable: true, status: 503 },
  ADDRESS_IN_USE: { retryable: true, status: 409 },
  ADDRESS_OUT_OF_RANGE: { retryable: false, status: 400 },
  MAC_IN_USE: { retryable: false, status: 409 },
  STALE_GENERATION: { retryable: false, status: 409 },
  SUPERSEDED: { retryable: false, status: 409 },
  STORE_UNAVAILABLE: { retryable: true, status: 503 },
  STORE_VERSION: { retryable: false, status: 500 },
  RECOVERING: { retryable: true, status: 503 },
  NAMESPACE_NOT_FOUND: { retryable: false, status: 404 },
  INTERFACE_EXISTS: { retryable: false, status: 409 },
  DEVICE_BUSY: { retryable: true, status: 423 },
  BRIDGE_FULL: { retryable: true, status: 503 },
  PORT_IN_USE: { retryable: false, status: 409 },
  PARENT_NOT_FOUND: { retryable: false, status: 404 },
  NO_FREE_VF: { retryable: true, status: 503 },
  UNSUPPORTED: { retryable: false, status: 501 },
  OVERLOADED: { retryable: true, status: 429 },
  DEADLINE_EXCEEDED: { retryable: true, status: 504 },
  SHUTTING_DOWN: { retryable: true, status: 503 },
  KERNEL_ERROR: { retryable: false, status: 500 },
  INTERNAL: { retryable: false, status: 500 },
  /** Made by clients, never sent: nobody serves the host's subjects, or NATS cannot be reached. */
  AGENT_UNAVAILABLE: { retryable: true, status: 503 },
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof ERRORS;

export interface ErrorBody {
  readonly error: {
    readonly code: string;
    readonly message: string;
    readonly retryable: boolean;
    readonly retryAfterMs?: number;
    readonly details?: Readonly<Record<string, unknown>>;
  };
}

export interface VoltErrorOptions {
  readonly retryable?: boolean;
  readonly retryAfterMs?: number | undefined;
  readonly details?: Readonly<Record<string, unknown>> | undefined;
  readonly cause?: unknown;
}

/** An error of the protocol. Branch on `code`. */
export class VoltError extends Error {
  /** One of ERRORS, or the code of a newer agent. */
  readonly code: string;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(code: ErrorCode, message: string, options?: VoltErrorOptions);
  constructor(code: string, message: string, options: VoltErrorOptions);
  constructor(code: string, message: string, options: VoltErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.name = 'VoltError';
    this.code = code;
    this.retryable = options.retryable ?? kindOf(code).retryable;
    this.retryAfterMs = options.retryAfterMs;
    this.details = options.details;
  }

  get status(): number {
    return kindOf(this.code).status;
  }
}

const isKnown = (code: string): code is ErrorCode => Object.hasOwn(ERRORS, code);

const kindOf = (code: string): ErrorKind => ERRORS[isKnown(code) ? code : 'INTERNAL'];

/** The error as every reply and every `failed` event carries it. What is no VoltError is INTERNAL. */
export function toErrorBody(error: unknown): ErrorBody {
  if (!(error instanceof VoltError)) {
    const message = error instanceof Error ? error.message : String(error);
    return { error: { code: 'INTERNAL', message: redacted(message), retryable: false } };
  }
  const { code, message, retryable, retryAfterMs, details } = error;
  return {
    error: {
      code,
      message: redacted(message),
      retryable,
      ...(retryAfterMs !== undefined && { retryAfterMs }),
      ...(details !== undefined && { details }),
    },
  };
}

/** The error in an answer; null when the answer is none. Codes that this version does not know are kept. */
export function fromErrorBody(answer: unknown): VoltError | null {
  if (typeof answer !== 'object' || answer === null || !('error' in answer)) return null;
  const { error } = answer;
  if (typeof error !== 'object' || error === null) return null;
  const fields: Readonly<Record<string, unknown>> = { ...error };
  const { code, message, retryable, retryAfterMs, details } = fields;
  if (typeof code !== 'string') return null;
  return new VoltError(code, typeof message === 'string' ? message : code, {
    retryable: retryable === true,
    ...(typeof retryAfterMs === 'number' && { retryAfterMs }),
    ...(typeof details === 'object' && details !== null && { details: { ...details } }),
  });
}
