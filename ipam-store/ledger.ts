import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { allow, need } from './checks.ts';
import type { LedgerOptions } from './client.ts';
import { Connection, type LedgerStatus } from './connection.ts';
import { refusalError } from './errors.ts';
import { Fields } from './fields.ts';
import { rootKey } from './keys.ts';
import { acquireArgs, type Lease, leaseOf, type LeaseRequest, wantedOf } from './lease.ts';
import {
  definitionOf,
  type NetworkRecord,
  type NetworkUsage,
  recordOf,
  usageOf,
} from './network.ts';

export type { LedgerOptions } from './client.ts';
export type { LedgerStatus } from './connection.ts';
export { RevisionChanged } from './errors.ts';
export type { Lease, LeaseRequest } from './lease.ts';
export type { NetworkRecord, NetworkUsage } from './network.ts';

export interface Page {
  /** What the page before ended with. */
  readonly cursor?: string | undefined;
  readonly limit?: number | undefined;
}

const MAC_CANDIDATES = 8;
const PAGE_LENGTH = 500;
/** Functions that change nothing which has to outlive a server; the others wait for redis.minReplicas. */
const PASSING = new Set(['network_get', 'network_list', 'lease', 'leases', 'hosts', 'heartbeat']);
const DEFAULT_SUSPECT_AFTER_SECONDS = 20;

/**
 * The fleet's ledger of networks and leases, in Redis. Each method is one atomic function there, which does all
 * or nothing. Errors are VoltError; STORE_UNAVAILABLE whenever Redis does not answer in time.
 */
export class Ledger {
  readonly #connection: Connection;
  readonly #root: string;

  /** Throws for options that cannot be meant. */
  constructor(options: LedgerOptions) {
    this.#root = rootKey(options.keyPrefix);
    this.#connection = new Connection(options);
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

  async close(): Promise<void> {
    this.#connection.close();
  }

  /**
   * Makes a network, or replaces the one of that `revision`. The same content again changes nothing.
   * NETWORK_CONFLICT: other content without its revision, or a subnet of another network; NETWORK_IN_USE: a
   * lease would be stranded, named in `details.id`; UNKNOWN_NETWORK: a revision of nothing.
   */
  async putNetwork(
    network: Network,
    revision?: number,
  ): Promise<NetworkRecord & { readonly created: boolean }> {
    allow({ revision }, 'revision');
    const answer = await this.#call('network_put', { ...definitionOf(network), revision });
    return { ...recordOf(answer), created: answer.flag('created') };
  }

  async getNetwork(name: string): Promise<(NetworkRecord & { usage: NetworkUsage }) | null> {
    need({ network: name }, 'network');
    const answer = await this.#find('network_get', [JSON.stringify({ name })]);
    return answer && { ...recordOf(answer), usage: usageOf(answer.object('usage')) };
  }

  /** By name. A page is bounded by bytes too: `cursor` says whether more follows. */
  async listNetworks(page: Page = {}): Promise<{ networks: NetworkRecord[]; cursor?: string }> {
    const answer = await this.#call('network_list', pageOf(page));
    return { networks: answer.list('networks').map(recordOf), ...cursorOf(answer) };
  }

  /** NETWORK_IN_USE while a lease exists; `details.ids` names the first sixteen. */
  async deleteNetwork(name: string): Promise<{ deleted: boolean }> {
    need({ network: name }, 'network');
    const answer = await this.#call('network_delete', { name });
    return { deleted: answer.flag('deleted') };
  }

  /**
   * Grants what is asked, all families or none, or finds the lease that the id has (`created` false), whose
   * expiry it then extends. Order of sources: asked for, the workload's reservation, never used, least
   * recently used. Throws RevisionChanged where the network is not of the revision given any more.
   */
  async acquire(request: LeaseRequest): Promise<{ lease: Lease; created: boolean }> {
    const answer = await this.#acquire(request);
    return { lease: leaseOf(answer.object('lease')), created: answer.flag('created') };
  }

  /**
   * Gives a lease back if it is still of this generation and host: else STALE_GENERATION, WRONG_HOST. With
   * `cool: false`, for one that no workload has used, its addresses are what they were before.
   */
  async release(lease: {
    id: string;
    generation: number;
    host: string;
    cool: boolean;
  }): Promise<'released' | 'absent'> {
    need(lease, 'id', 'generation', 'host', 'cool');
    const { generation, ...rest } = lease;
    const answer = await this.#call('release', { ...rest, generation: String(generation) });
    return answer.flag('released') ? 'released' : 'absent';
  }

  async getLease(id: string): Promise<Lease | null> {
    need({ id }, 'id');
    const stored = await this.#find('lease', [JSON.stringify({ id })]);
    return stored && leaseOf(stored);
  }

  /** By id; of one host, one network, or all. `cursor` says whether more follows, also after an empty page. */
  async listLeases(
    filter: Page & { network?: string; host?: string },
  ): Promise<{ leases: Lease[]; cursor?: string }> {
    allow(filter, 'network', 'host');
    const { network, host } = filter;
    const answer = await this.#call('leases', { network, host, ...pageOf(filter) });
    return { leases: answer.list('leases').map(leaseOf), ...cursorOf(answer) };
  }

  /**
   * Says that the host lives; answers the server's time and which of the host's leases have expired.
   * HOST_CONFLICT while another machine has said so under the same name.
   */
  async heartbeat(session: {
    host: string;
    machineId: string;
    bootId: string;
    suspectAfterSeconds?: number;
  }): Promise<{ nowMs: number; due: { id: string; generation: number }[] }> {
    need(session, 'host', 'machineId', 'bootId');
    allow(session, 'suspectAfterSeconds');
    const { suspectAfterSeconds = DEFAULT_SUSPECT_AFTER_SECONDS, ...rest } = session;
    const answer = await this.#call('heartbeat', { ...rest, liveMs: suspectAfterSeconds * 1_000 });
    return {
      nowMs: answer.digits('nowMs'),
      due: answer
        .list('due')
        .map((lease) => ({ id: lease.text('id'), generation: lease.digits('generation') })),
    };
  }

  /** A derived MAC that somebody has asked for before is derived anew. */
  async #acquire(request: LeaseRequest): Promise<Fields> {
    const families = wantedOf(request);
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#run('acquire', acquireArgs(request, families, tries));
      } catch (error) {
        const taken = error instanceof VoltError && error.code === 'MAC_IN_USE';
        if (!taken || request.mac !== undefined || tries === MAC_CANDIDATES) throw error;
      }
    }
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
    const durable = !PASSING.has(name);
    const reply = await this.#connection.call(`volt1_${name}`, this.#root, args, { durable });
    if (reply.text === 'null') return null;
    const answer = Fields.parse(reply.text, `volt1_${name}`);
    if (answer.has('error')) throw refusalError(answer.object('error'));
    await reply.stored;
    return answer;
  }
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
