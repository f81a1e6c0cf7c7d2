import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import type { VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import { until } from './agent.ts';
import { type SentinelFleet, startSentinelFleet } from './fleets.ts';
import {
  backupOf,
  crash,
  type Fault,
  impostor,
  loss,
  pause,
  setBack,
  wipe,
  wipeUnheard,
} from './history-faults.ts';
import { type Hosts, startHosts } from './hosts.ts';
import { type Server, startRedis } from './servers.ts';

// A history of what hosts were granted and gave back, as whoever asked them saw it, and the check of it: while
// servers are killed, emptied, turned back and paused, no address has two holders at once.

interface Hold {
  readonly address: string;
  readonly id: string;
  readonly host: string;
  readonly generation: number;
  /** When the grant was acknowledged; on one clock with all others. */
  readonly from: number;
  /** When its release was begun: the address may be another's from then on. */
  to: number;
}

export class History {
  readonly holds: Hold[] = [];
  /** Requests that were refused, by code. */
  readonly refusals = new Map<string, number>();

  granted(hold: Omit<Hold, 'from' | 'to'>): Hold {
    const begun = { ...hold, from: performance.now(), to: Infinity };
    this.holds.push(begun);
    return begun;
  }

  refused(code: string): void {
    this.refusals.set(code, (this.refusals.get(code) ?? 0) + 1);
  }

  /** Pairs of holds that had one address at one time, in words. */
  overlaps(): string[] {
    const byAddress = Map.groupBy(this.holds, ({ address }) => address);
    const found: string[] = [];
    for (const holds of byAddress.values()) {
      let last: Hold | undefined;
      for (const hold of holds.toSorted((a, b) => a.from - b.from)) {
        if (last !== undefined && hold.from < last.to)
          found.push(`${told(last)} and ${told(hold)}`);
        if (last === undefined || hold.to > last.to) last = hold;
      }
    }
    return found;
  }
}

const told = ({ address, id, host, generation, from, to }: Hold): string =>
  `${address} is ${id}'s on ${host} (#${generation}) from ${from.toFixed(1)} to ${to.toFixed(1)}`;

/** The master dies, a replica takes its place, and the old master comes back as a replica. */
export async function failOver(sentinels: SentinelFleet): Promise<void> {
  const before = await sentinels.masterPort();
  const master = [sentinels.master, ...sentinels.replicas].find(({ port }) => port === before);
  if (master === undefined) throw new Error(`nobody listens on ${before}`);
  await master.kill();
  await until('there is another master', async () => (await sentinels.masterPort()) !== before);
  await master.restart();
}

export const NETWORK = {
  network: 'crowd',
  subnet: '10.50.0.0/26',
  reuseDelaySeconds: 0,
};

async function attached(
  client: VoltNetworkClient,
  history: History,
  { id, host }: { id: string; host: string },
): Promise<Hold> {
  const { network } = NETWORK;
  const { attachment } = await client.attach(host, {
    ...{ id, workload: `vm-${id}`, kind: 'vm', network },
  });
  const address = attachment.addresses[0]?.address ?? 'none';
  return history.granted({ address, id, host, generation: attachment.generation });
}

/** How long each of a host's loops holds what it gets, at most: some outlast whatever happens to Redis. */
const LONGEST_HOLDS_MS = [20, 20, 40, 3_000, 6_000];

/**
 * Attaches and detaches on all hosts, so many times in all, while `faults` happen, evenly spread. Whatever ends in
 * an error that is retryable is cleaned up and tried anew; any other error throws.
 */
export async function runHistory(
  fleet: Hosts,
  {
    hosts,
    grants,
    faults,
  }: { hosts: readonly string[]; grants: number; faults: readonly (() => Promise<void>)[] },
): Promise<History> {
  const history = new History();
  const { client } = fleet;
  let next = 0;
  let failed: unknown;

  const retried = async (work: () => Promise<unknown>): Promise<void> => {
    for (;;) {
      try {
        await work();
        return;
      } catch (error) {
        if (!(error instanceof VoltError) || !error.retryable) throw error;
        history.refused(error.code);
        await sleep(20 + Math.random() * 80);
      }
    }
  };

  const loop = async (host: string, longestMs: number): Promise<void> => {
    while (history.holds.length < grants && failed === undefined) {
      next += 1;
      const id = `${host}-${next}`;
      let hold: Hold | undefined;
      try {
        hold = await attached(client, history, { id, host });
        await sleep(Math.random() * longestMs);
        hold.to = performance.now();
      } catch (error) {
        if (!(error instanceof VoltError) || !error.retryable) throw error;
        history.refused(error.code);
        await sleep(20 + Math.random() * 80);
      }
      // Also after an error: nobody knows what was done.
      await retried(() => client.detach(host, { id }));
    }
  };

  const spoil = async (): Promise<void> => {
    for (const [index, fault] of faults.entries()) {
      const due = ((index + 1) * grants) / (faults.length + 1);
      while (history.holds.length < due && failed === undefined) await sleep(10);
      if (failed !== undefined) return;
      await fault();
    }
  };

  const loops = hosts.flatMap((host) => LONGEST_HOLDS_MS.map((longestMs) => loop(host, longestMs)));
  await Promise.all(
    [spoil(), ...loops].map((one) =>
      one.catch((error: unknown) => {
        failed ??= error;
      }),
    ),
  );
  if (failed !== undefined) throw failed;
  return history;
}

const HOSTS = ['h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'h7', 'h8'] as const;

/** Fails where an address had two holders, or where something is left at the end. */
export function checkLosses({ grants, rounds }: Extent): Promise<void> {
  return checkFaults(grants, (redis) => {
    let turnBack: Fault = crash;
    const copy: Fault = async () => {
      turnBack = backupOf(redis);
    };
    const older: Fault = (server, fleet) => turnBack(server, fleet);
    const round: Fault[] = [
      ...[copy, crash, impostor, pause, loss('net:crowd:4:held'), setBack],
      ...[older, loss('net:crowd:4:last'), wipe],
    ];
    return Array.from({ length: rounds }, () => round).flat();
  });
}

/**
 * Fails where an address has two holders after Redis was emptied behind the back of one: the others ask for every
 * address that there is before that one is heard. No chance is in it. `wrap` is as of `startAgent`.
 */
export async function checkUnheardHolder({
  wrap,
}: { readonly wrap?: readonly string[] } = {}): Promise<void> {
  const redis = await startRedis({ args: ['--appendonly', 'yes', '--appendfsync', 'everysec'] });
  try {
    const [unheard, ...others] = ['h1', 'h2', 'h3'] as const;
    // Whoever is silent for so long on a busy machine would not be waited for.
    const config = { redis: { url: redis.url }, suspectAfterSeconds: 60 };
    await using fleet = await startHosts({ hosts: [unheard, ...others], config, wrap });
    const { client } = fleet;
    await client.putNetwork(SMALL_NETWORK);
    const history = new History();
    await attached(client, history, { id: 'h1-1', host: unheard });
    const meanwhile = (): Promise<unknown> =>
      Promise.all(others.map((host) => askForAll(fleet, history, { host, unheard })));
    await wipeUnheard({ unheard, meanwhile })(redis, fleet);
    await Promise.all(others.map((host) => askForAll(fleet, history, { host })));
    for (const { host, id } of history.holds) await client.detach(host, { id });
    await settled(fleet, history);
    assert.equal(history.holds.length, 14, 'each address of the subnet was given');
  } finally {
    await redis.stop();
  }
}

const SMALL_NETWORK = { ...NETWORK, subnet: '10.50.0.0/28' };

/** A host attaches until no address is left, or until nothing but `unheard` is waited for. */
async function askForAll(
  { client, agent }: Hosts,
  history: History,
  { host, unheard }: { host: string; unheard?: string },
): Promise<void> {
  for (;;) {
    // The same id until it is granted: what an earlier try took is found by it.
    const own = history.holds.filter((hold) => hold.host === host);
    try {
      await attached(client, history, { id: `${host}-${own.length + 1}`, host });
    } catch (error) {
      if (!(error instanceof VoltError)) throw error;
      if (!error.retryable && error.code !== 'UNKNOWN_NETWORK') throw error;
      history.refused(error.code);
      // A ledger that does not wait for hosts may never hear of the network from them: an operator puts it again.
      if (error.code === 'UNKNOWN_NETWORK') await client.putNetwork(SMALL_NETWORK).catch(() => {});
      if (error.code === 'POOL_EXHAUSTED') return;
      const session = (await agent(host).health())['session'] as { awaiting: readonly string[] };
      if (session.awaiting.join() === unheard) return;
    }
  }
}

async function checkFaults(
  grants: number,
  faultsOf: (redis: Server) => readonly Fault[],
): Promise<void> {
  const redis = await startRedis({ args: ['--appendonly', 'yes', '--appendfsync', 'everysec'] });
  try {
    await using fleet = await startHosts({ hosts: HOSTS, config: { redis: { url: redis.url } } });
    await fleet.client.putNetwork({ ...NETWORK });
    const faults = faultsOf(redis).map((fault) => () => fault(redis, fleet));
    const history = await runHistory(fleet, { hosts: HOSTS, grants, faults });
    await settled(fleet, history);
  } finally {
    await redis.stop();
  }
}

/** The same with a master that dies, under Sentinel, each grant being on a replica before it counts. */
export async function checkFailOver({ grants, rounds }: Extent): Promise<void> {
  const sentinels = await startSentinelFleet({ replicas: 2 });
  try {
    const { nodes, masterName } = sentinels;
    const redis = { mode: 'sentinel', nodes, masterName, minReplicas: 1 };
    await using fleet = await startHosts({ hosts: HOSTS, config: { redis } });
    await fleet.client.putNetwork({ ...NETWORK });
    const faults = Array.from({ length: rounds }, () => () => failOver(sentinels));
    const history = await runHistory(fleet, { hosts: HOSTS, grants, faults });
    await settled(fleet, history);
  } finally {
    await sentinels.stop();
  }
}

interface Extent {
  readonly grants: number;
  /** How many times each fault happens. */
  readonly rounds: number;
}

async function settled(fleet: Hosts, history: History): Promise<void> {
  const codes = [...history.refusals].map(([code, count]) => `${count} ${code}`).join(', ');
  process.stdout.write(`${history.holds.length} grants; refused for now: ${codes || 'none'}\n`);
  assert.deepEqual(history.overlaps(), []);
  const generations = new Set(history.holds.map(({ generation }) => generation));
  assert.equal(generations.size, history.holds.length, 'a generation was given twice');
  await until(
    'every address has been given back',
    async () => (await fleet.client.getNetwork(NETWORK.network)).usage.used === 0,
    60_000,
  );
}
