import type { Command } from 'commander';
import { EXIT } from '../exit-codes.ts';
import { marked, type Page } from '../page.ts';
import type { Shell } from '../shell.ts';

/** `doctor`: what on this host stops the traffic of workloads, and the commands that mend it. */
export function addDoctorCommand(program: Command, shell: Shell): void {
  program
    .command('doctor')
    .description('look at this host as root: what stops traffic, and the exact rules to add')
    .option('--table <name>', "the agent's nftablesTable", 'volt')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet doctor
  $ voltnet doctor --json | jq -r '.findings[] | select(.severity == "problem") | .commands[]'

It looks and prints; it changes nothing, and asks no agent. Docker, ufw, firewalld and rules of
your own that drop what host-only networks forward are found. Exit code 8 when there is a problem.`,
    )
    .action(async ({ table }: { readonly table: string }) => {
      const { diagnose, observeHost } = await import('../../host/doctor.ts');
      const findings = diagnose(observeHost(table));
      shell
        .output()
        .result({ findings }, () =>
          findings.flatMap(({ severity, subject, seen, commands }): Page => [
            [severity === 'problem' ? marked('bad', severity) : severity, `: ${subject}: ${seen}`],
            ...commands.map((command) => `    ${command}`),
          ]),
        );
      if (findings.some(({ severity }) => severity === 'problem')) shell.exitCode = EXIT.differs;
    });
}
