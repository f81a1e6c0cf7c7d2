import { VoltError } from '#protocol/errors.ts';
import type { Lease, Ledger, LedgerState, Pulse, Self } from '#ipam-store/ledger.ts';
import type { Clocks } from '../health/clocks.ts';
import type { EventLog } from '../storage/events.ts';
import { type Arrival, FleetEvents } from './fleet-events.ts';
import type { Followers } from './followers.ts';
import type { HostLeases } from '../attachments/host-leases.ts';
import { HostList } from './host-list.ts';
import type { Log } from '../log.ts';
import type { NetworkRevisions } from './network-revisions.ts';
import { type Beaten, Rhythm } from '../schedule/rhythm.ts';
import type { Standing } from './standing.ts';
import type { LedgerWatermark } from './ledger-watermark.ts';

export interface SessionOptions {
  /** Who this host says that it is. */
  readonly self: Self;
  readonly heartbeatSeconds: number;
  readonly suspectAfterSeconds: number;
  readonly recoveryWindowSeconds: number | null;
  readonly ledger: Ledger;
  readonly watermark: LedgerWatermark;
  readonly hostLeases: Pick<
    HostLeases,
    'leases' | 'lease' | 'expire' | 'fence' | 'settle' | 'tellEnd'
  >;
  /** What this host knows of networks. */
  readonly revisions: Pick<NetworkRevisions, 'follow' | 'applied' | 'bridged'>;
  /** Networks that are followed: named in heartbeats, whose answers say which have changed. */
  readonly followers: Pick<Followers, 'follows' | 'note'>;
  /** Told with each heartbeat whose this host is. */
  readonly standing: Standing;
  /** Told what the ledger's clock says. */
  readonly clocks: Pick<Clocks, 'noteLedger'>;
  readonly events: Pick<EventLog, 'add'>;
  readonly log: Log;
  /**
   * True when no other agent has seen anything of the ledger; false while nobody can be asked. The ledger lets one
   * host at a time ask.
   */
  readonly isNewFleet: () => Promise<boolean>;
  /** The ledger grants, or grants again: whatever it must have can be put into it. */
  readonly onOpen: () => void;
}

/** What an operator should know of the session. */
export interface SessionStatus {
  readonly state: LedgerState | 'unknown' | 'refused';
  /** Whether leases can be granted to this host. */
  readonly open: boolean;
  /** For whom the ledger waits. */
  readonly awaiting: readonly string[];
  /** Why the last heartbeat was refused. */
  readonly reason?: string;
}

export interface Heartbeat {
  readonly answeredAtMs: number;
  readonly roundTripMs: number;
}

/** While there is news, the next heartbeat follows at once, this many times at most. */
const MAX_TURNS = 8;
/** Expired leases of one answer, as the ledger names them. */
const MAX_DUE = 500;

/**
 * The session of this host in the ledger. One heartbeat a period says that the host lives and what it has seen,
 * however much the host holds. The answer says what to do: re-assert what the host holds, end what has expired, tell
 * the fleet what has happened.
 */
export class Session {
  readonly #options: SessionOptions;
  readonly #rhythm: Rhythm;
  readonly #fleetEvents: FleetEvents;
  readonly #hostList: HostList;
  #beating: Promise<void> | undefined;
  #status: SessionStatus = { state: 'unknown', open: false, awaiting: [] };
  /** Of the last heartbeat. */
  #epoch: string | undefined;
  /** The news of this host's arrival that has not been told yet. */
  #arrival: Arrival | undefined;
  /** What of a refusal the log has. */
  #told: 'waits' | 'refused' | undefined;
  /** A heartbeat before its time. */
  #waiting: NodeJS.Timeout | undefined;
  /** The epoch for which leases without a record have been looked for. */
  #settled: string | undefined;
  /** How many heartbeats were sent since the last answer. */
  #late = 0;
  #heartbeat: Heartbeat | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    this.#fleetEvents = new FleetEvents(options);
    this.#hostList = new HostList(options);
    this.#rhythm = new Rhythm({
      periodMs: options.heartbeatSeconds * 1_000,
      longestMs: (options.suspectAfterSeconds * 1_000) / 2,
      run: () => void this.beat(),
    });
  }

  get status(): SessionStatus {
    return this.#status;
  }

  /** The last heartbeat that the ledger took (`performance.now()` time); undefined before the first. */
  get heartbeat(): Heartbeat | undefined {
    return this.#heartbeat;
  }

  start(): void {
    this.#rhythm.start();
  }

  stop(): void {
    this.#rhythm.stop();
    clearTimeout(this.#waiting);
  }

  /**
   * Resolves when a heartbeat, and the work that its answer asked for, is done; the status names a refusal. While one
   * heartbeat is under way, no second one is sent.
   */
  beat(): Promise<void> {
    this.#beating ??= this.#beat().then((how) => {
      this.#beating = undefined;
      this.#rhythm.ended(how);
    });
    return this.#beating;
  }

  async #beat(): Promise<Beaten> {
    const { ledger, log } = this.#options;
    let newFleet = false;
    for (let turn = 1; turn <= MAX_TURNS && ledger.status.state === 'ready'; turn += 1) {
      try {
        const pulse = await this.#pulse(newFleet);
        if (pulse.state === 'unclaimed') {
          newFleet = pulse.asks === true && (await this.#options.isNewFleet());
          if (!newFleet) return 'soon';
        } else if (!(await this.#take(pulse))) {
          return pulse.sweep ? 'busy' : 'calm';
        }
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        const refused = isConflict(error);
        if (refused) this.#refused(error);
        else {
          this.#options.standing.noteAway();
          if (this.#status.reason !== reason)
            log.warn({ error: reason }, 'the ledger did not take the heartbeat: trying again');
        }
        const state = refused ? 'refused' : 'unknown';
        this.#status = { state, open: false, awaiting: [], reason };
        return isAway(error) ? 'late' : 'calm';
      }
    }
    return 'calm';
  }

  /** Logged once: the heartbeats go on, and one day the ledger takes one. */
  #refused(refusal: VoltError): void {
    const { self, standing, log } = this.#options;
    const { retryAfterMs } = refusal;
    const told = retryAfterMs === undefined ? 'refused' : 'waits';
    if (this.#told !== told && told === 'waits') log.info({ reason: refusal.message }, 'waits');
    if (this.#told !== told && told === 'refused') {
      log.error(
        { error: refusal.message },
        `HOST_CONFLICT: no requests and no jobs are taken, no leases end, no events are published. Give one of the two ` +
          `machines another host id ("host" in agent.json), and another machine id where they have one; or, where the ` +
          `other is gone: voltnet host forget ${self.host}`,
      );
    }
    this.#told = told;
    standing.noteRefused(refusal);
    this.#epoch = undefined;
    this.#settled = undefined;
    clearTimeout(this.#waiting);
    if (retryAfterMs !== undefined)
      this.#waiting = setTimeout(() => void this.beat(), retryAfterMs);
  }

  async #pulse(newFleet: boolean): Promise<Pulse> {
    const { self, heartbeatSeconds, suspectAfterSeconds, recoveryWindowSeconds } = this.#options;
    const late = this.#late;
    this.#late += 1;
    const sentAtMs = performance.now();
    const answer = this.#options.ledger.heartbeat({
      ...self,
      yieldsTo: this.#options.standing.yieldsTo,
      ...this.#options.followers.follows(),
      // A heartbeat that is answered late waits for half of suspectAfterSeconds at most: a host that is silent for no
      // longer than that has not ended.
      heartbeatSeconds: Math.max(
        heartbeatSeconds,
        (heartbeatSeconds + suspectAfterSeconds / 2) / 2,
      ),
      suspectAfterSeconds,
      recoveryWindowSeconds,
      seen: this.#options.watermark.seen,
      applied: this.#options.revisions.applied,
      newFleet,
      late,
    });
    const pulse = await answer.catch((error: unknown) => {
      // Refused is answered.
      if (!isAway(error)) this.#late = 0;
      throw error;
    });
    this.#late = 0;
    const { state, mayAcquire, awaiting, nowMs } = pulse;
    const { standing, clocks, log } = this.#options;
    const receivedAtMs = performance.now();
    clocks.noteLedger({ nowMs, sentAtMs, receivedAtMs });
    this.#heartbeat = { answeredAtMs: receivedAtMs, roundTripMs: receivedAtMs - sentAtMs };
    if (standing.state === 'refused') log.info({}, 'the ledger knows this host as this machine');
    this.#told = undefined;
    standing.noteOwn();
    this.#options.followers.note(pulse);
    this.#epoch = pulse.epoch;
    if (state !== this.#status.state) {
      log.info({ ledger: state, awaiting }, 'the ledger');
    }
    const opened = mayAcquire && !this.#status.open;
    this.#status = { state, open: mayAcquire, awaiting };
    if (opened) this.#options.onOpen();
    return pulse;
  }

  /** Answers whether another heartbeat has something to say. */
  async #take(pulse: Pulse): Promise<boolean> {
    if (pulse.before !== 'live' || pulse.rebooted) this.#arrival ??= pulse;
    this.#fleetEvents.tell(pulse);
    await this.#hostList.note(pulse);
    if (pulse.tell) await this.#hostList.tell();
    if (pulse.reassert) {
      // Deletions come first, or this host would bring a deleted network back. Two things are no deletions: a network
      // that a recovery without this host has lost, and one that the ledger lacks. The hosts that re-assert tell the
      // ledger of those.
      const { revisions, watermark } = this.#options;
      if (pulse.state === 'armed' && pulse.epoch === watermark.networksEpoch) {
        await revisions.follow({ ...pulse.seen, epoch: pulse.epoch }).catch(ignoreRecovering);
      }
      await this.#reassertAll(pulse.epoch);
      return true;
    }
    this.#expire(pulse);
    if (pulse.state === 'armed') {
      await this.#options.revisions.follow({ ...pulse.seen, epoch: pulse.epoch });
      if (pulse.mayAcquire) this.#settle(pulse.epoch);
    }
    return pulse.vouch;
  }

  /** If more leases have expired than one answer names, the next answer is asked for as soon as these are gone. */
  #expire({ due, nowMs }: Pulse): void {
    const ends = due.map(({ id }) => this.#options.hostLeases.expire({ id, nowMs }));
    for (const end of ends) this.#aside(end, 'expired lease not ended yet: trying again');
    if (due.length < MAX_DUE) return;
    const done = Promise.all(ends).then(() => this.beat());
    this.#aside(done, 'expired leases not ended yet: trying again');
  }

  /** Tells the ledger of a lease, from its record. If somebody else holds the lease now, the attachment is fenced. */
  async reassert(id: string): Promise<void> {
    const lease = this.#options.hostLeases.lease(id);
    if (this.#epoch === undefined || lease === undefined) return;
    await this.#assert(this.#epoch, { networks: [], leases: [lease], some: true });
  }

  /** Tells the ledger of all leases that this host holds, and of the networks that it knows. */
  async #reassertAll(epoch: string): Promise<void> {
    const { watermark, hostLeases, revisions } = this.#options;
    await this.#assert(epoch, {
      networks: watermark.networks,
      leases: stillHeld(hostLeases),
      bridges: revisions.bridged,
    });
    this.#settled = undefined;
  }

  async #assert(epoch: string, held: Parameters<Ledger['reassert']>[1]): Promise<void> {
    const { self, ledger, hostLeases, log } = this.#options;
    const { networks, leases } = await ledger.reassert({ ...self, epoch }, held);
    const restored = leases.filter(({ outcome }) => outcome === 'restored').length;
    log.info({ epoch, leases: leases.length, restored }, 're-asserted');
    for (const network of networks) {
      if (network.outcome === 'refused')
        log.error({ ...network }, 'the ledger refuses a network that this host re-asserts');
    }
    for (const lease of leases) {
      if (lease.outcome === 'misplaced')
        log.error({ ...lease }, 'the ledger refuses a lease that this host re-asserts');
      if (lease.outcome === 'fenced')
        this.#aside(hostLeases.fence(lease), 'attachment not fenced yet: trying again');
    }
  }

  /** Once for each epoch: leases without a record, and the news that this host is there. */
  #settle(epoch: string): void {
    if (this.#settled === epoch && this.#arrival === undefined) return;
    this.#settled = epoch;
    const arrival = this.#arrival;
    this.#arrival = undefined;
    const settling = this.#options.hostLeases.settle({ rebooted: arrival?.rebooted === true }).then(
      (settled) => arrival && this.#fleetEvents.tellArrival(arrival, settled),
      (error: unknown) => {
        // The next heartbeat tries it again.
        this.#settled = undefined;
        this.#arrival ??= arrival;
        throw error;
      },
    );
    this.#aside(settling, 'leases without a record not ended yet: trying again');
  }

  /** Work that may have to wait for requests under way; a heartbeat does not wait for it. */
  #aside(work: Promise<void>, failed: string): void {
    work.catch((error: unknown) => this.#options.log.warn({ error: String(error) }, failed));
  }
}

const isAway = (error: unknown): boolean =>
  error instanceof VoltError && error.code === 'STORE_UNAVAILABLE';

/** The leases that a host holds; each is looked up when it is taken. */
function* stillHeld(hostLeases: SessionOptions['hostLeases']): Generator<Lease, void, undefined> {
  for (const { id } of hostLeases.leases()) {
    const lease = hostLeases.lease(id);
    if (lease !== undefined) yield lease;
  }
}

function ignoreRecovering(error: unknown): void {
  if (!(error instanceof VoltError) || error.code !== 'RECOVERING') throw error;
}

const isConflict = (error: unknown): error is VoltError =>
  error instanceof VoltError && error.code === 'HOST_CONFLICT';
