import { deriveMac, InterfaceAddress, IpAddress } from '#protocol/address.ts';
import { type ErrorCode, ERRORS, VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { Connection, type LedgerOptions, type LedgerStatus } from './connection.ts';
import {
  checkAsked,
  familiesOf,
  type FamilyName,
  fromHex,
  reservedFor,
  rulesOf,
  subnetOf,
  toHex,
} from './pool.ts';

export type { LedgerOptions, LedgerStatus } from './connection.ts';

/** An id's hold on its addresses and MAC. */
export interface Lease {
  readonly id: string;
  /** Fencing token: of two leases of an id the higher is the later. */
  readonly generation: number;
  readonly network: string;
  readonly workload: string;
  readonly kind: 'vm' | 'container';
  readonly host: string;
  readonly bootId: string;
  readonly hostname?: string;
  readonly mac: string;
  /** With the subnet's prefix length, IPv4 first: `10.42.0.5/24`. */
  readonly addresses: readonly string[];
  /** RFC 3339, of the server's clock. */
  readonly grantedAt: string;
  readonly expiresAt?: string;
}

export interface LeaseRequest {
  readonly id: string;
  readonly workload: string;
  readonly kind: 'vm' | 'container';
  /** The definition that the request was checked against, and its revision. */
  readonly network: Network;
  readonly revision: number;
  readonly host: string;
  readonly bootId: string;
  /** Asked for; else it is derived from the id. */
  readonly mac?: string;
  readonly addresses?: readonly string[];
  readonly hostname?: string;
  readonly ttlSeconds?: number;
}

export interface NetworkUsage {
  /** Addresses that can be given out: pool and reservations. */
  readonly size: number;
  readonly used: number;
  readonly free: number;
  /** Reserved and not held. */
  readonly reserved: number;
  readonly cooling: number;
  readonly suspect: number;
}

export interface NetworkRecord {
  readonly network: Network;
  readonly revision: number;
}

/** The network's definition has changed since the request was checked: read it again, and check again. */
export class RevisionChanged extends Error {
  readonly code = 'REVISION_CHANGED';
}

const MAC_CANDIDATES = 8;
const PAGE = 500;

/**
 * The fleet's ledger of networks and leases, in Redis. Each method is one atomic function there; errors are
 * VoltError, STORE_UNAVAILABLE whenever Redis does not answer in time.
 */
export class Ledger {
  readonly #connection: Connection;
  readonly #root: string;

  constructor(options: LedgerOptions) {
    this.#connection = new Connection(options);
    this.#root = `${options.keyPrefix}{ledger}`;
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
    await this.#connection.close();
  }

  /**
   * Makes a network, or replaces the one of that `revision`. The same content again changes nothing.
   * NETWORK_CONFLICT: other content without its revision, or a subnet of another network; NETWORK_IN_USE: a
   * lease would be stranded, named in `details.id`.
   */
  async putNetwork(
    network: Network,
    revision?: number,
  ): Promise<NetworkRecord & { readonly created: boolean }> {
    const families = familiesOf(network);
    const rules = new Map(families.map((family) => [family, rulesOf(network, family)]));
    const answer = await this.#call<{ network: string; revision: number; created: boolean }>(
      'network_put',
      {
        name: network.network,
        type: network.type,
        revision,
        network: JSON.stringify(network),
        reuseDelayMs: network.reuseDelaySeconds * 1_000,
        subnets: [...rules.values()].map(({ first, last }) => [first, last]),
        sizes: fromEntries(rules, ({ size }) => size),
        reserved: fromEntries(rules, ({ reserved }) => Object.keys(reserved)),
        families: fromEntries(rules, (one) => one),
      },
    );
    return { ...answer, network: storedNetwork(answer.network) };
  }

  async getNetwork(name: string): Promise<(NetworkRecord & { usage: NetworkUsage }) | null> {
    const answer = await this.#call<{
      network: string;
      revision: number;
      usage: Partial<Record<FamilyName, Omit<NetworkUsage, 'free' | 'suspect'>>>;
    } | null>('network_get', { name });
    if (answer === null) return null;
    const { size, used, cooling, reserved } = answer.usage['4'] ??
      answer.usage['6'] ?? { size: 0, used: 0, cooling: 0, reserved: 0 };
    const free = Math.max(0, size - used - cooling - reserved);
    return {
      network: storedNetwork(answer.network),
      revision: answer.revision,
      usage: { size, used, free, reserved, cooling, suspect: 0 },
    };
  }

  /** By name; `cursor` is the last name of the page before. */
  async listNetworks({
    cursor,
    limit = PAGE,
  }: { cursor?: string | undefined; limit?: number | undefined } = {}): Promise<{
    networks: NetworkRecord[];
    cursor?: string;
  }> {
    const { networks } = await this.#call<{ networks: { network: string; revision: number }[] }>(
      'network_list',
      {},
    );
    const rest = networks
      .map(({ network, revision }) => ({ network: storedNetwork(network), revision }))
      .filter(({ network }) => cursor === undefined || network.network > cursor);
    const page = rest.slice(0, limit);
    const last = page.at(-1);
    if (last === undefined || page.length === rest.length) return { networks: page };
    return { networks: page, cursor: last.network.network };
  }

  /** NETWORK_IN_USE while a lease exists; `details.ids` names the first sixteen. */
  deleteNetwork(name: string): Promise<{ deleted: boolean }> {
    return this.#call('network_delete', { name });
  }

  /**
   * Grants what is asked, all families or none, or finds the lease that the id has (`created` false), whose
   * expiry it then extends. Order of sources: asked for, the workload's reservation, never used, least
   * recently used.
   */
  async acquire(request: LeaseRequest): Promise<{ lease: Lease; created: boolean }> {
    const { network, addresses = [], ttlSeconds, ...rest } = request;
    const asked = addresses.map((text) => IpAddress.parse(text));
    for (const address of asked) checkAsked(network, { address, workload: request.workload });
    const families = familiesOf(network).map((family) => {
      const own = asked.find((address) => String(address.family) === family);
      const reserved = reservedFor(network, family, request.workload);
      return {
        family,
        length: subnetOf(network, family).length,
        ...(own !== undefined && { asked: toHex(own), askedText: own.toString() }),
        ...(reserved !== undefined && { reserved }),
      };
    });
    const answer = await this.#call<{ lease: StoredLease; created: boolean }>('acquire', {
      ...rest,
      network: network.network,
      type: network.type,
      families,
      derivedMacs: derivedMacs(request.id),
      ...(ttlSeconds !== undefined && { ttlMs: ttlSeconds * 1_000 }),
    });
    await this.#connection.replicated();
    return { lease: leaseOf(answer.lease), created: answer.created };
  }

  /**
   * Gives a lease back if it is still of this generation. `cool: false` for one that no workload has used:
   * its addresses are as free as before.
   */
  async release(lease: {
    id: string;
    generation: number;
    host: string;
    cool: boolean;
  }): Promise<'released' | 'absent'> {
    const { released } = await this.#call<{ released: boolean }>('release', {
      ...lease,
      generation: String(lease.generation),
    });
    return released ? 'released' : 'absent';
  }

  async getLease(id: string): Promise<Lease | null> {
    const stored = await this.#call<StoredLease | null>('lease', { id });
    return stored === null ? null : leaseOf(stored);
  }

  /** By id; of one host, one network, or all. */
  async listLeases(filter: {
    network?: string;
    host?: string;
    cursor?: string;
    limit?: number;
  }): Promise<{ leases: Lease[]; cursor?: string }> {
    const { leases, cursor } = await this.#call<{ leases: StoredLease[]; cursor?: string }>(
      'leases',
      { limit: PAGE, ...filter },
    );
    const page = leases.map((stored) => leaseOf(stored));
    return cursor === undefined ? { leases: page } : { leases: page, cursor };
  }

  /** Says that the host lives; answers the server's time and which of the host's leases have expired. */
  async heartbeat(session: {
    host: string;
    machineId: string;
    bootId: string;
  }): Promise<{ nowMs: number; due: { id: string; generation: number }[] }> {
    const { nowMs, due } = await this.#call<{
      nowMs: string;
      due: { id: string; generation: string }[];
    }>('heartbeat', session);
    return {
      nowMs: Number(nowMs),
      due: due.map(({ id, generation }) => ({ id, generation: Number(generation) })),
    };
  }

  /** One function; what it answers is ours, so its shape is believed. */
  async #call<Answer>(name: string, args: object): Promise<Answer> {
    const reply = await this.#connection.call(`volt1_${name}`, this.#root, args);
    const answer: unknown = JSON.parse(String(reply));
    const { error } = (answer ?? {}) as { error?: StoredError };
    if (error !== undefined) throw fromStoredError(error);
    return answer as Answer;
  }
}

/** A lease as the functions keep it. Numbers of more than 14 digits are text there. */
interface StoredLease {
  readonly id: string;
  readonly generation: string;
  readonly network: string;
  readonly workload: string;
  readonly kind: 'vm' | 'container';
  readonly host: string;
  readonly bootId: string;
  readonly hostname?: string;
  readonly mac: string;
  readonly hex: Partial<Record<FamilyName, string>>;
  readonly lengths: Partial<Record<FamilyName, number>>;
  readonly grantedAtMs: string;
  readonly expiresAtMs?: string;
}

interface StoredError {
  readonly code: string;
  readonly message: string;
  readonly details?: Record<string, unknown>;
  readonly retryAfterMs?: number;
}

function fromStoredError({ code, message, details, retryAfterMs }: StoredError): Error {
  if (code === 'REVISION_CHANGED') return new RevisionChanged(message);
  const known: ErrorCode = Object.hasOwn(ERRORS, code) ? (code as ErrorCode) : 'INTERNAL';
  return new VoltError(known, message, { details, retryAfterMs });
}

function leaseOf(stored: StoredLease): Lease {
  const { hex, lengths, grantedAtMs, expiresAtMs, hostname } = stored;
  const addresses = (['4', '6'] as const).flatMap((family) => {
    const address = hex[family];
    const length = lengths[family];
    if (address === undefined || length === undefined) return [];
    return [new InterfaceAddress(fromHex(address), length).toString()];
  });
  return {
    id: stored.id,
    generation: Number(stored.generation),
    network: stored.network,
    workload: stored.workload,
    kind: stored.kind,
    host: stored.host,
    bootId: stored.bootId,
    ...(hostname !== undefined && { hostname }),
    mac: stored.mac,
    addresses,
    grantedAt: timeOf(grantedAtMs),
    ...(expiresAtMs !== undefined && { expiresAt: timeOf(expiresAtMs) }),
  };
}

const timeOf = (ms: string): string => new Date(Number(ms)).toISOString();

/** What is stored was checked when it was put. */
const storedNetwork = (text: string): Network => JSON.parse(text) as Network;

const derivedMacs = (id: string): string[] =>
  Array.from({ length: MAC_CANDIDATES }, (_, n) =>
    deriveMac(n === 0 ? id : `${id} ${n}`).toString(),
  );

const fromEntries = <Value, Result>(
  rules: ReadonlyMap<FamilyName, Value>,
  pick: (value: Value) => Result,
): Record<string, Result> =>
  Object.fromEntries([...rules].map(([family, value]) => [family, pick(value)]));
