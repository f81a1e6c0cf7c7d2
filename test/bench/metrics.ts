import { createLog } from '#agent/log.ts';
import { answers, phases } from '#agent/measure.ts';
import { startTelemetry } from '#agent/telemetry/telemetry.ts';
import { traced } from '#native/trace.ts';
import { median, type Table } from './figures.ts';
import { attachInTurns, manyInTurns, startSides } from './pair.ts';
import type { Sizes } from './sizes.ts';

const ON = 'metrics on';
const OFF = 'metrics off';
const PORT = 9464;
/** Prometheus's default is a minute, and most have fifteen seconds. */
const SCRAPED_EVERY_MS = 5_000;
const ATTACHES = 20_000;
const BLOCKS = 9;
/** More than an attach has. */
const KERNEL_OPERATIONS = 30;

/** What metrics cost: an agent that is scraped beside one that has none, and what is noted by both. */
export async function benchMetrics(sizes: Sizes): Promise<Table[]> {
  const { rounds, block, turns, attaches } = sizes;
  await using open = new AsyncDisposableStack();
  const env = { VOLT_NET_METRICS_LISTEN: `127.0.0.1:${PORT}` };
  const sides = await startSides([{ name: OFF }, { name: ON, env }], open);
  const scraping = setInterval(() => void scrape(), SCRAPED_EVERY_MS);
  open.defer(() => clearInterval(scraping));
  const one = await attachInTurns(sides, { kind: 'vm', rounds, block });
  const many = await manyInTurns(sides, { turns, attaches, limit: 32 });
  await scrape();
  const attachMs = median(many.values('cpu', OFF));
  const percent = (ns: number): number => ns / (attachMs * 10_000);
  const off = percent(nanosecondsNoted());
  const config = { listen: '127.0.0.1:1', poolSeconds: 60 };
  const log = createLog('error', 'bench');
  await startTelemetry({ env: process.env, config, host: 'bench', version: '0', log });
  const on = percent(nanosecondsNoted());
  return [
    {
      name: 'metrics',
      title: 'Metrics',
      how:
        `Two agents in turns, of which one serves metrics and is scraped every ${SCRAPED_EVERY_MS / 1_000} s. ` +
        'Counted: processor time of what an attach notes, the answer, three phases and thirty kernel operations, of that of an attach.',
      decisive: [
        {
          name: 'an attach, metrics on / off',
          unit: 'ratio',
          values: one.ratios('attach', ON, OFF),
          bound: 1.03,
        },
        {
          name: 'processor of an attach at 32 in flight, metrics on / off',
          unit: 'ratio',
          values: many.ratios('cpu', ON, OFF),
          bound: 1.03,
        },
        { name: 'counted, of an attach', unit: '%', values: [on], bound: 3 },
        { name: 'noted and not counted, of an attach', unit: '%', values: [off], bound: 0.1 },
        {
          name: 'rate at 32 in flight, metrics on / off',
          unit: 'ratio',
          values: many.ratios('rate', ON, OFF),
        },
      ],
      shown: [OFF, ON].flatMap((name) => [
        { name: `attach, ${name}`, unit: 'ms', values: one.values('attach', name) },
        { name: `processor of an attach, ${name}`, unit: 'ms', values: many.values('cpu', name) },
      ]),
    },
  ];
}

async function scrape(): Promise<void> {
  const response = await fetch(`http://127.0.0.1:${PORT}/metrics`);
  await response.text();
  if (!response.ok) throw new Error(`GET /metrics: ${response.status}`);
}

/** Processor time of what one attach notes for metrics, in ns; median of blocks. */
function nanosecondsNoted(): number {
  const of = { operation: 'attach', type: 'bridged', result: 'ok' } as const;
  const blocks = Array.from({ length: BLOCKS }, () => {
    const before = process.cpuUsage();
    for (let n = 0; n < ATTACHES; n += 1) {
      for (const phase of ['ipam', 'kernel', 'answer'] as const)
        phases.note({ ...of, phase, ms: n % 9 });
      answers.note({ operation: 'attach', code: 'OK', ms: n % 9 });
      for (let k = 0; k < KERNEL_OPERATIONS; k += 1) traced('bench', 'lo', nothing);
    }
    const { user, system } = process.cpuUsage(before);
    return ((user + system) * 1_000) / ATTACHES;
  });
  return median(blocks.slice(2));
}

const nothing = (): void => {};
