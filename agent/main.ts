import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { z } from 'zod';
import { VoltError } from '#protocol/errors.ts';
import { parseNetwork } from '#protocol/network.ts';
import { EVENT_STREAM, subjects } from '#protocol/subjects.ts';
import { Ledger } from '#ipam-store/ledger.ts';
import { lockFile } from '#native/lock.ts';
import { sendDatagram } from '#native/unix.ts';
import packageJson from '../package.json' with { type: 'json' };
import { Attachments } from './attachments.ts';
import type { NetworkTypes } from './networks/network.ts';
import { Bus } from './bus.ts';
import { type Config, ConfigError, loadConfig } from './config.ts';
import { Detaches } from './detaches.ts';
import { EventLog } from './events.ts';
import { Firewall } from './firewall/firewall.ts';
import { FleetCheck } from './fleet-check.ts';
import { Handoff } from './handoff.ts';
import { Holdings } from './holdings.ts';
import { Inspection } from './inspection.ts';
import { Journal } from './journal.ts';
import { Kernel } from './kernel.ts';
import { createLog, type Log } from './log.ts';
import { Bridged } from './networks/bridged.ts';
import { HostOnly } from './networks/host-only.ts';
import { Isolated } from './networks/isolated.ts';
import { Macvtap } from './networks/macvtap.ts';
import { taggedDevices } from './networks/observe.ts';
import { PortMaps } from './networks/port-maps.ts';
import { Removal } from './networks/removal.ts';
import { Sriov } from './networks/sriov.ts';
import { createEndpoints } from './service.ts';
import { Session } from './session.ts';
import { startTelemetry } from './telemetry.ts';
import { Turns } from './turns.ts';
import { Updates } from './updates.ts';
import { Witness } from './witness.ts';

const SERVICE_NAME = 'volt-network-agent';
const VERSION = packageJson.version;
const DRAIN_TIMEOUT_MS = 10_000;
const FLUSH_TIMEOUT_MS = 2_000;
// sysexits.h: what systemd and scripts can tell apart.
const EXIT_CONFIG = 78;
const EXIT_TEMPORARY = 75;

/** Reads flags, variables and file; prints what is wrong with them and exits 78. */
function configured(): Config {
  const command = new Command(SERVICE_NAME)
    .description('Network of the virtual machines and containers of this host.')
    .version(VERSION)
    .option('--config <file>', 'agent.json to read (default: /etc/volt/network/agent.json)')
    .option('--host <id>', 'host id, instead of the host name')
    .option('--nats <url>', 'NATS server')
    .option('--redis <url>', 'Redis server')
    .option('--runtime-dir <folder>', 'records, socket and lock')
    .option('--state-dir <folder>', 'what survives a reboot')
    .option('--networks-dir <folder>', 'network files')
    .option('--log-level <level>', 'debug, info, warn or error')
    .option('--check-config', 'print the checked configuration and exit')
    .parse();
  const flags = flagsSchema.parse(command.opts());
  try {
    const config = loadConfig({
      ...(flags.config !== undefined && { file: flags.config }),
      env: process.env,
      flags: {
        ...(flags.host !== undefined && { host: flags.host }),
        ...(flags.nats !== undefined && { 'nats.url': flags.nats }),
        ...(flags.redis !== undefined && { 'redis.url': flags.redis }),
        ...(flags.runtimeDir !== undefined && { runtimeDir: flags.runtimeDir }),
        ...(flags.stateDir !== undefined && { stateDir: flags.stateDir }),
        ...(flags.networksDir !== undefined && { networksDir: flags.networksDir }),
        ...(flags.logLevel !== undefined && { logLevel: flags.logLevel }),
      },
    });
    if (flags.checkConfig !== true) return config;
    process.stdout.write(`${JSON.stringify(config, null, 2)}\n`);
    process.exit(0);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    process.stderr.write(`${SERVICE_NAME}: ${error.message}\n`);
    process.exit(EXIT_CONFIG);
  }
}

const text = z.string().optional();
const flagsSchema = z.object({
  config: text,
  host: text,
  nats: text,
  redis: text,
  runtimeDir: text,
  stateDir: text,
  networksDir: text,
  logLevel: text,
  checkConfig: z.boolean().optional(),
});

async function main(): Promise<void> {
  const config = configured();
  const log = createLog(config.logLevel, config.host);
  const telemetry = await startTelemetry({
    env: process.env,
    host: config.host,
    version: VERSION,
  });
  using _lock = exclusive(config, log);
  const agent = new Agent(config, log);
  agent.start();
  notifySystemd('READY=1');
  log.info({ version: VERSION, socket: config.runtimeDir }, 'ready');

  const signal = await terminationSignal();
  log.info({ signal }, 'stopping: attachments stay as they are');
  notifySystemd('STOPPING=1');
  await agent.stop();
  await telemetry.shutdown().catch((error: unknown) => {
    log.warn({ error: String(error) }, 'spans were not exported');
  });
  log.info('stopped');
}

/** The parts of one running agent, made in the order in which they need each other. */
class Agent {
  readonly #log: Log;
  readonly #config: Config;
  readonly #ledger: Ledger;
  readonly #bus: Bus;
  readonly #events: EventLog;
  readonly #attachments: Attachments;
  readonly #session: Session;
  readonly #handoff: Handoff;
  readonly #journal: Journal;
  readonly #witness: Witness;
  readonly #firewall: Firewall;
  readonly #networkTypes: NetworkTypes;
  readonly #startedAt = new Date().toISOString();
  #stopping = false;

  constructor(config: Config, log: Log) {
    this.#config = config;
    this.#log = log;
    const { host, runtimeDir, stateDir, subjectPrefix } = config;
    const machineId = readWord('/etc/machine-id');
    const bootId = readWord('/proc/sys/kernel/random/boot_id');
    this.#journal = new Journal(runtimeDir);
    const journal = this.#journal;
    const kernel = new Kernel();
    const removal = new Removal(new Kernel(), log);
    this.#witness = new Witness({ stateDir, log });
    const witness = this.#witness;
    const firewall = new Firewall({ log, table: config.nftablesTable });
    this.#firewall = firewall;
    const bridged = new Bridged({ host, kernel, removal, journal, firewall, log });
    const portMaps = new PortMaps({ firewall, kernel });
    const networkTypes: NetworkTypes = {
      bridged,
      'host-only': new HostOnly({ kernel, bridged, portMaps, log }),
      macvtap: new Macvtap({ kernel, removal, journal, firewall }),
      isolated: new Isolated({ journal }),
      sriov: new Sriov({ kernel, journal, log }),
    };
    this.#networkTypes = networkTypes;
    const ledger = new Ledger(config.redis);
    this.#ledger = ledger;
    this.#events = new EventLog({
      host,
      subjectPrefix,
      stateDir,
      log,
      publish: (event) => this.#bus.publishEvent(event),
    });
    const events = this.#events;
    const turns = new Turns();
    const detaches = new Detaches({ host, ledger, journal, events, networkTypes, log });
    this.#attachments = new Attachments({
      host,
      machineId,
      bootId,
      ledger,
      witness,
      whileRecovering: (deadline, work) => this.#session.whileRecovering(deadline, work),
      journal,
      events,
      networkTypes,
      turns,
      detaches,
      log,
    });
    const attachments = this.#attachments;
    const holdings = new Holdings({
      host,
      bootId,
      onReboot: config.onReboot,
      ledger,
      journal,
      events,
      networkTypes,
      taggedDevices: () => taggedDevices(kernel),
      turns,
      detaches,
      log,
    });
    const inspection = new Inspection({
      host,
      journal,
      ledger,
      networkTypes,
      taggedDevices: () => taggedDevices(kernel),
    });
    this.#session = new Session({
      host,
      machineId,
      bootId,
      heartbeatSeconds: config.heartbeatSeconds,
      suspectAfterSeconds: config.suspectAfterSeconds,
      recoveryWindowSeconds: config.recoveryWindowSeconds,
      ledger,
      witness,
      holdings,
      events,
      log,
      isNewFleet: () => this.#isNewFleet(),
      onOpen: () => void this.#createNetworks(),
    });
    this.#handoff = new Handoff({
      runtimeDir,
      journal,
      networkTypes,
      health: () => this.#health(),
      log,
    });
    this.#bus = new Bus({
      config: config.nats,
      host,
      service: { name: SERVICE_NAME, version: VERSION },
      metadata: () => ({
        host,
        features: [...Object.keys(networkTypes), 'update'].join(','),
        fleet: subjectPrefix,
        generation: String(witness.seen.generation),
      }),
      endpoints: createEndpoints({
        host,
        subjectPrefix,
        attachments,
        updates: new Updates({ ledger, journal, events, networkTypes, turns }),
        inspection,
        fleetCheck: new FleetCheck({ ledger, bus: () => this.#bus, subjectPrefix }),
        ledger,
        witness,
        whileRecovering: (deadline, work) => this.#session.whileRecovering(deadline, work),
        events,
        stopping: () => this.#stopping,
        log,
      }),
      eventStream: { name: EVENT_STREAM, subjects: [subjects(subjectPrefix).events()] },
      log,
      onState: (state) => {
        log.info({ nats: state }, 'NATS');
        if (state !== 'connected') return;
        this.#events.nudge();
        // A new fleet's ledger waits until its peers can be asked.
        void this.#session.beat();
      },
    });
  }

  /** Returns when the socket is open. NATS and Redis are connected to in the background. */
  start(): void {
    this.#journal.load(this.#log);
    this.#witness.load();
    for (const { generation = 0 } of this.#journal.values()) {
      this.#witness.noteGeneration(generation);
    }
    this.#resumeFirewall();
    this.#events.start();
    this.#handoff.start();
    this.#ledger.onStatus((status) => {
      this.#log.info({ redis: status.state, reason: status.reason }, 'Redis');
      if (status.state === 'ready') void this.#session.beat();
    });
    this.#ledger.start();
    this.#bus.start();
    this.#session.start();
    this.#attachments.resume();
  }

  /** Takes no more requests, lets those under way end, publishes what is left. Devices stay. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#session.stop();
    await this.#bus.stopTaking();
    await this.#attachments.stop(DRAIN_TIMEOUT_MS);
    await this.#events.stop(this.#bus.state === 'connected' ? FLUSH_TIMEOUT_MS : 0);
    await this.#bus.close();
    await this.#ledger.close();
    this.#handoff.close();
    this.#firewall[Symbol.dispose]();
  }

  #health(): Readonly<Record<string, unknown>> {
    const records = this.#journal.values();
    return {
      health: {
        version: VERSION,
        host: this.#config.host,
        pid: process.pid,
        startedAt: this.#startedAt,
        nats: this.#bus.state,
        redis: this.#ledger.status,
        session: this.#session.status,
        firewall: this.#firewall.problem ?? 'ready',
        attachments: records.filter(({ state }) => state === 'attached').length,
        unfinished: records.filter(({ state }) => state !== 'attached').length,
        eventsPending: this.#events.pending,
      },
    };
  }

  /** The rules of before stay in force until those for all that stands are there, in one exchange. */
  #resumeFirewall(): void {
    for (const { attachment, network, networkType, state } of this.#journal.values()) {
      // A fenced workload is cut off: it gets nothing back.
      if (attachment === undefined || network === undefined || state !== 'attached') continue;
      this.#networkTypes[networkType]?.resume(attachment, network);
    }
    this.#firewall.start();
  }

  /** An empty ledger is a new fleet's when no agent that answers knows a generation of it. */
  async #isNewFleet(): Promise<boolean> {
    const { host, subjectPrefix } = this.#config;
    const answers = (await this.#bus.survey()) ?? [];
    const peers = answers.filter(({ fleet }) => fleet === subjectPrefix);
    // Without its own answer the question has not come round.
    const asked = peers.some((peer) => peer['host'] === host);
    if (!asked && this.#bus.state === 'connected') {
      this.#log.warn(
        {},
        'the ledger is empty, and NATS does not let the agents be asked ($SRV.INFO)',
      );
    }
    return asked && peers.every(({ generation }) => generation === '0');
  }

  /** A file creates the network that is not there; where the record differs, the record is used. */
  async #createNetworks(): Promise<void> {
    const { networksDir } = this.#config;
    for (const file of networkFiles(networksDir)) {
      const path = join(networksDir, file);
      try {
        await this.#ledger.putNetwork(parseNetwork(JSON.parse(readFileSync(path, 'utf8'))));
      } catch (error) {
        const conflict = error instanceof VoltError && error.code === 'NETWORK_CONFLICT';
        const what = conflict ? 'differs from the record, which is used' : 'not used';
        this.#log.warn({ file: path, error: String(error) }, `network file ${what}`);
      }
    }
  }
}

function networkFiles(folder: string): string[] {
  try {
    return readdirSync(folder)
      .filter((name) => name.endsWith('.json'))
      .toSorted();
  } catch {
    return [];
  }
}

/** One agent per host: the lock is the kernel's, and goes with the process. */
function exclusive({ runtimeDir, stateDir }: Config, log: Log): Disposable {
  mkdirSync(runtimeDir, { recursive: true, mode: 0o755 });
  mkdirSync(stateDir, { recursive: true, mode: 0o700 });
  try {
    return lockFile(join(runtimeDir, 'agent.lock'));
  } catch (error) {
    log.fatal({ error: String(error) }, 'another agent runs on this host');
    process.exit(EXIT_TEMPORARY);
  }
}

const readWord = (path: string): string => {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return 'unknown';
  }
};

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
