import { Redis, type RedisOptions } from 'ioredis';
import type { Address } from './cluster.ts';
import { messageOf } from './errors.ts';

/** What sentinels say of a master. The one with the highest epoch knows of the latest fail-over. */
export interface Watched extends Address {
  readonly epoch: number;
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
 * one that was cut off while the others changed the master must not be believed for having come first.
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
  const [newest] = answers.toSorted((a, b) => b.epoch - a.epoch);
  if (newest !== undefined) return newest;
  throw new Error(`no sentinel knows the master: ${[...reasons].toSorted().join('; ')}`);
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
      const moved = master.host !== known.host || master.port !== known.port;
      if (moved && master.epoch >= known.epoch) onSwitch(master);
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
  const epoch = Number(flat[flat.indexOf('config-epoch') + 1]);
  if (typeof host !== 'string' || !Number.isInteger(epoch)) {
    throw new TypeError(`SENTINEL MASTER ${name} answered no address`);
  }
  return { host, port: Number(port), epoch };
}
