import { setTimeout as sleep } from 'node:timers/promises';
import { between, type Longest, Meter, type Reading } from './fleet-meter.ts';
import { cpu, PATIENCE_S, say, SHARED_CONNECTIONS, start } from './fleet-parts.ts';
import { Processes } from './fleet-processes.ts';

const BLOCKS = 10;
/** Heartbeats of a block, from each process. */
const MEASURED = 200;
const LONGEST_ROUNDS = 6;
/** Between two rounds, in which Redis has nothing to do. */
const PAUSE_MS = 100;
/** Within so many heartbeats all have read the list of hosts. */
const MOST_ROUNDS = 200;

/** What a heartbeat costs while nothing changes, and what it costs all when one host joins. */
export async function quiet(longest: Longest, size: number): Promise<void> {
  const redis = await start();
  const meter = await Meter.open(redis, longest);
  const settings = { url: redis.url, suspectAfterSeconds: 600 };
  const fleet = await Processes.make({ ...settings, hosts: size, connections: SHARED_CONNECTIONS });
  await fleet.tell({ do: 'start', spreadMs: 0 });
  const empty = await meter.read();
  await opened(fleet, size);
  say(size, 'all have joined, one by one', cpu(between(empty, await meter.read())));
  for (let rounds = 0; rounds < MOST_ROUNDS; rounds += 1) {
    if (((await fleet.tell({ do: 'beat' }))?.listed ?? size) >= size) break;
  }

  const blocks: Reading[] = [];
  for (let n = 0; n < BLOCKS; n += 1) blocks.push(await blockOf(fleet, meter, size));
  const mean = (of: (block: Reading) => number): number =>
    blocks.reduce((sum, block) => sum + of(block) / block.calls, 0) / BLOCKS;
  const [bytesIn, bytesOut] = [mean(({ bytesIn: n }) => n), mean(({ bytesOut: n }) => n)];
  // The others were held up by whatever else the machine does.
  const least = Math.min(...blocks.map(({ callsUs, calls }) => callsUs / calls));
  const bytes = `${bytesIn.toFixed(0)} B in, ${bytesOut.toFixed(0)} B out`;
  say(size, 'heartbeat', `${least.toFixed(0)} µs, ${bytes}`);

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
  const beats = (rounds + 1) * size * mean(({ cpuMs }) => cpuMs);
  const more = { ...joined, cpuMs: Math.max(0, joined.cpuMs - beats) };
  say(size, 'one host joins', `${cpu(more)} beyond heartbeats`);
  await meter.noteLongest();
  await Promise.all([newcomer.close(), fleet.close()]);
  meter.close();
  await redis.stop();
}

async function blockOf(fleet: Processes, meter: Meter, size: number): Promise<Reading> {
  const before = await meter.read();
  for (let n = 0; n < Math.ceil(MEASURED / size); n += 1) {
    await fleet.tell({ do: 'beat', most: MEASURED });
  }
  return between(before, await meter.read());
}

/**
 * All hosts beat, round by round, until all may acquire. How many rounds that takes is a matter of time: the ledger asks one
 * host to vouch for the others, which may not be among these, and no other for three seconds.
 */
export async function opened(fleet: Processes, size: number): Promise<void> {
  const end = performance.now() + PATIENCE_S * 1_000;
  for (;;) {
    const open = (await fleet.tell({ do: 'beat' }))?.open ?? 0;
    if (open === size) return;
    if (performance.now() > end) throw new Error(`${open} of ${size} hosts may acquire`);
    await sleep(PAUSE_MS);
  }
}
