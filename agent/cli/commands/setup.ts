import type { Command } from 'commander';
import { EXIT } from '../exit-codes.ts';
import { table } from '../page.ts';
import type { Shell } from '../shell.ts';

/** `setup`: makes in JetStream, as an administrator, what agents have no right to make. */
export function addSetupCommand(program: Command, shell: Shell): void {
  program
    .command('setup')
    .description('make the streams of jobs and events, and the consumers of hosts, in JetStream')
    .argument('[hosts...]', "hosts whose consumers are made (default: this one's)")
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet setup
  $ voltnet setup h1 h2 h3
  $ VOLT_NET_NATS_CREDENTIALS_FILE=admin.creds voltnet setup h1 h2 h3

Asks no agent, and is needed only where agents may not make these themselves. What is there is left
as it is; exit code 8 when it differs from what agents expect.`,
    )
    .action(async (hosts: string[]) => {
      const made = await shell.withClient(async ({ settings, jetStream }) => {
        const { ensureAll } = await import('../../streams.ts');
        const named = hosts.length === 0 ? [settings.host] : hosts;
        return jetStream((manager) => ensureAll(manager, settings.subjectPrefix, named));
      });
      shell.output().result({ made }, () =>
        table(
          ['NAME', 'OUTCOME', 'DIFFERENCES'],
          made.map(({ name, outcome, differences }) => [name, outcome, differences.join('; ')]),
        ),
      );
      if (made.some(({ outcome }) => outcome === 'differs')) shell.exitCode = EXIT.differs;
    });
}
