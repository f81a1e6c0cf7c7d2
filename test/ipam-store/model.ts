import type { Network } from '#protocol/network.ts';
import { IpAddress, IpPrefix } from '#protocol/address.ts';

// The ledger as a plain program would keep it: maps and sets, every address by itself. IPv4 only.

export interface Outcome {
  /** Code of the error; absent for success. */
  readonly error?: string;
  /** Addresses of which one must have been given. */
  readonly oneOf?: readonly string[];
}

export interface Ask {
  readonly id: string;
  readonly workload: string;
  readonly host: string;
  readonly asked?: string;
}

interface ModelLease {
  readonly workload: string;
  readonly host: string;
  readonly network: string;
  readonly address: string;
  /** Who had released the address when it was given; undefined for never used. */
  readonly before: string | undefined;
}

export class Model {
  readonly networks = new Map<string, Network>();
  readonly leases = new Map<string, ModelLease>();
  /** Address → the workload that released it. */
  readonly #released = new Map<string, string>();

  put(network: Network): Outcome {
    for (const other of this.networks.values()) {
      const overlaps = IpPrefix.parse(subnetOf(other)).overlaps(IpPrefix.parse(subnetOf(network)));
      if (other.network !== network.network && overlaps) return { error: 'NETWORK_CONFLICT' };
    }
    for (const lease of this.leases.values()) {
      if (lease.network !== network.network) continue;
      const owner = ownerOf(network, lease.address);
      const stays = assignable(network).has(lease.address);
      if (!stays || (owner !== undefined && owner !== lease.workload)) {
        return { error: 'NETWORK_IN_USE' };
      }
    }
    const before = this.networks.get(network.network);
    if (before !== undefined) this.#bury(before, all(network));
    this.networks.set(network.network, network);
    return {};
  }

  delete(name: string): Outcome {
    if (this.#leasesIn(name) > 0) return { error: 'NETWORK_IN_USE' };
    const network = this.networks.get(name);
    if (network !== undefined) this.#bury(network, new Set());
    this.networks.delete(name);
    return {};
  }

  /** What an acquire may answer. */
  acquire(network: Network, ask: Ask): Outcome {
    const { id, workload, host, asked } = ask;
    if (asked !== undefined) {
      if (!assignable(network).has(asked)) return { error: 'ADDRESS_OUT_OF_RANGE' };
      const owner = ownerOf(network, asked);
      if (owner !== undefined && owner !== workload) return { error: 'ADDRESS_IN_USE' };
    }
    const held = this.leases.get(id);
    if (held !== undefined) {
      if (held.host !== host) return { error: 'WRONG_HOST' };
      const same = held.workload === workload && held.network === network.network;
      if (!same || (asked !== undefined && asked !== held.address)) {
        return { error: 'ALREADY_ATTACHED' };
      }
      return { oneOf: [held.address] };
    }
    if (!this.networks.has(network.network)) return { error: 'UNKNOWN_NETWORK' };
    const reserved = network.reservations?.[workload];
    const named =
      asked ?? (reserved !== undefined && !this.#isHeld(reserved) ? reserved : undefined);
    if (named === undefined) return this.#fromPool(network, workload);
    const refused = this.#isHeld(named) || this.#cools(network, named, workload);
    return refused ? { error: 'ADDRESS_IN_USE' } : { oneOf: [named] };
  }

  granted(network: Network, { id, workload, host }: Ask, address: string): void {
    const before = this.#released.get(address);
    this.#released.delete(address);
    this.leases.set(id, { workload, host, network: network.network, address, before });
  }

  released(id: string, cool: boolean): void {
    const lease = this.leases.get(id);
    if (lease === undefined) return;
    this.leases.delete(id);
    const by = cool ? lease.workload : lease.before;
    if (by !== undefined) this.#released.set(lease.address, by);
  }

  usage(network: Network): object {
    const pool = [...poolOf(network)];
    const cooling = pool.filter((address) => this.#cools(network, address, '')).length;
    const reserved = Object.values(network.reservations ?? {});
    return {
      size: pool.length + reserved.length,
      used: this.#leasesIn(network.network),
      free: pool.filter((address) => !this.#isHeld(address)).length - cooling,
      reserved: reserved.filter((address) => !this.#isHeld(address)).length,
      cooling,
    };
  }

  #fromPool(network: Network, workload: string): Outcome {
    const left = [...poolOf(network)].filter((address) => !this.#isHeld(address));
    const fresh = left.find((address) => !this.#released.has(address));
    if (fresh !== undefined) return { oneOf: [fresh] };
    const rested = left.filter((address) => !this.#cools(network, address, workload));
    return rested.length === 0 ? { error: 'POOL_EXHAUSTED' } : { oneOf: rested };
  }

  /** A delay is none or longer than any test. */
  #cools(network: Network, address: string, workload: string): boolean {
    const by = this.#released.get(address);
    return network.reuseDelaySeconds > 0 && by !== undefined && by !== workload;
  }

  #bury(network: Network, kept: ReadonlySet<string>): void {
    if (network.reuseDelaySeconds > 0) return;
    for (const address of all(network)) if (!kept.has(address)) this.#released.delete(address);
  }

  #isHeld(address: string): boolean {
    return [...this.leases.values()].some((lease) => lease.address === address);
  }

  #leasesIn(name: string): number {
    return [...this.leases.values()].filter(({ network }) => network === name).length;
  }
}

const subnetOf = ({ subnet = '' }: Network): string => subnet;

/** Every address of the subnet, in order. */
export function all(network: Network): Set<string> {
  const subnet = IpPrefix.parse(subnetOf(network));
  return new Set(
    Array.from({ length: Number(subnet.size) }, (_, n) => subnet.nth(BigInt(n)).toString()),
  );
}

/** What can be given when it is asked for. */
function assignable(network: Network): Set<string> {
  const { start, end } = IpPrefix.parse(subnetOf(network)).usable();
  const closed = (network.exclude ?? []).map((text) =>
    IpPrefix.parse(text.includes('/') ? text : `${text}/32`),
  );
  const open = [...all(network)].filter((text) => {
    const address = IpAddress.parse(text);
    return (
      address.compare(start) >= 0 &&
      address.compare(end) <= 0 &&
      text !== network.gateway &&
      !closed.some((prefix) => prefix.contains(address))
    );
  });
  return new Set(open);
}

/** What the pool gives to anybody, in order. */
export function poolOf(network: Network): Set<string> {
  const { pool } = network;
  const pooled = [...assignable(network)].filter((text) => {
    if (ownerOf(network, text) !== undefined) return false;
    if (pool === undefined) return true;
    const address = IpAddress.parse(text);
    const start = IpAddress.parse(pool.start);
    return address.compare(start) >= 0 && address.compare(IpAddress.parse(pool.end)) <= 0;
  });
  return new Set(pooled);
}

const ownerOf = (network: Network, address: string): string | undefined =>
  Object.entries(network.reservations ?? {}).find(([, reserved]) => reserved === address)?.[0];
