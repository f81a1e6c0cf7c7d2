import { phases } from '#agent/measure.ts';
import { median, type Table } from './figures.ts';
import { attachInTurns, manyInTurns, startSides } from './pair.ts';
import type { Sizes } from './sizes.ts';

const ON = 'metrics on';
const OFF = 'metrics off';
const PORT = 9464;
/** Prometheus's default is a minute, and most have fifteen seconds. */
const SCRAPED_EVERY_MS = 5_000;
const CALLS = 1_000_000;
const BLOCKS = 9;
/** What an attach publishes for metrics: the answer, and three phases. */
const PUBLISHED = 4;

/** What metrics cost: an agent that is scraped beside one that has none, and a measurement that nobody hears. */
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
  const percent = (nanosecondsUnheard() * PUBLISHED) / (median(one.values('attach', OFF)) * 10_000);
  return [
    {
      name: 'metrics',
      title: 'Metrics',
      how:
        `Two agents in turns, of which one serves metrics and is scraped every ${SCRAPED_EVERY_MS / 1_000} s. ` +
        `Off: what ${PUBLISHED} measurements cost that nobody hears, as many as an attach makes, of the median attach.`,
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
        { name: 'metrics off, of an attach', unit: '%', values: [percent], bound: 0.1 },
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

/** Less a loop without it; median of blocks in turns. */
function nanosecondsUnheard(): number {
  let sum = 0;
  const took = (call: (n: number) => void): number => {
    const started = performance.now();
    for (let n = 0; n < CALLS / BLOCKS; n += 1) call(n);
    return ((performance.now() - started) * 1e6) / (CALLS / BLOCKS);
  };
  const of = { operation: 'attach', phase: 'kernel', type: 'bridged', result: 'ok' } as const;
  const blocks = Array.from({ length: BLOCKS + 2 }, () => {
    const bare = took((n) => (sum += n));
    return took((n) => (phases.note({ ...of, ms: n }), (sum += n))) - bare;
  });
  return Math.max(0, median(blocks.slice(2)));
}
