import type { Redis } from 'ioredis';
import { firstKnown } from './addresses.ts';

export interface Address {
  readonly host: string;
  readonly port: number;
}

/** A master of a Redis Cluster; one of them has the slot of the ledger. */
export interface Master extends Address {
  readonly hasLedger: boolean;
}

/**
 * The masters that a node of a Redis Cluster knows, those without slots too. `asked` is where the node was
 * reached: one that has not learned its own address leaves it out. Throws where the node is of no cluster.
 */
export async function mastersOf(
  node: Redis,
  { asked, tls, slot }: { asked: Address; tls: boolean; slot: number },
): Promise<Master[]> {
  const shards = listOf(await node.cluster('SHARDS')).map(pairsOf);
  const masters = shards.flatMap((shard) => {
    const hasLedger = inRanges(slot, listOf(shard.get('slots')).map(Number));
    return listOf(shard.get('nodes'))
      .map(pairsOf)
      .filter((member) => member.get('role') === 'master' && member.get('health') !== 'fail')
      .map(async (member) => ({ ...(await addressOf(member, asked, tls)), hasLedger }));
  });
  return Promise.all(masters);
}

/**
 * An endpoint of "?" is a host name that the node is to announce and does not know; one that is announced may be
 * unknown here.
 */
async function addressOf(
  member: ReadonlyMap<unknown, unknown>,
  asked: Address,
  tls: boolean,
): Promise<Address> {
  const names = new Set([member.get('endpoint'), member.get('ip')]);
  const hosts = [...names].filter(
    (name) => typeof name === 'string' && name !== '' && name !== '?',
  );
  const known = await firstKnown(hosts.map((host) => ({ host: String(host) })));
  const port = Number((tls ? member.get('tls-port') : undefined) ?? member.get('port'));
  return { host: known?.host ?? asked.host, port };
}

/** Ranges come as first, last, first, last. */
const inRanges = (slot: number, bounds: readonly number[]): boolean =>
  bounds.some(
    (first, index) => index % 2 === 0 && first <= slot && slot <= (bounds[index + 1] ?? -1),
  );

const listOf = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);

/** A map of Redis, which comes as name, value, name, value. */
function pairsOf(value: unknown): ReadonlyMap<unknown, unknown> {
  const flat = listOf(value);
  const pairs = new Map<unknown, unknown>();
  for (let index = 0; index < flat.length; index += 2) pairs.set(flat[index], flat[index + 1]);
  return pairs;
}
