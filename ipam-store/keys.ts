import { VoltError } from '#protocol/errors.ts';

/** The hash slot of every key of every ledger: that of `{ledger}`, as CLUSTER KEYSLOT answers it. */
export const LEDGER_SLOT = 2_466;

/**
 * Root of all keys of one ledger, and the only key a function is told; functions/common.lua lists what hangs
 * from it. The braces are the hash tag of Redis Cluster: one slot for all, so that one function can check an
 * id, a network and its addresses in one step.
 */
export function rootKey(keyPrefix: string): string {
  if (/[{}]/.test(keyPrefix)) {
    throw new VoltError('INVALID_REQUEST', `redis.keyPrefix: "${keyPrefix}" may not hold braces`, {
      details: { path: 'redis.keyPrefix' },
    });
  }
  return `${keyPrefix}{ledger}`;
}
