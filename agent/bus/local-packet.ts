import { encode } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import { type LocalOp, type LocalPackets, localPacketSchema } from '#protocol/local-socket.ts';
import { parseRequest } from '#protocol/parse.ts';
import { parseTraceContext } from '#protocol/trace-context.ts';
import { MAX_PACKET_BYTES } from '#native/packet.ts';
import type { Headers } from './inbound.ts';

// The packets of the local socket, as protocol/local-socket.ts has them, between bytes and values.

export type Claim = LocalPackets['claim'];
export type Request = LocalPackets['request'];

/** Throws INVALID_REQUEST. */
export function parsePacket(bytes: Uint8Array): LocalPackets[LocalOp] {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'));
  } catch (cause) {
    throw new VoltError('INVALID_REQUEST', 'the packet is not JSON', { cause });
  }
  return parseRequest(localPacketSchema, value);
}

/** What travels in headers on the bus. */
export const headersIn = ({ timeoutMs, traceparent, tracestate }: Request): Headers => ({
  trace: parseTraceContext({ traceparent, tracestate }),
  ...(timeoutMs !== undefined && { timeoutMs }),
});

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
