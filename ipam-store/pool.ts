import { type Family, IpAddress, IpPrefix } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';

// What a network's definition says about its addresses, in the form the ledger's functions work with:
// fixed-width hex, and inclusive ranges of it.

export type HexRange = readonly [first: string, last: string];

export interface FamilyRules {
  readonly first: string;
  readonly last: string;
  /** Never given out: network, broadcast, gateway, excluded. */
  readonly forbidden: readonly HexRange[];
  /** Given out to their workload alone: address → workload. */
  readonly reserved: Readonly<Record<string, string>>;
  /** What the pool gives to anybody: the pool less forbidden and reserved. */
  readonly allowed: readonly HexRange[];
  /** How many addresses can be given out: pool and reservations. */
  readonly size: number;
}

interface FamilyKeys {
  readonly subnet?: string | undefined;
  readonly gateway?: string | undefined;
  readonly pool?: { readonly start: string; readonly end: string } | undefined;
  readonly reservations?: Readonly<Record<string, string>> | undefined;
}

interface Interval {
  readonly first: bigint;
  readonly last: bigint;
}

export type FamilyName = '4' | '6';

/** The families that a network gives addresses of. */
export const familiesOf = (network: Network): FamilyName[] => [
  ...(network.subnet === undefined ? [] : (['4'] as const)),
  ...(network.ipv6 === undefined ? [] : (['6'] as const)),
];

export const toHex = (address: IpAddress): string => hexOf(address.family, address.value);

export const fromHex = (hex: string): IpAddress =>
  new IpAddress(hex.length === 8 ? 4 : 6, BigInt(`0x${hex}`));

const hexOf = (family: Family, value: bigint): string =>
  value.toString(16).padStart(family === 4 ? 8 : 32, '0');

const keysOf = (network: Network, family: FamilyName): FamilyKeys =>
  family === '4' ? network : (network.ipv6 ?? {});

/** Prefix of a family's subnet: the length that leased addresses carry. */
export const subnetOf = (network: Network, family: FamilyName): IpPrefix =>
  IpPrefix.parse(keysOf(network, family).subnet ?? '');

/** Address reserved for a workload in one family, as hex. */
export function reservedFor(
  network: Network,
  family: FamilyName,
  workload: string,
): string | undefined {
  const { reservations = {} } = keysOf(network, family);
  const text = Object.hasOwn(reservations, workload) ? reservations[workload] : undefined;
  return text === undefined ? undefined : toHex(IpAddress.parse(text));
}

export function rulesOf(network: Network, family: FamilyName): FamilyRules {
  const keys = keysOf(network, family);
  const subnet = subnetOf(network, family);
  const hex = (value: bigint): string => hexOf(subnet.family, value);
  const usable = subnet.usable();
  const pool = {
    first: IpAddress.parse(keys.pool?.start ?? usable.start.toString()).value,
    last: IpAddress.parse(keys.pool?.end ?? usable.end.toString()).value,
  };
  const forbidden = forbiddenIn(network, keys, subnet);
  const reserved = Object.entries(keys.reservations ?? {}).map(
    ([workload, text]): [bigint, string] => [IpAddress.parse(text).value, workload],
  );
  const usableReserved = reserved.filter(([value]) => !covers(forbidden, value));
  const reservedIntervals = reserved.map(([value]): Interval => ({ first: value, last: value }));
  const allowed = subtract(pool, [...forbidden, ...reservedIntervals]);
  const size = allowed.reduce((sum, { first, last }) => sum + (last - first + 1n), 0n);
  return {
    first: hex(subnet.first.value),
    last: hex(subnet.last.value),
    forbidden: forbidden.map(({ first, last }) => [hex(first), hex(last)] as const),
    reserved: Object.fromEntries(reserved.map(([value, workload]) => [hex(value), workload])),
    allowed: allowed.map(({ first, last }) => [hex(first), hex(last)] as const),
    size: Number(size) + usableReserved.length,
  };
}

/** Throws when an asked-for address is not one that this workload may be given in this network. */
export function checkAsked(
  network: Network,
  { address, workload }: { address: IpAddress; workload: string },
): void {
  const family: FamilyName = address.family === 4 ? '4' : '6';
  const text = address.toString();
  const keys = keysOf(network, family);
  const refuse = (why: string): never => {
    throw new VoltError('ADDRESS_OUT_OF_RANGE', `${text} ${why}`, {
      details: { address: text, network: network.network },
    });
  };
  if (keys.subnet === undefined) return refuse(`: network ${network.network} has no IPv${family}`);
  const subnet = IpPrefix.parse(keys.subnet);
  if (!subnet.contains(address)) return refuse(`is outside ${keys.subnet}`);
  if (covers(forbiddenIn(network, keys, subnet), address.value)) {
    return refuse('is the network, broadcast, gateway or an excluded address');
  }
  for (const [owner, reserved] of Object.entries(keys.reservations ?? {})) {
    if (owner !== workload && IpAddress.parse(reserved).equals(address)) {
      throw new VoltError('ADDRESS_IN_USE', `${text} is reserved for ${owner}`, {
        retryable: false,
        details: { address: text, workload: owner },
      });
    }
  }
}

function forbiddenIn(network: Network, keys: FamilyKeys, subnet: IpPrefix): Interval[] {
  const usable = subnet.usable();
  const forbidden: Interval[] = [];
  if (!usable.start.equals(subnet.first)) {
    forbidden.push({ first: subnet.first.value, last: subnet.first.value });
  }
  if (!usable.end.equals(subnet.last)) {
    forbidden.push({ first: subnet.last.value, last: subnet.last.value });
  }
  if (keys.gateway !== undefined) {
    const gateway = IpAddress.parse(keys.gateway).value;
    forbidden.push({ first: gateway, last: gateway });
  }
  for (const text of network.exclude ?? []) {
    const range = text.includes('/')
      ? IpPrefix.parse(text)
      : IpPrefix.around(IpAddress.parse(text), IpAddress.parse(text).family === 4 ? 32 : 128);
    if (range.family !== subnet.family) continue;
    forbidden.push({ first: range.first.value, last: range.last.value });
  }
  return forbidden;
}

const covers = (intervals: readonly Interval[], value: bigint): boolean =>
  intervals.some(({ first, last }) => first <= value && value <= last);

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
