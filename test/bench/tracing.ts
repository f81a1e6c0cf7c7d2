import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { Kernel } from '#agent/host/kernel.ts';
import { traced } from '#native/trace.ts';
import { median, type Table } from './figures.ts';
import { attachInTurns, manyInTurns, startSides } from './pair.ts';
import type { Sizes } from './sizes.ts';

const ON = 'tracing on';
const OFF = 'tracing off';
const CALLS = 100_000;
const BLOCKS = 9;
/** Kernel operations, steps and the request itself: what an attach of a container publishes at most. */
const PUBLISHED = 30;

/** What traces cost: an agent that exports them beside one that does not, and a message that nobody hears. */
export async function benchTracing(sizes: Sizes): Promise<Table[]> {
  const { rounds, block, turns, attaches } = sizes;
  await using open = new AsyncDisposableStack();
  const sink = new Worker(new URL('./trace-sink.ts', import.meta.url));
  open.defer(async () => {
    const exited = once(sink, 'exit');
    sink.postMessage('end', []);
    await exited;
  });
  const [url] = (await once(sink, 'message')) as [string];
  const env = {
    OTEL_EXPORTER_OTLP_ENDPOINT: url,
    OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json',
    OTEL_METRICS_EXPORTER: 'none',
  };
  const sides = await startSides([{ name: OFF }, { name: ON, env }], open);
  const one = await attachInTurns(sides, { kind: 'vm', rounds, block });
  const many = await manyInTurns(sides, { turns, attaches, limit: 32 });
  const unheardNs = nanosecondsUnheard();
  const percent = (unheardNs * PUBLISHED) / (median(one.values('attach', OFF)) * 10_000);
  return [
    {
      name: 'tracing',
      title: 'Traces',
      how:
        'Two agents in turns, of which one exports its traces to a collector on this machine that throws them away. ' +
        `Off: what ${PUBLISHED} messages cost that nobody hears, more than an attach publishes, of the median attach.`,
      decisive: [
        {
          name: 'an attach, tracing on / off',
          unit: 'ratio',
          values: one.ratios('attach', ON, OFF),
          bound: 1.03,
        },
        { name: 'tracing off, of an attach', unit: '%', values: [percent], bound: 0.1 },
        {
          name: 'rate at 32 in flight, tracing on / off',
          unit: 'ratio',
          values: many.ratios('rate', ON, OFF),
        },
      ],
      shown: [OFF, ON].map((name) => ({
        name: `attach, ${name}`,
        unit: 'ms',
        values: one.values('attach', name),
      })),
    },
  ];
}

/** A cheap kernel operation with a message around it, less the same without; median of blocks in turns. */
function nanosecondsUnheard(): number {
  using kernel = new Kernel();
  const work = (): number | null => kernel.links.indexOf('lo');
  const took = (call: () => unknown): number => {
    const started = performance.now();
    for (let n = 0; n < CALLS / BLOCKS; n += 1) call();
    return ((performance.now() - started) * 1e6) / (CALLS / BLOCKS);
  };
  const blocks = Array.from({ length: BLOCKS + 2 }, () => {
    const bare = took(work);
    return took(() => traced('bench', 'lo', work)) - bare;
  });
  return Math.max(0, median(blocks.slice(2)));
}
