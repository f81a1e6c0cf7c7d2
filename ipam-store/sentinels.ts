import { Redis, type RedisOptions } from 'ioredis';
import { addressesOf, firstKnown } from './addresses.ts';
import type { Address } from './cluster.ts';
import { messageOf } from './errors.ts';

/** What sentinels say of a master. The one with the highest epoch knows of the latest fail-over. */
export interface Watched extends Address {
  readonly epoch: number;
  /** Of the process that the sentinel has found at this address; undefined until it has. */
  readonly runId: string | undefined;
}

/** The sentinels of one master, and how to connect to them. */
export interface Sentinels {
  readonly nodes: readonly Address[];
  readonly masterName: string;
  readonly settings: Omit<RedisOptions, 'replyMapping'>;
}

const WATCH_RETRY_MS = 2_000;
const SENTINEL_USER_SETTINGS = 'redis.sentinelUsername and redis.sentinelPasswordFile';
const SWITCHED = '+switch-master';

/**
 * Where the master is. All sentinels are asked at once, and the newest answer of the first half of them counts:
 * one that was cut off while the others changed the master must not be believed for having come first. They may call
 * one master by several names. Throws where they know none, or more than one.
 */
export async function findMaster(sentinels: Sentinels): Promise<Watched> {
  const { nodes } = sentinels;
  const answers: Watched[] = [];
  const reasons = new Set<string>();
  await new Promise<void>((resolve) => {
    const consult = async (node: Address): Promise<void> => {
      try {
        answers.push(await ask(sentinels, node));
      } catch (error) {
        reasons.add(messageOf(error, SENTINEL_USER_SETTINGS));
      }
      asked += 1;
      if (asked === nodes.length || answers.length > nodes.length / 2) resolve();
    };
    let asked = 0;
    for (const node of nodes) void consult(node);
  });
  const epoch = Math.max(...answers.map((one) => one.epoch));
  const newest = answers.filter((one) => one.epoch === epoch);
  for (const one of newest) {
    for (const other of newest) {
      if (await isSame(one, other)) continue;
      throw new Error(`the sentinels disagree: the master is ${nameOf(one)}, or ${nameOf(other)}`);
    }
  }
  const found = await firstKnown(newest);
  if (found !== undefined) return found;
  throw new Error(`no sentinel knows the master: ${[...reasons].toSorted().join('; ')}`);
}

const nameOf = ({ host, port }: Address): string => `${host}:${port}`;

/** Whether two sentinels mean one server: one process, wherever they reach it, or one address, whoever is there. */
async function isSame(one: Watched, other: Watched): Promise<boolean> {
  if (one.runId !== undefined && one.runId === other.runId) return true;
  if (one.port !== other.port) return false;
  if (one.host === other.host) return true;
  const addresses = await addressesOf(one.host);
  return (await addressesOf(other.host)).some((address) => addresses.includes(address));
}

/** Calls `onSwitch` when any of the sentinels has another master than `known`, and not from before it. */
export function watchMaster(
  sentinels: Sentinels,
  known: Watched,
  onSwitch: (master: Address) => void,
): Disposable {
  const clients = sentinels.nodes.map((node) => {
    const client = new Redis({
      ...sentinels.settings,
      ...node,
      retryStrategy: () => WATCH_RETRY_MS,
      autoResubscribe: false,
      enableReadyCheck: false,
    });
    const look = async (): Promise<void> => {
      const master = await masterOf(client, sentinels.masterName);
      if (master.epoch >= known.epoch && !(await isSame(master, known))) onSwitch(master);
    };
    client.on('error', () => {}); // A sentinel that is away is one fewer to tell of a change.
    // What happened before the subscription is seen by looking once it is there.
    client.on(
      'ready',
      () =>
        void client
          .subscribe(SWITCHED)
          .then(look)
          .catch(() => {}),
    );
    client.on('message', () => void look().catch(() => {}));
    client.connect().catch(() => {});
    return client;
  });
  return {
    [Symbol.dispose]: () => {
      for (const client of clients) client.disconnect();
    },
  };
}

async function ask({ settings, masterName }: Sentinels, node: Address): Promise<Watched> {
  const client = new Redis({ ...settings, ...node, enableReadyCheck: false });
  let reason: unknown;
  client.on('error', (error: Error) => {
    reason ??= error;
  });
  try {
    await client.connect();
    return await masterOf(client, masterName);
  } catch (error) {
    throw reason ?? error;
  } finally {
    client.disconnect();
  }
}

/**
 * While a fail-over goes on, its leader has the new epoch with the old address in SENTINEL MASTER; the other
 * command has the address that all are about to get.
 */
async function masterOf(sentinel: Redis, name: string): Promise<Watched> {
  const [address, facts] = await Promise.all([
    sentinel.call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', name),
    sentinel.call('SENTINEL', 'MASTER', name),
  ]);
  const [host, port]: unknown[] = Array.isArray(address) ? address : [];
  const flat: unknown[] = Array.isArray(facts) ? facts : [];
  const fact = (field: string): unknown => flat[flat.indexOf(field) + 1];
  const epoch = Number(fact('config-epoch'));
  if (typeof host !== 'string' || !Number.isInteger(epoch)) {
    throw new TypeError(`SENTINEL MASTER ${name} answered no address`);
  }
  const runId = fact('ip') === host && fact('port') === port ? fact('runid') : undefined;
  const known = typeof runId === 'string' && runId !== '';
  return { host, port: Number(port), epoch, runId: known ? runId : undefined };
}
