import { expect, test } from 'vitest';
import { jsonProblem, keepSecretsOf, keptSecret, redacted, secretIn } from '#protocol/secrets.ts';

test.each([
  ['nats://user:pass@host:4222', 'nats://user:***@host:4222'],
  ['at nats://user:pass@h1:1,nats://user:pass@h2', 'at nats://user:***@h2'],
  ['at nats://h1:1,nats://user:pass@h2!', 'at nats://h1:***@h2!'],
  ['redis://:pass@host/0 refused', 'redis://:***@host/0 refused'],
  ['nats://token@host and more', 'nats://***@host and more'],
  ['redis://user@name:pa@ss:w/ord@host', 'redis://user@name:***@host'],
  ['{"url":"rediss://a:b@h","x":"c@d"}', '{"url":"rediss://a:***@h","x":"c@d"}'],
  ['nats://host:4222 for admin@example.org', 'nats://host:4222 for admin@example.org'],
])('%s is printed as %s', (text, clean) => {
  expect(redacted(text)).toBe(clean);
});

test('a secret that was read is hidden wherever it stands, in every form in which it is quoted', () => {
  expect(secretIn('line "one"/2\r\n')).toBe('line "one"/2');
  const quoted = JSON.stringify({ args: ['line "one"/2'] });
  const inUrl = encodeURIComponent('line "one"/2');
  expect(redacted(`line "one"/2, ${quoted}, ${inUrl}`)).toBe('***, {"args":["***"]}, ***');
  keptSecret('abc');
  expect(redacted('abc')).toBe('abc');
});

test('what is before an @ in an address is a secret, whatever is wrong with the address', () => {
  keepSecretsOf('nats://user:first one@h h,user:second%2Fone@h2');
  expect(redacted('first one; second%2Fone; second/one')).toBe('***; ***; ***');
});

test('an error of JSON.parse is told without the text', () => {
  for (const text of [
    '{"a":"hunter2"x}',
    'hunter2',
    '{"a":"hunter2",}',
    '["hunter2"',
    '{hunter2}',
  ]) {
    let problem = '';
    try {
      JSON.parse(text);
    } catch (error) {
      problem = jsonProblem(error);
    }
    expect(problem).not.toBe('');
    expect(problem).not.toContain('unter2');
  }
});
