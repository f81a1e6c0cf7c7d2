import { setTimeout as sleep } from 'node:timers/promises';
import type { Ledger, NetworkRecord } from '#ipam-store/ledger.ts';
import { parseNetwork } from '#protocol/network.ts';
import { openLedger } from '../ipam-store/fixture.ts';
import { type Server, startRedis } from '../support/servers.ts';
import { SimulatedHost, SUSPECT_AFTER_SECONDS } from './fleet-host.ts';
import type { Reading } from './fleet-meter.ts';
import { Processes } from './fleet-processes.ts';

// What the scenes of the bench have in common.

/** Agents of a fleet that is switched on are started within so long. */
export const SPREAD_MS = 5_000;
/** Connections of each process where only what a call costs is measured. */
export const SHARED_CONNECTIONS = 4;
export const PATIENCE_S = 120;

/** A row of the table. */
export const say = (size: number, what: string, figures: string): void => {
  process.stdout.write(`  ${String(size).padStart(6)}  ${what.padEnd(36)}${figures}\n`);
};
export const seconds = (figure: number | null, most = PATIENCE_S): string =>
  figure === null ? `not within ${most} s` : `${figure.toFixed(1)} s`;
export const cpu = ({ cpuMs }: Reading): string => `${(cpuMs / 1_000).toFixed(2)} s of Redis`;

export const start = (...args: string[]): Promise<Server> =>
  startRedis({ args: ['--maxclients', '15000', ...args] });

/** Hosts with a connection each, and sessions that run by themselves. */
export async function startFleet(url: string, hosts: number, nats?: string): Promise<Processes> {
  const fleet = await Processes.make({
    url,
    hosts,
    connections: 0,
    suspectAfterSeconds: SUSPECT_AFTER_SECONDS,
    ...(nats !== undefined && { nats }),
  });
  await fleet.tell({ do: 'start', spreadMs: SPREAD_MS });
  return fleet;
}

/** A host of the bench itself, which makes networks before the others are there. */
export async function networksOf(redis: Server, count: number): Promise<NetworkRecord[]> {
  const ledger = await openLedger(redis.url);
  const operator = hostOf(ledger, 'h0', SUSPECT_AFTER_SECONDS);
  await operator.session.beat();
  const networks: NetworkRecord[] = [];
  for (let n = 0; n < count; n += 1) networks.push(await putOne(ledger, n, {}));
  await ledger.close();
  return networks;
}

export const hostOf = (ledger: Ledger, host: string, suspectAfterSeconds: number): SimulatedHost =>
  new SimulatedHost({
    host,
    bootId: 'boot-1',
    ledger,
    folder: `/run/volt-bench-${process.pid}-${host}`,
    suspectAfterSeconds,
    isNewFleet: () => Promise.resolve(true),
  });

export async function putOne(ledger: Ledger, n: number, more: object): Promise<NetworkRecord> {
  // 4,096 of them are in 10.0.0.0/8.
  const subnet = `10.${Math.floor(n / 16)}.${(n % 16) * 16}.0/20`;
  return ledger.putNetwork(
    parseNetwork({ network: `n${n}`, subnet, reuseDelaySeconds: 1, ...more }),
  );
}

export async function until(done: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + PATIENCE_S * 1_000;
  while (performance.now() < end && !(await done())) await sleep(50);
}
