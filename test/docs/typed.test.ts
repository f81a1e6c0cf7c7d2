import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { allCommands, createProgram } from '#agent/cli/program.ts';
import { Shell } from '#agent/cli/shell.ts';
import { blocksOf, NEVER_TYPED } from '../support/page.ts';

// No page tells people to type what no test types. Every block of commands belongs to a test that ends with a look whether it
// has typed all of its pages; commands in a sentence have names and flags that there are.

const ROOT = new URL('../../', import.meta.url).pathname;
const read = (name: string): string => readFileSync(join(ROOT, name), 'utf8');

/** Who types the commands of a page. Those of `--help`: help.live.test.ts. */
const TYPED_BY: Readonly<Record<string, string>> = {
  'README.md': 'test/docs/readme.live.test.ts',
  'docs/examples/README.md': 'test/docs/readme.live.test.ts',
  'docs/guests.md': 'test/agent/host/guests.live.test.ts',
  'docs/install.md': 'test/deploy/install.package.test.ts',
  'docs/networks.md': 'test/docs/networks.live.test.ts',
  'docs/oci.md': 'test/deploy/oci.package.test.ts',
  'docs/operating.md': 'test/docs/operating.live.test.ts',
  'docs/runbook.md': 'test/docs/runbook.live.test.ts',
  'docs/security.md': 'test/docs/security.live.test.ts',
};

/** Who looks at what is in a block of another language. Text is what a command says. */
const LANGUAGES: Readonly<Record<string, string>> = {
  sh: 'test/docs/typed.test.ts',
  text: 'test/support/page.ts',
  ini: 'test/support/page.ts',
  json: 'test/docs/code-blocks.test.ts',
  ts: 'test/docs/code-blocks.test.ts',
  js: 'test/package/package.live.test.ts',
  python: 'test/package/package.live.test.ts',
  redis: 'test/ipam-store/acl.test.ts',
  hex: 'test/protocol',
  diff: 'nobody: what a change would look like',
};

const pages = [
  'README.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  'CHANGELOG.md',
  ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

const typed = (page: string): string[] =>
  [...blocksOf(read(page)).keys()].filter(
    (block) => !Object.hasOwn(NEVER_TYPED[page] ?? {}, block),
  );

describe.each(pages)('%s', (page) => {
  test('is typed by a test, to its last block', () => {
    if (typed(page).length === 0) {
      expect(TYPED_BY[page]).toBeUndefined();
      return;
    }
    const source = read(TYPED_BY[page] ?? 'a test in TYPED_BY');
    const name = page.startsWith('docs/') ? page.slice('docs/'.length) : `/${page}`;
    expect(source).toContain(`openPage('${name}')`);
    expect(source).toMatch(/untyped\(\)/);
  });

  test('has a language for every block, and commands in none but sh', () => {
    const fences = read(page).matchAll(/^( *)```(.*)\n([\s\S]*?)^\1```$/gm);
    for (const [, , language = '', text = ''] of fences) {
      expect(Object.keys(LANGUAGES), text).toContain(language);
    }
    expect(read(page)).not.toMatch(/\n\n {4}(voltnet|volt-network-agent|nft|ip|npm|systemctl) /);
  });
});

test('what is never typed is there', () => {
  for (const [page, blocks] of Object.entries(NEVER_TYPED)) {
    expect([...blocksOf(read(page)).keys()]).toEqual(expect.arrayContaining(Object.keys(blocks)));
  }
});

describe('commands in sentences', async () => {
  const shell = new Shell({
    env: {},
    terminal: { write: () => {}, writeError: () => {}, isTTY: () => false },
  });
  const program = await createProgram({ shell, version: '0', words: ['help'] });
  const commands = allCommands(program).filter((one) => one.commands.length === 0);
  const pathOf = (command: (typeof commands)[number]): string =>
    command.parent === null || command.parent === program
      ? command.name()
      : `${pathOf(command.parent)} ${command.name()}`;
  const names = commands.map(pathOf).toSorted((a, b) => b.length - a.length);
  const globals = program.options.flatMap(({ long }) => long ?? []);
  const spans = pages
    .filter((page) => page !== 'CHANGELOG.md')
    .flatMap((page) =>
      [...read(page).matchAll(/`(?:[A-Z_]+=\S+ )*voltnet ([^`]+)`/g)].map(
        ([, words = '']) => [page, words.replaceAll(/\s+/g, ' ')] as const,
      ),
    )
    .filter(([, words]) => !words.startsWith('COMMAND'));

  test.each(spans)('%s: voltnet %s', (_page, words) => {
    const name = names.find((one) => `${words} `.startsWith(`${one} `));
    const isGlobal = words.startsWith('--');
    const found = commands.find((one) => name !== undefined && pathOf(one) === name);
    expect(isGlobal ? program : found, 'there is no such command').toBeDefined();
    const flags = (isGlobal ? commands : [found]).flatMap(
      (one) => one?.options.flatMap(({ long }) => long ?? []) ?? [],
    );
    const [own = ''] = words.split(' -- ');
    for (const [flag] of own.matchAll(/--[a-z][a-z-]*/g)) {
      expect([...flags, ...globals, '--help']).toContain(flag);
    }
  });
});
