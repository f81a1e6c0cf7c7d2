import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from 'vitest';

const START = fileURLToPath(new URL('../../agent/start.js', import.meta.url));

// Writes what the process has loaded of Node's own compiler of TypeScript, at its end.
const TELL = `data:text/javascript,
import { writeSync } from 'node:fs';
process.on('exit', () => {
  writeSync(2, JSON.stringify(process.moduleLoadList.filter((name) => name.includes('amaro'))));
});`;

let home: string;
beforeAll(() => (home = mkdtempSync(join(tmpdir(), 'volt-home-'))));
afterAll(() => rmSync(home, { recursive: true }));

function compilerOf(env: Record<string, string> = {}): unknown {
  const words = ['--import', TELL, START, '--check-config', '--config', '/dev/null'];
  const { stderr } = spawnSync(process.execPath, words, {
    encoding: 'utf8',
    env: { HOME: home, ...env },
  });
  return JSON.parse(/\[.*\]$/.exec(stderr)?.[0] ?? 'null');
}

// The compiler takes 20 MiB for as long as the process runs.
test('an agent that has run here before does not load a compiler', () => {
  expect(compilerOf({ NODE_DISABLE_COMPILE_CACHE: '1' })).toContainEqual(expect.any(String));
  // It fills the cache, unless another run has.
  compilerOf();
  expect(compilerOf()).toEqual([]);
});
