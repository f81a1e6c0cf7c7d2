import { describe, expect, test } from 'vitest';
import { EXIT, EXIT_CODES_HELP, exitCodeOf } from '#agent/cli/exit-codes.ts';
import { ERRORS, type ErrorCode, VoltError } from '#protocol/errors.ts';

describe('exit codes', () => {
  test.each<[ErrorCode, number]>([
    ['INVALID_REQUEST', 2],
    ['TOO_LARGE', 2],
    ['AGENT_UNAVAILABLE', 3],
    ['NOT_FOUND', 4],
    ['UNKNOWN_NETWORK', 4],
    ['NAMESPACE_NOT_FOUND', 4],
    ['ALREADY_ATTACHED', 5],
    ['NETWORK_CONFLICT', 5],
    ['NETWORK_IN_USE', 5],
    ['WRONG_HOST', 5],
    ['STALE_GENERATION', 5],
    ['MAC_IN_USE', 5],
    ['POOL_EXHAUSTED', 6],
    ['STORE_UNAVAILABLE', 6],
    ['DEVICE_BUSY', 6],
    ['DEADLINE_EXCEEDED', 6],
    ['UNAUTHORIZED', 7],
    ['KERNEL_ERROR', 1],
    ['INTERNAL', 1],
  ])('%s is %d', (code, exitCode) => {
    expect(exitCodeOf(new VoltError(code, ''))).toBe(exitCode);
  });

  test('whatever may succeed later is 6, also where the code alone would not say so', () => {
    expect(exitCodeOf(new VoltError('NETWORK_IN_USE', '', { retryable: true }))).toBe(EXIT.retry);
    for (const [code, { retryable }] of Object.entries(ERRORS)) {
      if (!retryable || code === 'AGENT_UNAVAILABLE') continue;
      expect(exitCodeOf({ code, retryable })).toBe(EXIT.retry);
    }
  });

  test('a code of a newer agent is 1, or 6 when it says that it is retryable', () => {
    expect(exitCodeOf(new VoltError('NEWER', '', {}))).toBe(EXIT.failed);
    expect(exitCodeOf(new VoltError('NEWER', '', { retryable: true }))).toBe(EXIT.retry);
  });

  test('the help names every one', () => {
    for (const code of Object.values(EXIT)) {
      expect(EXIT_CODES_HELP).toMatch(new RegExp(`(^|[ ,])${code}[ ,]`, 'm'));
    }
  });
});
