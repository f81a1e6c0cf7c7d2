import type { Redis } from 'ioredis';
import { VoltError } from '#protocol/errors.ts';
import type { LedgerOptions } from './client.ts';
import { isForbidden, messageOf, unavailable } from './errors.ts';

const OLDEST_MAJOR = 7;

/**
 * Throws where a server cannot keep the ledger: STORE_UNAVAILABLE where another connection may lead to one that
 * can, Unfit where somebody has to mend this one first.
 */
export async function checkServer(
  server: Redis,
  { mode, minReplicas }: Pick<LedgerOptions, 'mode' | 'minReplicas'>,
): Promise<void> {
  const info = await infoOf(server);
  const major = Number.parseInt(info.get('redis_version') ?? '', 10);
  if (major < OLDEST_MAJOR) {
    throw new Unfit(`Redis ${info.get('redis_version')} has no functions: ${OLDEST_MAJOR} has`);
  }
  const kind = info.get('redis_mode');
  if (kind === 'sentinel' || (kind === 'cluster' && mode !== 'cluster')) {
    throw new Unfit(`the server is of a ${kind}, and redis.mode is "${mode}"`);
  }
  if (info.get('role') === 'slave') {
    throw unavailable('the server is a replica, which takes no writes', false);
  }
  if (kind === 'cluster' && !/cluster_state:ok/.test(await server.cluster('INFO'))) {
    throw unavailable('the cluster is down as this node sees it', false);
  }
  const policy = info.get('maxmemory_policy');
  // A server that evicts keys when it is full would forget leases.
  if (policy !== undefined && policy !== 'noeviction') {
    throw new Unfit(`maxmemory-policy is ${policy}; it must be noeviction`);
  }
  if (minReplicas > 0) await refuseForbidden(() => server.wait(0, 1), 'redis.minReplicas');
}

/** The server cannot be used until an operator has mended what the message says; then it can, as it is. */
export class Unfit extends VoltError {
  constructor(reason: string, cause?: unknown) {
    super('STORE_UNAVAILABLE', reason, { cause });
  }
}

async function infoOf(server: Redis): Promise<Map<string, string>> {
  const text = await refuseForbidden(() => server.info(), 'the settings of the server');
  const lines = text.matchAll(/^(\w+):(.*?)\r?$/gm);
  return new Map([...lines].map(([, name = '', value = '']) => [name, value]));
}

async function refuseForbidden<T>(work: () => Promise<T>, what: string): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!isForbidden(error)) throw error;
    throw new Unfit(`the user lacks a right for ${what}: ${messageOf(error)}`, error);
  }
}
