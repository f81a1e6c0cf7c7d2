import { setTimeout as sleep } from 'node:timers/promises';
import { parseNetwork } from '#protocol/network.ts';
import type { Ledger, NetworkRecord } from '#ipam-store/ledger.ts';
import { openLedger } from '../ipam-store/fixture.ts';
import { type Server, startNats, startRedis } from '../support/servers.ts';
import { SimulatedHost, SUSPECT_AFTER_SECONDS } from './fleet-host.ts';
import { between, Meter, NOTHING_READ, type Reading } from './fleet-meter.ts';
import { Processes } from './fleet-processes.ts';

const SIZES = [10, 1_000, 3_000, 10_000] as const;
/** Agents of a fleet that is switched on are started within so long. */
const SPREAD_MS = 5_000;
const DRIVEN_CONNECTIONS = 4;
/** Hosts of each process that beat to be measured. */
const MEASURED = 1_500;
const LONGEST_ROUNDS = 6;
const PATIENCE_S = 120;
/** Longer than silence takes to make a host suspect. */
const WATCHED_S = SUSPECT_AFTER_SECONDS + 2;

/** The longest call of each function, in the whole run. */
const longest = new Map<string, number>();

const say = (size: number, what: string, figures: string): void => {
  process.stdout.write(`  ${String(size).padStart(6)}  ${what.padEnd(34)}${figures}\n`);
};
const seconds = (figure: number | null, most = PATIENCE_S): string =>
  figure === null ? `not within ${most} s` : `${figure.toFixed(1)} s`;
const cpu = ({ cpuMs }: Reading): string => `${(cpuMs / 1_000).toFixed(2)} s of Redis`;

/**
 * The ledger of a fleet: hosts that are played by the agent's own session and witness, before a real Redis. Each host has
 * a connection of its own where it is started, as agents have; where only what a call costs is measured, some share.
 */
export async function benchFleet(sizes: readonly number[]): Promise<void> {
  process.stdout.write('\n   hosts\n');
  for (const size of sizes.length === 0 ? SIZES : sizes) {
    await quiet(size);
    if (size < 100) continue;
    await together(size);
    await recovery(size, size === 3_000 ? 10 : 100);
    if (size === 1_000) {
      await put(size);
      await surveys(size);
    }
    await ends(size);
  }
  process.stdout.write('\n  longest call of each function, ms\n');
  for (const [name, us] of [...longest].toSorted(([, a], [, b]) => b - a)) {
    process.stdout.write(`    ${name.padEnd(24)}${(us / 1_000).toFixed(1).padStart(8)}\n`);
  }
}

const start = (...args: string[]): Promise<Server> =>
  startRedis({ args: ['--maxclients', '15000', ...args] });

/** What a heartbeat costs while nothing changes, and what it costs all when one host joins. */
async function quiet(size: number): Promise<void> {
  const redis = await start();
  const meter = await Meter.open(redis, longest);
  const settings = { url: redis.url, suspectAfterSeconds: 600 };
  const fleet = await Processes.make({ ...settings, hosts: size, connections: DRIVEN_CONNECTIONS });
  await fleet.tell({ do: 'start', spreadMs: 0 });
  const empty = await meter.read();
  await opened(fleet, size);
  say(size, 'all have joined, one by one', cpu(between(empty, await meter.read())));
  await fleet.tell({ do: 'beat' });

  const before = await meter.read();
  const turns = Math.ceil(MEASURED / size);
  for (let n = 0; n < turns; n += 1) await fleet.tell({ do: 'beat', most: MEASURED });
  const beats = between(before, await meter.read());
  const each = beats.callsUs / beats.calls;
  const [bytesIn, bytesOut] = [beats.bytesIn / beats.calls, beats.bytesOut / beats.calls];
  say(
    size,
    'heartbeat',
    `${each.toFixed(0)} µs, ${bytesIn.toFixed(0)} B in, ${bytesOut.toFixed(0)} B out`,
  );

  const joining = await meter.read();
  const newcomer = await Processes.make({ ...settings, hosts: 1, first: size, connections: 1 });
  await newcomer.tell({ do: 'start', spreadMs: 0 });
  let rounds = 0;
  for (; rounds < LONGEST_ROUNDS; rounds += 1) {
    const status = await newcomer.tell({ do: 'beat' });
    await fleet.tell({ do: 'beat' });
    if (rounds > 0 && status?.open === 1) break;
  }
  const joined = between(joining, await meter.read());
  const more = joined.callsUs - (rounds + 1) * size * each;
  say(
    size,
    'one host joins',
    `${(Math.max(more, 0) / 1e6).toFixed(2)} s of Redis beyond heartbeats`,
  );
  await meter.noteLongest();
  await Promise.all([newcomer.close(), fleet.close()]);
  meter.close();
  await redis.stop();
}

/** All hosts beat, round by round, until all may acquire. */
async function opened(fleet: Processes, size: number): Promise<void> {
  for (let round = 1; round <= LONGEST_ROUNDS; round += 1) {
    const status = await fleet.tell({ do: 'beat' });
    if (status?.open === size) return;
  }
  throw new Error(`not all of ${size} hosts may acquire`);
}

/** A fleet that is switched on; its Redis started again; its agents started again. */
async function together(size: number): Promise<void> {
  const redis = await start('--appendonly', 'yes');
  let meter = await Meter.open(redis, longest);
  const fleet = await Processes.make({
    url: redis.url,
    hosts: size,
    connections: 0,
    suspectAfterSeconds: SUSPECT_AFTER_SECONDS,
  });
  let before = await meter.read();
  const told = async (
    what: string,
    work: () => Promise<unknown>,
    watchedS = WATCHED_S,
  ): Promise<boolean> => {
    const fallen = (await fleet.tell({ do: 'status' }))?.fallen ?? 0;
    before = await meter.read();
    const began = performance.now();
    await work();
    const done = await fleet.until(({ open }) => open === size, PATIENCE_S);
    const passed = done === null ? null : (performance.now() - began) / 1_000;
    const spent = between(before, await meter.read());
    // Whether it stays like that.
    await sleep(watchedS * 1_000);
    const status = await fleet.tell({ do: 'status' });
    // An agent that has started again has told nothing yet.
    const suspects = Math.max(
      0,
      (status?.fallen ?? 0) - (what === 'agents restarted' ? 0 : fallen),
    );
    const later = `then ${status?.open} open, ${suspects} suspect`;
    say(size, what, `${seconds(passed)}, ${cpu(spent)}; ${later}`);
    await meter.noteLongest();
    return passed !== null;
  };
  const whole = await told('started together', () =>
    fleet.tell({ do: 'start', spreadMs: SPREAD_MS }),
  );
  if (whole) {
    await told('Redis restarted', async () => {
      meter.close();
      await redis.restart();
      meter = await Meter.open(redis, longest);
      before = NOTHING_READ;
      const ledger = await openLedger(redis.url);
      await until(async () => (await ledger.listHosts({ limit: 1 })).state === 'armed');
      await ledger.close();
    });
    await told('agents restarted', () =>
      fleet.tell({ do: 'restart', spreadMs: SPREAD_MS, boot: 'boot-1' }),
    );
  }
  meter.close();
  await fleet.close();
  await redis.stop();
}

/** A host of the bench itself, which makes networks before the others are there. */
async function networksOf(redis: Server, count: number): Promise<NetworkRecord[]> {
  const ledger = await openLedger(redis.url);
  const operator = hostOf(ledger, 'h0', SUSPECT_AFTER_SECONDS);
  await operator.session.beat();
  const networks: NetworkRecord[] = [];
  for (let n = 0; n < count; n += 1) networks.push(await putOne(ledger, n, {}));
  await ledger.close();
  return networks;
}

const hostOf = (ledger: Ledger, host: string, suspectAfterSeconds: number): SimulatedHost =>
  new SimulatedHost({
    host,
    bootId: 'boot-1',
    ledger,
    folder: `/run/volt-bench-${process.pid}-${host}`,
    suspectAfterSeconds,
    isNewFleet: () => Promise.resolve(true),
  });

async function putOne(ledger: Ledger, n: number, more: object): Promise<NetworkRecord> {
  // 4,096 of them are in 10.0.0.0/8.
  const subnet = `10.${Math.floor(n / 16)}.${(n % 16) * 16}.0/20`;
  return ledger.putNetwork(
    parseNetwork({ network: `n${n}`, subnet, reuseDelaySeconds: 1, ...more }),
  );
}

/** Redis comes back empty, and the hosts say what they hold. */
async function recovery(size: number, leases: number): Promise<void> {
  const redis = await start();
  let meter = await Meter.open(redis, longest);
  const networks = await networksOf(redis, 20);
  const fleet = await Processes.make({
    url: redis.url,
    hosts: size,
    connections: 0,
    suspectAfterSeconds: SUSPECT_AFTER_SECONDS,
  });
  await fleet.tell({ do: 'start', spreadMs: SPREAD_MS });
  if ((await fleet.until(({ open }) => open === size, PATIENCE_S)) === null) {
    say(size, `recovery of ${leases} leases each`, 'the fleet did not come together');
  } else {
    const empty = await meter.memoryBytes();
    await fleet.tell({ do: 'hold', networks, count: leases });
    const bytes = ((await meter.memoryBytes()) - empty) / (size * leases);
    await meter.noteLongest();
    meter.close();
    await redis.kill();
    await redis.restart();
    const began = performance.now();
    const since = (): number => (performance.now() - began) / 1_000;
    meter = await Meter.open(redis, longest);
    const [record] = networks;
    if (record === undefined) return;
    const first = Promise.race([
      fleet.tellFirst({ do: 'first', network: record }).then(since),
      sleep(2 * PATIENCE_S * 1_000).then(() => null),
    ]);
    const granted = await first;
    const all = await fleet.until(({ open }) => open === size, PATIENCE_S);
    const spent = await meter.read();
    const status = await fleet.tell({ do: 'status' });
    const lost = `${status?.fenced} fenced, ${status?.fallen} suspect`;
    const times = `first grant ${seconds(granted)}, all ${seconds(all === null ? null : since())}`;
    say(size, `recovery of ${leases} leases each`, `${times}, ${cpu(spent)}; ${lost}`);
    say(size, 'memory of a lease', `${bytes.toFixed(0)} B`);
    await meter.noteLongest();
  }
  meter.close();
  await fleet.close();
  await redis.stop();
}

/** One of 500 networks is changed; a few hosts have leases there. */
async function put(size: number): Promise<void> {
  const redis = await start();
  const meter = await Meter.open(redis, longest);
  const networks = await networksOf(redis, 500);
  const fleet = await Processes.make({
    url: redis.url,
    hosts: size,
    connections: 0,
    suspectAfterSeconds: SUSPECT_AFTER_SECONDS,
  });
  await fleet.tell({ do: 'start', spreadMs: SPREAD_MS });
  await fleet.until(({ open }) => open === size, PATIENCE_S);
  await fleet.tell({ do: 'hold', networks, count: 5 });
  await sleep(WATCHED_S * 1_000);
  const calm = await meter.read();
  await sleep(10_000);
  const perSecond = between(calm, await meter.read()).cpuMs / 10;
  const ledger = await openLedger(redis.url);
  const before = await meter.read();
  const began = performance.now();
  const [record] = networks;
  if (record === undefined) return;
  const { revision } = await ledger.putNetwork(
    parseNetwork({ ...record.network, dns: ['10.0.0.53'] }),
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

/** A new fleet before an empty Redis: who asks whom whether it is one. */
async function surveys(size: number): Promise<void> {
  const [redis, nats] = await Promise.all([start(), startNats()]);
  const fleet = await Processes.make({
    url: redis.url,
    nats: nats.url,
    hosts: size,
    connections: 0,
    suspectAfterSeconds: SUSPECT_AFTER_SECONDS,
  });
  await fleet.tell({ do: 'start', spreadMs: SPREAD_MS });
  const done = await fleet.until(({ open }) => open === size, PATIENCE_S);
  const status = await fleet.tell({ do: 'status' });
  const asked = `${status?.surveys} asked all others, ${status?.deaf} of them in vain`;
  say(size, 'new fleet, agents asked by NATS', `${seconds(done)}; ${asked}`);
  await fleet.close();
  await Promise.all([redis.stop(), nats.stop()]);
}

/** Hosts that fall silent, what may be reclaimed of them, and leases that expire. */
async function ends(size: number): Promise<void> {
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
    connections: DRIVEN_CONNECTIONS,
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

async function until(done: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + PATIENCE_S * 1_000;
  while (performance.now() < end && !(await done())) await sleep(50);
}
