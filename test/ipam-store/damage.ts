import type { Redis } from 'ioredis';
import type { Ledger } from '#ipam-store/ledger.ts';
import type { Member } from './member.ts';
import { ROOT } from './fixture.ts';

/** Which of all keys is damaged, and whether all of it goes, or one entry or field. */
export interface Damage {
  readonly key: number;
  readonly entry: number | null;
}

/** Something of the ledger is gone. Answers what. */
export async function damage(raw: Redis, { key: which, entry }: Damage): Promise<string> {
  const keys = (await raw.keys(`${ROOT}:*`)).toSorted();
  const key = keys[which % keys.length] ?? '';
  const type = await raw.type(key);
  if (entry === null || !['hash', 'zset'].includes(type)) {
    await raw.del(key);
    return key;
  }
  const isHash = type === 'hash';
  const fields = isHash ? (await raw.hkeys(key)).toSorted() : [];
  // Of MACs there is one index alone: the check misses one, and no grant does.
  const entries = isHash
    ? fields.filter((field) => !field.startsWith('mac:'))
    : await raw.zrange(key, '0', '-1');
  const gone = entries[entry % entries.length] ?? '';
  await (isHash ? raw.hdel(key, gone) : raw.zrem(key, gone));
  return `${key} ${gone}`;
}

/** An operator repairs and hosts answer, until the ledger agrees with itself. Answers what is left. */
export async function mend(ledger: Ledger, members: readonly Member[]): Promise<string[]> {
  let left: string[] = [];
  for (let round = 0; round < 6; round += 1) {
    left = [];
    for await (const difference of ledger.audit()) {
      left.push(difference.what);
      await ledger.repair(difference).catch(() => {}); // The next round sees it again.
    }
    for (const member of [...members, ...members]) await member.turn();
    if (left.length === 0) break;
  }
  return left;
}
