import type { Command } from 'commander';
import type { LedgerHostsAnswer } from '#protocol/ledger.ts';
import type { Connected } from '../connect.ts';
import { UsageError } from '../errors.ts';
import type { Page } from '../page.ts';
import type { Shell } from '../shell.ts';
import { counted } from '../units.ts';
import { jobTable } from '../views.ts';

type HostState = LedgerHostsAnswer['hosts'][number]['state'];

/**
 * `job list` shows the jobs that wait in the job stream; `job delete` takes the jobs of a host away. Both ask
 * JetStream, and no agent.
 */
export function addJobCommands(program: Command, shell: Shell): void {
  const job = program
    .command('job')
    .description('jobs that wait in JetStream: list, delete')
    .addHelpText(
      'after',
      '\nExamples:\n  $ voltnet job list\n  $ voltnet job delete --host h9 --yes',
    );
  job
    .command('list')
    .description('list how many jobs wait for which hosts, or for that of --host')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet job list
  $ voltnet job list --host h9
  $ voltnet job list --json | jq -r '.hosts[] | select(.ledger == "unknown") | .host'

A job waits until the agent of its host has done it, or the stream's max_age (12 hours) is over.
CONSUMER: an agent of that host, or "voltnet setup", was there once. LEDGER: what "host list" says
of the host; "unknown" may be a misspelt name. Asks JetStream as the NATS user of voltnet.`,
    )
    .action(async (_flags: unknown, command: Command) => {
      const { host } = command.optsWithGlobals<{ host?: string }>();
      const { listWaitingJobs } = await import('../../bus/waiting-jobs.ts');
      const { waiting, known } = await shell.withClient(
        async ({ client, jetStream, settings: { subjectPrefix } }) => ({
          waiting: await jetStream((manager) => listWaitingJobs(manager, subjectPrefix, host)),
          known: await statesOf(client).catch((error: unknown) => String(error)),
        }),
      );
      const { maxAgeSeconds } = waiting;
      const hosts = waiting.hosts.map((one) =>
        typeof known === 'string' ? one : { ...one, ledger: known.get(one.host) ?? 'unknown' },
      );
      const output = shell.output();
      output.result({ hosts, maxAgeSeconds }, (): Page => jobTable(hosts));
      if (typeof known === 'string') output.note(`the ledger was not asked: ${known}`);
      const unknown = hosts.filter((one) => 'ledger' in one && one.ledger === 'unknown');
      if (unknown.length === 0) return;
      const end = maxAgeSeconds === 0 ? '' : `, ${maxAgeSeconds / 3_600} hours at most`;
      output.note(`jobs for an unknown host wait until its agent comes${end}`);
    });
  job
    .command('delete')
    .description('take the jobs of a host out of the stream, undone')
    .option('--yes', 'do it')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet job delete --host h9 --yes

They have no outcome, and no event tells of them. A job that an agent has begun is done all the
same. For ten minutes JetStream takes a job of the same host, operation and request id for a repeat,
and drops it.`,
    )
    .action(async (_flags: unknown, command: Command) => {
      const { host, yes } = command.optsWithGlobals<{ host?: string; yes?: boolean }>();
      // Never the configured host: it has to be named.
      if (host === undefined) throw new UsageError('name the host: --host h9');
      if (yes !== true) throw new UsageError(`this deletes all jobs of ${host}: add --yes`);
      const { deleteWaitingJobs } = await import('../../bus/waiting-jobs.ts');
      const deleted = await shell.withClient(({ jetStream, settings: { subjectPrefix } }) =>
        jetStream((manager) => deleteWaitingJobs(manager, subjectPrefix, host)),
      );
      shell
        .output()
        .result({ host, deleted }, () => [`${counted(deleted, 'job')} of ${host} deleted`]);
    });
}

/** Of the hosts that the ledger knows. */
async function statesOf(client: Connected['client']): Promise<ReadonlyMap<string, HostState>> {
  const states = new Map<string, HostState>();
  let cursor: string | undefined;
  do {
    const page = await client.ledgerHosts({ cursor });
    for (const { host, state } of page.hosts) states.set(host, state);
    ({ cursor } = page);
  } while (cursor !== undefined);
  return states;
}
