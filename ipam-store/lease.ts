import {
  AddressError,
  deriveMac,
  InterfaceAddress,
  IpAddress,
  MacAddress,
} from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { allow, need, refuseField } from './checks.ts';
import type { Fields } from './fields.ts';
import { FAMILIES, familyPools, fromHex, toHex } from './pool.ts';

/** An id's hold on its addresses and MAC. */
export interface Lease {
  readonly id: string;
  /** Fencing token: of two leases the higher is the later, whatever their ids and networks. */
  readonly generation: number;
  readonly network: string;
  readonly workload: string;
  readonly kind: 'vm' | 'container';
  readonly host: string;
  readonly bootId: string;
  readonly hostname?: string;
  readonly mac: string;
  /** With the prefix length that the subnet had at the grant, IPv4 first: `10.42.0.5/24`. */
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
  /** Asked for, one per family at most. */
  readonly addresses?: readonly string[];
  readonly hostname?: string;
  readonly ttlSeconds?: number;
}

/** A lease as the functions keep it. */
export function leaseOf(stored: Fields): Lease {
  const hex = stored.object('hex');
  const lengths = stored.object('lengths');
  const hostname = stored.optionalText('hostname');
  return {
    id: stored.text('id'),
    generation: stored.digits('generation'),
    network: stored.text('network'),
    workload: stored.text('workload'),
    kind: stored.text('kind') === 'vm' ? 'vm' : 'container',
    host: stored.text('host'),
    bootId: stored.text('bootId'),
    ...(hostname !== undefined && { hostname }),
    mac: stored.text('mac'),
    addresses: FAMILIES.filter((family) => hex.has(family)).map((family) =>
      new InterfaceAddress(fromHex(hex.text(family)), lengths.number(family)).toString(),
    ),
    grantedAt: timeOf(stored, 'grantedAtMs'),
    ...(stored.has('expiresAtMs') && { expiresAt: timeOf(stored, 'expiresAtMs') }),
  };
}

const timeOf = (stored: Fields, name: string): string =>
  new Date(stored.digits(name)).toISOString();

/** What a request wants of one family: `volt1_acquire` takes these texts, empty for none. */
type Wanted = readonly [family: string, asked: string, reserved: string];

/**
 * What a request wants of each family of its network. Throws where a name, an address or a MAC cannot be, or is
 * not for this workload.
 */
export function wantedOf(request: LeaseRequest): Wanted[] {
  need(request, 'id', 'workload', 'kind', 'revision', 'host', 'bootId');
  allow(request, 'mac', 'addresses', 'hostname', 'ttlSeconds');
  const { network, workload, addresses = [] } = request;
  const asked = new Map<string, IpAddress>();
  for (const text of addresses) {
    const address = parsed('addresses', () => IpAddress.parse(text));
    const family = String(address.family);
    if (asked.has(family)) refuseField('addresses', `more than one of IPv${family}`);
    asked.set(family, address);
  }
  const pools = familyPools(network);
  for (const [family, address] of asked) {
    if (pools.some((pool) => pool.family === family)) continue;
    throw new VoltError('ADDRESS_OUT_OF_RANGE', `network ${network.network} has no IPv${family}`, {
      details: { address: address.toString(), network: network.network },
    });
  }
  return pools.map((pool) => {
    const address = asked.get(pool.family);
    if (address !== undefined) pool.check(address, workload);
    return [
      pool.family,
      address === undefined ? '' : toHex(address),
      pool.reservedFor(workload) ?? '',
    ];
  });
}

/** Arguments of `volt1_acquire`. The n-th try derives another MAC than those before. */
export function acquireArgs(
  request: LeaseRequest,
  families: readonly Wanted[],
  tries: number,
): string[] {
  const { id, workload, kind, network, host, bootId, hostname, ttlSeconds } = request;
  const mac =
    request.mac === undefined
      ? deriveMac(tries === 1 ? id : `${id} ${tries}`).toString()
      : unicast(request.mac).toString();
  const lengths = Object.fromEntries(
    familyPools(network).map(({ family, subnet }) => [family, subnet.length]),
  );
  const name = network.network;
  const lease = { id, workload, kind, network: name, host, bootId, hostname, mac, lengths };
  return [
    id,
    host,
    workload,
    name,
    String(request.revision),
    mac,
    request.mac === undefined ? '0' : '1',
    ttlSeconds === undefined ? '' : String(Math.round(ttlSeconds * 1_000)),
    JSON.stringify(lease).slice(0, -1),
    ...families.flat(),
  ];
}

function unicast(text: string): MacAddress {
  const mac = parsed('mac', () => MacAddress.parse(text));
  if (mac.isMulticast || mac.isZero) refuseField('mac', `${text} is no unicast MAC address`);
  return mac;
}

function parsed<T>(path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof AddressError) return refuseField(path, error.message);
    throw error;
  }
}
