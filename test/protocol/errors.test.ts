import { describe, expect, test } from 'vitest';
import { decodeAnswer, encodeAnswer } from '#protocol/envelope.ts';
import { ERRORS, fromErrorBody, toErrorBody, VoltError } from '#protocol/errors.ts';

describe('the table of codes', () => {
  // As the contract lists them; one more that clients make, and one of ledger.forget.
  const contract =
    `INVALID_REQUEST TOO_LARGE UNAUTHORIZED NOT_FOUND UNKNOWN_NETWORK NETWORK_CONFLICT
    NETWORK_IN_USE ALREADY_ATTACHED WRONG_HOST HOST_CONFLICT POOL_EXHAUSTED ADDRESS_IN_USE
    ADDRESS_OUT_OF_RANGE MAC_IN_USE STALE_GENERATION SUPERSEDED STORE_UNAVAILABLE STORE_VERSION RECOVERING
    NAMESPACE_NOT_FOUND INTERFACE_EXISTS DEVICE_BUSY BRIDGE_FULL PORT_IN_USE PARENT_NOT_FOUND NO_FREE_VF
    UNSUPPORTED OVERLOADED DEADLINE_EXCEEDED SHUTTING_DOWN KERNEL_ERROR INTERNAL`.split(/\s+/);

  test('has every code of the contract, and three more', () => {
    expect(Object.keys(ERRORS).toSorted()).toEqual(
      [...contract, 'AGENT_UNAVAILABLE', 'HOST_ALIVE', 'HOST_CORDONED'].toSorted(),
    );
  });

  test('numbers are of HTTP’s error range', () => {
    for (const { status } of Object.values(ERRORS)) {
      expect(status).toBeGreaterThanOrEqual(400);
      expect(status).toBeLessThan(600);
    }
  });
});

describe('VoltError', () => {
  test('takes retryable from the table, unless told otherwise', () => {
    expect(new VoltError('STORE_UNAVAILABLE', 'away').retryable).toBe(true);
    expect(new VoltError('NETWORK_IN_USE', 'held').retryable).toBe(false);
    expect(new VoltError('NETWORK_IN_USE', 'releasing', { retryable: true }).retryable).toBe(true);
  });

  test('travels whole', () => {
    const sent = new VoltError('POOL_EXHAUSTED', 'volt0 has no free address', {
      retryAfterMs: 1_500,
      details: { network: 'volt0', freeAt: '2026-01-01T00:00:00Z' },
    });
    const received = fromErrorBody(decodeAnswer(encodeAnswer(toErrorBody(sent))));
    expect(received).toBeInstanceOf(VoltError);
    expect(received).toMatchObject({
      code: 'POOL_EXHAUSTED',
      message: 'volt0 has no free address',
      retryable: true,
      retryAfterMs: 1_500,
      details: { network: 'volt0', freeAt: '2026-01-01T00:00:00Z' },
      status: 503,
    });
  });
});

describe('toErrorBody', () => {
  test('leaves out what there is none of', () => {
    expect(toErrorBody(new VoltError('NOT_FOUND', 'x is not attached'))).toEqual({
      error: { code: 'NOT_FOUND', message: 'x is not attached', retryable: false },
    });
  });

  test.for([
    ['an Error', new TypeError('boom'), 'boom'],
    ['a text', 'boom', 'boom'],
    ['undefined', undefined, 'undefined'],
  ] as const)('%s is INTERNAL, without its stack', ([, thrown, message]) => {
    expect(toErrorBody(thrown)).toEqual({ error: { code: 'INTERNAL', message, retryable: false } });
  });
});

describe('fromErrorBody', () => {
  test('keeps the code of a newer agent', () => {
    const error = fromErrorBody({ error: { code: 'QUOTA', message: 'too many', retryable: true } });
    expect(error).toMatchObject({ code: 'QUOTA', retryable: true, status: 500 });
  });

  test.for([
    ['an answer', { attachment: {}, replayed: false }],
    ['nil', null],
    ['a text', 'error'],
    ['an error without a code', { error: { message: 'x' } }],
    ['an error that is a text', { error: 'x' }],
    ['an error that is nil', { error: null }],
  ] as const)('%s is no error', ([, answer]) => {
    expect(fromErrorBody(answer)).toBeNull();
  });

  test('fields of another type than they should be are left out', () => {
    const error = fromErrorBody({
      error: { code: 'INTERNAL', message: 7, retryable: 'yes', retryAfterMs: '1', details: 'x' },
    });
    expect(error).toMatchObject({ code: 'INTERNAL', message: 'INTERNAL', retryable: false });
    expect([error?.retryAfterMs, error?.details]).toEqual([undefined, undefined]);
  });
});
