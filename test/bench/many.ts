import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { until } from '../support/agent.ts';
import type { Stack } from './host.ts';

/** A bridge holds 1,023 ports. */
const PER_BRIDGE = 900;
const IN_FLIGHT = 256;
const PATIENCE_MS = 600_000;
const QUIET_MS = 2_000;
const PATIENT = { timeoutMs: 60_000 };
/** USER_HZ of every Linux that Node runs on. */
const TICK_MS = 10;

export interface BenchNetwork {
  readonly network: string;
  readonly subnet: string;
  readonly gateway: string;
}

/** With so many addresses that none is used twice within the cool-down. */
export const WIDE: BenchNetwork = {
  network: 'volt0',
  subnet: '10.42.0.0/16',
  gateway: '10.42.0.1',
};

/** Networks with room for so many attachments. */
export const networksFor = (attachments: number): BenchNetwork[] =>
  Array.from({ length: Math.max(3, Math.ceil(attachments / PER_BRIDGE)) }, (_, n) => ({
    network: `n${n}`,
    subnet: `10.${60 + n}.0.0/22`,
    gateway: `10.${60 + n}.0.1`,
  }));

type Served = Pick<Stack, 'client' | 'host'>;

/** Does the work for 0, 1, … `count - 1`, so many of them at a time. */
export async function inFlight(
  limit: number,
  count: number,
  work: (n: number) => Promise<unknown>,
): Promise<void> {
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < count) {
      const n = next;
      next += 1;
      await work(n);
    }
  };
  await Promise.all(Array.from({ length: limit }, one));
}

/** VMs of these names, spread over the networks; answers how long each took, in milliseconds. */
export async function attachVms(
  { client, host }: Served,
  networks: readonly Pick<BenchNetwork, 'network'>[],
  order: { readonly prefix: string; readonly count: number; readonly limit: number },
): Promise<number[]> {
  const times: number[] = [];
  await inFlight(order.limit, order.count, async (n) => {
    const id = `${order.prefix}${n}`;
    const network = networks[n % networks.length]?.network ?? '';
    const started = performance.now();
    await client.attach(host, { id, workload: `vm-${id}`, kind: 'vm', network }, PATIENT);
    times.push(performance.now() - started);
  });
  return times;
}

/** VMs `b0`, `b1` …, spread over the networks. */
export async function attachMany(
  stack: Served,
  networks: readonly Pick<BenchNetwork, 'network'>[],
  count: number,
): Promise<void> {
  await attachVms(stack, networks, { prefix: 'b', count, limit: IN_FLIGHT });
}

/** Detaches what `attachVms` has attached; resolves when all are answered. */
export async function detachVms(
  { client, host }: Served,
  { prefix, count, limit = IN_FLIGHT }: { prefix: string; count: number; limit?: number },
): Promise<void> {
  await inFlight(limit, count, (n) => client.detach(host, { id: `${prefix}${n}` }, PATIENT));
}

/** Until nothing of any attachment is left on the host, or of those in that state. */
export async function untilNone(
  { client, host }: Served,
  which: { readonly state?: 'detaching' } = {},
): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (performance.now() < end) {
    const { attachments } = await client.list(host, { ...which, limit: 1 });
    if (attachments.length === 0) return;
    await sleep(5);
  }
  throw new Error('attachments are left after ten minutes');
}

/** Until the events of all that was done are out, and the agent has nothing more to do. */
export async function untilQuiet({ agent }: Pick<Stack, 'agent'>): Promise<void> {
  const isOut = async (): Promise<boolean> => (await agent.health())['eventsPending'] === 0;
  await until('all events are out', isOut, PATIENCE_MS);
  await sleep(QUIET_MS);
}

/** Attaches and detaches so many VMs, some at a time, until nothing is left of them. */
export async function cycleMany(stack: Served, network: string, count: number): Promise<void> {
  const all = { prefix: 'warm', count };
  await attachVms(stack, [{ network }], { ...all, limit: 32 });
  await detachVms(stack, all);
  await untilNone(stack);
}

/** User and system time of a process (proc_pid_stat(5)), in milliseconds. */
export function cpuMsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

/** What of the machine's memory a process holds. */
export function residentMiBOf(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1_024;
}
