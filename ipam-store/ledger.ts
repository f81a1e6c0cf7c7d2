import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';
import { type Network, parseNetwork } from '#protocol/network.ts';
import { auditOf, type AuditPage, type AuditPosition, type LedgerDifference } from './audit.ts';
import { Batches } from './batches.ts';
import { allow, need, refuseField } from './checks.ts';
import type { LedgerOptions } from './client.ts';
import { Connection, type LedgerStatus, type Reply } from './connection.ts';
import { refusalError } from './errors.ts';
import { Fields } from './fields.ts';
import {
  type Beat,
  hostOf,
  type HostRecord,
  leaseOutcomeOf,
  type LeaseOutcome,
  type LedgerState,
  type Pulse,
  pulseOf,
  stateOf,
} from './host.ts';
import { digestOf, type HostList, listPageOf, tellingPages, readList } from './host-list.ts';
import { rootKey } from './keys.ts';
import {
  acquireArgs,
  type Ask,
  askOf,
  bootOf,
  grantedOf,
  type Lease,
  leaseOf,
  type LeaseRequest,
  macOf,
  storedLease,
} from './lease.ts';
import { RecoveryWait, type Wait } from './recovery-wait.ts';
import { type LogPage, logPageOf, type SnapshotPage, snapshotPageOf } from './log.ts';
import {
  changesOf,
  definitionOf,
  type NetworkChanges,
  type NetworkOutcome,
  networkOutcomeOf,
  type NetworkRecord,
  type NetworkUsage,
  putDefinitionOf,
  recordOf,
  usageOf,
} from './network.ts';

export type { Wait } from './recovery-wait.ts';
export {
  type AuditPage,
  type AuditPosition,
  auditProgress,
  type LedgerDifference,
} from './audit.ts';
export type { LedgerOptions } from './client.ts';
export type { LedgerStatus } from './connection.ts';
export { RevisionChanged } from './errors.ts';
export {
  type Beat,
  type Holder,
  type HostRecord,
  type LeaseOutcome,
  type LedgerState,
  NOTHING_SEEN,
  type Pulse,
  type Seen,
} from './host.ts';
export { type HostChange, type HostList, listAfter, type ListNews, someOf } from './host-list.ts';
export type { Lease, LeaseRequest } from './lease.ts';
export type { Changes, LogPage, SnapshotPage } from './log.ts';
export type {
  LetGo,
  NetworkChanges,
  NetworkOutcome,
  NetworkRecord,
  NetworkUsage,
} from './network.ts';

export interface Page {
  /** What the page before ended with. */
  readonly cursor?: string | undefined;
  readonly limit?: number | undefined;
}

/** A lease, and whether it is new. */
export interface Acquired {
  readonly lease: Lease;
  readonly created: boolean;
}

/** A lease as a list shows it. */
export interface ListedLease extends Lease {
  /** `suspect`: its host has fallen silent. `expired`: by the server's time; its host has yet to end it. */
  readonly state: 'held' | 'suspect' | 'expired';
}

export interface Reasserted {
  readonly networks: readonly NetworkOutcome[];
  readonly leases: readonly LeaseOutcome[];
}

/** Who asks: a host, which machine it is, which agent of it (its state folder), and in which boot. */
export interface Identity {
  readonly host: string;
  readonly machineId: string;
  readonly agentId?: string | undefined;
  readonly bootId?: string | undefined;
}

/** The same, all of it: what an agent that runs says of itself. */
export interface Self extends Identity {
  readonly agentId: string;
  readonly bootId: string;
}

/** What a call has changed of a network: leases there, or its definition. */
export interface NetworkNews {
  readonly network: string;
  readonly change: 'leases' | 'definition';
}

/** Which lease to give back, and who says so: one of another generation or host is another one. */
export interface Release extends Identity {
  readonly id: string;
  readonly generation: number;
  /** False for one that no workload has used: its addresses are what they were before. */
  readonly cool: boolean;
}

const MAC_CANDIDATES = 8;
const PAGE_LENGTH = 500;
/** Networks that one heartbeat asks about: each is looked up. */
const MAX_FOLLOWS = 16;
/** Functions that change nothing which has to outlive a server; the others wait for redis.minReplicas. */
const PASSING = new Set([
  'preview',
  'network_get',
  'network_list',
  'network_changes',
  'lease',
  'leases',
  'hosts',
  'heartbeat',
  'roster',
  'audit',
  'follow',
  'log',
]);
/** How many one call carries, so that it does not hold up the server. */
const REASSERT_NAMES = 200;
const REASSERT_LEASES = 50;

/**
 * The fleet's ledger of networks and leases, in Redis. Each method is one atomic function there, which does all
 * or nothing. Errors are VoltError; STORE_UNAVAILABLE whenever Redis does not answer in time.
 */
export class Ledger {
  readonly #connection: Connection;
  readonly #root: string;
  readonly #batches: Batches;
  readonly #recovery = new RecoveryWait();
  readonly #listeners = new Set<(news: NetworkNews) => void>();

  /** Throws for options that cannot be meant. */
  constructor(options: LedgerOptions) {
    this.#root = rootKey(options);
    this.#connection = new Connection(options);
    this.#batches = new Batches((name, args, requests) => this.#send(name, args, requests));
  }

  /** Connects in the background. Redis being away is a status, never an error here. */
  start(): void {
    this.#connection.start();
  }

  get status(): LedgerStatus {
    return this.#connection.status;
  }

  onStatus(listener: (status: LedgerStatus) => void): void {
    this.#connection.onStatus(listener);
  }

  /** Called for each network that a call has changed, as far as the call's answer tells. */
  onChange(listener: (news: NetworkNews) => void): void {
    this.#listeners.add(listener);
  }

  /**
   * How a heartbeat is sent before its time. With it, what the ledger refuses as RECOVERING is tried again after the
   * heartbeat's answer, for three seconds and not beyond the call's deadline; without it, it is refused at once.
   */
  beatWith(beat: () => Promise<void>): void {
    this.#recovery.beatWith(beat);
  }

  #tell(change: NetworkNews['change'], networks: Iterable<string>): void {
    for (const network of new Set(networks)) {
      for (const listener of this.#listeners) listener({ network, change });
    }
  }

  async close(): Promise<void> {
    this.#connection.close();
  }

  /**
   * Makes a network, or replaces the one of that `revision`. The same content again changes nothing. What the operator
   * leaves to the default is stored with it (`withGatewayMode`).
   * NETWORK_CONFLICT: the network has other content and `revision` is not its revision, or another network has a subnet or
   * the bridge of it. NETWORK_IN_USE: a lease is in the way, named in `details.id`. UNKNOWN_NETWORK: there is no network to
   * replace. HOST_CONFLICT: `by` is not the machine that the ledger knows under that host id.
   */
  async putNetwork(
    network: Network,
    revision?: number,
    by?: Identity,
    wait?: Wait,
  ): Promise<NetworkRecord & { readonly created: boolean }> {
    allow({ revision }, 'revision');
    const { network: text, ...rest } = putDefinitionOf(network);
    const asked = JSON.stringify({ ...rest, revision, ...byOf(by) });
    // Its text by itself: within JSON, the server would have to read each character of it.
    const put = (): Promise<Fields> => this.#run('network_put', [asked, text]);
    const afterOthers = async (error: unknown): Promise<Fields> => {
      const other = error instanceof VoltError && error.details?.['unfinished'];
      if (typeof other !== 'string') throw error;
      await this.#finish(other);
      return put().catch(afterOthers);
    };
    const answer = await this.#recovery.retry(wait, () => put().catch(afterOthers));
    if (answer.flag('more')) await this.#recovery.retry(wait, () => this.#finish(rest.name));
    this.#tell('definition', [network.network]);
    const record = answer.has('network')
      ? recordOf(answer)
      : { network: parseNetwork(JSON.parse(text)), revision: answer.number('revision') };
    return { ...record, created: answer.flag('created') };
  }

  /** Goes on with a change of a network until it is finished; each call holds up the server for a moment only. */
  async #finish(name: string): Promise<void> {
    while ((await this.#call('network_finish', { name })).flag('more'));
  }

  async getNetwork(
    name: string,
    wait?: Wait,
  ): Promise<(NetworkRecord & { usage: NetworkUsage }) | null> {
    need({ network: name }, 'network');
    const answer = await this.#recovery.retry(wait, () =>
      this.#find('network_get', [JSON.stringify({ name })]),
    );
    return answer && { ...recordOf(answer), usage: usageOf(answer) };
  }

  /** By name. A page is bounded by bytes too: `cursor` says whether more follows. */
  async listNetworks(page: Page = {}): Promise<{ networks: NetworkRecord[]; cursor?: string }> {
    const answer = await this.#call('network_list', pageOf(page));
    return { networks: answer.list('networks').map(recordOf), ...cursorOf(answer) };
  }

  /**
   * The networks that have changed or gone since a revision, page by page: the next page is asked for since the
   * `revision` of this one. RECOVERING while the ledger is not armed.
   */
  async networkChanges(since: number, host?: string): Promise<NetworkChanges> {
    const asked = { since, limit: PAGE_LENGTH, ...(host !== undefined && { host }) };
    let answer = await this.#call('network_changes', asked);
    const changes = changesOf(answer);
    const letGo = [...changes.letGo];
    // A host may say that it has applied a change only when it was told of every address that the change opens.
    while (!changes.more && answer.has('letGoTo')) {
      const after = { since: changes.revision, letGoAfter: answer.number('letGoTo') };
      answer = await this.#call('network_changes', { ...asked, ...after });
      letGo.push(...changesOf(answer).letGo);
    }
    return { ...changes, letGo };
  }

  /** NETWORK_IN_USE while a lease exists; `details.ids` names the first sixteen. HOST_CONFLICT as of `putNetwork`. */
  async deleteNetwork(name: string, by?: Identity, wait?: Wait): Promise<{ deleted: boolean }> {
    need({ network: name }, 'network');
    const asked = { name, ...byOf(by) };
    const answer = await this.#recovery.retry(wait, () => this.#call('network_delete', asked));
    const deleted = answer.flag('deleted');
    if (deleted) this.#tell('definition', [name]);
    if (answer.flag('more')) await this.#recovery.retry(wait, () => this.#finish(name));
    return { deleted };
  }

  /**
   * Grants an address of each family, or of none; or finds the lease that the id has (`created` false), and extends its
   * expiry. An address is the one asked for, else the workload's reservation, else one that was never used, else the one
   * that was released longest ago. Throws RevisionChanged where the network has another revision by now.
   */
  async acquire(request: LeaseRequest, wait?: Wait): Promise<Acquired> {
    const ask = askOf(request);
    return this.#granting(ask, wait, async (mac) => {
      const own = acquireArgs(ask, mac);
      const { text, stored } = await this.#batches.add('acquire', ask.shared, own);
      const acquired = acquiredOf(ask, mac, text);
      this.#tell('leases', [acquired.lease.network]);
      await stored;
      return acquired;
    });
  }

  #granting<T>(ask: Ask, wait: Wait | undefined, work: (mac: string) => Promise<T>): Promise<T> {
    return this.#recovery.retry(wait, () => this.#withMac(ask, work));
  }

  /** A derived MAC that somebody has asked for before is derived anew. */
  async #withMac<T>(ask: Ask, work: (mac: string) => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await work(macOf(ask, tries));
      } catch (error) {
        const taken = error instanceof VoltError && error.code === 'MAC_IN_USE';
        if (!taken || ask.request.mac !== undefined || tries === MAC_CANDIDATES) throw error;
      }
    }
  }

  /** The lease that `acquire` would answer now, or its error; a moment later it may be another. Changes nothing. */
  async preview(request: LeaseRequest, wait?: Wait): Promise<Acquired> {
    const ask = askOf(request);
    return this.#granting(ask, wait, async (mac) => {
      this.#batches.flush();
      const { text } = await this.#send('preview', [ask.shared, ...acquireArgs(ask, mac)]);
      return acquiredOf(ask, mac, text);
    });
  }

  /**
   * Gives a lease back if it is still of this generation and host: else STALE_GENERATION, WRONG_HOST. HOST_CONFLICT
   * where the ledger knows the host as another machine. With `cool: false`, for one that no workload has used, its
   * addresses are what they were before.
   */
  async release(lease: Release): Promise<'released' | 'absent'> {
    need(lease, 'id', 'generation', 'host', 'machineId', 'cool');
    allow(lease, 'agentId', 'bootId');
    const { id, generation, host, machineId, cool } = lease;
    const own = [`${id} ${generation} ${cool ? 1 : 0}`];
    const shared = `${host} ${machineId}${bootOf(lease)}`;
    const { text, stored } = await this.#batches.add('give_back', shared, own);
    const answer = fieldsOf('give_back', text);
    const released = answer.flag('released');
    if (answer.has('network')) this.#tell('leases', [answer.text('network')]);
    await stored;
    return released ? 'released' : 'absent';
  }

  async getLease(id: string): Promise<Lease | null> {
    need({ id }, 'id');
    const stored = await this.#find('lease', [JSON.stringify({ id })]);
    return stored && leaseOf(stored);
  }

  /** By host, network and id; of one host, one network, or all. `cursor` says whether more follows, also after an empty page. */
  async listLeases(
    filter: Page & { network?: string | undefined; host?: string | undefined },
  ): Promise<{ leases: ListedLease[]; cursor?: string }> {
    allow(filter, 'network', 'host');
    const { network, host } = filter;
    const answer = await this.#call('leases', { network, host, ...pageOf(filter) });
    const nowMs = answer.digits('nowMs');
    const leases = answer.list('leases').map((stored) => {
      const lease = leaseOf(stored);
      const ended = lease.expiresAt !== undefined && Date.parse(lease.expiresAt) <= nowMs;
      const state = stored.flag('suspect') ? 'suspect' : ended ? 'expired' : 'held';
      return { ...lease, state } as const;
    });
    return { leases, ...cursorOf(answer) };
  }

  /**
   * Says that the host lives, and what it has seen of the ledger; the answer says what the ledger does and wants
   * of it. HOST_CONFLICT while another machine says so under the same name, or holds leases under it.
   */
  async heartbeat(beat: Beat): Promise<Pulse> {
    let isOpen = false;
    try {
      const pulse = await this.#heartbeat(beat);
      isOpen = pulse.mayAcquire;
      return pulse;
    } finally {
      this.#recovery.note(isOpen);
    }
  }

  async #heartbeat(beat: Beat): Promise<Pulse> {
    need(beat, 'host', 'machineId', 'bootId', 'suspectAfterSeconds', 'recoveryWindowSeconds');
    need(beat, 'seen', 'newFleet');
    allow(beat, 'agentId', 'heartbeatSeconds');
    const { host, machineId, agentId, yieldsTo, bootId, heartbeatSeconds, newFleet, seen } = beat;
    if (yieldsTo !== undefined) need({ machineId: yieldsTo }, 'machineId');
    allow(beat, 'late');
    if (Object.keys(beat.follows ?? {}).length > MAX_FOLLOWS) {
      refuseField('follows', `more than ${MAX_FOLLOWS} networks`);
    }
    const windowSeconds = beat.recoveryWindowSeconds;
    const { generation, revision, roster, hosts } = seen;
    const answer = await this.#call('heartbeat', {
      host,
      machineId,
      ...(agentId !== undefined && { agentId }),
      ...(yieldsTo !== undefined && { yieldsTo }),
      bootId,
      ...(heartbeatSeconds !== undefined && { periodMs: Math.ceil(heartbeatSeconds * 1_000) }),
      newFleet,
      suspectMs: Math.ceil(beat.suspectAfterSeconds * 1_000),
      ...(windowSeconds !== null && { windowMs: Math.ceil(windowSeconds * 1_000) }),
      ...(beat.late !== undefined && { late: beat.late }),
      seen: { generation: String(generation), revision, roster, digest: digestOf(hosts) },
      ...(beat.follows !== undefined && { follows: beat.follows }),
      ...(beat.applied !== undefined && { applied: beat.applied }),
    });
    const pulse = pulseOf(answer);
    if (pulse.unfit !== undefined) this.#connection.look();
    this.#tell(
      'leases',
      pulse.reclaimed.map((lease) => lease.network),
    );
    return pulse;
  }

  /**
   * The list of hosts as it is now, for a host that has seen `list`: only what has changed is read, unless that is not
   * known any more. Undefined while it changes too fast. RECOVERING while the ledger is not armed.
   */
  async readHosts(list: HostList): Promise<HostList | undefined> {
    return readList(list, async (ask) => listPageOf(await this.#call('roster', ask)));
  }

  /**
   * Tells the ledger, which has lost it, the list of hosts: it awaits those before it grants anything. May be repeated;
   * RECOVERING before this host's heartbeat.
   */
  async tellHosts(
    teller: Identity & Pick<Beat, 'suspectAfterSeconds'>,
    { roster, hosts }: HostList,
  ): Promise<void> {
    need(teller, 'host', 'machineId', 'suspectAfterSeconds');
    allow(teller, 'agentId', 'bootId');
    const { host, machineId, agentId, bootId, suspectAfterSeconds } = teller;
    const suspectMs = Math.ceil(suspectAfterSeconds * 1_000);
    const by = { host, machineId, agentId, bootId };
    const told = { ...by, suspectMs, roster, digest: digestOf(hosts) };
    for (const page of tellingPages(hosts)) {
      let from: { after?: string | undefined } = {};
      do {
        const answer = await this.#call('tell', { ...told, ...page, ...from });
        from = { after: answer.optionalText('after') };
      } while (from.after !== undefined);
    }
  }

  /**
   * Says what a host holds and which networks it knows; a repeat changes nothing. What the ledger has in a later version
   * stays. Leases are taken from `holdings` page by page as they are sent, so that one that is given back meanwhile does
   * not return. Afterwards the host may be granted leases, once the ledger is armed; not with `some`, which says that the
   * host holds more than this. `bridges`: the networks of which the host has a bridge, with or without leases. RECOVERING
   * where the epoch is not the ledger's any more; HOST_CONFLICT for another machine than the one that sent the heartbeat.
   */
  async reassert(
    session: Identity & { readonly epoch: string },
    holdings: {
      readonly networks: readonly NetworkRecord[];
      readonly leases: Iterable<Lease>;
      readonly bridges?: readonly string[];
      readonly some?: true;
    },
  ): Promise<Reasserted> {
    need(session, 'host', 'machineId', 'epoch');
    allow(session, 'agentId', 'bootId');
    const { host, machineId, agentId, bootId, epoch } = session;
    const by = { host, machineId, agentId, bootId, epoch };
    // Leases are arguments of their own, since the ledger stores their text as it comes.
    const say = (page: object, texts: readonly string[] = []): Promise<Fields> => {
      const asked = JSON.stringify({ ...by, networks: [], leases: [], last: false, ...page });
      return this.#run('reassert', [asked, ...texts]);
    };
    const networks: NetworkOutcome[] = [];
    const leases: LeaseOutcome[] = [];
    // The ledger knows most networks: only the definitions that it lacks are sent, and before the leases in them.
    for (const some of pagesOf(holdings.networks, REASSERT_NAMES)) {
      const known = some.map(({ network, revision }) => [network.network, revision]);
      const wanted = new Set((await say({ known })).texts('wanted'));
      for (const { network, revision } of some) {
        if (!wanted.has(network.network)) {
          networks.push({ network: network.network, outcome: 'kept' });
          continue;
        }
        // Alone: it may have many ranges.
        const answer = await say({ networks: [{ ...definitionOf(network), revision }] });
        const [outcome] = answer.list('networks');
        if (outcome === undefined) continue;
        networks.push(networkOutcomeOf(outcome));
        if (outcome.has('more') && outcome.flag('more')) await this.#finish(network.network);
      }
    }
    for (const some of pagesOf(holdings.leases, REASSERT_LEASES)) {
      const foreign = some.find((lease) => lease.host !== host);
      if (foreign !== undefined) {
        refuseField('host', `${foreign.id} is of host ${foreign.host}`);
      }
      const texts = some.map((lease) => JSON.stringify(storedLease(lease)));
      const answer = await say({}, texts);
      const outcomes = answer.list('leases').map(leaseOutcomeOf);
      leases.push(...outcomes);
      this.#tell('leases', restoredNetworks(some, outcomes));
    }
    if (holdings.some !== true) await say({ last: true, bridges: holdings.bridges });
    const ofNetworks = networks.filter(({ outcome }) => outcome === 'restored');
    this.#tell(
      'definition',
      ofNetworks.map(({ network }) => network),
    );
    return { networks, leases };
  }

  /**
   * A page of the leases of a network, with which a follower begins; the log has what happens after `position`. The first
   * page is asked for without `cursor`. RECOVERING while the ledger is not armed.
   */
  async snapshot(network: string, cursor?: string): Promise<SnapshotPage> {
    need({ network }, 'network');
    return snapshotPageOf(
      await this.#call('follow', { network, ...(cursor !== undefined && { cursor }) }),
    );
  }

  /** A page of what has changed in a network after an entry of its log. RECOVERING as of `snapshot`. */
  async readLog(network: string, after: string): Promise<LogPage> {
    need({ network }, 'network');
    return logPageOf(await this.#call('log', { network, after }));
  }

  /** By name, and what the ledger is doing. */
  async listHosts(
    page: Page = {},
  ): Promise<{ hosts: HostRecord[]; state: LedgerState; cursor?: string }> {
    const answer = await this.#call('hosts', pageOf(page));
    return {
      hosts: answer.list('hosts').map(hostOf),
      state: stateOf(answer),
      ...cursorOf(answer),
    };
  }

  /**
   * Declares a host gone: its leases end, their addresses cool down, and nobody waits for it. Should it come back,
   * what it holds then is fenced where somebody has it since. HOST_ALIVE while it sends heartbeats.
   */
  async forgetHost(host: string): Promise<{ forgotten: boolean; released: number }> {
    need({ host }, 'host');
    let released = 0;
    for (;;) {
      const answer = await this.#call('forget', { host });
      released += answer.number('released');
      if (answer.has('networks')) this.#tell('leases', answer.texts('networks'));
      if (!answer.flag('more')) return { forgotten: answer.flag('known'), released };
    }
  }

  /**
   * Gives a host another id, or another machine; its leases move with it. `was` is how the ledger knows it. Answers how many
   * leases moved; null where the ledger does not know the host, or knows it as another machine or agent. A call that was
   * cut short is finished by the next. HOST_ALIVE where the host was heard within `suspectAfterSeconds`; HOST_CONFLICT
   * where `to` is a host already, or two machines call themselves the host.
   */
  async renameHost(
    was: Identity & { readonly agentId: string },
    by: { readonly to: string; readonly machineId: string; readonly suspectAfterSeconds: number },
  ): Promise<number | null> {
    need(was, 'host', 'machineId', 'agentId');
    need({ host: by.to }, 'host');
    need(by, 'machineId', 'suspectAfterSeconds');
    const { host, machineId: wasMachineId, agentId } = was;
    const { to, machineId, suspectAfterSeconds } = by;
    const suspectMs = Math.ceil(suspectAfterSeconds * 1_000);
    const ask = { host, to, wasMachineId, machineId, agentId, suspectMs };
    let moved = 0;
    for (;;) {
      const answer = await this.#call('rename', ask);
      if (!answer.flag('known')) return null;
      moved += answer.number('moved');
      if (!answer.flag('more')) return moved;
    }
  }

  /**
   * Decides which of two machines with one machine id is the host: the one that `by` names. The host's leases stay. False
   * for a host that the ledger does not know. HOST_CONFLICT where the host has another machine id, HOST_ALIVE where only
   * one machine calls itself the host, and it lives.
   */
  async settleHost(by: Self): Promise<boolean> {
    need(by, 'host', 'machineId', 'agentId', 'bootId');
    const { host, machineId, agentId, bootId } = by;
    return (await this.#call('settle', { host, machineId, agentId, bootId })).flag('known');
  }

  /**
   * Compares every index of addresses, MACs and ids with the leases, and every network with its definition. Reads the
   * whole ledger, a little at a time, while it works: a change under way may look like a difference, so `repair` looks
   * again.
   */
  async *audit(): AsyncGenerator<LedgerDifference, void, undefined> {
    for await (const { differences } of this.auditPages()) yield* differences;
  }

  /**
   * The same page by page, each with where a check goes on after it. All checks of a fleet together have a fifth of the
   * server's time, so it takes as long as it takes; an aborted `signal` ends it with an AbortError.
   */
  auditPages(
    from?: AuditPosition,
    signal?: AbortSignal,
  ): AsyncGenerator<AuditPage, void, undefined> {
    return auditOf(async (ask) => {
      for (;;) {
        signal?.throwIfAborted();
        const answer = await this.#call('audit', ask);
        if (!answer.has('waitMs')) return answer;
        // Several that wait are not to come back at once.
        await sleep(answer.number('waitMs') * (1 + Math.random() / 2), undefined, { signal });
      }
    }, from);
  }

  /**
   * Puts one difference right where a lease, the lack of one, or a definition proves what is right; answers whether it
   * is. What only the hosts can prove they are asked for, and may be right when they have answered.
   */
  async repair(difference: LedgerDifference): Promise<boolean> {
    const answer = await this.#call('repair', difference.found);
    const { network } = difference;
    if (network !== undefined && answer.flag('more')) await this.#finish(network);
    return answer.flag('repaired');
  }

  #call(name: string, args: object): Promise<Fields> {
    return this.#run(name, [JSON.stringify(args)]);
  }

  async #run(name: string, args: readonly string[]): Promise<Fields> {
    const answer = await this.#find(name, args);
    if (answer === null) throw new TypeError(`volt1_${name} answered nothing`);
    return answer;
  }

  async #find(name: string, args: readonly string[]): Promise<Fields | null> {
    // Requests that wait in a batch were made before this call, and are sent before it.
    this.#batches.flush();
    const { text, stored } = await this.#send(name, args);
    if (text === 'null') return null;
    const answer = fieldsOf(name, text);
    await stored;
    return answer;
  }

  #send(name: string, args: readonly string[], requests = 1): Promise<Reply> {
    const durable = !PASSING.has(name);
    return this.#connection.call(`volt1_${name}`, this.#root, args, { durable, requests });
  }
}

/** The fields of an identity that the functions compare. */
function byOf(by: Identity | undefined): { by?: Identity } {
  if (by === undefined) return {};
  need(by, 'host', 'machineId');
  allow(by, 'agentId', 'bootId');
  const { host, machineId, agentId, bootId } = by;
  return { by: { host, machineId, agentId, bootId } };
}

const acquiredOf = (ask: Ask, mac: string, text: string): Acquired =>
  text.startsWith('granted ')
    ? { lease: grantedOf(ask, mac, text), created: true }
    : { lease: leaseOf(fieldsOf('acquire', text).object('lease')), created: false };

/** Throws the error that a function answered, if it did. */
function fieldsOf(name: string, text: string): Fields {
  const answer = Fields.parse(text, `volt1_${name}`);
  if (answer.has('error')) throw refusalError(answer.object('error'));
  return answer;
}

/** `items`, so many at a time; taken when they are due. */
function* pagesOf<T>(items: Iterable<T>, length: number): Generator<readonly T[], void, undefined> {
  let page: T[] = [];
  for (const item of items) {
    page.push(item);
    if (page.length < length) continue;
    yield page;
    page = [];
  }
  if (page.length > 0) yield page;
}

/** The networks of those leases that were restored. */
function restoredNetworks(leases: readonly Lease[], outcomes: readonly LeaseOutcome[]): string[] {
  return leases.filter((_, n) => outcomes[n]?.outcome === 'restored').map(({ network }) => network);
}

function pageOf(page: Page): Page {
  allow(page, 'cursor', 'limit');
  const { cursor, limit = PAGE_LENGTH } = page;
  return {
    ...(cursor !== undefined && { cursor }),
    limit: Math.max(1, Math.min(limit, PAGE_LENGTH)),
  };
}

function cursorOf(answer: Fields): { cursor?: string } {
  const cursor = answer.optionalText('cursor');
  return cursor === undefined ? {} : { cursor };
}
