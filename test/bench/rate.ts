import { readFileSync } from 'node:fs';
import { startStack, type Stack } from '../support/stack.ts';
import { type BenchNetwork, networksFor } from './many.ts';

const IN_FLIGHT = [1, 8, 32, 128];
const ATTACHES = Number(process.env['VOLT_BENCH_ATTACHES'] ?? 1_000);
/** The agent's code is compiled while these run. */
const WARM_UP = 400;
/** USER_HZ of every Linux that Node runs on. */
const TICK_MS = 10;

/**
 * VMs attached one after the other and many at once, by one caller: how many a second, how long each waits, and what of a
 * processor the agent needs for one. Servers, client and agent share the machine, so that the rate is what is left of it.
 */
export async function benchRate(): Promise<void> {
  const networks = networksFor(WARM_UP + ATTACHES * IN_FLIGHT.length);
  await using stack = await startStack({ networks });
  await attachAll(stack, networks, { prefix: 'w', count: WARM_UP, inFlight: 32 });
  process.stdout.write(`\nattaches of VMs, ${ATTACHES} each\n`);
  process.stdout.write(`  in flight${'a second'.padStart(12)}${'CPU ms each'.padStart(14)}`);
  process.stdout.write(`${'p50 ms'.padStart(10)}${'p99 ms'.padStart(10)}\n`);
  for (const inFlight of IN_FLIGHT) {
    const before = cpuMsOf(stack.agent.pid);
    const started = performance.now();
    const order = { prefix: `f${inFlight}-`, count: ATTACHES, inFlight };
    const times = (await attachAll(stack, networks, order)).toSorted((a, b) => a - b);
    const tookMs = performance.now() - started;
    const cpuMs = (cpuMsOf(stack.agent.pid) - before) / ATTACHES;
    const at = (share: number): number => times[Math.floor(times.length * share)] ?? Number.NaN;
    const figures = [
      ((ATTACHES / tookMs) * 1_000).toFixed(0).padStart(12),
      cpuMs.toFixed(2).padStart(14),
      at(0.5).toFixed(1).padStart(10),
      at(0.99).toFixed(1).padStart(10),
    ];
    process.stdout.write(`  ${String(inFlight).padStart(9)}${figures.join('')}\n`);
  }
}

/** Answers how long each took, in milliseconds. */
async function attachAll(
  { client, host }: Stack,
  networks: readonly BenchNetwork[],
  { prefix, count, inFlight }: { prefix: string; count: number; inFlight: number },
): Promise<number[]> {
  const times: number[] = [];
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < count) {
      const n = next;
      next += 1;
      const id = `${prefix}${n}`;
      const network = networks[n % networks.length]?.network ?? '';
      const started = performance.now();
      const request = { id, workload: `vm-${id}`, kind: 'vm', network } as const;
      await client.attach(host, request, { timeoutMs: 60_000 });
      times.push(performance.now() - started);
    }
  };
  await Promise.all(Array.from({ length: inFlight }, one));
  return times;
}

/** User and system time of a process (proc_pid_stat(5)), in milliseconds. */
export function cpuMsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? [];
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}
