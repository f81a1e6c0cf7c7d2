import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const ROOT = new URL('../..', import.meta.url).pathname;

const COPIED = ['agent', 'ipam-store'];

/** One place of a file, which must be there once, and what a mistake makes of it. */
export interface SourcePatch {
  readonly file: string;
  readonly right: string;
  readonly wrong: string;
}

/**
 * A checkout with a mistake in its agent or ledger: a copy of those and of the launchers, and links to the rest.
 * `wrap` makes `startAgent` start that one.
 */
export function mutantAgent(patches: readonly SourcePatch[]): Disposable & { wrap: string[] } {
  const folder = mkdtempSync(join(tmpdir(), 'volt-test-mutant-'));
  for (const name of readdirSync(ROOT)) {
    if (COPIED.includes(name) || name === 'deploy' || name.startsWith('.')) continue;
    symlinkSync(join(ROOT, name), join(folder, name));
  }
  for (const name of COPIED) cpSync(join(ROOT, name), join(folder, name), { recursive: true });
  mkdirSync(join(folder, 'deploy'));
  cpSync(join(ROOT, 'deploy/bin'), join(folder, 'deploy/bin'), { recursive: true });
  for (const { file, right, wrong } of patches) {
    const path = join(folder, file);
    const parts = readFileSync(path, 'utf8').split(right);
    if (parts.length !== 2)
      throw new Error(`${file} has ${parts.length - 1} places with: ${right}`);
    writeFileSync(path, parts.join(wrong));
  }
  const program = join(folder, 'deploy/bin/volt-network-agent');
  return {
    wrap: ['/bin/sh', '-c', `shift; exec ${program} "$@"`, 'sh'],
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}
