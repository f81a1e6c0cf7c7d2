import { NatsError } from 'nats';
import { expect, test } from 'vitest';
import { areLeftBehind } from '#agent/bus/job-consumer.ts';
import { whyNotStored } from '#agent/bus/streams.ts';

const counts = (stored: number, pending: number, unacknowledged: number) => ({
  stored,
  pending,
  unacknowledged,
  delivered: 4_711,
});

test.each([
  ['nothing is stored', counts(0, 0, 0), 600_000, false],
  ['something was delivered just now', counts(9, 0, 0), 0, false],
  ['the consumer expects none of them', counts(9, 0, 0), 5_000, true],
  ['it could deliver at once, and has been asked just now', counts(9, 9, 0), 5_000, false],
  ['it could deliver at once, and does not', counts(9, 9, 3), 15_000, true],
  ['as many as may be wait for their next try', counts(300_900, 900, 300_000), 60_000, false],
  ['all wait for their next try', counts(9, 0, 9), 60_000, false],
  ['no try comes any more', counts(9, 0, 9), 90_000, true],
])('jobs are left behind or not: %s', (_, some, quietMs, left) => {
  expect(areLeftBehind(some, quietMs)).toBe(left);
});

test.each([
  ['an account that is full', 400, 10_002, 'later'],
  ['a message that is larger than the stream takes', 400, 10_054, 'never'],
  ['a stream that is full', 503, 10_077, 'later'],
  ['headers that are larger than the stream takes', 400, 10_097, 'never'],
  ['a stream that is sealed', 400, 10_109, 'later'],
  ['what no version knows yet', 400, 10_999, 'later'],
])(
  'an event is given up for what is wrong with itself alone: %s',
  (description, code, err_code, why) => {
    const error = new NatsError(description, String(code));
    error.api_error = { code, err_code, description };
    expect(whyNotStored(error)).toBe(why);
  },
);
