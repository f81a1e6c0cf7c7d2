import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { CommanderError } from 'commander';
import { checkOut } from './against.ts';
import { OTHERS, SUITE } from './benches.ts';
import type { Table } from './figures.ts';
import { machineFacts, useDisk, versions } from './machine.ts';
import { type Options, parseOptions } from './options.ts';
import { runBench } from './process.ts';
import { textOf, writePage } from './report.ts';

// `npm run bench [-- NAME …]`: figures beside those of others, in one run, in namespaces of its own. Ratios are
// what counts: absolute times drift with the machine. docs/benchmarks.md is written by `--write`.

const DOCS = fileURLToPath(new URL('../../docs/', import.meta.url));

/** Runs what is asked for, and answers the exit code. */
async function main(words: readonly string[]): Promise<number> {
  const options = optionsOf(words);
  if (typeof options === 'number') return options;
  const { names, sizes, json, against, write } = options;
  useDisk();
  const facts = { machine: machineFacts(), versions: versions() };
  const tree = against === undefined ? undefined : checkOut(against);
  const suite = tree === undefined ? Object.keys(SUITE) : [];
  const orders = [
    ...(names.length === 0 ? suite : names).map((name) => ({ name, sizes })),
    ...(tree === undefined ? [] : [{ name: 'against', sizes, tree }]),
  ];
  // Standard output is for the figures alone where they go there.
  const toError = json === '-';
  const tables: Table[] = [];
  const failed: string[] = [];
  for (const order of orders) {
    const started = performance.now();
    process.stderr.write(`\n${order.name} …\n`);
    try {
      const made = await runBench(order, { toError });
      for (const table of made) (toError ? process.stderr : process.stdout).write(textOf(table));
      tables.push(...made);
    } catch (error) {
      failed.push(order.name);
      process.stderr.write(`${String(error)}\n`);
    }
    const seconds = (performance.now() - started) / 1_000;
    process.stderr.write(`${order.name}: ${seconds.toFixed(0)} s\n`);
  }
  const report = {
    date: new Date().toISOString(),
    command: options.command,
    ...facts,
    sizes,
    tables,
  };
  if (toError) process.stdout.write(`${JSON.stringify(report)}\n`);
  else if (json !== undefined) writeFileSync(json, `${JSON.stringify(report, null, 2)}\n`);
  if (failed.length > 0) {
    process.stderr.write(`failed: ${failed.join(', ')}\n`);
    return 1;
  }
  if (write) writePage(DOCS, report);
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

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
