import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const START = fileURLToPath(new URL('../../../agent/cli/start.js', import.meta.url));

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

/** Packages that one run of the command line loads. */
function packagesOf(...words: string[]): Set<string> {
  const { stderr } = spawnSync(process.execPath, ['--import', HOOK, START, ...words], {
    encoding: 'utf8',
    env: { VOLT_NET_RUNTIME_DIR: '/nonexistent', NODE_DISABLE_COMPILE_CACHE: '1' },
  });
  const packages = stderr.matchAll(/node_modules\/((?:@[^/]+\/)?[^/]+)/g);
  return new Set([...packages].map(([, name = '']) => name));
}

// Start-up time is what is loaded: `npm run bench` measures it, this holds it.
test.each([
  [['--help'], ['commander']],
  [['status'], ['commander', 'ipaddr.js', 'koffi', '@koromix']],
  [
    ['--nats', '127.0.0.1:1', 'list'],
    ['commander', 'nats', 'nkeys.js', 'tweetnacl', '@msgpack/msgpack', 'ipaddr.js'],
  ],
])('voltnet %j loads the packages it needs and no other', (words, allowed) => {
  const packages = packagesOf(...words);
  expect(packages).toContain('commander');
  expect(
    [...packages].filter((name) => !allowed.includes(name.replace(/(@koromix)\/.*/, '$1'))),
  ).toEqual([]);
});
