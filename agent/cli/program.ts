import { Command, Option } from 'commander';
import { addAttachCommand } from './commands/attach.ts';
import { addAttachmentCommands } from './commands/attachments.ts';
import { addExecCommand } from './commands/exec.ts';
import { addNetworkCommands } from './commands/network.ts';
import { addStatusCommand } from './commands/status.ts';
import { addWatchCommand } from './commands/watch.ts';
import { EXIT_CODES_HELP } from './exit-codes.ts';
import type { Shell } from './shell.ts';
import { parseSeconds } from './units.ts';

/** The whole command line. Nothing that a command needs beyond its flags is loaded before it runs. */
export function createProgram(shell: Shell, version: string): Command {
  const program = new Command('voltnet')
    .description(
      'Networks of virtual machines and containers, for people and scripts.\n' +
        'Each command sends one request to the agent of a host and shows its answer.',
    )
    .version(version)
    .addOption(new Option('--config <file>', 'agent.json to take servers, host and folders from'))
    .addOption(new Option('--nats <url>', 'NATS server, instead of the configured one'))
    .addOption(new Option('--host <id>', 'host whose agent is asked, instead of this one'))
    .addOption(
      new Option('--timeout <time>', 'how long to wait for an answer (default: 10s)').argParser(
        parseSeconds,
      ),
    )
    .addOption(new Option('--json', 'print results, and errors, as JSON'))
    .helpCommand('help [command]', 'show the help of a command')
    .configureHelp({ showGlobalOptions: true })
    .addHelpText('after', FIRST_STEPS + EXIT_CODES_HELP);
  addNetworkCommands(program, shell);
  addAttachCommand(program, shell);
  addAttachmentCommands(program, shell);
  addExecCommand(program, shell);
  addWatchCommand(program, shell);
  addStatusCommand(program, shell);
  for (const command of allCommands(program)) command.exitOverride();
  return program;
}

/** The program, its commands, and theirs. */
export const allCommands = (command: Command): Command[] => [
  command,
  ...command.commands.flatMap(allCommands),
];

const FIRST_STEPS = `
First steps:
  $ voltnet network put volt0.json
  $ voltnet attach --id web --workload vm-web --kind vm --network volt0
  $ voltnet list
  $ voltnet exec web -- qemu-system-x86_64 \\
      -netdev tap,id=n0,fd={fd} -device virtio-net-pci,netdev=n0,mac={mac} ...
  $ voltnet detach web

Every command shows more examples with --help. Settings come from flags, then VOLT_NET_* variables,
then /etc/volt/network/agent.json. TRACEPARENT and TRACESTATE continue a trace.
`;
