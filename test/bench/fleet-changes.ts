import { setTimeout as sleep } from 'node:timers/promises';
import { parseNetwork } from '#protocol/network.ts';
import { openLedger } from '../ipam-store/fixture.ts';
import { type SimulatedHost, SUSPECT_AFTER_SECONDS } from './fleet-host.ts';
import { between, type Longest, Meter } from './fleet-meter.ts';
import {
  cpu,
  hostOf,
  networksOf,
  PATIENCE_S,
  putOne,
  say,
  seconds,
  SHARED_CONNECTIONS,
  start,
  startFleet,
  until,
} from './fleet-parts.ts';
import { Processes } from './fleet-processes.ts';
import { opened } from './fleet-quiet.ts';

/** Until nothing of a start is under way any more. */
const CALM_S = 15;

/** One of 500 networks is changed; a few hosts have leases there. */
export async function put(longest: Longest, size: number): Promise<void> {
  const redis = await start();
  const meter = await Meter.open(redis, longest);
  const networks = await networksOf(redis, 500);
  const fleet = await startFleet(redis.url, size);
  await fleet.until(({ open }) => open === size, PATIENCE_S);
  await fleet.tell({ do: 'hold', networks, count: 5 });
  await sleep(CALM_S * 1_000);
  const calm = await meter.read();
  await sleep(10_000);
  const perSecond = between(calm, await meter.read()).cpuMs / 10;
  const ledger = await openLedger(redis.url);
  const before = await meter.read();
  const began = performance.now();
  const [record] = networks;
  if (record === undefined) return;
  const { revision } = await ledger.putNetwork(
    parseNetwork({ ...record.network, dns: { servers: ['10.0.0.53'] } }),
    record.revision,
  );
  const known = await fleet.until((status) => status.networks >= revision, PATIENCE_S);
  const passed = (performance.now() - began) / 1_000;
  const spent = between(before, await meter.read());
  const more = { ...spent, cpuMs: Math.max(0, spent.cpuMs - perSecond * passed) };
  say(size, 'network put, of 500', `${seconds(known)}, ${cpu(more)} beyond heartbeats`);
  await meter.noteLongest();
  await ledger.close();
  meter.close();
  await fleet.close();
  await redis.stop();
}

/** Hosts that fall silent, what may be reclaimed of them, and leases that expire. */
export async function ends(longest: Longest, size: number): Promise<void> {
  const redis = await start();
  const meter = await Meter.open(redis, longest);
  const ledger = await openLedger(redis.url);
  const living = Array.from({ length: 10 }, (_, n) =>
    hostOf(ledger, `l${n}`, SUSPECT_AFTER_SECONDS),
  );
  for (const host of living) await host.session.beat();
  const network = await putOne(ledger, 1, { subnet: '10.0.0.0/14', reclaimAfterSeconds: 1 });
  for (const { session } of living) session.start();
  const sum = (of: (host: SimulatedHost) => number): number =>
    living.reduce((total, host) => total + of(host), 0);

  const [expiring] = living;
  const leases = 10_000;
  if (expiring === undefined) return;
  await until(async () => expiring.session.status.open);
  await expiring.hold([network], leases, 5);
  say(size, `${leases} leases of one host expire`, await ratedOf(() => expiring.expired, leases));

  const each = Math.ceil(leases / size);
  const silent = await Processes.make({
    url: redis.url,
    hosts: size,
    connections: SHARED_CONNECTIONS,
    suspectAfterSeconds: size / 100 + 10,
  });
  await silent.tell({ do: 'start', spreadMs: 0 });
  await opened(silent, size);
  await silent.tell({ do: 'hold', networks: [network], count: each });
  const [fallen, reclaimed] = await Promise.all([
    ratedOf(() => sum((host) => host.fallen), size),
    ratedOf(() => sum((host) => host.reclaimed), each * size),
  ]);
  say(size, 'fall silent, are suspect', fallen);
  say(size, `${each * size} leases of theirs reclaimed`, reclaimed);
  await meter.noteLongest();
  for (const { session } of living) session.stop();
  await silent.close();
  await ledger.close();
  meter.close();
  await redis.stop();
}

/** From the first to the last of so many, or how many within a time. */
async function ratedOf(count: () => number, most: number): Promise<string> {
  const end = performance.now() + 60_000;
  let began: number | undefined;
  while (performance.now() < end && count() < most) {
    if (count() > 0) {
      began ??= performance.now();
      if (performance.now() > began + 20_000) break;
    }
    await sleep(50);
  }
  const passed = (performance.now() - (began ?? end)) / 1_000;
  return `${count()} in ${passed.toFixed(1)} s`;
}
