import { encode } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import { parseTraceContext } from '#protocol/trace-context.ts';
import { MAX_PACKET_BYTES } from '#native/packet.ts';
import type { Headers } from './inbound.ts';

// The packets of the local socket: JSON, checked key by key.

export interface Claim {
  readonly op: 'claim';
  readonly id: string;
  readonly generation?: number;
}

export interface Request {
  readonly op: 'request';
  readonly operation: string;
  /** The host that the packet is meant for, if its sender says so. */
  readonly host?: string;
  readonly body: unknown;
  readonly headers: Headers;
}

export type Packet = { readonly op: 'health' | 'settle' | 'clean' } | Claim | Request;

const OPS = '"claim", "clean", "health", "request" or "settle"';

/** Throws INVALID_REQUEST. */
export function parsePacket(bytes: Uint8Array): Packet {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch (cause) {
    throw new VoltError('INVALID_REQUEST', 'the packet is not JSON', { cause });
  }
  if (typeof value !== 'object' || value === null || !('op' in value)) {
    throw new VoltError('INVALID_REQUEST', `the packet must be {"op": ${OPS}, …}`);
  }
  const { op, ...keys } = value;
  if (op === 'health' || op === 'settle' || op === 'clean') return { op };
  if (op === 'claim') return claimOf(keys);
  if (op === 'request') return requestOf(keys);
  throw wrong('op', `must be ${OPS}`);
}

type Keys = Readonly<Record<string, unknown>>;

function claimOf({ id, generation }: Keys): Claim {
  if (typeof id !== 'string') throw wrong('id', 'must be a string');
  if (generation === undefined || generation === null) return { op: 'claim', id };
  if (!Number.isSafeInteger(generation) || typeof generation !== 'number') {
    throw wrong('generation', 'must be an integer');
  }
  return { op: 'claim', id, generation };
}

function requestOf({ operation, host, body = {}, timeoutMs, ...trace }: Keys): Request {
  if (typeof operation !== 'string') throw wrong('operation', 'must be a string');
  if (host !== undefined && typeof host !== 'string') throw wrong('host', 'must be a string');
  if (timeoutMs !== undefined && !(typeof timeoutMs === 'number' && timeoutMs > 0)) {
    throw wrong('timeoutMs', 'must be a number of milliseconds');
  }
  const [traceparent, tracestate] = ['traceparent', 'tracestate'].map((key) => {
    const value = trace[key];
    return typeof value === 'string' ? value : undefined;
  });
  return {
    op: 'request',
    operation,
    ...(host !== undefined && { host }),
    body,
    headers: {
      trace: parseTraceContext({ traceparent, tracestate }),
      ...(timeoutMs !== undefined && { timeoutMs }),
    },
  };
}

/** The body of a request as the bus carries it. */
export function encodedBody(body: unknown): Uint8Array {
  try {
    return encode(body);
  } catch (cause) {
    if (cause instanceof VoltError) throw cause;
    throw wrong('body', cause instanceof Error ? cause.message : String(cause));
  }
}

export const wrong = (path: string, problem: string): VoltError =>
  new VoltError('INVALID_REQUEST', `${path}: ${problem}`, { details: { path } });

/** An answer as it is sent. A full packet is followed by another one, so the last one must not be full. */
export function jsonOf(body: unknown): Buffer {
  const bytes = Buffer.from(JSON.stringify(body));
  return bytes.length % MAX_PACKET_BYTES === 0 ? Buffer.concat([bytes, Buffer.from('\n')]) : bytes;
}
