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
import {
  addressText,
  FAMILIES,
  type FamilyName,
  type FamilyPool,
  familyPools,
  toHex,
} from './pool.ts';

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
  readonly machineId: string;
  readonly agentId?: string | undefined;
  readonly bootId: string;
  /** Asked for; else it is derived from the id. */
  readonly mac?: string;
  /** Asked for, one per family at most. */
  readonly addresses?: readonly string[];
  readonly hostname?: string;
  readonly ttlSeconds?: number;
  /**
   * Addresses that the host itself has, without prefix lengths: none of them is granted. At most 64 in the network's
   * subnets.
   */
  readonly avoid?: readonly string[];
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
    addresses: FAMILIES.filter((family) => hex.has(family)).map(
      (family) => `${addressText(hex.text(family))}/${lengths.number(family)}`,
    ),
    grantedAt: timeText(stored.digits('grantedAtMs')),
    ...(stored.has('expiresAtMs') && { expiresAt: timeText(stored.digits('expiresAtMs')) }),
  };
}

/** The reverse: a lease from a host's record, as `volt1_reassert` takes it. */
export function storedLease(lease: Lease): object {
  need(lease, 'id', 'generation', 'network', 'workload', 'kind', 'host', 'bootId', 'mac');
  allow(lease, 'hostname');
  const { addresses, grantedAt, expiresAt, ...rest } = lease;
  const parts = addresses.map((text) => {
    const { address, prefixLength } = parsed('addresses', () => InterfaceAddress.parse(text));
    return { family: address.family, hex: toHex(address), length: prefixLength };
  });
  return {
    ...rest,
    generation: String(lease.generation),
    grantedAtMs: msText('grantedAt', grantedAt),
    ...(expiresAt !== undefined && { expiresAtMs: msText('expiresAt', expiresAt) }),
    lengths: Object.fromEntries(parts.map(({ family, length }) => [family, length])),
    hex: Object.fromEntries(parts.map(({ family, hex }) => [family, hex])),
    before: {},
  };
}

function msText(path: string, time: string): string {
  const ms = Date.parse(time);
  return Number.isNaN(ms) ? refuseField(path, `"${time}" is no time`) : String(ms);
}

const SECOND_MS = 1_000;
let second = { at: 0, text: '1970-01-01T00:00:00' };

/** As `Date.toISOString`, which would take as long as the rest of a lease: called once for each second. */
function timeText(ms: number): string {
  const fraction = ms % SECOND_MS;
  const at = ms - fraction;
  if (at !== second.at) second = { at, text: new Date(at).toISOString().slice(0, 19) };
  return `${second.text}.${String(fraction).padStart(3, '0')}Z`;
}

/** Stands for a missing word in a text whose words are separated by spaces. */
const NONE = '-';

/** What a request's network means for each of its requests. */
interface Site {
  readonly pools: readonly FamilyPool[];
  /** `4`, `6`, `46` or `-`. */
  readonly families: string;
  /** JSON of the subnets' prefix lengths by family. */
  readonly lengths: string;
}

const sites = new WeakMap<Network, Site>();

function siteOf(network: Network): Site {
  const known = sites.get(network);
  if (known !== undefined) return known;
  const pools = familyPools(network);
  const lengths = pools.map(({ family, subnet }) => [family, subnet.length]);
  const site = {
    pools,
    families: pools.map(({ family }) => family).join('') || NONE,
    lengths: JSON.stringify(Object.fromEntries(lengths)),
  };
  sites.set(network, site);
  return site;
}

/** A request that has been checked. */
export interface Ask {
  readonly request: LeaseRequest;
  readonly site: Site;
  /** What `volt1_acquire` takes for all requests of one batch. */
  readonly shared: string;
  /** What is wanted of each family: the address asked for, "r" and the one reserved, or "-". */
  readonly ipv4: string;
  readonly ipv6: string;
}

/** " agent boot", as functions take them after the machine; empty for a caller that says neither. */
export const bootOf = (by: {
  agentId?: string | undefined;
  bootId?: string | undefined;
}): string =>
  by.agentId === undefined || by.bootId === undefined ? '' : ` ${by.agentId} ${by.bootId}`;

const MAX_AVOIDED = 64;

/**
 * " agent boot" of a request, and after them the addresses to avoid, as hex: nothing where there are none, so that such a
 * request costs what it did. Addresses that the network never gives out need not be avoided.
 */
function endOf(request: LeaseRequest, { pools }: Site): string {
  const { avoid = [] } = request;
  if (avoid.length === 0) return bootOf(request);
  const own = avoid
    .map((text, index) => parsed(`avoid.${index}`, () => IpAddress.parse(text)))
    .filter((address) => pools.some((pool) => pool.mayGive(address)));
  const hex = [...new Set(own.map(toHex))].toSorted();
  if (hex.length === 0) return bootOf(request);
  if (hex.length > MAX_AVOIDED) {
    refuseField(
      'avoid',
      `more than ${MAX_AVOIDED} addresses of network ${request.network.network}`,
    );
  }
  return `${bootOf(request) || ` ${NONE} ${NONE}`} ${hex.join(',')}`;
}

/** Checks a request. Throws where a name or an address is malformed, or the address is not for this workload. */
export function askOf(request: LeaseRequest): Ask {
  need(request, 'id', 'workload', 'kind', 'revision', 'host', 'machineId', 'bootId');
  allow(request, 'agentId', 'mac', 'addresses', 'hostname', 'ttlSeconds', 'avoid');
  const { network, revision, host, machineId } = request;
  const site = siteOf(network);
  return {
    request,
    site,
    shared: `${host} ${machineId} ${network.network} ${revision} ${site.families}${endOf(request, site)}`,
    ...wantedOf(request, site),
  };
}

function wantedOf(
  { network, workload, addresses }: LeaseRequest,
  { pools }: Site,
): Pick<Ask, 'ipv4' | 'ipv6'> {
  const wanted = { '4': NONE, '6': NONE };
  for (const pool of pools) {
    const reserved = pool.reservedFor(workload);
    if (reserved !== undefined) wanted[pool.family] = `r${reserved}`;
  }
  const asked = new Set<FamilyName>();
  for (const text of addresses ?? []) {
    const address = parsed('addresses', () => IpAddress.parse(text));
    const family = address.family === 4 ? '4' : '6';
    if (asked.has(family)) refuseField('addresses', `more than one of IPv${family}`);
    asked.add(family);
    const pool = pools.find((one) => one.family === family);
    if (pool === undefined) {
      const why = `network ${network.network} has no IPv${family}`;
      const details = { address: address.toString(), network: network.network };
      throw new VoltError('ADDRESS_OUT_OF_RANGE', why, { details });
    }
    pool.check(address, workload);
    wanted[family] = toHex(address);
  }
  return { ipv4: wanted['4'], ipv6: wanted['6'] };
}

/** The MAC asked for, or one derived from the id; each try derives another. */
export function macOf({ request: { id, mac } }: Ask, tries: number): string {
  if (mac !== undefined) return unicast(mac).toString();
  return deriveMac(tries === 1 ? id : `${id} ${tries}`).toString();
}

/** One request as `volt1_acquire` takes it. */
export function acquireArgs({ request, site, ipv4, ipv6 }: Ask, mac: string): string[] {
  const { id, workload, kind, network, host, bootId, hostname, ttlSeconds } = request;
  const macAsked = request.mac === undefined ? '0' : '1';
  const ttlMs = ttlSeconds === undefined ? NONE : String(Math.round(ttlSeconds * 1_000));
  // JSON put together by hand, in a tenth of the time: of these only a boot id can have what JSON escapes.
  const owner = `{"id":"${id}","workload":"${workload}","kind":"${kind}","network":"${network.network}","host":"${host}"`;
  const name = hostname === undefined ? '' : `"hostname":"${hostname}",`;
  const head = `${owner},"bootId":${quoted(bootId)},${name}"mac":"${mac}","lengths":${site.lengths}`;
  return [id, workload, mac, macAsked, ttlMs, ipv4, ipv6, head];
}

const quoted = (text: string): string =>
  text.includes('"') || text.includes('\\') ? JSON.stringify(text) : `"${text}"`;

/** A new lease: `grant` is what `volt1_acquire` says of it, texts with a space between. */
export function grantedOf({ request, site }: Ask, mac: string, grant: string): Lease {
  const parts = grant.split(' ');
  const { id, workload, kind, network, host, bootId, hostname } = request;
  const addresses = site.pools.map(
    ({ subnet }, n) => `${addressText(parts[4 + n] ?? '')}/${subnet.length}`,
  );
  return {
    id,
    generation: wholeNumber(parts[1]),
    network: network.network,
    workload,
    kind,
    host,
    bootId,
    ...(hostname !== undefined && { hostname }),
    mac,
    addresses,
    grantedAt: timeText(wholeNumber(parts[2])),
    ...(parts[3] !== NONE && { expiresAt: timeText(wholeNumber(parts[3])) }),
  };
}

function wholeNumber(digits = ''): number {
  const value = Number(digits);
  if (digits !== '' && Number.isSafeInteger(value)) return value;
  throw new TypeError(`volt1_acquire answered "${digits}" for a number`);
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
