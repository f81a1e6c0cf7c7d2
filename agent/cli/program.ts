import { Command, Option } from 'commander';
import { EXIT_CODES_HELP } from './exit-codes.ts';
import type { Shell } from './shell.ts';
import { parseSeconds } from './units.ts';

type AddCommands = (program: Command, shell: Shell) => void;

// In the order of the help. Each family of commands is a file that is loaded when one of its names is among the
// words: a third less time than to load all of them.
const FAMILIES: readonly { readonly names: readonly string[]; load: () => Promise<AddCommands> }[] =
  [
    {
      names: ['network'],
      load: async () => (await import('./commands/network.ts')).addNetworkCommands,
    },
    {
      names: ['attach'],
      load: async () => (await import('./commands/attach.ts')).addAttachCommand,
    },
    {
      names: ['update'],
      load: async () => (await import('./commands/update.ts')).addUpdateCommand,
    },
    {
      names: ['detach', 'get', 'guest-config', 'list', 'check'],
      load: async () => (await import('./commands/attachments.ts')).addAttachmentCommands,
    },
    { names: ['exec'], load: async () => (await import('./commands/exec.ts')).addExecCommand },
    { names: ['watch'], load: async () => (await import('./commands/watch.ts')).addWatchCommand },
    { names: ['trace'], load: async () => (await import('./commands/trace.ts')).addTraceCommand },
    {
      names: ['dashboard'],
      load: async () => (await import('./commands/dashboard.ts')).addDashboardCommand,
    },
    {
      names: ['status'],
      load: async () => (await import('./commands/status.ts')).addStatusCommand,
    },
    {
      names: ['doctor'],
      load: async () => (await import('./commands/doctor.ts')).addDoctorCommand,
    },
    { names: ['setup'], load: async () => (await import('./commands/setup.ts')).addSetupCommand },
    { names: ['job'], load: async () => (await import('./commands/job.ts')).addJobCommands },
    { names: ['lease'], load: async () => (await import('./commands/lease.ts')).addLeaseCommands },
    { names: ['host'], load: async () => (await import('./commands/host.ts')).addHostCommands },
    {
      names: ['ledger'],
      load: async () => (await import('./commands/ledger.ts')).addLedgerCommands,
    },
    {
      names: ['version', 'completion'],
      load: async () => (await import('./commands/about.ts')).addAboutCommands,
    },
  ];

/**
 * The command line as far as `words` can need it: the commands whose names occur there; for help, or if none occurs,
 * all of them.
 */
export async function createProgram(options: {
  readonly shell: Shell;
  readonly version: string;
  readonly words: readonly string[];
}): Promise<Command> {
  const { shell, version, words } = options;
  const program = new Command('voltnet')
    .description(
      'Networks of virtual machines and containers, for people and scripts.\n' +
        'Each command but "setup", "job" and "ledger install" sends one request to the agent of a host and shows its answer.',
    )
    .version(version, '-v, --version')
    .addOption(new Option('--config <file>', 'agent.json to take servers, host and folders from'))
    .addOption(new Option('--nats <url>', 'NATS server, instead of the configured one'))
    .addOption(
      new Option(
        '--inbox-prefix <subject>',
        'where answers come, as far as the NATS user may choose',
      ),
    )
    .addOption(new Option('--host <id>', 'host whose agent is asked, instead of this one'))
    .addOption(new Option('--local', "over the agent's socket on this host, as root, without NATS"))
    .addOption(
      new Option('--timeout <time>', 'how long to wait for an answer (default: 10s)').argParser(
        parseSeconds,
      ),
    )
    .addOption(new Option('--json', 'print results, and errors, as JSON'))
    .hook('preAction', (_program, command) => shell.begin(command))
    .configureOutput({
      writeOut: (text) => shell.output().prose(text),
      writeErr: (text) => shell.output().proseOfError(text),
    })
    .helpCommand('help [command]', 'show the help of a command')
    .configureHelp({ showGlobalOptions: true })
    .addHelpText('after', FIRST_STEPS + EXIT_CODES_HELP);
  const help = ['help', '--help', '-h', 'completion'].some((word) => words.includes(word));
  const named = FAMILIES.filter(({ names }) => names.some((name) => words.includes(name)));
  const families = help || named.length === 0 ? FAMILIES : named;
  for (const { load } of families) (await load())(program, shell);
  for (const command of allCommands(program)) {
    command.exitOverride().showHelpAfterError('--help shows examples.');
  }
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

Where NATS cannot be used, attach, detach, update, get, guest-config, list and check ask the agent of
this host over its socket, as root; --local does so at once. Every command shows more examples with --help. Settings come from flags, then VOLT_NET_* variables,
then /etc/volt/network/agent.json. TRACEPARENT and TRACESTATE continue a trace.
`;
