import { type Family, IpAddress, IpPrefix } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import { type Network, parseNetwork } from '#protocol/network.ts';

// What a network's definition says about its addresses, in the form that the ledger's functions work with:
// fixed-width hex, and ranges of it that include both ends. Nothing here grows with the size of a pool.

export const FAMILIES = ['4', '6'] as const;
export type FamilyName = (typeof FAMILIES)[number];

/** One family of a network as `volt1_network_put` takes it. */
export interface FamilyRules {
  readonly first: string;
  readonly last: string;
  readonly gateway?: string;
  /** How many addresses can be given out without being asked for: pool and reservations. */
  readonly size: number;
  readonly poolSize: number;
  /** Each of the lists below is of text, in order; agents before this library sent pairs and a map. */
  readonly flat: true;
  /** `first-last`: what the pool gives to anybody, the pool less closed and reserved. */
  readonly allowed: readonly string[];
  /** `address workload`: given to that workload alone. */
  readonly reserved: readonly string[];
  /** `first-last path`: never given out, and which key of the network says so. */
  readonly forbidden: readonly string[];
}

interface Interval {
  readonly first: bigint;
  readonly last: bigint;
}

interface ClosedInterval extends Interval {
  readonly path: string;
}

interface FamilyKeys {
  readonly gateway?: string | undefined;
  readonly pool?: { readonly start: string; readonly end: string } | undefined;
  readonly reservations?: Readonly<Record<string, string>> | undefined;
}

export const toHex = (address: IpAddress): string => hexOf(address.family, address.value);

export const fromHex = (hex: string): IpAddress =>
  new IpAddress(hex.length === 8 ? 4 : 6, BigInt(`0x${hex}`));

/** The address as people write it. Without bigints for IPv4, since every lease is read through this. */
export function addressText(hex: string): string {
  if (hex.length !== 8) return fromHex(hex).toString();
  const value = Number.parseInt(hex, 16);
  return `${value >>> 24}.${(value >>> 16) & 0xff}.${(value >>> 8) & 0xff}.${value & 0xff}`;
}

const hexOf = (family: Family, value: bigint): string =>
  value.toString(16).padStart(family === 4 ? 8 : 32, '0');

/** The addresses of one family of a network. */
export class FamilyPool {
  readonly family: FamilyName;
  readonly subnet: IpPrefix;
  readonly #network: string;
  readonly #gateway: IpAddress | undefined;
  readonly #pool: Interval;
  readonly #closed: readonly ClosedInterval[];
  /** Address → workload. */
  readonly #reserved: ReadonlyMap<bigint, string>;
  /** Workload → address. */
  readonly #reservations: ReadonlyMap<string, bigint>;

  constructor(network: Network, subnet: IpPrefix, keys: FamilyKeys) {
    const usable = subnet.usable();
    const { start = usable.start.toString(), end = usable.end.toString() } = keys.pool ?? {};
    const reservations = Object.entries(keys.reservations ?? {}).map(
      ([workload, text]): [string, bigint] => [workload, IpAddress.parse(text).value],
    );
    this.family = subnet.family === 4 ? '4' : '6';
    this.subnet = subnet;
    this.#network = network.network;
    this.#pool = { first: IpAddress.parse(start).value, last: IpAddress.parse(end).value };
    this.#gateway = keys.gateway === undefined ? undefined : IpAddress.parse(keys.gateway);
    this.#closed = [...edges(subnet), ...gatewayOf(keys), ...excludes(network, subnet.family)];
    this.#reservations = new Map(reservations);
    this.#reserved = new Map(reservations.map(([workload, value]) => [value, workload]));
  }

  /** Throws INVALID_REQUEST where a reservation is an address that is never given out. */
  rules(): FamilyRules {
    for (const [workload, value] of this.#reservations) {
      const closed = this.#closed.find((interval) => contains(interval, value));
      if (closed === undefined) continue;
      const path = `${this.family === '6' ? 'ipv6.' : ''}reservations.${workload}`;
      const text = this.#address(value).toString();
      throw new VoltError('INVALID_REQUEST', `${path}: ${text} is closed by ${closed.path}`, {
        details: { path },
      });
    }
    const reserved = [...this.#reserved.keys()].map((value) => ({ first: value, last: value }));
    const allowed = subtract(this.#pool, [...this.#closed, ...reserved]);
    const poolSize = allowed.reduce((sum, { first, last }) => sum + (last - first + 1n), 0n);
    const hex = (value: bigint): string => hexOf(this.subnet.family, value);
    return {
      first: toHex(this.subnet.first),
      last: toHex(this.subnet.last),
      ...(this.#gateway !== undefined && { gateway: toHex(this.#gateway) }),
      size: Number(poolSize + BigInt(reserved.length)),
      poolSize: Number(poolSize),
      flat: true,
      allowed: allowed.map(({ first, last }) => `${hex(first)}-${hex(last)}`),
      reserved: [...this.#reserved].map(([value, owner]) => `${hex(value)} ${owner}`).toSorted(),
      forbidden: this.#closed
        .map(({ first, last, path }) => `${hex(first)}-${hex(last)} ${path}`)
        .toSorted(),
    };
  }

  /** The address that is reserved for a workload, as hex. */
  reservedFor(workload: string): string | undefined {
    const value = this.#reservations.get(workload);
    return value === undefined ? undefined : hexOf(this.subnet.family, value);
  }

  /** False for the gateway and for addresses outside the subnet, which are granted to nobody. */
  mayGive(address: IpAddress): boolean {
    return this.subnet.contains(address) && this.#gateway?.equals(address) !== true;
  }

  /** Throws where this workload may not have an address that it asks for by name. It may lie outside the pool. */
  check(asked: IpAddress, workload: string): void {
    const text = asked.toString();
    const details = { address: text, network: this.#network };
    if (!this.subnet.contains(asked)) {
      const why = `${text} is outside ${this.subnet.toString()}`;
      throw new VoltError('ADDRESS_OUT_OF_RANGE', why, { details });
    }
    const closed = this.#closed.find((interval) => contains(interval, asked.value));
    if (closed !== undefined) {
      const why = `${text} is never given out, by ${closed.path} of network ${this.#network}`;
      throw new VoltError('ADDRESS_OUT_OF_RANGE', why, { details });
    }
    const owner = this.#reserved.get(asked.value);
    if (owner !== undefined && owner !== workload) {
      throw new VoltError('ADDRESS_IN_USE', `${text} is reserved for ${owner}`, {
        retryable: false,
        details: { ...details, workload: owner },
      });
    }
  }

  #address(value: bigint): IpAddress {
    return new IpAddress(this.subnet.family, value);
  }
}

// Whoever attaches uses one definition over and over, until its revision changes: it is checked once.
const poolsOf = new WeakMap<Network, readonly FamilyPool[]>();

/**
 * The families that a network gives addresses of, IPv4 first; none where it has no subnet. Throws
 * INVALID_REQUEST for a definition that `parseNetwork` would refuse.
 */
export function familyPools(given: Network): readonly FamilyPool[] {
  const known = poolsOf.get(given);
  if (known !== undefined) return known;
  const network = parseNetwork(given);
  const { subnet, ipv6 } = network;
  const pools = [
    ...(subnet === undefined ? [] : [new FamilyPool(network, IpPrefix.parse(subnet), network)]),
    ...(ipv6 === undefined ? [] : [new FamilyPool(network, IpPrefix.parse(ipv6.subnet), ipv6)]),
  ];
  poolsOf.set(given, pools);
  return pools;
}

/** Network and broadcast address, where the subnet has them. */
function edges(subnet: IpPrefix): ClosedInterval[] {
  const { start, end } = subnet.usable();
  return [
    { first: subnet.first.value, last: start.value - 1n, path: 'subnet' },
    { first: end.value + 1n, last: subnet.last.value, path: 'subnet' },
  ].filter(({ first, last }) => first <= last);
}

function gatewayOf({ gateway }: FamilyKeys): ClosedInterval[] {
  if (gateway === undefined) return [];
  const { value } = IpAddress.parse(gateway);
  return [{ first: value, last: value, path: 'gateway' }];
}

function excludes(network: Network, family: Family): ClosedInterval[] {
  return (network.exclude ?? []).flatMap((text, index) => {
    const path = `exclude.${index}`;
    if (text.includes('/')) {
      const range = IpPrefix.parse(text);
      const interval = { first: range.first.value, last: range.last.value, path };
      return range.family === family ? [interval] : [];
    }
    const address = IpAddress.parse(text);
    return address.family === family ? [{ first: address.value, last: address.value, path }] : [];
  });
}

const contains = ({ first, last }: Interval, value: bigint): boolean =>
  first <= value && value <= last;

/** What is left of an interval, in order. */
function subtract(whole: Interval, holes: readonly Interval[]): Interval[] {
  const rest: Interval[] = [];
  let next = whole.first;
  for (const hole of holes.toSorted((a, b) => (a.first < b.first ? -1 : 1))) {
    if (hole.last < next) continue;
    if (hole.first > whole.last) break;
    if (hole.first > next) rest.push({ first: next, last: hole.first - 1n });
    next = hole.last + 1n;
  }
  if (next <= whole.last) rest.push({ first: next, last: whole.last });
  return rest;
}
