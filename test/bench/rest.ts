import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { startStack } from '../support/stack.ts';
import { attachMany, networksFor } from './many.ts';
import { cpuMsOf } from './rate.ts';

const ATTACHMENTS = Number(process.env['VOLT_BENCH_ATTACHMENTS'] ?? 10_000);
const CHECKS = 4;
const REST_MS = 60_000;

/** What an agent takes of a host with very many attachments, of which nobody wants anything. */
export async function benchRest(): Promise<void> {
  const networks = networksFor(ATTACHMENTS);
  await using stack = await startStack({ networks });
  const { agent, client, host } = stack;
  const note = (what: string, more = ''): void => {
    const status = readFileSync(`/proc/${agent.pid}/status`, 'utf8');
    const residentMiB = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) / 1_024;
    process.stdout.write(
      `  ${what.padEnd(30)}${residentMiB.toFixed(0).padStart(6)} MiB  ${more}\n`,
    );
  };
  process.stdout.write(`\nan agent with ${ATTACHMENTS} attachments\n`);
  note('fresh');
  await attachMany(stack, networks, ATTACHMENTS);
  note('made');
  for (let n = 1; n <= 3; n += 1) {
    const before = cpuMsOf(agent.pid);
    await sleep(REST_MS);
    const percent = ((cpuMsOf(agent.pid) - before) / REST_MS) * 100;
    note(`after ${n * (REST_MS / 1_000)} s of rest`, `${percent.toFixed(2)} % of a processor`);
  }
  const before = cpuMsOf(agent.pid);
  for (let n = 0; n < CHECKS; n += 1) await client.check(host, {}, { timeoutMs: 60_000 });
  note(`after ${CHECKS} checks`, `${((cpuMsOf(agent.pid) - before) / CHECKS).toFixed(0)} ms each`);
}
