import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import type { Certificates } from './certificates.ts';
import { freePort, type Server, startRedis, startSentinel } from './servers.ts';

interface Address {
  readonly host: string;
  readonly port: number;
}

/** A Redis master, its replicas, and three sentinels that watch them. */
export interface SentinelFleet {
  readonly master: Server;
  readonly replicas: readonly Server[];
  readonly sentinels: readonly Server[];
  readonly nodes: readonly Address[];
  readonly masterName: string;
  /** Port of the server that the first sentinel calls the master now. */
  masterPort(): Promise<number>;
  stop(): Promise<void>;
}

/** A Redis Cluster of three masters. The first one has the slots that it is asked for, and a replica. */
export interface ClusterFleet {
  readonly masters: readonly [Server, Server, Server];
  readonly replica: Server;
  readonly nodes: readonly Address[];
  stop(): Promise<void>;
}

const MASTER_NAME = 'volt';
const READY_TIMEOUT_MS = 20_000;
// How often sentinels ask and tell, in milliseconds; at their own pace a fail-over takes ten seconds. During one
// they ask replicas once a second, whatever is set here. So a replica of whom nothing was heard for five ping
// periods must still be a candidate, and one that calls itself a master be left alone for four publish periods.
const SENTINEL_PACE = {
  'info-period': 100,
  'ping-period': 300,
  'ask-period': 50,
  'publish-period': 400,
};
// Otherwise a master waits five seconds for further replicas before it sends the first one a copy.
const REPLICATION = ['--repl-diskless-sync-delay', '0'];
const SLOT_RANGES = [
  [0, 5_460],
  [5_461, 10_922],
  [10_923, 16_383],
] as const;

export async function startSentinelFleet({
  replicas: replicaCount = 1,
  redisArgs = [],
  sentinelLines = [],
  names = ['127.0.0.1', '127.0.0.1', '127.0.0.1'],
  tls,
}: {
  replicas?: number;
  /** What each sentinel calls the master: an address of it, or a name. */
  names?: readonly [string, string, string];
  redisArgs?: readonly string[];
  /** Of every sentinel's configuration. */
  sentinelLines?: readonly string[];
  tls?: Certificates | undefined;
} = {}): Promise<SentinelFleet> {
  const args = [...REPLICATION, ...redisArgs];
  const master = await startRedis({ args, tls });
  const replicaOf = ['--replicaof', '127.0.0.1', String(master.port)];
  const replicas = await Promise.all(
    Array.from({ length: replicaCount }, () => startRedis({ args: [...args, ...replicaOf], tls })),
  );
  const linesOf = (name: string): string[] => [
    ...(isIP(name) === 0
      ? ['sentinel resolve-hostnames yes', 'sentinel announce-hostnames yes']
      : []),
    `sentinel monitor ${MASTER_NAME} ${name} ${master.port} 2`,
    `sentinel down-after-milliseconds ${MASTER_NAME} 500`,
    `sentinel failover-timeout ${MASTER_NAME} 1000`,
    ...sentinelLines,
  ];
  const sentinels = await Promise.all(
    names.map((name) => startSentinel({ lines: linesOf(name), tls })),
  );
  const factsOf = async (client: Redis): Promise<Map<unknown, unknown>> =>
    pairsOf(await client.call('SENTINEL', 'MASTER', MASTER_NAME));
  await Promise.all(
    sentinels.map((sentinel) =>
      asking(sentinel.port, tls, async (client) => {
        const pace = Object.entries(SENTINEL_PACE).flat().map(String);
        await client.call('SENTINEL', 'DEBUG', ...pace);
        await readyWhen('the sentinels', async () => {
          const facts = await factsOf(client);
          const seen = ['num-other-sentinels', 'num-slaves', 'flags'].map((name) =>
            facts.get(name),
          );
          return seen.join(' ') === `2 ${replicaCount} master`;
        });
      }),
    ),
  );
  return {
    master,
    replicas,
    sentinels,
    nodes: sentinels.map(({ port }) => ({ host: '127.0.0.1', port })),
    masterName: MASTER_NAME,
    masterPort: () =>
      asking(sentinels[0]?.port ?? 0, tls, async (client) => {
        const reply = await client.call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', MASTER_NAME);
        return Number(Array.isArray(reply) ? reply[1] : undefined);
      }),
    stop: () => stopAll([...sentinels, master, ...replicas]),
  };
}

export async function startClusterFleet({
  slot,
  redisArgs = [],
  tls,
}: {
  /** A slot that the first master is to have. */
  slot: number;
  redisArgs?: readonly string[];
  tls?: Certificates | undefined;
}): Promise<ClusterFleet> {
  const start = async (): Promise<Server & { readonly bus: number }> => {
    const bus = await freePort();
    const args = [
      ...['--cluster-enabled', 'yes', '--cluster-port', String(bus)],
      ...['--cluster-node-timeout', '1000', '--cluster-replica-validity-factor', '0'],
      ...(tls === undefined ? [] : ['--tls-cluster', 'yes']),
      ...REPLICATION,
      ...redisArgs,
    ];
    return Object.assign(await startRedis({ args, tls }), { bus });
  };
  const [first, second, third, replica] = await Promise.all([start(), start(), start(), start()]);
  const masters = [first, second, third] as const;
  const nodes = [...masters, replica];
  const cluster = (server: Server, ...words: (string | number)[]): Promise<unknown> =>
    asking(server.port, tls, (client) => client.call('CLUSTER', ...words));

  const own = SLOT_RANGES.findIndex(([from, to]) => from <= slot && slot <= to);
  const ranges = [...SLOT_RANGES.slice(own), ...SLOT_RANGES.slice(0, own)];
  await Promise.all(
    masters.map((server, index) => cluster(server, 'ADDSLOTSRANGE', ...(ranges[index] ?? []))),
  );
  for (const node of nodes.slice(1)) await cluster(first, 'MEET', '127.0.0.1', node.port, node.bus);
  const knowAll = (server: Server) => async (): Promise<boolean> => {
    const info = String(await cluster(server, 'INFO'));
    return /cluster_state:ok/.test(info) && /cluster_known_nodes:4/.test(info);
  };
  await Promise.all(nodes.map((server) => readyWhen('the cluster', knowAll(server))));
  await cluster(replica, 'REPLICATE', String(await cluster(first, 'MYID')));
  await readyWhen('the replica', () =>
    asking(first.port, tls, async (client) =>
      /slave0:.*state=online/.test(await client.info('replication')),
    ),
  );
  // Until the news is round, some nodes still call it a master without slots.
  const knowsReplica = (server: Server) => async (): Promise<boolean> =>
    / slave /.test(String(await cluster(server, 'NODES')).replaceAll('myself,', ''));
  await Promise.all(nodes.map((server) => readyWhen('the cluster', knowsReplica(server))));
  return {
    masters,
    replica,
    nodes: nodes.map(({ port }) => ({ host: '127.0.0.1', port })),
    stop: () => stopAll(nodes),
  };
}

/** Lends a connection to a server of 127.0.0.1. */
export async function asking<T>(
  port: number,
  tls: Certificates | undefined,
  work: (client: Redis) => Promise<T>,
): Promise<T> {
  const client = new Redis({
    port,
    host: '127.0.0.1',
    lazyConnect: true,
    retryStrategy: null,
    enableReadyCheck: false,
    ...(tls !== undefined && {
      tls: {
        ca: readFileSync(tls.caFile),
        cert: readFileSync(tls.certFile),
        key: readFileSync(tls.keyFile),
      },
    }),
  });
  client.on('error', () => {});
  try {
    await client.connect();
    return await work(client);
  } finally {
    client.disconnect();
  }
}

async function readyWhen(what: string, ready: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + READY_TIMEOUT_MS;
  while (!(await ready())) {
    if (Date.now() > end) throw new Error(`${what} did not come up`);
    await sleep(20);
  }
}

async function stopAll(servers: readonly Server[]): Promise<void> {
  await Promise.all(servers.map((server) => server.stop()));
}

function pairsOf(reply: unknown): Map<unknown, unknown> {
  const flat: unknown[] = Array.isArray(reply) ? reply : [];
  const names = flat.filter((_, index) => index % 2 === 0);
  return new Map(names.map((name, index) => [name, flat[index * 2 + 1]]));
}
