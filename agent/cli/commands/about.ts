import type { Command } from 'commander';
import packageJson from '../../../package.json' with { type: 'json' };
import { completions } from '../completions.ts';
import type { Shell } from '../shell.ts';
import { UsageError } from '../errors.ts';

/** `version` and `completion`: of the command line itself. */
export function addAboutCommands(program: Command, shell: Shell): void {
  program
    .command('version')
    .description('the version of voltnet')
    .addHelpText(
      'after',
      '\nExamples:\n  $ voltnet version\n\n"voltnet status" has the version of the agent.',
    )
    .action(() => {
      const { version } = packageJson;
      shell.output().result({ version }, () => [version]);
    });
  program
    .command('completion')
    .description('completion of commands and options for a shell')
    .argument('<shell>', 'bash, zsh or fish')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet completion bash > /etc/bash_completion.d/voltnet
  $ source <(voltnet completion bash)`,
    )
    .action((name: string) => {
      const text = new Map(Object.entries(completions(program))).get(name);
      if (text === undefined) throw new UsageError(`"${name}": must be bash, zsh or fish`);
      shell.output().prose(text);
    });
}
