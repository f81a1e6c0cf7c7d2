import { join } from 'node:path';
import type { Command } from 'commander';
import { z } from 'zod';
import { checkFiles } from '#ipam-store/client.ts';
import { Ledger } from '#ipam-store/ledger.ts';
import { LockedError, lockFile } from '#native/lock.ts';
import { listenSeqpacket } from '#native/seqpacket.ts';
import { sendDatagram } from '#native/unix.ts';
import { printableLines } from '#protocol/printable.ts';
import { redacted } from '#protocol/secrets.ts';
import { SERVICE_NAME } from '#protocol/subjects.ts';
import packageJson from '../package.json' with { type: 'json' };
import { Agent } from './agent.ts';
import { Bus } from './bus/bus.ts';
import { createAgentCommand } from './cli/agent-command.ts';
import { AGENT_EXIT } from './cli/exit-codes.ts';
import {
  type Config,
  ConfigError,
  type ConfigSources,
  defaultHost,
  loadConfig,
  OVERRIDES,
} from './config.ts';
import { asRecorded, IdentityError, keepIdentity, writeIdentity } from './fleet/identity.ts';
import { createLog, type Log, logForm } from './log.ts';
import { MachineError, readMachine } from './fleet/machine.ts';
import { checkAccess } from './bus/nats-access.ts';
import { openHostNetwork } from './host/networks/types.ts';
import { FolderError, ownFolder } from './fleet/own-folders.ts';
import { startTelemetry } from './telemetry/telemetry.ts';
import { UnexpectedErrors } from './health/unexpected.ts';

const VERSION = packageJson.version;
// sysexits.h: what systemd and scripts can tell apart.

/** Reads flags, variables and file; prints what is wrong with them and exits 78. */
function configured(): Config {
  const command = createAgentCommand(VERSION)
    .configureOutput({ outputError: (text, write) => write(shown(text)) })
    .parse();
  const flags = flagsSchema.parse(command.opts());
  try {
    const config = asRecorded(
      loadConfig({
        ...(flags.config !== undefined && { file: flags.config }),
        env: process.env,
        flags: settingsOf(command),
      }),
    );
    if (flags.checkConfig !== true) return config;
    checkSecrets(config);
    const { hostGiven: _, ...settings } = config;
    process.stdout.write(shown(`${JSON.stringify(settings, null, 2)}\n`));
    process.exit(0);
  } catch (error) {
    refuse(error, ConfigError, IdentityError);
  }
}

/** What the command line gives, by key of agent.json. */
function settingsOf(command: Command): NonNullable<ConfigSources['flags']> {
  const given = OVERRIDES.flatMap((one) => {
    const option =
      'flag' in one ? command.options.find(({ long }) => long === one.flag) : undefined;
    const value: unknown = option && command.getOptionValue(option.attributeName());
    return typeof value === 'string' ? [[one.key, value] as const] : [];
  });
  return Object.fromEntries(given);
}

/** The agent itself waits for a file that is missing: it is read anew with each connection. */
function checkSecrets({ nats, redis }: Config): void {
  try {
    checkAccess(nats);
    checkFiles(redis);
  } catch (cause) {
    throw new ConfigError(cause instanceof Error ? cause.message : String(cause), { cause });
  }
}

const shown = (text: string): string => printableLines(redacted(text));

const flagsSchema = z.object({
  config: z.string().optional(),
  checkConfig: z.boolean().optional(),
});

async function main(): Promise<void> {
  // In place of node and its flags, for ps and top.
  process.title = SERVICE_NAME;
  const config = configured();
  const log = createLog(config.logLevel, config.host, await logForm(config.logFormat));
  const telemetry = await startTelemetry({
    env: process.env,
    config: config.metrics,
    host: config.host,
    version: VERSION,
    log,
  });
  const machine = mendable(readMachine, MachineError);
  using _lock = exclusive(config, log);
  const identity = mendable(() => keepIdentity(config, machine), IdentityError);
  if (!config.hostGiven && config.host !== defaultHost()) {
    log.warn(
      { hostName: defaultHost() },
      `goes on as host ${config.host}, under which it is recorded; to rename it: voltnet host rename ${defaultHost()}`,
    );
  }
  const unexpected = new UnexpectedErrors(log);
  const ledger = new Ledger(config.redis);
  const agent = new Agent({
    config,
    log,
    version: VERSION,
    unexpected,
    machine,
    identity,
    keepYieldsTo: (yieldsTo) => {
      try {
        writeIdentity(config.stateDir, { ...identity, yieldsTo });
      } catch (error) {
        log.error({ error: String(error) }, 'who this host yields to is not kept');
      }
    },
    ledger,
    makeBus: (options) => new Bus(options),
    openHostNetwork,
    listen: listenSeqpacket,
    metricsProblem: () => telemetry.problem,
  });
  agent.start();
  telemetry.observe({
    ledger,
    networks: () => agent.networks,
    readings: (pools) => agent.readings(pools),
  });
  // What failed before ends the process, and systemd starts another.
  unexpected.survive();
  notifySystemd('READY=1');
  log.info({ version: VERSION, socket: config.runtimeDir }, 'ready');

  const signal = await terminationSignal();
  log.info({ signal }, 'stopping: attachments stay as they are');
  notifySystemd('STOPPING=1');
  await agent.stop();
  await telemetry.shutdown().catch((error: unknown) => {
    log.warn({ error: String(error) }, 'not all traces and metrics were exported');
  });
  log.info('stopped');
}

/** One agent per host: the lock is the kernel's, and goes with the process. */
function exclusive({ runtimeDir, stateDir }: Config, log: Log): Disposable {
  try {
    ownFolder('runtimeDir', runtimeDir, 0o755);
    ownFolder('stateDir', stateDir, 0o700);
    return lockFile(join(runtimeDir, 'agent.lock'));
  } catch (error) {
    if (error instanceof FolderError) refuse(error, FolderError);
    const locked = error instanceof LockedError;
    const what = locked ? 'another agent runs on this host' : 'this host cannot be locked';
    log.fatal({ error: String(error) }, what);
    process.exit(AGENT_EXIT.locked);
  }
}

/** What an operator has to mend before an agent can run here, as of a configuration. */
function mendable<T>(look: () => T, ...problems: readonly (new (message: string) => Error)[]): T {
  try {
    return look();
  } catch (error) {
    return refuse(error, ...problems);
  }
}

function refuse(error: unknown, ...problems: readonly (new (message: string) => Error)[]): never {
  if (!(error instanceof Error) || !problems.some((one) => error instanceof one)) throw error;
  process.stderr.write(shown(`${SERVICE_NAME}: ${error.message}\n`));
  process.exit(AGENT_EXIT.configuration);
}

function notifySystemd(message: string): void {
  const path = process.env['NOTIFY_SOCKET'];
  if (path !== undefined && path !== '') sendDatagram(path, message);
}

const terminationSignal = (): Promise<NodeJS.Signals> =>
  new Promise((resolve) => {
    process.once('SIGTERM', resolve);
    process.once('SIGINT', resolve);
  });

await main();
// A connection attempt to an absent NATS server cannot be called off.
process.exit(0);
