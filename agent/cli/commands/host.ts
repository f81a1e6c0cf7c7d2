import type { Command } from 'commander';
import { HOST_PATTERN } from '#protocol/names.ts';
import { UsageError } from '../errors.ts';
import type { LedgerHostsAnswer } from '#protocol/ledger.ts';
import type { Shell } from '../shell.ts';
import { counted } from '../units.ts';
import { hostTable } from '../views.ts';
import { addDrainCommands } from './drain.ts';

/**
 * `host list` and `host forget`: the hosts that the ledger knows. `host settle` decides whose a host id is; `host
 * rename` gives this host another id; `host clean` takes off it what nobody needs.
 */
export function addHostCommands(program: Command, shell: Shell): void {
  const host = program
    .command('host')
    .description('hosts of the fleet: list, cordon, drain, forget, settle, rename, clean')
    .addHelpText('after', '\nExamples:\n  $ voltnet host list\n  $ voltnet host forget h7');
  host
    .command('list')
    .description('list the hosts that the ledger knows, and whether it grants leases')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet host list
  $ voltnet host list --json | jq -r '.hosts[] | select(.state == "suspect") | .host'

live: its agent sends heartbeats. joining: new, until another host has seen it. suspect: silent; its
leases stay. awaited: after a restart or a loss of Redis the ledger grants nothing until this host
has said what it holds.`,
    )
    .action(async () => {
      const answer = await shell.withClient(async ({ client }) => {
        const hosts: LedgerHostsAnswer['hosts'] = [];
        let page: LedgerHostsAnswer;
        let cursor: string | undefined;
        do {
          page = await client.ledgerHosts(cursor === undefined ? {} : { cursor });
          hosts.push(...page.hosts);
          ({ cursor } = page);
        } while (cursor !== undefined);
        return { hosts, state: page.state };
      });
      const output = shell.output();
      output.result(answer, () => hostTable(answer.hosts));
      if (answer.state !== 'armed') output.note(`the ledger grants nothing: it is ${answer.state}`);
    });
  host
    .command('forget')
    .description('declare a host gone: its leases end, and nobody waits for it')
    .argument('<host>', 'host id')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet host forget h7

Do this when the machine is gone for good, or certainly off. Should it come back, what it holds is
fenced where somebody else has been given it since. Exit code 5 while its agent sends heartbeats.`,
    )
    .action(async (name: string) => {
      const answer = await shell.withClient(({ client }) => client.forgetHost(name));
      shell
        .output()
        .result(answer, () => [
          answer.forgotten
            ? `${name} forgotten, ${counted(answer.released, 'lease')} ended`
            : `${name} was not known`,
        ]);
    });
  host
    .command('settle')
    .description('decide that this machine is its host, where two call themselves so')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet host settle

Run it as root on the machine that is the host, where the ledger refuses two machines of one image
(HOST_CONFLICT, "clones" in "host list --json"). First stop the agent of the other, and give that
machine an id and a host of its own. What the host holds stays. Asks the agent of this machine over
its local socket.`,
    )
    .action(async () => {
      const { runtimeDir, timeoutMs } = shell.settingsHere();
      const { askAgent } = await import('../local-socket.ts');
      using reply = await askAgent({ runtimeDir, timeoutMs, request: { op: 'settle' } });
      const { host: name, settled } = reply.body;
      shell
        .output()
        .result(reply.body, () => [settled ? `this machine is ${name}` : `${name} is not known`]);
    });
  addRename(host, shell);
  addClean(host, shell);
  addDrainCommands(host, shell);
}

const addClean = (host: Command, shell: Shell): Command =>
  host
    .command('clean')
    .description('take networks off this host that nobody is attached to, or everything')
    .option('--all', 'everything, attachments too, of a host whose agent is stopped for good')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet host clean
  $ systemctl disable --now volt-network-agent
  $ voltnet host clean --all
  $ voltnet host forget h7

Run it as root. Bridges, addresses, routes, rules and settings of such networks go, and an uplink is
let go; bridges and settings that were there before are as they were found. Without --all it asks
the agent of this machine over its local socket, and the next attach makes anew what it needs. With
--all workloads lose their devices; their leases stay in the ledger until the host is forgotten.`,
    )
    .action(async ({ all = false }: { all?: boolean }, command: Command) => {
      const output = shell.output();
      const { runtimeDir, timeoutMs } = shell.settingsHere();
      if (!all) {
        const { askAgent } = await import('../local-socket.ts');
        using reply = await askAgent({ runtimeDir, timeoutMs, request: { op: 'clean' } });
        const { networks } = reply.body;
        output.result(reply.body, () => [`networks taken off this host: ${listed(networks)}`]);
        return;
      }
      const { config: file } = command.optsWithGlobals<{ config?: string }>();
      const cleaned = await cleanAll(file);
      const { attachments, networks, devices } = cleaned;
      output.result(cleaned, () => [
        `${counted(attachments, 'attachment')} and ${counted(devices.length, 'other device')} removed`,
        `networks taken off this host: ${listed(networks)}`,
      ]);
    });

const listed = (names: unknown): string =>
  Array.isArray(names) && names.length > 0 ? names.join(', ') : 'none';

async function cleanAll(file: string | undefined) {
  const { ConfigError, loadConfig } = await import('../../config.ts');
  const { MachineError } = await import('../../fleet/machine.ts');
  const { FolderError } = await import('../../fleet/own-folders.ts');
  const { cleanHost } = await import('../../host/clean.ts');
  const { createLog } = await import('../../log.ts');
  try {
    const config = loadConfig({ ...(file !== undefined && { file }), env: process.env });
    return await cleanHost(config, createLog('silent', config.host));
  } catch (error) {
    for (const problem of [ConfigError, MachineError, FolderError]) {
      if (error instanceof problem) throw new UsageError(error.message, { cause: error });
    }
    throw error;
  }
}

const addRename = (host: Command, shell: Shell): Command =>
  host
    .command('rename')
    .description('give this host, whose agent is stopped, another id')
    .argument('<host>', 'its new host id')
    .addHelpText(
      'after',
      `
Examples:
  $ systemctl stop volt-network-agent
  $ voltnet host rename h7b
  $ systemctl start volt-network-agent

Moves leases, records and the state folder; workloads and their traffic stay as they are. Run it as
root. "host" in agent.json, where it is given, has to be the new id. It waits until the ledger takes
the host for silent. What was cut short goes on when it is run again; until then no agent starts.
With the id that the host has, it takes up another /etc/machine-id.`,
    )
    .action(async (to: string, _flags: unknown, command: Command) => {
      if (!HOST_PATTERN.test(to)) throw new UsageError(`"${to}" is no host id`);
      const { config: file } = command.optsWithGlobals<{ config?: string }>();
      const output = shell.output();
      const renamed = await rename(to, file, (text) => output.note(text));
      const { from, moved, records } = renamed;
      output.result(renamed, () => [
        `${from} is ${to}: ${counted(moved ?? 0, 'lease')}, ${counted(records, 'record')}`,
        ...(moved === null ? [`the ledger has nothing of this machine as ${from}`] : []),
      ]);
    });

async function rename(to: string, file: string | undefined, note: (text: string) => void) {
  const { ConfigError, loadConfig } = await import('../../config.ts');
  const { IdentityError } = await import('../../fleet/identity.ts');
  const { MachineError, readMachine } = await import('../../fleet/machine.ts');
  const { FolderError } = await import('../../fleet/own-folders.ts');
  const { renameHost } = await import('../../fleet/rename.ts');
  const { checkFiles } = await import('#ipam-store/client.ts');
  const { FileError } = await import('#ipam-store/named-files.ts');
  try {
    const config = loadConfig({ ...(file !== undefined && { file }), env: process.env });
    if (config.hostGiven && config.host !== to) {
      throw new UsageError(
        `host: "${config.host}" is configured: configure "${to}" first, or no host`,
      );
    }
    checkFiles(config.redis);
    const { machineId } = readMachine();
    return await renameHost({ config, machineId, to, note });
  } catch (error) {
    for (const problem of [ConfigError, FileError, IdentityError, MachineError, FolderError]) {
      if (error instanceof problem) throw new UsageError(error.message, { cause: error });
    }
    throw error;
  }
}
