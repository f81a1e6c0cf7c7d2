import { execFileSync } from 'node:child_process';
import { readFileSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Figure, Table, Turns } from './figures.ts';
import { attachInTurns, manyInTurns, startSides } from './pair.ts';
import type { Sizes } from './sizes.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const LIMITS = [1, 8, 32, 128] as const;

/**
 * The agent of this tree beside the agent of another commit, each with servers of its own, in turns. The client and the
 * bench are this tree's.
 */
export async function benchAgainst(tree: Tree, sizes: Sizes): Promise<Table[]> {
  const { rounds, block, turns, attaches } = sizes;
  await using open = new AsyncDisposableStack();
  const launcher = join(tree.folder, 'deploy/bin/volt-network-agent');
  const [now, then] = ['this tree', tree.name];
  const sides = await startSides([{ name: now }, { name: then, launcher }], open);
  const decisive: Figure[] = [];
  const shown: Figure[] = [];
  const add = (what: string, measured: string, unit: string, of: Turns): void => {
    const ratios = of.ratios(measured, now, then);
    decisive.push({ name: `${what}, ${now} / ${then}`, unit: 'ratio', values: ratios });
    for (const side of [now, then]) {
      shown.push({ name: `${what}, ${side}`, unit, values: of.values(measured, side) });
    }
  };
  for (const [kind, named] of [
    ['vm', 'VM'],
    ['container', 'container'],
  ] as const) {
    const of = await attachInTurns(sides, { kind, rounds, block });
    add(`attach of a ${named}`, 'attach', 'ms', of);
    add(`detach of a ${named}`, 'detach', 'ms', of);
  }
  for (const limit of LIMITS) {
    const of = await manyInTurns(sides, { turns, attaches, limit });
    add(`attaches a second, ${limit} in flight`, 'rate', 'a second', of);
    add(`processor for an attach, ${limit} in flight`, 'cpu', 'ms', of);
  }
  return [
    {
      name: 'against',
      title: `This tree against ${tree.name}`,
      how:
        `Both agents at once, each on servers of its own, in turns: ${rounds} of ${block} attaches one after the ` +
        `other, and ${turns} of ${attaches} attaches in flight. A ratio is the median over the turns; below 1 this ` +
        'tree is quicker, of rates above 1.',
      decisive,
      shown,
    },
  ];
}

/** The files of another commit. */
export interface Tree {
  readonly folder: string;
  /** Its commit, short. */
  readonly name: string;
}

/**
 * Makes a worktree of a commit in a temporary folder, with npm packages; it is removed when the process ends. Before the
 * sandbox is entered: npm needs the machine's own network. Throws if there is no such commit.
 */
export function checkOut(revision: string): Tree {
  const git = (...words: string[]): string =>
    execFileSync('git', ['-C', ROOT, ...words], { encoding: 'utf8', stdio: 'pipe' }).trim();
  const commit = git('rev-parse', '--verify', '--end-of-options', `${revision}^{commit}`);
  const name = git('rev-parse', '--short', commit);
  const folder = join(tmpdir(), `tree-${name}`);
  process.once('exit', () => {
    git('worktree', 'remove', '--force', folder);
  });
  git('worktree', 'add', '--quiet', '--detach', folder, commit);
  const lock = (tree: string): string => readFileSync(join(tree, 'package-lock.json'), 'utf8');
  if (lock(folder) === lock(ROOT)) {
    symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
  } else {
    process.stderr.write(`installing the npm packages of ${name}\n`);
    const words = [
      'ci',
      '--omit=dev',
      '--include=optional',
      '--no-audit',
      '--no-fund',
      '--loglevel=error',
    ];
    execFileSync('npm', words, { cwd: folder, stdio: ['ignore', 'ignore', 'inherit'] });
  }
  return { folder, name };
}
