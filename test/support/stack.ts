import { connect, headers, type NatsConnection } from 'nats';
import { join } from 'node:path';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent } from './agent.ts';
import { untilGone } from './boxes.ts';
import { deviceNames, filesIn, nftElements } from './kernel.ts';
import { type Server, startNats, startRedis } from './servers.ts';

/** The network of the documentation, as an operator writes it. */
export const VOLT0 = {
  network: 'volt0',
  subnet: '10.42.0.0/24',
  gateway: '10.42.0.1',
  pool: { start: '10.42.0.2', end: '10.42.0.254' },
  reservations: { 'vm-web': '10.42.0.10', 'container-db': '10.42.0.20' },
};

/** One host with everything it needs, in the namespace of the calling test. */
export interface Stack extends AsyncDisposable {
  readonly nats: Server;
  readonly redis: Server;
  readonly agent: RunningAgent;
  readonly connection: NatsConnection;
  readonly client: VoltNetworkClient;
  readonly host: string;
  /** Until nothing of the attachment is left on the host. */
  readonly gone: (id: string) => Promise<void>;
  /** What an attach that failed, or a detach that ended, must leave as it was. */
  readonly snapshot: () => Promise<Snapshot>;
}

export interface Snapshot {
  readonly devices: readonly string[];
  readonly records: readonly string[];
  readonly attachments: number;
  readonly usage: Readonly<Record<string, number>>;
  /** Elements of sets in nftables. */
  readonly elements: readonly string[];
}

export async function startStack(
  options: {
    networks?: readonly { network: string }[];
    config?: { readonly host?: string | undefined; readonly [key: string]: unknown };
    env?: Record<string, string>;
    wrap?: readonly string[];
    /** Of nats-server, as in its configuration file. */
    natsConfig?: string;
    /** Of redis-server, as on its command line. */
    redisArgs?: readonly string[];
  } = {},
): Promise<Stack> {
  const { networks = [VOLT0], config, env, wrap, natsConfig, redisArgs = [] } = options;
  const natsOptions = natsConfig === undefined ? {} : { config: natsConfig };
  const [nats, redis] = await Promise.all([
    startNats(natsOptions),
    startRedis({ args: redisArgs }),
  ]);
  const agent = await startAgent({
    config: { nats: { url: nats.url }, redis: { url: redis.url }, ...config },
    ...(env !== undefined && { env }),
    ...(wrap !== undefined && { wrap }),
  });
  await agent.ready();
  const connection = await connect({
    servers: nats.url,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 100,
  });
  const client = new VoltNetworkClient({ connection, headers });
  for (const network of networks) await client.putNetwork({ ...network });
  const { host } = agent;
  return {
    nats,
    redis,
    agent,
    connection,
    client,
    host,
    gone: (id) => untilGone({ client, host }, id),
    snapshot: async () => {
      const [first] = networks;
      const { attachments } = await client.list(host, {});
      const usage = first === undefined ? {} : (await client.getNetwork(first.network)).usage;
      return {
        devices: deviceNames().toSorted(),
        records: filesIn(join(agent.runtimeDir, 'attachments')),
        attachments: attachments.length,
        usage: { ...usage },
        elements: nftElements(),
      };
    },
    async [Symbol.asyncDispose]() {
      await connection.close();
      await agent.stop();
      await Promise.all([nats.stop(), redis.stop()]);
    },
  };
}
