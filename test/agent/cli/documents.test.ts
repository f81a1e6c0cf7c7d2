import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { STANDARD } from '#agent/cli/printer.ts';
import { allCommands, createProgram } from '#agent/cli/program.ts';
import { Shell } from '#agent/cli/shell.ts';
import { createAgentCommand } from '#agent/cli/agent-command.ts';
import { completions } from '#agent/cli/completions.ts';
import { agentPage, configurationPage, voltnetPage } from '#agent/cli/manual.ts';

// The manual pages and completions of the Debian package, held against the commands that they are made from.

const edition = { version: '0.1.0', date: '2026-11-29' };
const read = (name: string): string =>
  readFileSync(new URL(`../../../docs/${name}`, import.meta.url), 'utf8');
const operating = read('operating.md');
const reference = read('reference/configuration.md');
const shell = new Shell({ env: {}, terminal: STANDARD });
const program = await createProgram({ shell, version: edition.version, words: ['help'] });
const [, ...commands] = allCommands(program);
const folder = mkdtempSync(join(tmpdir(), 'volt-manual-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** `network put` */
const pathOf = (command: (typeof commands)[number]): string =>
  command.parent === null || command.parent === program
    ? command.name()
    : `${command.parent.name()} ${command.name()}`;

/** As roff has it. */
const roff = (text: string): string => text.replaceAll('-', '\\-');

describe('manual pages', () => {
  test('voltnet(1) has every command with each of its options', () => {
    const { text } = voltnetPage(program, edition);
    const parts = new Map(
      text
        .split('\n.SS ')
        .slice(1)
        .map((part) => {
          const [, path = ''] = /^voltnet ((?:[a-z ]|\\-)*[a-z])/.exec(part) ?? [];
          return [path.replaceAll('\\-', '-'), part];
        }),
    );
    const leaves = commands.filter(({ commands: below }) => below.length === 0);
    const missing = leaves.flatMap((command) => {
      const part = parts.get(pathOf(command)) ?? '';
      const words = [command.description(), ...command.options.map(({ flags }) => flags)];
      return words.map(roff).filter((word) => !part.replaceAll('\\(aq', "'").includes(word));
    });
    expect(missing).toEqual([]);
    expect(parts.size).toBe(leaves.length);
    for (const { flags } of program.options) expect(text).toContain(roff(flags));
    expect(text).toContain('voltnet attach \\-\\-id web');
  });

  test('volt-network-agent(8) has every option, exit code and file', () => {
    const command = createAgentCommand(edition.version);
    const { text } = agentPage(command, operating, edition);
    for (const { flags } of command.options) expect(text).toContain(roff(flags));
    expect(text).toContain('.TP\n\\fB78\\fR\n');
    expect(text).toContain(roff('/var/lib/volt/network/identity'));
  });

  test('agent.json(5) has every key of the table and the defaults', () => {
    const { text } = configurationPage({ operating, reference }, edition);
    const keys = [...reference.matchAll(/^\| `([\w.]+)` \|/gm)].map(([, key]) => key);
    expect(keys.length).toBeGreaterThan(40);
    expect(keys.filter((key) => !text.includes(`\\fB${key}\\fR`))).toEqual([]);
    expect(text).toContain('"heartbeatSeconds": 5');
  });

  test('no line of a page is taken for a command that roff does not have', () => {
    const pages = [
      voltnetPage(program, edition),
      agentPage(createAgentCommand(edition.version), operating, edition),
      configurationPage({ operating, reference }, edition),
    ];
    const odd = pages.flatMap(({ text }) =>
      text
        .split('\n')
        .filter((line) => /^[.']/.test(line) && !/^\.(TH|SH|SS|TP|PP|B|nf|fi)( |$)/.test(line)),
    );
    expect(odd).toEqual([]);
  });
});

describe('completions', () => {
  const made = completions(program);

  test.each(['bash', 'zsh', 'fish'] as const)('of %s name every command and option', (name) => {
    const dashes = name === 'fish' ? '-l ' : '--';
    const words = commands.flatMap((command) => [
      command.name(),
      ...command.options.map(({ long }) => (long ?? '').replace('--', dashes)),
    ]);
    expect(words.filter((word) => !made[name].includes(word))).toEqual([]);
  });

  const file = join(folder, 'voltnet');
  writeFileSync(file, made.bash);
  const TRY = `
    . "$1"; shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _voltnet && echo "\${COMPREPLY[*]}"`;

  test.each([
    ['voltnet net', 'network'],
    ['voltnet host cl', 'clean'],
    ['voltnet network put --re', '--revision'],
    ['voltnet --host network attach --ki', '--kind'],
    ['voltnet attach --network network --id', '--id'],
    ['voltnet attach --netns /run', ''],
    ['voltnet exec web -- que', ''],
  ])('bash completes "%s" to "%s"', (line, expected) => {
    const { stdout, stderr } = spawnSync('bash', ['-uc', TRY, 'bash', file, ...line.split(' ')], {
      encoding: 'utf8',
    });
    expect({ stdout: stdout.trim(), stderr }).toEqual({ stdout: expected, stderr: '' });
  });
});
