import { setTimeout as sleep } from 'node:timers/promises';
import { openLedger } from '../ipam-store/fixture.ts';
import { startNats } from '../support/servers.ts';
import { SUSPECT_AFTER_SECONDS } from './fleet-host.ts';
import { between, type Longest, Meter, NOTHING_READ } from './fleet-meter.ts';
import {
  cpu,
  networksOf,
  PATIENCE_S,
  say,
  seconds,
  SPREAD_MS,
  start,
  startFleet,
  until,
} from './fleet-parts.ts';
import { Processes } from './fleet-processes.ts';

/** Longer than silence takes to make a host suspect. */
const WATCHED_S = SUSPECT_AFTER_SECONDS + 2;

/** Addresses of a network that may be used up before its last ones are looked for. */
const POOL = 4_000;

/** A fleet that is switched on; its Redis started again; its agents started again. */
export async function together(longest: Longest, size: number): Promise<void> {
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

/** Redis comes back empty, and the hosts say what they hold. */
export async function recovery(longest: Longest, size: number, leases: number): Promise<void> {
  const redis = await start();
  let meter = await Meter.open(redis, longest);
  const networks = await networksOf(redis, Math.ceil((size * leases) / POOL) + 1);
  const fleet = await startFleet(redis.url, size);
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

/** A new fleet before an empty Redis: who asks whom whether it is one. */
export async function surveys(size: number): Promise<void> {
  const [redis, nats] = await Promise.all([start(), startNats()]);
  const fleet = await startFleet(redis.url, size, nats.url);
  const done = await fleet.until(({ open }) => open === size, PATIENCE_S);
  const status = await fleet.tell({ do: 'status' });
  const asked = `${status?.surveys} asked all others, ${status?.deaf} of them in vain`;
  say(size, 'new fleet, agents asked by NATS', `${seconds(done)}; ${asked}`);
  await fleet.close();
  await Promise.all([redis.stop(), nats.stop()]);
}
