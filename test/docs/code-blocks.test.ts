import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript-5';
import { describe, expect, test } from 'vitest';
import { parseNetwork } from '#protocol/network.ts';

// Code in pages: TypeScript passes the compiler, JSON parses, and what is a network is taken as one. That of docs/client.md also runs: test/package.

const ROOT = new URL('../..', import.meta.url).pathname;
const pages = [
  'README.md',
  ...readdirSync(join(ROOT, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

const blocksOf = (page: string, language: string): string[] =>
  [...readFileSync(join(ROOT, page), 'utf8').matchAll(/```(\w+)\n([^`]*(?:`[^`]+)*?)```/g)]
    .filter(([, name]) => name === language)
    .map(([, , text = '']) => text);

const withBlocks = (language: string): string[] =>
  pages.filter((page) => blocksOf(page, language).length > 0);

/** What a page takes for granted. */
const GIVEN: Readonly<Record<string, string>> = {
  'docs/library.md': "import { spawn } from 'node:child_process';\n",
};

describe('TypeScript', () => {
  const options: ts.CompilerOptions = {
    ...ts.parseJsonConfigFileContent(
      ts.readConfigFile(join(ROOT, 'tsconfig.json'), ts.sys.readFile).config,
      ts.sys,
      ROOT,
    ).options,
    noUnusedLocals: false,
  };
  const sources = new Map(
    withBlocks('ts').map((page) => [
      join(ROOT, `${page}.ts`),
      (GIVEN[page] ?? '') + blocksOf(page, 'ts').join('\n'),
    ]),
  );
  const [sample = ''] = blocksOf('docs/protocol.md', 'ts');
  sources.set(join(ROOT, 'mistake.md.ts'), sample.replace('client.attach', 'client.attahc'));
  const host = ts.createCompilerHost(options);
  const readFile = host.readFile.bind(host);
  const fileExists = host.fileExists.bind(host);
  const program = ts.createProgram([...sources.keys()], options, {
    ...host,
    readFile: (name) => sources.get(name) ?? readFile(name),
    fileExists: (name) => sources.has(name) || fileExists(name),
    getSourceFile: (name, version) => {
      const text = sources.get(name) ?? readFile(name);
      return text === undefined ? undefined : ts.createSourceFile(name, text, version);
    },
  });

  function mistakesIn(page: string): string[] {
    const source = program.getSourceFile(join(ROOT, `${page}.ts`));
    return [
      ...program.getSyntacticDiagnostics(source),
      ...program.getSemanticDiagnostics(source),
    ].map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'));
  }

  test.each(withBlocks('ts'))('%s', (page) => {
    expect(mistakesIn(page)).toEqual([]);
  });

  test('a method that the client does not have is found', () => {
    expect(mistakesIn('mistake.md')).toEqual([
      expect.stringMatching(/^Property 'attahc' does not exist on type 'VoltNetworkClient'/),
    ]);
  });
});

describe('JSON', () => {
  test.each(withBlocks('json'))('%s', (page) => {
    for (const text of blocksOf(page, 'json')) {
      const value = JSON.parse(text) as object;
      if ('subnet' in value || 'ipv6' in value) expect(parseNetwork(value)).toMatchObject({});
    }
  });
});
