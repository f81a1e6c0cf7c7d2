import { execFile, execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import packageJson from '../../package.json' with { type: 'json' };
import { addNamespace, deviceNames, removeNamespace } from '../support/kernel.ts';
import { startStack, type Stack } from '../support/stack.ts';
import { requireTool } from '../support/tools.ts';

// The npm package as others install it: packed, unpacked into empty folders, imported there, and its agent run.

const ROOT = new URL('../../', import.meta.url).pathname;
const COMPILERS = ['typescript-5', 'typescript'] as const;
const LIBRARIES = ['nats', '@nats-io/transport-node'] as const;

const run = promisify(execFile);
const folder = mkdtempSync(join(tmpdir(), 'volt-test-package-'));
const tarball = join(folder, `volt-network-${packageJson.version}.tgz`);
let stack: Stack;
let jobs = 0;
const INSTALLED = '0.1.0-installed';

const readManifest = (file: string): object => JSON.parse(readFileSync(file, 'utf8')) as object;

/** An empty folder in which the package is installed, and beside it what its users install themselves. */
function installedWith(...packages: readonly string[]): string {
  const app = mkdtempSync(join(folder, 'app-'));
  writeFileSync(join(app, 'package.json'), '{ "private": true, "type": "module" }');
  const modules = join(app, 'node_modules');
  const { nats: _, ...dependencies } = packageJson.dependencies;
  for (const name of [...Object.keys(dependencies), ...packages]) link(modules, name);
  mkdirSync(join(modules, 'volt-network'));
  const where = ['--directory', join(modules, 'volt-network'), '--strip-components', '1'];
  execFileSync('tar', ['--extract', '--file', tarball, ...where]);
  mkdirSync(join(modules, '.bin'));
  for (const [name, path] of Object.entries(packageJson.bin)) {
    symlinkSync(join('../volt-network', path), join(modules, '.bin', name));
  }
  return app;
}

/** What the checkout has installed, as npm would put it there. */
function link(modules: string, name: string): void {
  mkdirSync(dirname(join(modules, name)), { recursive: true });
  symlinkSync(join(ROOT, 'node_modules', name), join(modules, name));
}

beforeAll(async () => {
  const dist = join(folder, 'dist');
  execFileSync(process.execPath, [join(ROOT, 'deploy/package/build.ts'), dist]);
  execFileSync('npm', ['pack', '--silent', '--pack-destination', folder, dist]);
  const modules = join(installedWith('nats', `node-linux-${process.arch}`), 'node_modules');
  // The agent tells its version: that of no other.
  const manifest = join(modules, 'volt-network/package.json');
  writeFileSync(manifest, JSON.stringify({ ...readManifest(manifest), version: INSTALLED }));
  const agent = join(modules, '.bin/volt-network-agent');
  // In place of the checkout's agent, whose path follows.
  stack = await startStack({ wrap: ['sh', '-c', `shift; exec ${agent} "$@"`, 'sh'] });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const page = readFileSync(join(ROOT, 'docs/client.md'), 'utf8');
const blocksOf = (language: string): string =>
  [...page.matchAll(/```(\w+)\n([^`]*)```/g)]
    .filter(([, name]) => name === language)
    .map(([, , text]) => text)
    .join('\n');

test('the agent that serves these tests is that of the package', async () => {
  expect(await stack.agent.health()).toMatchObject({ version: INSTALLED });
});

test('the package has no TypeScript but declarations, and these name neither zod nor NATS', () => {
  const files = execFileSync('tar', ['--list', '--file', tarball], { encoding: 'utf8' });
  const sources = files.split('\n').filter((name) => name.endsWith('.ts'));
  expect(sources.filter((name) => !name.endsWith('.d.ts'))).toEqual([]);
  expect(files).toMatch(/README\.md\n/);
  expect(files).not.toMatch(/\/(test|demo|bench|decisions|node_modules)\//);
  const modules = join(installedWith(), 'node_modules/volt-network');
  const declarations = readdirSync(modules, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.d.ts'))
    .map((name) => readFileSync(join(modules, name), 'utf8'));
  expect(declarations.length).toBeGreaterThan(5);
  for (const text of declarations) {
    expect(text).not.toMatch(/from ['"](?!\.|#)|import\(['"](?!\.|#)|reference types/);
  }
});

test('links of its pages lead to something in it, and none is lost that could', () => {
  const modules = join(installedWith(), 'node_modules/volt-network');
  const linksOf = (root: string, name: string): string[] =>
    [...readFileSync(join(root, name), 'utf8').matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)]
      .map(([, to = '']) => join(dirname(name), to))
      .toSorted();
  const pages = readdirSync(modules, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.md'),
  );
  expect(pages).toEqual(expect.arrayContaining(['README.md', 'docs/benchmarks.md']));
  const isThere = (to: string): boolean => existsSync(join(modules, to));
  for (const name of pages) {
    const inCheckout = linksOf(ROOT, name);
    expect(linksOf(modules, name), name).toEqual(inCheckout.filter(isThere));
  }
  expect(linksOf(modules, 'docs/benchmarks.md')).toContain('docs/benchmarks/attach.svg');
  expect(linksOf(ROOT, 'README.md').every(isThere)).toBe(false);
});

test('the package has the page of the dashboard, as it is', () => {
  const files = 'agent/cli/dashboard/page';
  const packed = join(installedWith(), 'node_modules/volt-network', files);
  const names = readdirSync(join(ROOT, files));
  expect(names).toEqual(expect.arrayContaining(['index.html', 'style.css', 'app.js', 'icon.svg']));
  expect(readdirSync(packed).toSorted()).toEqual(names.toSorted());
  for (const name of names) {
    expect(readFileSync(join(packed, name))).toEqual(readFileSync(join(ROOT, files, name)));
  }
});

describe.each(LIBRARIES)('with %s', (library) => {
  let app: string;
  beforeAll(() => {
    app = installedWith(library);
  });

  const runInApp = async (file: string): Promise<string[]> => {
    const { stdout } = await run(process.execPath, [join(app, file)], { cwd: app });
    return stdout.trim().split('\n');
  };

  describe.each(COMPILERS)('the program of docs/client.md, with %s', (compiler) => {
    const compile = (...options: string[]): void => {
      const tsc = join(ROOT, 'node_modules', compiler, 'bin/tsc');
      try {
        execFileSync(process.execPath, [tsc, ...options], { cwd: app, encoding: 'utf8' });
      } catch (error) {
        throw new Error(String(Object(error).stdout), { cause: error });
      }
    };

    test('is compiled without further options, and does what it says', async () => {
      jobs += 1;
      const program = blocksOf('ts')
        .replace(`'nats'`, `'${library}'`)
        .replace('nats://127.0.0.1:4222', stack.nats.url)
        .replace(`'r-7'`, `'r-${jobs}'`);
      writeFileSync(join(app, 'program.ts'), program);
      const compilerOptions = { module: 'nodenext', strict: true, skipLibCheck: false };
      writeFileSync(join(app, 'tsconfig.json'), JSON.stringify({ compilerOptions }));
      compile();
      expect(await runInApp('program.js')).toEqual([
        'attached tap-web 10.42.0.10/24',
        'refused ALREADY_ATTACHED false',
        'lease web held',
        'job front',
        'known web',
        'known 0',
      ]);
      // As the compiler itself proposes.
      rmSync(join(app, 'tsconfig.json'));
      compile('--init');
      compile('--noEmit', '--project', '.');
    });

    test('types are those of the protocol: a mistake is found', () => {
      const mistakes = [
        `import type { AttachRequest, VoltEvent } from 'volt-network/protocol';`,
        `import { createTap, type TapPort } from 'volt-network/library';`,
        `export const request: AttachRequest = {`,
        `  id: 'a',`,
        `  workload: 'w',`,
        `  // @ts-expect-error`,
        `  kind: 'cat',`,
        `  network: 'volt0',`,
        `};`,
        `export const told = (event: VoltEvent): string =>`,
        `  // @ts-expect-error`,
        `  event.type === 'failed' ? event.body.mac.length : event.type;`,
        `export const tap = (): TapPort => createTap('br0', 'w');`,
        `// @ts-expect-error`,
        `export const other = (): TapPort => createTap('br0');`,
      ];
      writeFileSync(join(app, 'mistakes.ts'), mistakes.join('\n'));
      const options = ['--module', 'nodenext', '--strict', '--noEmit', '--skipLibCheck', 'false'];
      // Types of both NATS clients do not pass with it; those of the package do.
      options.push('--exactOptionalPropertyTypes');
      rmSync(join(app, 'tsconfig.json'), { force: true });
      compile(...options, 'mistakes.ts');
    });
  });

  test('plain JavaScript: attach, list, job, watch, detach, and the library', async () => {
    const program = `
      import { connect, headers } from '${library}';
      import { VoltNetworkClient } from 'volt-network/protocol';
      import { createTap } from 'volt-network/library';

      const connection = await connect({ servers: '${stack.nats.url}' });
      const volt = new VoltNetworkClient({ connection, headers });
      const after = await volt.lastSequence();
      const request = { id: 'db', workload: 'w', kind: 'container', network: 'volt0', netns: '/run/netns/db' };
      const { operations } = await volt.dryRun('h1', request);
      console.log(operations.length > 0);
      await volt.attach('h1', request);
      const { attachments } = await volt.list('h1');
      console.log(attachments.map(({ id }) => id).join());
      await volt.submitDetach('h1', { id: 'db' });
      for await (const event of volt.watch({ after })) {
        console.log(event.type, event.body.id);
        if (event.type === 'detached') break;
      }
      {
        using tap = createTap('br0', 'w');
        console.log(tap.name, tap.descriptor.fd > 2);
      }
      await connection.close();`;
    writeFileSync(join(app, 'program.mjs'), program);
    addNamespace('db');
    execFileSync('ip', ['link', 'add', 'br0', 'type', 'bridge']);
    expect(await runInApp('program.mjs')).toEqual([
      'true',
      'db',
      'attached db',
      'detached db',
      'tap-w true',
    ]);
    expect(deviceNames()).not.toContain('tap-w');
    execFileSync('ip', ['link', 'delete', 'br0']);
    removeNamespace('db');
  });
});

describe('the descriptors of a TAP', () => {
  beforeAll(async () => {
    const request = { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' } as const;
    await stack.client.attach(stack.host, request);
  });
  afterAll(async () => {
    await stack.client.detach(stack.host, { id: 'web' });
  });

  test('are claimed by the voltnet of the package', async () => {
    const app = installedWith(`node-linux-${process.arch}`);
    const env = { ...process.env, VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir };
    const words = ['exec', 'web', '--', 'readlink', '/proc/self/fd/{fd}'];
    const { stdout } = await run(join(app, 'node_modules/.bin/voltnet'), words, { env });
    expect(stdout).toBe('/dev/net/tun\n');
  });

  test('are claimed by the Python of docs/client.md', async () => {
    const program = blocksOf('python').replace(
      '/run/volt-vmm/network/agent.sock',
      stack.agent.socketPath,
    );
    const { attachment } = await stack.client.get(stack.host, { id: 'web' });
    const { stdout } = await run(requireTool('python3'), ['-c', program]);
    expect(stdout).toBe(`${attachment.mac} 1\n`);
  });
});
