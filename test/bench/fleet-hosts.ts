import { setTimeout as sleep } from 'node:timers/promises';
import { connect, type NatsConnection } from 'nats';
import { z } from 'zod';
import { surveyPeers } from '#agent/bus/peers.ts';
import { Ledger } from '#ipam-store/ledger.ts';
import type { NetworkRecord } from '#ipam-store/ledger.ts';
import { parseNetwork } from '#protocol/network.ts';
import { optionsFor } from '../ipam-store/fixture.ts';
import { SimulatedHost } from './fleet-host.ts';
import { type HostsStatus, type Order, orderSchema } from './fleet-orders.ts';

// One of the processes that play the hosts of a fleet: does what it is told, one order after the other.

const AT_ONCE = 32;
const SERVICE = 'bench-agent';

type Make = Extract<Order, { do: 'make' }>;

let made: Make | undefined;
let hosts: SimulatedHost[] = [];
let ledgers: Ledger[] = [];
let connections: NatsConnection[] = [];
const surveyed = { surveys: 0, deaf: 0 };

process.on('message', (message) => {
  const { order, what } = z.object({ order: z.int(), what: orderSchema }).parse(message);
  perform(what).then(
    (status) => process.send?.({ order, status }),
    (error: unknown) => process.send?.({ order, error: String(error) }),
  );
});
process.on('disconnect', () => process.exit(0));

async function perform(what: Order): Promise<HostsStatus | undefined> {
  switch (what.do) {
    case 'make':
      await make(what);
      return undefined;
    case 'start':
      return start(what.spreadMs).then(() => undefined);
    case 'beat':
      await each(hosts.slice(0, what.most), (host) => host.session.beat());
      return statusNow();
    case 'hold': {
      const networks = what.networks.map(recordOf);
      await each(hosts, (host) => host.hold(networks, what.count, what.ttlSeconds));
      return undefined;
    }
    case 'first':
      await hosts[0]?.first(recordOf(what.network));
      return undefined;
    case 'restart':
      await restart(what.spreadMs, what.boot);
      return undefined;
    case 'stop':
      await end();
      return undefined;
    case 'status':
      return statusNow();
  }
}

const recordOf = ({
  network,
  revision,
}: {
  network?: unknown;
  revision: number;
}): NetworkRecord => ({
  network: parseNetwork(network),
  revision,
});

async function make(what: Make): Promise<void> {
  made = what;
  const { from, to, step, url, nats } = what;
  const names: string[] = [];
  for (let n = from; n < to; n += step) names.push(`h${n}`);
  const count = what.connections === 0 ? names.length : what.connections;
  ledgers = Array.from({ length: count }, () => new Ledger(optionsFor(url)));
  hosts = names.flatMap((host, n) => {
    const ledger = ledgers[n % count];
    if (ledger === undefined) return [];
    return [hostOf(what, host, ledger)];
  });
  if (nats === undefined) return;
  await each(hosts, async (host) => {
    const connection = await connect({ servers: nats });
    connections.push(connection);
    peers.set(host.host, connection);
    const metadata = { host: host.host, generation: '0' };
    await connection.services.add({ name: SERVICE, version: '1.0.0', metadata });
  });
}

const hostOf = (
  { nats, isNew, boot, folder, suspectAfterSeconds }: Make,
  host: string,
  ledger: Ledger,
): SimulatedHost =>
  new SimulatedHost({
    host,
    bootId: boot,
    ledger,
    folder,
    suspectAfterSeconds,
    isNewFleet: () => (nats === undefined ? Promise.resolve(isNew) : survey(host)),
  });

const peers = new Map<string, NatsConnection>();

/** As an agent does it: without its own answer the question has not come round. */
async function survey(host: string): Promise<boolean> {
  const connection = peers.get(host);
  if (connection === undefined) return false;
  const inboxPrefix = `_INBOX.${host}`;
  const answers = await surveyPeers(connection, { services: [SERVICE], inboxPrefix });
  const asked = answers.some((peer) => peer['host'] === host);
  surveyed.surveys += 1;
  if (!asked) surveyed.deaf += 1;
  return asked && answers.every(({ generation }) => generation === '0');
}

async function start(spreadMs: number): Promise<void> {
  const began = performance.now();
  const shared = ledgers.length < hosts.length;
  if (shared) for (const ledger of ledgers) await open(ledger);
  for (const [n, { session }] of hosts.entries()) {
    await turnOf(n, began, spreadMs);
    const ledger = ledgers[n % ledgers.length];
    if (!shared) run(session, ledger);
    if (spreadMs > 0) session.start();
  }
}

/** Until it is the turn of one of the hosts, that all of them take so long. Where that is past, the others go on first. */
async function turnOf(n: number, began: number, spreadMs: number): Promise<void> {
  const wait = began + (spreadMs * n) / hosts.length - performance.now();
  if (spreadMs > 0) await sleep(Math.max(0, wait));
}

function run(session: SimulatedHost['session'], ledger: Ledger | undefined): void {
  ledger?.onStatus(({ state }) => {
    if (state === 'ready') void session.beat();
  });
  ledger?.start();
}

/** Each agent ends and is there again by itself, with a connection of its own: none of them waits for the others. */
async function restart(spreadMs: number, boot: string): Promise<void> {
  if (made === undefined) return;
  made = { ...made, boot };
  const began = performance.now();
  for (const [n, before] of hosts.entries()) {
    await turnOf(n, began, spreadMs);
    before.session.stop();
    await ledgers[n]?.close();
    const ledger = new Ledger(optionsFor(made.url));
    ledgers[n] = ledger;
    const host = hostOf(made, before.host, ledger);
    for (const [id, lease] of before.leases) host.leases.set(id, lease);
    hosts[n] = host;
    run(host.session, ledger);
    host.session.start();
  }
}

async function open(ledger: Ledger): Promise<void> {
  ledger.start();
  while (ledger.status.state !== 'ready') await sleep(5);
}

async function end(): Promise<void> {
  for (const { session } of hosts) session.stop();
  await Promise.all(ledgers.map((ledger) => ledger.close()));
  await Promise.all(connections.map((connection) => connection.close()));
  peers.clear();
  hosts = [];
  ledgers = [];
  connections = [];
}

function statusNow(): HostsStatus {
  const count = (which: (host: SimulatedHost) => boolean): number => hosts.filter(which).length;
  const sum = (of: (host: SimulatedHost) => number): number =>
    hosts.reduce((total, host) => total + of(host), 0);
  const least = (of: (host: SimulatedHost) => number): number =>
    Math.min(Number.MAX_SAFE_INTEGER, ...hosts.map(of));
  return {
    hosts: hosts.length,
    open: count(({ session }) => session.status.open),
    armed: count(({ session }) => session.status.state === 'armed'),
    fallen: sum(({ fallen }) => fallen),
    reclaimed: sum(({ reclaimed }) => reclaimed),
    expired: sum(({ expired }) => expired),
    fenced: sum(({ fenced }) => fenced),
    networks: least(({ watermark }) => watermark.networksRevision),
    listed: least(({ watermark }) => watermark.seen.hosts.length),
    ...surveyed,
  };
}

async function each<T>(items: readonly T[], work: (item: T) => Promise<unknown>): Promise<void> {
  const queue = items.values();
  const worker = async (): Promise<void> => {
    for (const item of queue) await work(item);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}
