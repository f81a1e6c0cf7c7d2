import type { Command } from 'commander';
import { UsageError } from '../errors.ts';
import { EXIT } from '../exit-codes.ts';
import { marked, table } from '../page.ts';
import type { Shell } from '../shell.ts';
import { ledgerDifferenceTable } from '../views.ts';

interface InstallFlags {
  readonly config?: string;
  readonly redis?: string;
  readonly username?: string;
  readonly passwordFile?: string;
}

/**
 * `ledger check`, which an agent does, and `ledger install`, the only command that talks to Redis itself, as an
 * administrator.
 */
export function addLedgerCommands(program: Command, shell: Shell): void {
  const ledger = program
    .command('ledger')
    .description('the ledger of networks and leases in Redis')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet ledger check
  $ voltnet ledger install`,
    );
  addCheck(ledger, shell);
  ledger
    .command('install')
    .description('load the function library into Redis, where agents may not do so themselves')
    .option('--redis <url>', 'Redis server, instead of the configured one')
    .option('--username <name>', 'user that may FUNCTION LOAD, instead of the configured one')
    .option('--password-file <file>', 'file with its password')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet ledger install
  $ voltnet ledger install --username admin --password-file /root/redis.password
  $ voltnet ledger install --redis rediss://redis.example.org:6379/0 --json

Asks no agent. In a cluster it goes to all masters. An older library is replaced, a newer one is
left alone.`,
    )
    .action(async (_flags: unknown, command: Command) => {
      const options = command.optsWithGlobals<InstallFlags>();
      const { installLedger } = await import('#ipam-store/install.ts');
      const redis = await redisOf(options);
      const installed = await installLedger(redis);
      shell.output().result({ installed }, () =>
        table(
          ['SERVER', 'BEFORE', 'NOW'],
          installed.map(({ server, before, after }) => [server, before ?? undefined, after]),
        ),
      );
    });
}

const addCheck = (ledger: Command, shell: Shell): Command =>
  ledger
    .command('check')
    .description('compare the ledger with itself, and with records and kernel of every live host')
    .option('--repair', 'put right what is proven')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet ledger check
  $ voltnet ledger check --repair --timeout 60s

Repaired is what a lease, or the lack of one, proves, and leases of which their own live host says
twice that it has neither record nor device. All else is named and left. Exit code 8 when a
difference stays, or a host did not answer. Has a fifth of Redis's time, so that a large ledger
takes minutes; --timeout is for each step of it.`,
    )
    .action(async (flags: { repair?: boolean }) => {
      const output = shell.output();
      const onProgress = (progress: string): void => output.note(`checking: ${progress}`);
      const answer = await shell.withClient(({ client }) =>
        client.checkLedger(flags.repair === true ? { repair: true } : {}, { onProgress }),
      );
      const { inSync, differences, silent, truncated } = answer;
      output.result(answer, () =>
        differences.length === 0 ? [marked('good', 'in sync')] : ledgerDifferenceTable(differences),
      );
      if (silent.length > 0) output.note(`not compared: ${silent.join(', ')}`);
      if (truncated) output.note('there are more: run it again');
      if (!inSync || silent.length > 0) shell.exitCode = EXIT.differs;
    });

/** The agent's own configuration, checked as the agent checks it. */
async function redisOf({ config, redis, username, passwordFile }: InstallFlags) {
  const { ConfigError, loadConfig } = await import('../../config.ts');
  const { checkFiles } = await import('#ipam-store/client.ts');
  const { FileError } = await import('#ipam-store/named-files.ts');
  try {
    const { redis: options } = loadConfig({
      ...(config !== undefined && { file: config }),
      env: process.env,
      flags: {
        ...(redis !== undefined && { 'redis.url': redis }),
        ...(username !== undefined && { 'redis.username': username }),
        ...(passwordFile !== undefined && { 'redis.passwordFile': passwordFile }),
      },
    });
    checkFiles(options);
    return options;
  } catch (error) {
    const isWrong = error instanceof ConfigError || error instanceof FileError;
    throw isWrong ? new UsageError(error.message, { cause: error }) : error;
  }
}
