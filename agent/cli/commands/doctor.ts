import type { Command } from 'commander';
import type { Network } from '#protocol/network.ts';
import { EXIT } from '../exit-codes.ts';
import { marked, type Page } from '../page.ts';
import type { Shell } from '../shell.ts';
import { allNetworks } from './network.ts';

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

It looks and prints; it changes nothing. Found are: Docker, ufw, firewalld and rules of your own
that drop what host-only networks forward; bridges of yours that keep traffic from passing;
networks of the fleet whose subnets this host has elsewhere, if NATS answers. The agent need not
run. Exit code 8 when there is a problem.`,
    )
    .action(async ({ table }: { readonly table: string }) => {
      const { diagnose, observeHost } = await import('../../host/doctor.ts');
      const { runtimeDir } = shell.settingsHere();
      const networks = await fleetNetworks(shell);
      const findings = diagnose(observeHost({ table, runtimeDir, networks }));
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

/** All networks of the fleet, or why nobody says which they are. */
async function fleetNetworks(shell: Shell): Promise<Network[] | string> {
  if (shell.settings().local) return '--local';
  try {
    const networks = await shell.withClient(({ client }) => allNetworks(client));
    return networks.map(({ network }) => network);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
