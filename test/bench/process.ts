import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Kernel } from '#agent/host/kernel.ts';
import { DEVICE_GROUP } from '#agent/host/ownership.ts';
import { enterSandbox } from '../support/sandbox.ts';
import { benchAgainst, type Tree } from './against.ts';
import { OTHERS, SUITE } from './benches.ts';
import type { Table } from './figures.ts';
import type { Sizes } from './sizes.ts';

// Each bench has a process of its own, and with it namespaces of its own: what one leaves in them no other one meets.

const THIS_FILE = fileURLToPath(import.meta.url);

interface Order {
  readonly name: string;
  readonly sizes: Sizes;
  /** Of the bench `against`. */
  readonly tree?: Tree | undefined;
}

/** Runs one bench to its end. Throws if it fails. `toError`: what it prints itself goes to standard error. */
export async function runBench(
  order: Order,
  { toError }: { readonly toError: boolean },
): Promise<readonly Table[]> {
  const child = fork(THIS_FILE, { stdio: ['ignore', toError ? 2 : 'inherit', 'inherit', 'ipc'] });
  let tables: readonly Table[] | undefined;
  child.once('message', (message) => (tables = message as readonly Table[]));
  child.send(order);
  const [code] = (await once(child, 'exit')) as [number | null];
  if (tables === undefined) throw new Error(`${order.name} ended with code ${code}`);
  return tables;
}

async function answer({ name, sizes, tree }: Order): Promise<void> {
  enterSandbox();
  const bench = { ...SUITE, ...OTHERS }[name];
  const tables = tree === undefined ? await bench?.(sizes) : await benchAgainst(tree, sizes);
  // With the namespace they would go, too, but beside the next bench, and for seconds.
  using kernel = new Kernel();
  await kernel.links.deleteGroupAsync(DEVICE_GROUP);
  process.send?.(tables ?? [], () => process.exit(0));
}

if (process.argv[1] === THIS_FILE) {
  // The other end has died.
  process.once('disconnect', () => process.exit(1));
  process.once('message', (order) => void answer(order as Order));
}
