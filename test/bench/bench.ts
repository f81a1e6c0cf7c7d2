import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CommanderError } from 'commander';
import { enterSandbox } from '../support/sandbox.ts';
import { benchAgainst, checkOut } from './against.ts';
import type { Table } from './figures.ts';
import { machineFacts, useDisk, versions } from './machine.ts';
import { type Options, parseOptions } from './options.ts';
import { type Report, textOf, writePage } from './report.ts';
import type { Sizes } from './sizes.ts';

// `npm run bench [-- NAME …]`: figures beside those of others, in one run, in namespaces of its own. Ratios are
// what counts: absolute times drift with the machine. docs/benchmarks.md is written by `--write`.

const DOCS = fileURLToPath(new URL('../../docs/', import.meta.url));

/** Some print for themselves. */
type Bench = (sizes: Sizes) => Promise<readonly Table[] | void>;

/** What runs when nothing is named. */
const SUITE: Readonly<Record<string, Bench>> = {
  kernel: async (sizes) => (await import('./kernel.ts')).benchKernel(sizes),
  attach: async (sizes) => (await import('./attach.ts')).benchAttach(sizes),
  cold: async (sizes) => (await import('./attach.ts')).benchCold(sizes),
  rate: async (sizes) => (await import('./rate.ts')).benchRate(sizes),
  drain: async (sizes) => (await import('./drain.ts')).benchDrain(sizes),
  tracing: async (sizes) => (await import('./tracing.ts')).benchTracing(sizes),
  memory: async (sizes) => (await import('./memory.ts')).benchMemory(sizes),
  scale: async (sizes) => (await import('./scale.ts')).benchScale(sizes),
  loop: async (sizes) => (await import('./loop.ts')).benchLoop(sizes),
  rest: async (sizes) => (await import('./rest.ts')).benchRest(sizes),
  restart: async (sizes) => (await import('./restart.ts')).benchRestart(sizes),
};

const OTHERS: Readonly<Record<string, Bench>> = {
  start: async () => (await import('./start.ts')).benchStart(),
  firewall: async () => (await import('./firewall.ts')).benchFirewall(),
  fairness: async (sizes) => (await import('./fairness.ts')).benchFairness(sizes),
  check: async ({ numbers }) => (await import('./check.ts')).benchCheck(numbers),
  fleet: async ({ numbers }) => (await import('./fleet.ts')).benchFleet(numbers),
  functions: async () => (await import('./functions.ts')).benchFunctions(),
  ipam: async () => (await import('./ipam.ts')).benchIpam(),
};

/** Runs what is asked for, and answers the exit code. */
async function main(words: readonly string[]): Promise<number> {
  const options = optionsOf(words);
  if (typeof options === 'number') return options;
  useDisk();
  const facts = { machine: machineFacts(), versions: versions() };
  const benches = benchesOf(options);
  enterSandbox();
  // Standard output is for the figures alone where they go there.
  const out = options.json === '-' ? process.stderr : process.stdout;
  const tables: Table[] = [];
  let failed = 0;
  for (const [name, bench] of Object.entries(benches)) {
    const started = performance.now();
    process.stderr.write(`${name} …\n`);
    try {
      for (const table of (await bench(options.sizes)) ?? []) {
        out.write(textOf(table));
        tables.push(table);
      }
    } catch (error) {
      failed += 1;
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      process.stderr.write(`${name} failed: ${text}\n`);
    }
    process.stderr.write(`${name}: ${((performance.now() - started) / 1_000).toFixed(0)} s\n`);
  }
  const date = new Date().toISOString();
  const command = ['npm run bench', ...(words.length > 0 ? ['--', ...words] : [])].join(' ');
  const report: Report = { date, command, ...facts, sizes: options.sizes, tables };
  if (options.json === '-') process.stdout.write(`${JSON.stringify(report)}\n`);
  else if (options.json !== undefined) {
    writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
  }
  if (failed > 0) return 1;
  if (options.write) writePage(DOCS, report);
  return 0;
}

/** Or the exit code, where commander has said why. */
function optionsOf(words: readonly string[]): Options | number {
  try {
    return parseOptions(words, { suite: Object.keys(SUITE), others: Object.keys(OTHERS) });
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode;
    throw error;
  }
}

function benchesOf({ names, against }: Options): Readonly<Record<string, Bench>> {
  const all: Readonly<Record<string, Bench>> = { ...SUITE, ...OTHERS };
  const named = Object.fromEntries(Object.entries(all).filter(([name]) => names.includes(name)));
  if (against === undefined) return names.length === 0 ? SUITE : named;
  const tree = checkOut(against);
  return { ...named, against: (sizes) => benchAgainst(tree, sizes) };
}

process.exit(await main(process.argv.slice(2)));
