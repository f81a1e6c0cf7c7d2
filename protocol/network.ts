import { z } from 'zod';
import { AddressError, IpAddress, IpPrefix } from './address.ts';
import { VoltError } from './errors.ts';
import { ID_PATTERN, isDeviceName, NETWORK_PATTERN } from './names.ts';
import { parseRequest } from './parse.ts';

export const NETWORK_TYPES = ['bridged', 'isolated', 'host-only', 'macvtap', 'sriov'] as const;
export const MACVTAP_MODES = ['bridge', 'vepa', 'private', 'passthru'] as const;

const address = z.string().max(45);
const prefix = z.string().max(49);
const deviceName = z.string().refine(isDeviceName, 'must be a device name of 15 bytes at most');
const workloadId = z.string().regex(ID_PATTERN, 'must be a workload id');

/** RFC 791 wants 68, Ethernet devices of Linux go to 65535. IPv6 needs 1280. */
export const mtuSchema = z.int().min(68).max(65_535);

const pool = z.strictObject({ start: address, end: address });
const reservations = z.record(workloadId, address);
const route = z.strictObject({ to: prefix, via: address });
const dns = z.strictObject({
  servers: z.array(address).max(8).optional(),
  search: z.array(z.string().max(253)).max(16).optional(),
  domain: z.string().max(253).optional(),
});

const family = {
  gateway: address.optional(),
  pool: pool.optional(),
  reservations: reservations.optional(),
};

const networkKeys = z.strictObject({
  network: z.string().regex(NETWORK_PATTERN, 'must match [a-z0-9][a-z0-9_-]{0,14}'),
  type: z.enum(NETWORK_TYPES).default('bridged'),
  subnet: prefix.optional(),
  ...family,
  ipv6: z.strictObject({ subnet: prefix, ...family }).optional(),
  exclude: z.array(prefix).max(1_024).optional(),
  bridge: deviceName.optional(),
  mtu: mtuSchema.optional(),
  uplink: z
    .strictObject({ device: deviceName, allowDefaultRoute: z.boolean().optional() })
    .optional(),
  parent: deviceName.optional(),
  mode: z.enum(MACVTAP_MODES).optional(),
  vlan: z.int().min(0).max(4094).optional(),
  spoofCheck: z.boolean().optional(),
  trust: z.boolean().optional(),
  rate: z
    .strictObject({ minMbps: z.int().min(0).optional(), maxMbps: z.int().min(0).optional() })
    .optional(),
  dhcp: z.union([z.boolean(), z.record(z.string(), z.unknown())]).optional(),
  dns: dns.optional(),
  routes: z.array(route).max(256).optional(),
  nat: z.union([z.boolean(), z.strictObject({ ipv6: z.boolean().optional() })]).optional(),
  filter: z.boolean().default(true),
  portIsolation: z.boolean().optional(),
  linkLocal: z.enum(['eui64', 'any']).default('eui64'),
  reuseDelaySeconds: z.int().min(0).max(31_536_000).default(60),
  reclaimAfterSeconds: z.int().min(1).max(31_536_000).optional(),
});

type NetworkKeys = z.infer<typeof networkKeys>;

/** One network, checked, with its defaults. Addresses are canonical text. */
export type Network = NetworkKeys & { readonly bridge: string };

interface FamilyKeys {
  subnet?: string | undefined;
  gateway?: string | undefined;
  pool?: { start: string; end: string } | undefined;
  reservations?: Record<string, string> | undefined;
}

/**
 * A network from what an operator wrote. Throws INVALID_REQUEST with the key's path in `details.path`, and
 * the corrected value in the message where there is one.
 */
export function parseNetwork(value: unknown): Network {
  const keys = parseRequest(networkKeys, value);
  if (keys.subnet === undefined && keys.type !== 'isolated') {
    refuse('subnet', `a network of type ${keys.type} needs one`);
  }
  const needsParent = keys.type === 'macvtap' || keys.type === 'sriov';
  if (needsParent && keys.parent === undefined) {
    refuse('parent', `a network of type ${keys.type} needs one`);
  }
  checkExclude(keys);
  return {
    ...keys,
    ...checkedFamily(keys, 4, ''),
    ...(keys.ipv6 !== undefined && {
      ipv6: { ...keys.ipv6, ...checkedFamily(keys.ipv6, 6, 'ipv6.') },
    }),
    bridge: keys.bridge ?? keys.network,
  } as Network;
}

/** The subnets of a network, IPv4 first. */
export const subnetsOf = (network: Network): IpPrefix[] =>
  [network.subnet, network.ipv6?.subnet]
    .filter((subnet) => subnet !== undefined)
    .map((subnet) => IpPrefix.parse(subnet));

/** The first pair of subnets that two networks share; null when they can live side by side. */
export function overlapOf(a: Network, b: Network): { a: IpPrefix; b: IpPrefix } | null {
  for (const one of subnetsOf(a)) {
    for (const other of subnetsOf(b)) if (one.overlaps(other)) return { a: one, b: other };
  }
  return null;
}

function refuse(path: string, message: string): never {
  throw new VoltError('INVALID_REQUEST', `${path}: ${message}`, { details: { path } });
}

/** Runs a parser of protocol/address.ts; what it refuses is refused under this path. */
function at<T>(path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof AddressError) return refuse(path, error.message);
    throw error;
  }
}

function checkedFamily(keys: FamilyKeys, version: 4 | 6, path: string): FamilyKeys {
  if (keys.subnet === undefined) {
    for (const key of ['gateway', 'pool', 'reservations'] as const) {
      if (keys[key] !== undefined) refuse(`${path}${key}`, 'needs a subnet');
    }
    return {};
  }
  const text = keys.subnet;
  const subnet = at(`${path}subnet`, () => IpPrefix.parse(text));
  if (subnet.family !== version) refuse(`${path}subnet`, `must be an IPv${version} prefix`);
  const inside = (key: string, value: string): IpAddress => {
    const parsed = at(`${path}${key}`, () => IpAddress.parse(value));
    if (!subnet.contains(parsed)) refuse(`${path}${key}`, `${value} is outside ${text}`);
    return parsed;
  };
  const gateway = keys.gateway === undefined ? undefined : inside('gateway', keys.gateway);
  if (gateway !== undefined) refuseUnusable(`${path}gateway`, gateway, subnet);
  return {
    subnet: subnet.toString(),
    ...(gateway !== undefined && { gateway: gateway.toString() }),
    ...(keys.pool !== undefined && { pool: checkedPool(keys.pool, inside, `${path}pool`) }),
    ...(keys.reservations !== undefined && {
      reservations: checkedReservations(keys.reservations, { inside, subnet, gateway, path }),
    }),
  };
}

function checkedPool(
  pool: { start: string; end: string },
  inside: (key: string, value: string) => IpAddress,
  path: string,
): { start: string; end: string } {
  const start = inside('pool.start', pool.start);
  const end = inside('pool.end', pool.end);
  if (start.compare(end) > 0) {
    refuse(path, `starts after it ends; did you mean ${end.toString()} to ${start.toString()}?`);
  }
  return { start: start.toString(), end: end.toString() };
}

function checkedReservations(
  given: Record<string, string>,
  context: {
    inside: (key: string, value: string) => IpAddress;
    subnet: IpPrefix;
    gateway: IpAddress | undefined;
    path: string;
  },
): Record<string, string> {
  const { inside, subnet, gateway, path } = context;
  const owners = new Map<string, string>();
  const checked: Record<string, string> = {};
  for (const [workload, text] of Object.entries(given)) {
    const key = `reservations.${workload}`;
    const reserved = inside(key, text);
    refuseUnusable(`${path}${key}`, reserved, subnet);
    if (gateway?.equals(reserved) === true) refuse(`${path}${key}`, `${text} is the gateway`);
    const other = owners.get(reserved.toString());
    if (other !== undefined) refuse(`${path}${key}`, `${text} is reserved for ${other} already`);
    owners.set(reserved.toString(), workload);
    checked[workload] = reserved.toString();
  }
  return checked;
}

function refuseUnusable(path: string, address: IpAddress, subnet: IpPrefix): void {
  const { start, end } = subnet.usable();
  if (address.compare(start) < 0 || address.compare(end) > 0) {
    refuse(path, `${address.toString()} is the network or broadcast address of ${subnet.toString()}`);
  }
}

function checkExclude(keys: NetworkKeys): void {
  for (const [index, text] of (keys.exclude ?? []).entries()) {
    at(`exclude.${index}`, () => (text.includes('/') ? IpPrefix.parse(text) : IpAddress.parse(text)));
  }
}
