import { NatsError } from 'nats';
import { expect, test } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { fromNatsError } from '#protocol/nats-errors.ts';

const subject = 'volt.net.v1.host.h1.attach';

const jetStream = (code: number): NatsError => {
  const error = new NatsError('limit', '503');
  error.api_error = { code: 503, err_code: code, description: 'limit' };
  return error;
};

test.for([
  ['no responders', new NatsError('503', '503'), 'AGENT_UNAVAILABLE'],
  ['a time-out', new NatsError('TIMEOUT', 'TIMEOUT'), 'DEADLINE_EXCEEDED'],
  [
    'a closed connection',
    new NatsError('CONNECTION_CLOSED', 'CONNECTION_CLOSED'),
    'AGENT_UNAVAILABLE',
  ],
  [
    'a draining one',
    new NatsError('CONNECTION_DRAINING', 'CONNECTION_DRAINING'),
    'AGENT_UNAVAILABLE',
  ],
  ['a permission', new NatsError('no', 'PERMISSIONS_VIOLATION'), 'UNAUTHORIZED'],
  ['the server’s largest payload', new NatsError('no', 'MAX_PAYLOAD_EXCEEDED'), 'TOO_LARGE'],
  ['a full work queue', jetStream(10_077), 'OVERLOADED'],
  ['a stream without room', jetStream(10_023), 'OVERLOADED'],
  ['another answer of JetStream', jetStream(10_060), 'AGENT_UNAVAILABLE'],
  ['what is no NATS error', new TypeError('x'), 'AGENT_UNAVAILABLE'],
  ['what is no error', 'x', 'AGENT_UNAVAILABLE'],
] as const)('%s is told as one of ours, with its cause', ([, cause, code]) => {
  const error = fromNatsError(cause, { subject, timeoutMs: 5 });
  expect(error).toMatchObject({ code, cause });
  expect(error.message).toContain(subject);
});

test('an error of ours stays what it is', () => {
  const error = new VoltError('NOT_FOUND', 'x');
  expect(fromNatsError(error, { subject })).toBe(error);
});
