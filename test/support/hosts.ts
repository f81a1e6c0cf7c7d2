import { connect, headers, type NatsConnection } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { type RunningAgent, startAgent } from './agent.ts';
import { type Server, startNats } from './servers.ts';

/** Several hosts of a fleet: an agent process for each, all in the calling test's namespace. */
export interface Hosts extends AsyncDisposable {
  readonly nats: Server;
  readonly connection: NatsConnection;
  readonly client: VoltNetworkClient;
  /** By host id. */
  agent(host: string): RunningAgent;
  /** Starts one more; resolves when its socket answers. */
  start(host: string, config?: object): Promise<RunningAgent>;
}

export interface HostsOptions {
  /** Sections and keys of every agent's configuration; `redis` among them. */
  readonly config: object;
  readonly hosts: readonly string[];
  /** As of `startAgent`. */
  readonly wrap?: readonly string[] | undefined;
}

/** Starts NATS and agents, one after the other, until all may be granted leases. */
export async function startHosts({ config, hosts, wrap }: HostsOptions): Promise<Hosts> {
  const nats = await startNats();
  const agents = new Map<string, RunningAgent>();
  const start = async (host: string, more: object = {}): Promise<RunningAgent> => {
    // One network namespace for all: each has tables of its own.
    const nftablesTable = `volt_${host.replaceAll('-', '_')}`;
    // A comparison of the whole host removes devices that no record of its agent has: here, those of the others.
    const periods = { heartbeatSeconds: 0.5, suspectAfterSeconds: 3, reconcileSeconds: 3_600 };
    const own = { nats: { url: nats.url }, ...periods, nftablesTable };
    const agent = await startAgent({
      config: { ...own, ...config, ...more, host },
      ...(wrap !== undefined && { wrap }),
    });
    agents.set(host, agent);
    return agent;
  };
  await Promise.all(hosts.map((host) => start(host)));
  for (const agent of agents.values()) await agent.ready();
  const connection = await connect({
    servers: nats.url,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 100,
  });
  return {
    nats,
    connection,
    client: new VoltNetworkClient({ connection, headers }),
    agent: (host) => {
      const agent = agents.get(host);
      if (agent === undefined) throw new Error(`there is no agent of ${host}`);
      return agent;
    },
    start,
    async [Symbol.asyncDispose]() {
      await connection.close();
      await Promise.all([...agents.values()].map((agent) => agent.stop()));
      await nats.stop();
    },
  };
}
