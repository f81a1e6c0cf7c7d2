import { setTimeout as sleep } from 'node:timers/promises';
import { startHost } from './host.ts';
import { type Table, timed } from './figures.ts';
import { held, WEIGHED } from './loop.ts';
import {
  attachMany,
  cpuMsOf,
  cycleMany,
  networksFor,
  residentMiBOf,
  untilQuiet,
  WIDE,
} from './many.ts';
import type { Sizes } from './sizes.ts';

const WARM_UP = 400;
const CHECKS = 4;

/** What an agent takes of a host with very many attachments, of which nobody wants anything. */
export async function benchRest({ attachments, restSeconds }: Sizes): Promise<Table[]> {
  const networks = networksFor(attachments);
  await using stack = await startHost({
    networks: [...networks, WIDE],
    env: WEIGHED,
  });
  const { agent, client, host } = stack;
  await cycleMany(stack, WIDE.network, WARM_UP);
  const before = await held(agent.pid);
  await attachMany(stack, networks, attachments);
  await untilQuiet(stack);
  const after = await held(agent.pid);
  const eachKiB = ((after.keptMiB - before.keptMiB) * 1_024) / attachments;
  const atRest = cpuMsOf(agent.pid);
  await sleep(restSeconds * 1_000);
  const percent = (cpuMsOf(agent.pid) - atRest) / (restSeconds * 10);
  const rested = residentMiBOf(agent.pid);
  const beforeChecks = cpuMsOf(agent.pid);
  const checks: number[] = [];
  for (let n = 0; n < CHECKS; n += 1) {
    checks.push(await timed(() => client.check(host, {}, { timeoutMs: 60_000 })));
  }
  const checkMs = (cpuMsOf(agent.pid) - beforeChecks) / CHECKS;
  return [
    {
      name: 'rest',
      title: `An agent at rest with ${attachments.toLocaleString('en')} attachments`,
      how:
        'Memory for each attachment: what the heap and its buffers hold after a full collection, before and after all ' +
        `of them were made. Processor: of all threads of the agent, in ${restSeconds} s in which nobody asks for ` +
        'anything, with the intervals of the default configuration.',
      decisive: [
        { name: 'memory for each attachment', unit: 'KiB', values: [eachKiB], bound: 4 },
        { name: 'processor at rest', unit: '%', values: [percent], bound: 1 },
      ],
      shown: [
        { name: 'resident before', unit: 'MiB', values: [before.rssMiB] },
        { name: 'resident with all', unit: 'MiB', values: [after.rssMiB] },
        { name: 'resident after the rest', unit: 'MiB', values: [rested] },
        { name: 'a check of all', unit: 'ms', values: checks },
        { name: 'processor for a check of all', unit: 'ms', values: [checkMs] },
      ],
    },
  ];
}
