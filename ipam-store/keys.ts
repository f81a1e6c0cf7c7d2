import { VoltError } from '#protocol/errors.ts';

/** Which ledger: the keys of one that has a cell have a hash tag, and with it a slot of a Redis Cluster, of their own. */
export interface Place {
  readonly keyPrefix: string;
  readonly cell?: string | null;
}

/**
 * Root of all keys of one ledger, and the only key a function is told; functions/common.lua lists what hangs
 * from it. The braces are the hash tag of Redis Cluster: one slot for all, so that one function can check an
 * id, a network and its addresses in one step.
 */
export function rootKey({ keyPrefix, cell = null }: Place): string {
  if (/[{}]/.test(keyPrefix)) {
    throw new VoltError('INVALID_REQUEST', `redis.keyPrefix: "${keyPrefix}" may not hold braces`, {
      details: { path: 'redis.keyPrefix' },
    });
  }
  return `${keyPrefix}{${tagOf(cell)}}`;
}

/** The hash slot of every key of a ledger, as CLUSTER KEYSLOT answers it. */
export const slotOf = (cell: string | null = null): number => crc16(tagOf(cell)) % SLOTS;

const SLOTS = 16_384;
const tagOf = (cell: string | null): string => (cell === null ? 'ledger' : `ledger-${cell}`);

/** CRC-16/XMODEM, which the specification of Redis Cluster names. */
function crc16(text: string): number {
  let crc = 0;
  for (const byte of Buffer.from(text)) {
    crc ^= byte << 8;
    for (let bit = 0; bit < 8; bit += 1)
      crc = (crc & 0x8000) === 0 ? crc << 1 : (crc << 1) ^ 0x1021;
    crc &= 0xffff;
  }
  return crc;
}
