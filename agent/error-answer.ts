import { encodeAnswer } from '#protocol/envelope.ts';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import type { BusAnswer } from './bus.ts';
import { toVoltError } from './errors.ts';

const MAX_BARE_MESSAGE = 1_024;

/** The answer that an error is. Throws nothing: what cannot be encoded goes without its details. */
export function errorAnswer(cause: unknown): BusAnswer {
  const error = toVoltError(cause);
  const { status, code } = error;
  try {
    return { payload: encodeAnswer(toErrorBody(error)), error: { status, code } };
  } catch {
    const { retryable } = error;
    const bare = new VoltError(code, error.message.slice(0, MAX_BARE_MESSAGE), { retryable });
    return { payload: encodeAnswer(toErrorBody(bare)), error: { status, code } };
  }
}
