import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';

const ROOT = new URL('../..', import.meta.url);

// Writes every module that is resolved to standard error.
const HOOK = `data:text/javascript,
import { registerHooks } from 'node:module';
import { writeSync } from 'node:fs';
registerHooks({
  resolve(specifier, context, next) {
    const resolved = next(specifier, context);
    writeSync(2, resolved.url + '\\n');
    return resolved;
  },
});`;

test('the library is imported by name, and loads nothing of bus, ledger and agent', () => {
  const program = `console.log(Object.keys(await import('volt-network/library')).join());`;
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', HOOK, '--input-type=module', '--eval', program],
    { encoding: 'utf8', cwd: ROOT },
  );
  expect(stdout.trim()).toBe('createTap,createVeth');
  const packages = [...stderr.matchAll(/node_modules\/((?:@[^/]+\/)?[^/]+)/g)];
  const names = new Set(packages.map(([, name = '']) => name.replace(/^(@koromix)\/.*/, '$1')));
  expect([...names].toSorted((a, b) => a.localeCompare(b))).toEqual([
    '@koromix',
    'ipaddr.js',
    'koffi',
    'zod',
  ]);
  const own = stderr.split('\n').filter((line) => line.startsWith(ROOT.href));
  const others =
    /ipam-store|agent\/(?!library|errors|host\/(kernel|own-addresses|ownership|description|bridges\/|networks\/|firewall\/))/;
  expect(own.filter((line) => others.test(line) && !line.includes('node_modules'))).toEqual([]);
});
