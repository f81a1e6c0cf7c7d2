import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { VoltError } from '#protocol/errors.ts';
import { redacted } from '#protocol/secrets.ts';
import { refuseUnserved } from '#protocol/guest-services.ts';
import type { LocalAnswers } from '#protocol/local-socket.ts';
import { parseNetwork } from '#protocol/network.ts';
import type { Ledger, NetworkUsage, Self } from '#ipam-store/ledger.ts';
import type { listenSeqpacket } from '#native/seqpacket.ts';
import { Admission } from './bus/admission.ts';
import { answerBytes } from './bus/answer-size.ts';
import { Attachments } from './attachments/attachments.ts';
import type { Bus, BusOptions } from './bus/bus.ts';
import { Clocks } from './health/clocks.ts';
import { Conditions } from './health/conditions.ts';
import { type Config, defaultHost } from './config.ts';
import { Cordon } from './fleet/cordon.ts';
import { Detaches } from './attachments/detaches.ts';
import { Disk } from './storage/disk.ts';
import { NetworkNotices } from './bus/network-notices.ts';
import { Edits } from './attachments/edits.ts';
import { EventLog } from './storage/events.ts';
import { GuestServers } from './host/dnsmasq/guest-servers.ts';
import { FleetCheck } from './fleet/fleet-check.ts';
import { FleetList } from './fleet/fleet-list.ts';
import { Followers } from './fleet/followers.ts';
import { ClaimSocket } from './bus/claim-socket.ts';
import { HostLeases } from './attachments/host-leases.ts';
import type { Identity } from './fleet/identity.ts';
import { Queries } from './attachments/queries.ts';
import { Jobs } from './bus/jobs.ts';
import { Journal } from './storage/journal.ts';
import type { Log } from './log.ts';
import type { HostNetwork, openHostNetwork } from './host/networks/types.ts';
import { RequestLog } from './attachments/request-log.ts';
import { PublishError } from './storage/pending-event.ts';
import { probesOf } from './health/probes.ts';
import { Requests } from './attachments/requests.ts';
import { Reconcile } from './host/reconcile/loop.ts';
import { createEndpoints } from './bus/service.ts';
import { NetworkRevisions } from './fleet/network-revisions.ts';
import { Session } from './fleet/session.ts';
import { Slices } from './schedule/slices.ts';
import { Stretches } from './schedule/stretches.ts';
import { Standing } from './fleet/standing.ts';
import { type Reading, readingsOf } from './telemetry/readings.ts';
import { IdLocks } from './schedule/id-lock.ts';
import type { UnexpectedErrors } from './health/unexpected.ts';
import { Updates } from './attachments/updates.ts';
import { LedgerWatermark } from './fleet/ledger-watermark.ts';

const DRAIN_TIMEOUT_MS = 10_000;
const FLUSH_TIMEOUT_MS = 2_000;
/** For this time after its start an agent waits for the ledger to say who has the host id. */
const STANDING_WAIT_MS = 3_000;

/** What an agent needs. A simulation passes models of kernel, NATS and Redis. */
export interface AgentOptions {
  readonly config: Config;
  readonly log: Log;
  readonly version: string;
  /** The ids of this machine and of its current boot (/etc/machine-id, /proc/sys/kernel/random/boot_id). */
  readonly machine: { readonly machineId: string; readonly bootId: string };
  /** The agent that the state folder belongs to. */
  readonly identity: Pick<Identity, 'agentId' | 'yieldsTo'>;
  /** Stores, for the next start, to which agent this one yields. */
  readonly keepYieldsTo: (yieldsTo: string | undefined) => void;
  readonly ledger: Ledger;
  readonly makeBus: (options: BusOptions) => Bus;
  readonly openHostNetwork: typeof openHostNetwork;
  readonly listen: typeof listenSeqpacket;
  readonly unexpected: Pick<UnexpectedErrors, 'seen'>;
  /** Why nobody can ask for metrics, if they should be able to. The default is that nobody should. */
  readonly metricsProblem?: () => string | undefined;
  /** Cuts long work into slices. The default is good for a host. */
  readonly slices?: Slices;
  /** Gives the kernel work of requests its turns. The default is good for a host. */
  readonly stretches?: Stretches;
}

/** The parts of one running agent, made in the order in which they need each other. */
export class Agent {
  readonly #log: Log;
  readonly #config: Config;
  readonly #ledger: Ledger;
  readonly #bus: Bus;
  readonly #events: EventLog;
  readonly #attachments: Attachments;
  readonly #requests: Requests;
  readonly #session: Session;
  readonly #followers: Followers;
  readonly #guestServers: GuestServers;
  readonly #claimSocket: ClaimSocket;
  readonly #reconcile: Reconcile;
  readonly #journal: Journal;
  readonly #cordon: Cordon;
  readonly #requestLog: RequestLog;
  readonly #watermark: LedgerWatermark;
  readonly #hostNetwork: HostNetwork;
  readonly #version: string;
  readonly #unexpected: AgentOptions['unexpected'];
  readonly #standing: Standing;
  readonly #clocks = new Clocks();
  readonly #disk: Disk;
  readonly #conditions: Conditions;
  readonly #startedAt = new Date().toISOString();
  #stopping = false;

  constructor(options: AgentOptions) {
    const { config, log, version, machine, ledger } = options;
    this.#config = config;
    this.#log = log;
    this.#version = version;
    this.#unexpected = options.unexpected;
    this.#ledger = ledger;
    const { host, runtimeDir, stateDir, subjectPrefix } = config;
    const { bootId } = machine;
    const { agentId, yieldsTo } = options.identity;
    const self: Self = { host, agentId, ...machine };
    this.#standing = new Standing(yieldsTo, options.keepYieldsTo);
    this.#disk = new Disk([runtimeDir, stateDir]);
    this.#journal = new Journal({ runtimeDir, stateDir, bootId, log });
    const journal = this.#journal;
    this.#cordon = new Cordon({ host, stateDir, log });
    const cordon = this.#cordon;
    this.#watermark = new LedgerWatermark({ stateDir, log });
    const watermark = this.#watermark;
    this.#hostNetwork = options.openHostNetwork({ config, journal, log });
    const { networkTypes, attachments: onHost, taggedDevices } = this.#hostNetwork;
    const maxPayload = (): number => this.#bus.maxPayload;
    const mostOfAnswer = (): number => answerBytes(maxPayload());
    this.#events = new EventLog({
      host,
      subjectPrefix,
      stateDir,
      journal,
      log,
      maxPayload,
      publish: (event) => {
        const { refusal } = this.#standing;
        // A reader would take the event for one of the other machine.
        if (refusal !== undefined) {
          return Promise.reject(new PublishError('away', refusal.message));
        }
        return this.#bus.publishEvent(event);
      },
    });
    const events = this.#events;
    const locks = new IdLocks();
    const detaches = new Detaches({ self, ledger, journal, events, networkTypes, log });
    const stretches = options.stretches ?? new Stretches();
    this.#attachments = new Attachments({
      self,
      ledger,
      watermark,
      journal,
      events,
      networkTypes,
      attachments: onHost,
      cordon,
      dryRuns: this.#hostNetwork.dryRuns,
      ownAddresses: this.#hostNetwork.ownAddresses,
      warningsOf: (network) => [
        ...this.#hostNetwork.bridges.warningsOf(network),
        ...this.#guestServers.warningsOf(network),
      ],
      namespaces: this.#hostNetwork.namespaces,
      locks,
      detaches,
      stretches,
      log,
    });
    const attachments = this.#attachments;
    const requestLog = new RequestLog({ stateDir, log });
    this.#requestLog = requestLog;
    const updates = new Updates({
      ...{ ledger, journal, events, networkTypes, stretches },
      attachments: onHost,
    });
    const requests = new Requests({
      host,
      attachments,
      updates,
      detaches,
      journal,
      requestLog,
      events,
      locks,
      clocks: this.#clocks,
    });
    this.#requests = requests;
    const admission = new Admission({ crowded: () => stretches.crowded });
    const slices = options.slices ?? new Slices({ comesFirst: () => admission.hasChanges });
    const jobs = new Jobs({
      host,
      subjectPrefix,
      admission,
      requests,
      requestLog,
      events,
      clocks: this.#clocks,
      standing: this.#standing,
      stopping: () => this.#stopping,
      log,
    });
    const hostLeases = new HostLeases({
      self,
      onReboot: config.onReboot,
      ledger,
      journal,
      events,
      networkTypes,
      taggedDevices,
      slices,
      locks,
      detaches,
      log,
    });
    this.#reconcile = new Reconcile({
      host,
      bootId,
      onReboot: config.onReboot,
      periodSeconds: config.reconcileSeconds,
      journal,
      ledger,
      events,
      networkTypes,
      attachments: onHost,
      devices: this.#hostNetwork.devices,
      bridges: this.#hostNetwork.bridges,
      firewall: this.#hostNetwork.firewall,
      forwarding: this.#hostNetwork.forwarding,
      locks,
      detaches,
      hostLeases,
      standing: this.#standing,
      session: () => this.#session,
      slices,
      log,
    });
    const { bridges } = this.#hostNetwork;
    const attached = { attachments: onHost, networkTypes, bridges };
    const edits = new Edits({ journal, locks, ...attached, events, log });
    const revisions = new NetworkRevisions({
      host,
      ledger,
      watermark,
      apply: (networks, letGo) => edits.apply(networks, letGo),
      bridged: () => bridges.names,
      log,
    });
    const queries = new Queries({
      host,
      journal,
      ledger,
      taggedDevices,
      leases: (signal) => hostLeases.listed(signal),
      preview: (id, wanted) => this.#reconcile.preview(id, wanted),
      currentRevisions: () => revisions.current(),
      slices,
      answerBytes: mostOfAnswer,
    });
    this.#followers = new Followers({
      ledger,
      subjectPrefix,
      listen: (subject) => this.#bus.listen(subject),
    });
    const followers = this.#followers;
    this.#guestServers = new GuestServers({
      ...{ host, runtimeDir, journal, log },
      follow: (network, onChange) => followers.watch(network, onChange),
    });
    this.#session = new Session({
      self,
      heartbeatSeconds: config.heartbeatSeconds,
      suspectAfterSeconds: config.suspectAfterSeconds,
      recoveryWindowSeconds: config.recoveryWindowSeconds,
      ledger,
      watermark,
      hostLeases,
      revisions,
      followers,
      standing: this.#standing,
      clocks: this.#clocks,
      events,
      log,
      isNewFleet: () => this.#isNewFleet(),
      onOpen: () => {
        void this.#createNetworks(self);
        this.#reconcile.nudge();
      },
    });
    ledger.beatWith(() => this.#session.beat());
    const endpoints = createEndpoints({
      self,
      subjectPrefix,
      admission,
      slices,
      requests,
      queries,
      cordon,
      fleetCheck: new FleetCheck({
        ledger,
        bus: () => this.#bus,
        subjectPrefix,
        slices,
        answerBytes: mostOfAnswer,
      }),
      fleetList: new FleetList({
        ledger,
        watermark,
        followers,
        beat: () => this.#session.beat(),
        heartbeatSeconds: config.heartbeatSeconds,
        slices,
        answerBytes: mostOfAnswer,
      }),
      ledger,
      watermark,
      events,
      standing: this.#standing,
      answerBytes: mostOfAnswer,
      stopping: () => this.#stopping,
      log,
    });
    this.#claimSocket = new ClaimSocket({
      host,
      runtimeDir,
      journal,
      networkTypes,
      health: () => this.#health(),
      settle: async () => {
        const settled = await ledger.settleHost(self);
        await this.#session.beat();
        return { host, settled };
      },
      clean: () => ({ host, networks: this.#hostNetwork.bridges.clean() }),
      onClaim: (id) => this.#guestServers.forgetGuest(id),
      endpoints: endpoints.ofHost,
      slices,
      listen: options.listen,
      log,
    });
    const notices = new NetworkNotices({
      subjectPrefix,
      publish: (subject) => this.#bus.notify(subject),
      concerns: (names) =>
        journal.values().some(({ attachment }) => names.has(attachment?.network ?? '')),
      onDefinition: () => void this.#session.beat(),
      onChange: (names) => followers.nudge(names),
    });
    ledger.onChange((news) => notices.add(news));
    this.#bus = options.makeBus({
      config: config.nats,
      host,
      version,
      metadata: () => ({
        host,
        features: [...Object.keys(networkTypes), 'update', 'jobs', 'cordon'].join(','),
        fleet: subjectPrefix,
        generation: String(watermark.seen.generation),
        // Whether the ledger knows the host as this machine.
        session: this.#standing.state,
        conditions: JSON.stringify(
          this.#conditions.look().map(({ name, reason, since }) => ({ name, reason, since })),
        ),
      }),
      endpoints: [...endpoints.ofHost, ...endpoints.ofFleet],
      subjectPrefix,
      notices: { subject: notices.subject, hear: (subject) => notices.hear(subject) },
      takeJob: (delivery) => jobs.take(delivery),
      log,
      onState: (state) => {
        log.info({ nats: state }, 'NATS');
        if (state !== 'connected') return;
        this.#events.nudge();
        // A new fleet's ledger cannot be claimed until the other agents can be asked.
        if (this.#session.status.state === 'unclaimed') void this.#session.beat();
      },
    });
    this.#conditions = new Conditions({
      probes: probesOf({
        bus: this.#bus,
        events,
        ledger,
        session: this.#session,
        standing: this.#standing,
        cordon,
        firewall: this.#hostNetwork.firewall,
        reconcile: this.#reconcile,
        bridges: this.#hostNetwork.bridges,
        guestServers: this.#guestServers,
        disk: this.#disk,
        clocks: this.#clocks,
        metrics: { problem: options.metricsProblem ?? (() => undefined) },
        otherName: () => {
          const hostName = defaultHost();
          // The host is recorded under the name that it had at its first start.
          return config.hostGiven || hostName === host ? undefined : { host, hostName };
        },
      }),
      log,
    });
  }

  /** Returns when the claim socket is open. NATS and Redis are connected in the background. */
  start(): void {
    this.#journal.load();
    this.#requestLog.load();
    this.#watermark.load();
    this.#cordon.load();
    for (const { generation = 0 } of this.#journal.values()) {
      this.#watermark.noteGeneration(generation);
    }
    this.#requests.resume();
    this.#resumeFirewall();
    this.#events.start();
    this.#claimSocket.start();
    this.#standing.onChange((refusal) => {
      this.#bus.act(refusal);
      if (refusal !== undefined) return;
      this.#events.nudge();
      this.#reconcile.nudge();
    });
    this.#bus.act(this.#standing.refusal);
    setTimeout(() => this.#standing.noteAway(), STANDING_WAIT_MS).unref();
    this.#ledger.onStatus((status) => {
      this.#log.info({ redis: status.state, reason: status.reason }, 'Redis');
      if (status.state !== 'ready') {
        this.#standing.noteAway();
        return;
      }
      void this.#session.beat();
      this.#reconcile.nudge();
    });
    this.#ledger.start();
    this.#bus.start();
    this.#session.start();
    this.#attachments.resume();
    this.#guestServers.start();
    this.#reconcile.start();
    this.#disk.start();
    this.#conditions.start();
  }

  /** Takes no more requests, waits for those under way, and publishes what is left. Devices stay. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.#conditions.stop();
    this.#disk.stop();
    this.#session.stop();
    await this.#bus.stopTaking();
    await this.#reconcile.stop();
    await this.#attachments.stop(DRAIN_TIMEOUT_MS);
    await this.#guestServers.stop();
    this.#followers.stop();
    const publishes = this.#bus.state === 'connected' && this.#standing.refusal === undefined;
    await this.#events.stop(publishes ? FLUSH_TIMEOUT_MS : 0);
    await this.#bus.close();
    await this.#requestLog.sync().catch(() => {});
    this.#requestLog.close();
    await this.#journal.close();
    await this.#watermark.close();
    await this.#ledger.close();
    this.#claimSocket.close();
    await this.#hostNetwork.dryRuns.close();
    this.#hostNetwork.forwarding[Symbol.dispose]();
    this.#hostNetwork.firewall[Symbol.dispose]();
  }

  /** Networks that this host has attachments of. */
  get networks(): readonly string[] {
    return [...new Set(this.#journal.values().map(({ request }) => request.network))];
  }

  /** The state of the agent for metrics; `pools` is how full its networks are. */
  readings(pools: ReadonlyMap<string, NetworkUsage>): readonly Reading[] {
    const parts = {
      journal: this.#journal,
      bus: this.#bus,
      events: this.#events,
      ledger: this.#ledger,
      session: this.#session,
      reconcile: this.#reconcile,
      clocks: this.#clocks,
      conditions: this.#conditions,
      unexpected: this.#unexpected,
      version: this.#version,
    };
    return readingsOf(parts, pools);
  }

  #health(): LocalAnswers['health'] {
    const { host, hostGiven } = this.#config;
    const records = this.#journal.values();
    const redis = this.#ledger.status;
    return {
      health: {
        version: this.#version,
        host,
        // The host is recorded under the name that it had at its first start.
        ...(!hostGiven && host !== defaultHost() && { hostName: defaultHost() }),
        pid: process.pid,
        startedAt: this.#startedAt,
        nats: this.#bus.state,
        requests: redacted(this.#bus.requestProblem ?? 'ready'),
        jobs: redacted(this.#bus.jobProblem ?? 'ready'),
        redis: {
          state: redis.state,
          ...(redis.reason !== undefined && { reason: redacted(redis.reason) }),
        },
        session: this.#session.status,
        firewall: this.#hostNetwork.firewall.problem ?? 'ready',
        reconcile: this.#reconcile.agreement,
        attachments: records.filter(({ state }) => state === 'attached').length,
        unfinished: records.filter(({ state }) => state !== 'attached').length,
        eventsPending: this.#events.pending,
        eventsSetAside: this.#events.setAside,
        clockAheadMs: this.#clocks.aheadMs,
        unexpectedErrors: this.#unexpected.seen,
        conditions: this.#conditions.look(),
      },
    };
  }

  /** The old rules stay in force until the new ones, for every attachment, replace them in one transaction. */
  #resumeFirewall(): void {
    for (const record of this.#journal.values()) {
      const { attachment, network, state } = record;
      // A fenced workload is cut off: it gets nothing back.
      if (attachment === undefined || network === undefined || state !== 'attached') continue;
      this.#hostNetwork.attachments.resume({ ...record, attachment, network });
    }
    this.#hostNetwork.forwarding.start();
    this.#hostNetwork.firewall.start();
  }

  /** An empty ledger belongs to a new fleet if no agent that answers knows a generation of it. */
  async #isNewFleet(): Promise<boolean> {
    const { host } = this.#config;
    const peers = (await this.#bus.survey()) ?? [];
    // If the answer of this agent itself is missing, the question did not get through.
    const asked = peers.some((peer) => peer['host'] === host);
    if (!asked && this.#bus.state === 'connected') {
      this.#log.warn(
        {},
        'the ledger is empty, and NATS does not pass questions to the agents ($SRV.INFO)',
      );
    }
    return asked && peers.every(({ generation }) => generation === '0');
  }

  /**
   * Creates the networks of files that the ledger does not have. If the record in the ledger differs from a file, the
   * record is used.
   */
  async #createNetworks(by: Self): Promise<void> {
    const { networksDir } = this.#config;
    for (const file of networkFiles(networksDir)) {
      const path = join(networksDir, file);
      try {
        const network = parseNetwork(JSON.parse(readFileSync(path, 'utf8')));
        refuseUnserved(network);
        await this.#ledger.putNetwork(network, undefined, by);
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
