import { execFileSync } from 'node:child_process';
import { createServer, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type NatsConnection } from 'nats';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { startBus, type TestBus } from '../../support/bus.ts';
import { freePort, type Server, startNats, startNatsCluster } from '../../support/servers.ts';
import { requireTool } from '../../support/tools.ts';

// Servers that are there and say nothing: each is left for another within ten seconds.

/** Ten seconds, and what a busy machine adds. */
const SOON_MS = 15_000;

const urlOf = (servers: readonly { url: string }[]): string =>
  servers.map(({ url }) => url).join(',');

const isAt = ({ bus }: TestBus, { port }: Server): boolean =>
  bus.server?.endsWith(`:${port}`) === true;

/** Asks on a connection of its own, to this server. */
async function isServedAt(server: Server): Promise<boolean> {
  const connection = await connect({ servers: server.url, timeout: 2_000 });
  try {
    await connection.request('volt.net.v1.host.h1.get', '', { timeout: 2_000 });
    return true;
  } finally {
    await connection.close();
  }
}

/** How many requests of `list` the agent has begun. */
async function inFlight(connection: NatsConnection): Promise<number> {
  const { data } = await connection.request('$SRV.STATS.volt-network-agent', '');
  const { endpoints } = JSON.parse(new TextDecoder().decode(data)) as {
    endpoints: { name: string; num_requests: number }[];
  };
  return endpoints.find(({ name }) => name === 'list')?.num_requests ?? 0;
}

describe('of three servers of a cluster', () => {
  let servers: readonly [Server, Server, Server];
  beforeEach(async () => {
    servers = await startNatsCluster();
  });
  afterEach(async () => {
    execFileSync(requireTool('nft'), ['flush', 'ruleset']);
    await Promise.all(servers.map((server) => server.stop()));
  });

  /** The bus, and the server that it has come to. */
  async function connected(): Promise<[bus: TestBus, its: Server, others: readonly Server[]]> {
    const bus = startBus({ url: urlOf(servers) });
    await until('it is connected', () => bus.bus.state === 'connected');
    const its = servers.find((server) => isAt(bus, server)) ?? servers[0];
    return [bus, its, servers.filter((server) => server !== its)];
  }

  async function leavesFor(bus: TestBus, its: Server, others: readonly Server[]): Promise<void> {
    await until('it is at another', () => others.some((server) => isAt(bus, server)), SOON_MS);
    expect(isAt(bus, its)).toBe(false);
    const [one] = others;
    if (one !== undefined) await until('it is served', () => isServedAt(one));
  }

  test('one that is stopped is left for the next', async () => {
    const [bus, its, others] = await connected();
    await using _ = bus;
    its.pause();
    await leavesFor(bus, its, others);
  });

  test('one that is stopped while very much is on its way there is left, too', async () => {
    const [bus, its, others] = await connected();
    await using _ = bus;
    its.pause();
    // More than the socket takes.
    const much = new Uint8Array(1 << 20);
    for (let n = 0; n < 16; n += 1) {
      bus.bus.request('nobody.is.there', much, 60_000).catch(() => {});
    }
    await leavesFor(bus, its, others);
  });

  test('one whose packets are lost is left for the next', async () => {
    const [bus, its, others] = await connected();
    await using _ = bus;
    const nft = (...words: string[]): void => void execFileSync(requireTool('nft'), words);
    nft('add', 'table', 'inet', 'lost');
    nft('add', 'chain inet lost in { type filter hook input priority 0 ; }');
    nft('add', `rule inet lost in tcp dport ${its.port} drop`);
    nft('add', `rule inet lost in tcp sport ${its.port} drop`);
    await leavesFor(bus, its, others);
  });

  test('one is killed while a request is dealt with: the answer goes out through another', async () => {
    const bus = startBus({ url: urlOf(servers), listMs: 3_000 });
    await using _ = bus;
    await until('it is connected', () => bus.bus.state === 'connected');
    const one = servers.find((server) => !isAt(bus, server));
    const its = servers.find((server) => isAt(bus, server));
    const asking = await connect({ servers: one?.url ?? '', ignoreClusterUpdates: true });
    const ask = (operation: string) =>
      asking.request(`volt.net.v1.host.h1.${operation}`, '', { timeout: 10_000 });
    await until('it is reached', () => ask('get').then(() => true));
    const answer = ask('list');
    await until('it is asked', async () => (await inFlight(asking)) > 0);
    await its?.kill();
    expect((await answer).data.length).toBeGreaterThan(0);
    await asking.close();
  });

  test('two are stopped when the agent starts: it comes to the third', async () => {
    const [first, second, third] = servers;
    first.pause();
    second.pause();
    await using bus = startBus({ url: urlOf(servers) });
    await until('it is at the third', () => isAt(bus, third), SOON_MS);
  });

  test('one is configured, and stopped: it comes to another that this one had told of', async () => {
    await using bus = startBus({ url: servers[0].url });
    await until('it is connected', () => isAt(bus, servers[0]));
    servers[0].pause();
    await until('it is at another', () => bus.bus.state === 'connected' && !isAt(bus, servers[0]));
  });
});

describe('a server that accepts connections and says nothing', () => {
  test('is told as the reason, keeps few of them, and is left when another is there', async () => {
    const sockets = new Set<Socket>();
    const port = await freePort();
    const silent = createServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => sockets.delete(socket));
      socket.resume();
    });
    await new Promise<void>((resolve) => silent.listen(port, '127.0.0.1', resolve));
    const later = await freePort();
    await using bus = startBus({ url: `nats://127.0.0.1:${port},nats://127.0.0.1:${later}` });
    await until('it is told', () => /no answer/.test(bus.reasonOf('bus-away') ?? ''));
    expect(bus.reasonOf('bus-away')).toMatch(/connection refused/);
    await sleep(10_000);
    expect(sockets.size).toBeLessThan(4);
    const server = await startNats({ port: later });
    try {
      await until('it is at the other', () => isAt(bus, server), SOON_MS);
      expect(bus.problems().includes('bus-away')).toBe(false);
    } finally {
      await server.stop();
      silent.close();
      for (const socket of sockets) socket.destroy();
    }
  });
});
