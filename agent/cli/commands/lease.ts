import type { Command } from 'commander';
import type { LedgerLease, LedgerLeasesRequest } from '#protocol/ledger.ts';
import type { Shell } from '../shell.ts';
import { oneOf } from '../units.ts';
import { leaseTable } from '../views.ts';

interface ListFlags {
  readonly network?: string;
  /** The global flag is a filter here, since any agent answers. */
  readonly host?: string;
  readonly state?: string;
}

/** `lease list`: the leases of the whole fleet. */
export function addLeaseCommands(program: Command, shell: Shell): void {
  const lease = program
    .command('lease')
    .description('leases of the fleet: list')
    .addHelpText(
      'after',
      '\nExamples:\n  $ voltnet lease list\n  $ voltnet lease list --state suspect',
    );
  lease
    .command('list')
    .description('list who holds which addresses, on all hosts or on that of --host')
    .option('--network <name>', 'only of this network')
    .option('--state <state>', 'only held, suspect or expired')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet lease list --network volt0
  $ voltnet lease list --host h2 --state suspect
  $ voltnet lease list --json | jq -r '.leases[] | [.addresses[0], .id, .host] | @tsv'

A suspect lease is of a host that has fallen silent: nobody else gets its addresses until the host
is back, or forgotten ("voltnet host forget").`,
    )
    .action(async (_flags: unknown, command: Command) => {
      const flags = command.optsWithGlobals<ListFlags>();
      const { network, host } = flags;
      const state = oneOf('--state', flags.state, ['held', 'suspect', 'expired']);
      const filter: LedgerLeasesRequest = {
        ...(network !== undefined && { network }),
        ...(host !== undefined && { host }),
        ...(state !== undefined && { state }),
      };
      const leases = await shell.withClient(async ({ client }) => {
        const all: LedgerLease[] = [];
        let cursor: string | undefined;
        do {
          const page = await client.ledgerLeases({ ...filter, cursor });
          all.push(...page.leases);
          ({ cursor } = page);
        } while (cursor !== undefined);
        return all;
      });
      shell.output().result({ leases }, () => leaseTable(leases));
    });
}
