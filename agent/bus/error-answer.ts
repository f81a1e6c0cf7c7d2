import { encodeAnswer } from '#protocol/envelope.ts';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import type { BusAnswer } from './serving.ts';
import { toVoltError } from '../errors.ts';

const MAX_BARE_MESSAGE = 1_024;

/**
 * The answer for an error. Throws nothing: an error that cannot be encoded, or has more than `most` bytes, loses its
 * details.
 */
export function errorAnswer(cause: unknown, most = Number.POSITIVE_INFINITY): BusAnswer {
  const error = toVoltError(cause);
  const { status, code } = error;
  try {
    const payload = encodeAnswer(toErrorBody(error));
    if (payload.byteLength <= most) return { payload, error: { status, code } };
  } catch {
    // Without its details it can be encoded.
  }
  const { retryable } = error;
  const bare = new VoltError(code, error.message.slice(0, MAX_BARE_MESSAGE), { retryable });
  return { payload: encodeAnswer(toErrorBody(bare)), error: { status, code } };
}
