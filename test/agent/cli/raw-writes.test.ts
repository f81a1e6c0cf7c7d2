import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';

// What comes over the bus reaches a terminal through the printer and by no other way: nothing else of the command line
// writes, or makes a sequence that a terminal acts upon. What else of the project writes to it is known by file.

const ROOT = new URL('../../..', import.meta.url).pathname;

/** Ways to standard output and standard error, and to the terminal itself. */
const RAW: readonly RegExp[] = [
  /\bprocess\s*\??\.\s*(?!env\b|argv\b|exit\b|exitCode\b|geteuid\b|getuid\b)\w+/,
  /\bprocess\s*(?:\?\.)?\[/,
  /[=(,:]\s*process\s*[;,)}]|\.\.\.process\b|\bglobalThis\b|\bglobal\b/,
  /\bconsole\b/,
  /['"](?:node:)?(?:process|console|tty|repl|readline(?:\/promises)?|child_process|module)['"]/,
  /\b(?:writeSync|writevSync|writeFile(?:Sync)?|appendFile(?:Sync)?|createWriteStream)\s*\(|\bfs\.write\w*/,
  /\/dev\/(?!null)|\/proc\/self/,
  /\\x1b|\\u001b|\\u\{1b\}|\\033|\\x9b|\\u009b/i,
];

const PRINTER = 'agent/cli/printer.ts';
// JavaScript that turns the compile cache on, before anything else is loaded; it has nothing to say.
const STARTER = 'agent/cli/start.js';
// Makes the manual pages and completions when a package is made; it asks nobody.
const DOCUMENTS = 'agent/cli/write-documents.ts';
// Gives the terminal to the user's own editor, and has nothing to say.
const EDITOR = 'agent/cli/editor.ts';
/**
 * Beside the printer: the agent's log, its own configuration, a text that is fixed, what gives the demo's stage its way, and what
 * tells the maker of a package where it is.
 */
const OTHERS = [
  'agent/log.ts',
  'agent/main.ts',
  'deploy/demo/demo.ts',
  'deploy/package/deb.ts',
  'native/namespace.ts',
];

const withoutComments = (source: string): string =>
  source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/(^|\s)\/\/.*$/gm, '$1');

/** What writes past the printer, as far as it can be seen in the source. */
const rawWrites = (source: string): string[] =>
  RAW.flatMap((way) => way.exec(withoutComments(source))?.[0] ?? []);

const filesOf = (folder: string): string[] =>
  readdirSync(join(ROOT, folder), { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((name) => /\.[jt]s$/.test(name));
const read = (file: string): string => readFileSync(join(ROOT, file), 'utf8');

test('of the command line only the printer writes', () => {
  const known = new Set([PRINTER, STARTER, DOCUMENTS, EDITOR]);
  const files = filesOf('agent/cli').filter((file) => !known.has(file));
  expect(files.length).toBeGreaterThan(20);
  expect(files.flatMap((file) => rawWrites(read(file)).map((way) => `${file}: ${way}`))).toEqual(
    [],
  );
  expect(rawWrites(read(PRINTER))).not.toEqual([]);
});

test('beside it these files have to do with standard output, and no others', () => {
  const writing = ['agent', 'deploy', 'ipam-store', 'native', 'protocol']
    .flatMap(filesOf)
    .filter((file) => /\bprocess\.std(out|err)\b|\bconsole\.\w/.test(withoutComments(read(file))));
  expect(writing.toSorted()).toEqual([PRINTER, ...OTHERS]);
});

describe('a planted write is found', () => {
  test.each([
    'process.stdout.write(answer.id);',
    'process . stderr.write(answer.id);',
    'const { stdout } = process;',
    "process['stdout'].write(answer.id);",
    'write(process, answer.id);',
    'globalThis.process.stdout.write(answer.id);',
    "import { stdout } from 'node:process';",
    "import { WriteStream } from 'node:tty';",
    'console.log(answer.id);',
    'writeSync(1, answer.id);',
    'fs.write(1, answer.id, () => {});',
    "writeFileSync('/dev/stdout', answer.id);",
    'process.emitWarning(answer.id);',
    'const bold = `\\x1b[1m${answer.id}`;',
    'shell.output().result(answer, () => [`\\u001b[1m${answer.id}`]);',
  ])('%s', (planted) => {
    const command = read('agent/cli/commands/attachments.ts');
    expect(rawWrites(command)).toEqual([]);
    expect(rawWrites(`${command}\n${planted}\n`)).not.toEqual([]);
  });
});
