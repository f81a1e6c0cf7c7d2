import { between, type Longest, Meter } from './fleet-meter.ts';
import { cpu, say, SHARED_CONNECTIONS, start } from './fleet-parts.ts';
import { Processes } from './fleet-processes.ts';

/** Hosts of each process that beat to be measured. */
const MEASURED = 1_500;
const LONGEST_ROUNDS = 6;

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
export async function opened(fleet: Processes, size: number): Promise<void> {
  for (let round = 1; round <= LONGEST_ROUNDS; round += 1) {
    const status = await fleet.tell({ do: 'beat' });
    if (status?.open === size) return;
  }
  throw new Error(`not all of ${size} hosts may acquire`);
}
