import { IpAddress, IpPrefix } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';

// What a small network says about its addresses, each looked at by itself.

export interface FamilyView {
  readonly family: 4 | 6;
  readonly subnet: string;
  /** Of the subnet, in order. */
  readonly all: readonly string[];
  /** What can be given when it is asked for. */
  readonly assignable: readonly string[];
  /** What is given to anybody, in order. */
  readonly pool: readonly string[];
  /** Address → workload. */
  readonly reserved: ReadonlyMap<string, string>;
  reservedFor(workload: string): string | undefined;
}

interface FamilyKeys {
  readonly subnet: string;
  readonly gateway?: string | undefined;
  readonly pool?: { readonly start: string; readonly end: string } | undefined;
  readonly reservations?: Readonly<Record<string, string>> | undefined;
}

const known = new Map<string, readonly FamilyView[]>();

/** IPv4 first. */
export function viewsOf(network: Network): readonly FamilyView[] {
  const key = JSON.stringify(network);
  const views = known.get(key) ?? familiesOf(network).map((keys) => viewOf(keys, network));
  known.set(key, views);
  return views;
}

export const familyOf = (address: string): 4 | 6 => (address.includes(':') ? 6 : 4);

function familiesOf({ subnet, gateway, pool, reservations, ipv6 }: Network): FamilyKeys[] {
  return [
    ...(subnet === undefined ? [] : [{ subnet, gateway, pool, reservations }]),
    ...(ipv6 === undefined ? [] : [ipv6]),
  ];
}

function viewOf(keys: FamilyKeys, { exclude = [] }: Network): FamilyView {
  const { gateway, pool, reservations = {} } = keys;
  const subnet = IpPrefix.parse(keys.subnet);
  const { start, end } = subnet.usable();
  const closed = exclude.map((text) => IpPrefix.parse(text.includes('/') ? text : single(text)));
  const all = Array.from({ length: Number(subnet.size) }, (_, n) =>
    subnet.nth(BigInt(n)).toString(),
  );
  const assignable = all.filter((text) => {
    const address = IpAddress.parse(text);
    const excluded = closed.some(
      (prefix) => prefix.family === address.family && prefix.contains(address),
    );
    return isWithin(address, start, end) && text !== gateway && !excluded;
  });
  const reserved = new Map(
    Object.entries(reservations).map(([workload, text]) => [text, workload]),
  );
  const inPool = (text: string): boolean =>
    pool === undefined ||
    isWithin(IpAddress.parse(text), IpAddress.parse(pool.start), IpAddress.parse(pool.end));
  return {
    family: subnet.family,
    subnet: keys.subnet,
    all,
    assignable,
    pool: assignable.filter((text) => !reserved.has(text) && inPool(text)),
    reserved,
    reservedFor: (workload) => reservations[workload],
  };
}

const single = (text: string): string => `${text}/${text.includes(':') ? 128 : 32}`;

const isWithin = (address: IpAddress, first: IpAddress, last: IpAddress): boolean =>
  address.compare(first) >= 0 && address.compare(last) <= 0;
