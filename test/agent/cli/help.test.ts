import type { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { allCommands, createProgram } from '#agent/cli/program.ts';
import { Shell } from '#agent/cli/shell.ts';

const shellOf = (): Shell =>
  new Shell({ env: {}, terminal: { write: () => {}, writeError: () => {}, isTTY: () => false } });

const program = await createProgram({ shell: shellOf(), version: '1.2.3', words: ['--help'] });

async function names(...words: string[]): Promise<string[]> {
  const small = await createProgram({ shell: shellOf(), version: '1', words });
  return small.commands.map((command) => command.name());
}

/** What `--help` prints, with what was added after it. */
function helpOf(command: Command): string {
  let help = '';
  command.configureOutput({ writeOut: (text) => (help += text) });
  command.outputHelp();
  return help;
}

describe('help', () => {
  const commands = allCommands(program).slice(1);

  test('has all the commands of the contract', () => {
    const paths = commands.map((command) =>
      [command.parent?.name(), command.name()].join(' ').replace('voltnet ', ''),
    );
    expect(paths).toEqual([
      'network',
      'network put',
      'network get',
      'network show',
      'network list',
      'network delete',
      'network edit',
      'network diff',
      'attach',
      'update',
      'detach',
      'get',
      'guest-config',
      'list',
      'check',
      'exec',
      'watch',
      'trace',
      'dashboard',
      'status',
      'doctor',
      'setup',
      'job',
      'job list',
      'job delete',
      'lease',
      'lease list',
      'host',
      'host list',
      'host forget',
      'host settle',
      'host rename',
      'host clean',
      'host cordon',
      'host uncordon',
      'host drain',
      'ledger',
      'ledger check',
      'ledger install',
      'version',
      'completion',
    ]);
  });

  test.each(commands.map((command): [string, Command] => [command.name(), command]))(
    '%s teaches by example, in lines that fit a terminal',
    (name, command) => {
      const help = helpOf(command);
      expect(help).toMatch(new RegExp(`Examples:[^]*\\$ .*voltnet.* ${name}`));
      expect(help).toContain('--json');
      expect(help.split('\n').filter((line) => line.length > 100)).toEqual([]);
    },
  );

  test('the first page lists the exit codes', () => {
    expect(helpOf(program)).toMatch(/Exit codes:\n +0 +done/);
  });

  test('only the commands whose names occur are loaded, and all when none does', async () => {
    expect(await names('--host', 'h1', 'watch')).toEqual(['watch']);
    expect(await names('--host', 'attach', 'get', 'x')).toEqual([
      'attach',
      'detach',
      'get',
      'guest-config',
      'list',
      'check',
    ]);
    expect(await names('lsit')).toHaveLength(program.commands.length);
    expect(await names('list', '--help')).toHaveLength(program.commands.length);
  });
});
