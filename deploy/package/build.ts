import { execFileSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import packageJson from '../../package.json' with { type: 'json' };
import { bundlePrograms } from './bundle.ts';
import { prepareDeclarations } from './declarations.ts';
import { dropDeadLinks } from './links.ts';

// Makes the npm package in dist/, or in the folder that is given: compiled and bundled JavaScript with its types, the launchers, and the documentation for users. Node
// does not run TypeScript below node_modules; a checkout needs nothing of this.

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const DIST = process.argv[2] ?? join(ROOT, 'dist');
const CODE = ['agent', 'ipam-store', 'native', 'protocol'];
/** What is copied as it is. Of the documentation what is for users: no decisions, no tests. */
const COPIED = [
  'CHANGELOG.md',
  'LICENSE',
  'README.md',
  'SECURITY.md',
  'deploy/agent.json',
  'deploy/bin',
  'deploy/nats',
  'deploy/networks',
  'deploy/observability',
  'deploy/redis',
  'deploy/systemd',
  ...filesBelow('docs').filter((name) =>
    /^docs\/([^/]+\.md|benchmarks\/.+\.svg|reference\/.+)$/.test(name),
  ),
  // The Lua functions, the file that starts voltnet, and the page of its dashboard.
  ...CODE.flatMap(filesBelow).filter((name) => /\.(lua|js|html|css|svg)$/.test(name)),
];

function filesBelow(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' }).map((name) =>
    join(folder, name),
  );
}

/** As the checkout's, with what is compiled in place of the sources, and without what is for development. */
function manifest(): object {
  const { scripts: _, devDependencies: _dev, ...kept } = packageJson;
  const entries = Object.entries(kept.exports).map(([name, source]) => {
    const compiled = source.replace(/\.ts$/, '');
    return [name, { types: `${compiled}.d.ts`, default: `${compiled}.js` }];
  });
  const imports = CODE.map((folder) => [`#${folder}/*.ts`, `./${folder}/*.js`]);
  return {
    ...kept,
    exports: { ...Object.fromEntries(entries), './package.json': './package.json' },
    imports: Object.fromEntries(imports),
  };
}

rmSync(DIST, { recursive: true, force: true });
const compiler = join(ROOT, 'node_modules/typescript/bin/tsc');
const project = ['--project', join(ROOT, 'tsconfig.build.json'), '--outDir', DIST];
execFileSync(process.execPath, [compiler, ...project], { stdio: 'inherit' });
for (const name of COPIED) {
  mkdirSync(dirname(join(DIST, name)), { recursive: true });
  cpSync(join(ROOT, name), join(DIST, name), { recursive: true });
}
dropDeadLinks(DIST);
// As it is executed, whatever the mask of whoever builds.
for (const name of readdirSync(join(DIST, 'deploy/bin')))
  chmodSync(join(DIST, 'deploy/bin', name), 0o755);
writeFileSync(join(DIST, 'package.json'), `${JSON.stringify(manifest(), null, 2)}\n`);
prepareDeclarations({
  sources: ROOT,
  folder: DIST,
  entries: Object.values(packageJson.exports).map((source) => source.replace(/\.ts$/, '')),
});
await bundlePrograms({ folder: DIST, modules: join(ROOT, 'node_modules') });
