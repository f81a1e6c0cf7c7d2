import { connect, headers, type NatsConnection } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent } from './agent.ts';
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
}

export async function startStack(
  options: { networks?: readonly object[]; config?: object; env?: Record<string, string> } = {},
): Promise<Stack> {
  const [nats, redis] = await Promise.all([startNats(), startRedis()]);
  const agent = await startAgent({
    config: { nats: { url: nats.url }, redis: { url: redis.url }, ...options.config },
    ...(options.env !== undefined && { env: options.env }),
  });
  const connection = await connect({ servers: nats.url, maxReconnectAttempts: -1 });
  const client = new VoltNetworkClient({ connection, headers });
  for (const network of options.networks ?? [VOLT0]) await putWhenReady(client, network);
  return {
    nats,
    redis,
    agent,
    connection,
    client,
    host: agent.host,
    async [Symbol.asyncDispose]() {
      await connection.close();
      await agent.stop();
      await Promise.all([nats.stop(), redis.stop()]);
    },
  };
}
