import { z } from 'zod';
import { IpAddress, IpPrefix } from './address.ts';
import {
  HOSTNAME_PATTERN,
  ID_PATTERN,
  isDeviceName,
  isNetworkdName,
  NETWORK_PATTERN,
} from './names.ts';
import { at, checkedFamily, refuse } from './network-family.ts';
import { parseRequest } from './parse.ts';

export const NETWORK_TYPES = ['bridged', 'isolated', 'host-only', 'macvtap', 'sriov'] as const;
const MACVTAP_MODES = ['bridge', 'vepa', 'private', 'passthru'] as const;
const GATEWAY_MODES = ['router', 'anycast'] as const;

const address = z.string().max(45);
const prefix = z.string().max(49);
const deviceName = z.string().refine(isDeviceName, 'must be a device name of 15 bytes at most');
const workloadId = z.string().regex(ID_PATTERN, 'must be a workload id');
const domainName = z.string().regex(HOSTNAME_PATTERN, 'must be a domain name');
const seconds = z.int().max(31_536_000);

/** RFC 791 wants 68, Ethernet devices of Linux go to 65535. */
export const mtuSchema = z.int().min(68).max(65_535);
const IPV6_LEAST_MTU = 1280; // RFC 8200; the kernel takes IPv6 off a device with less.

const familyKeys = {
  gateway: address.optional(),
  pool: z.strictObject({ start: address, end: address }).optional(),
  reservations: z.record(workloadId, address).optional(),
};
const ipv6Keys = z.strictObject({ subnet: prefix, ...familyKeys });
const rate = z.strictObject({
  minMbps: z.int().min(0).optional(),
  maxMbps: z.int().min(0).optional(),
});
const dns = z.strictObject({
  servers: z.array(address).max(8).optional(),
  search: z.array(domainName).max(16).optional(),
  domain: domainName.optional(),
  /** The gateway answers DNS: the names of the network's workloads, and by way of `servers` all others. */
  names: z.boolean().optional(),
});
const dhcp = z.union(
  [
    z.boolean(),
    z.strictObject({
      leaseSeconds: seconds.min(60).optional(),
      ntp: z.array(address).max(8).optional(),
    }),
  ],
  { error: 'must be true, false or {leaseSeconds: 60 or more, ntp: addresses}' },
);
const nat = z.union([z.boolean(), z.strictObject({ ipv6: z.boolean().optional() })], {
  error: 'must be true, false or {ipv6: true or false}',
});

export const networkSchema = z.strictObject({
  network: z.string().regex(NETWORK_PATTERN, 'must match [a-z0-9][a-z0-9_-]{0,14}'),
  type: z.enum(NETWORK_TYPES).default('bridged'),
  subnet: prefix.optional(),
  ...familyKeys,
  gatewayMode: z.enum(GATEWAY_MODES).optional(),
  ipv6: ipv6Keys.optional(),
  exclude: z.array(prefix).max(1_024).optional(),
  bridge: z.string().max(15).optional(),
  mtu: mtuSchema.optional(),
  uplink: z
    .strictObject({ device: deviceName, allowDefaultRoute: z.boolean().optional() })
    .optional(),
  parent: deviceName.optional(),
  mode: z.enum(MACVTAP_MODES).optional(),
  vlan: z.int().min(0).max(4094).optional(),
  spoofCheck: z.boolean().optional(),
  trust: z.boolean().optional(),
  rate: rate.optional(),
  dhcp: dhcp.optional(),
  dns: dns.optional(),
  routes: z
    .array(z.strictObject({ to: prefix, via: address }))
    .max(256)
    .optional(),
  nat: nat.optional(),
  filter: z.boolean().default(true),
  portIsolation: z.boolean().optional(),
  routed: z.boolean().optional(),
  linkLocal: z.enum(['eui64', 'any']).default('eui64'),
  reuseDelaySeconds: seconds.min(0).default(60),
  reclaimAfterSeconds: seconds.min(1).optional(),
});

export const NETWORK_KEYS: readonly string[] = Object.keys(networkSchema.shape);

/** The same with those of `ipv6` one by one, as errors name them. */
export const NETWORK_PATHS: readonly string[] = [
  ...NETWORK_KEYS.filter((key) => key !== 'ipv6'),
  ...Object.keys(ipv6Keys.shape).map((key) => `ipv6.${key}`),
];
export type NetworkPath =
  Exclude<keyof NetworkKeys, 'ipv6'> | `ipv6.${keyof z.infer<typeof ipv6Keys>}`;

type NetworkKeys = z.infer<typeof networkSchema>;
export type NetworkType = NetworkKeys['type'];

/** One network, checked, with its defaults. Addresses are canonical text. */
export type Network = NetworkKeys & { readonly bridge: string };

const BRIDGE_TYPES: readonly NetworkType[] = ['bridged', 'host-only'];
/** Keys that would do nothing in other types than these; there they are refused, not ignored. */
const TYPES_WITH = {
  gatewayMode: ['bridged'],
  uplink: BRIDGE_TYPES,
  parent: ['macvtap', 'sriov'],
  mode: ['macvtap'],
  vlan: ['sriov'],
  spoofCheck: ['sriov'],
  trust: ['sriov'],
  rate: ['sriov'],
  nat: ['host-only'],
  routed: ['bridged'],
} as const satisfies Partial<Record<keyof NetworkKeys, readonly NetworkType[]>>;

/**
 * A network from what an operator wrote, or from a network this function returned. Throws INVALID_REQUEST
 * with the key's path in `details.path`, and the corrected value in the message where there is one. What
 * other networks have, their subnets and bridges, is compared by the ledger.
 */
export function parseNetwork(value: unknown): Network {
  const keys = parseRequest(networkSchema, value);
  checkType(keys);
  const bridge = keys.bridge ?? keys.network;
  checkBridge(keys, bridge);
  checkGatewayMode(keys);
  const { ipv6 } = keys;
  if (ipv6 !== undefined && keys.mtu !== undefined && keys.mtu < IPV6_LEAST_MTU) {
    refuse('mtu', `${keys.mtu} is too small for IPv6, which needs ${IPV6_LEAST_MTU}`);
  }
  const checked: Network = {
    ...keys,
    ...checkedFamily(keys, { family: 4, path: '' }),
    ...(ipv6 !== undefined && {
      ipv6: { ...ipv6, ...checkedFamily(ipv6, { family: 6, path: 'ipv6.' }) },
    }),
    ...(keys.exclude !== undefined && { exclude: keys.exclude.map(checkedExclude) }),
    ...(keys.dns !== undefined && { dns: checkedDns(keys.dns) }),
    ...(typeof keys.dhcp === 'object' && { dhcp: checkedDhcp(keys.dhcp) }),
    bridge,
  };
  return keys.routes === undefined
    ? checked
    : { ...checked, routes: checkedRoutes(keys.routes, subnetsOf(checked)) };
}

/** Who has the gateway's address of a network: see `gatewayHolder`. */
export type GatewayHolder = 'bridge' | 'anycast' | 'segment' | 'undecided';

type GatewayKeys = Pick<NetworkKeys, 'type' | 'uplink' | 'gateway' | 'gatewayMode'> & {
  readonly ipv6?: { readonly gateway?: string | undefined } | undefined;
};

/**
 * Who has the gateway's address, of both families.
 * `bridge`: the host, on its bridge, which no other host reaches (bridged without uplink, host-only).
 * `anycast`: each host, on its bridge, with the same MAC on all of them.
 * `segment`: a machine on the segment, never the host.
 * `undecided`: bridged with uplink, and put by a version that did not know `gatewayMode`: a host that has the address on
 * its bridge already keeps it; a host that does not, does not take it.
 */
export function gatewayHolder({ type, uplink, gatewayMode }: GatewayKeys): GatewayHolder {
  if (!BRIDGE_TYPES.includes(type)) return 'segment';
  if (type === 'host-only' || uplink === undefined) return 'bridge';
  if (gatewayMode === undefined) return 'undecided';
  return gatewayMode === 'anycast' ? 'anycast' : 'segment';
}

/**
 * A network as it is stored when somebody puts it: with `gatewayMode` where that has a meaning. So a record without the
 * key is known to be of an earlier version.
 */
export const withGatewayMode = (network: Network): Network =>
  hasGatewayMode(network) ? { ...network, gatewayMode: network.gatewayMode ?? 'router' } : network;

const hasGatewayMode = ({ type, uplink, gateway, ipv6 }: GatewayKeys): boolean =>
  type === 'bridged' &&
  uplink !== undefined &&
  (gateway !== undefined || ipv6?.gateway !== undefined);

/** What a network came to be in a record of the fleet: its keys, loosely, since a newer agent may have more. */
export const recorded = z.custom<Network>(
  (value) => typeof value === 'object' && value !== null && 'network' in value,
  'must be a network',
);

/** Addresses by what they are; IPv6 networks have more than 2^53. */
const usageSchema = z.object({
  size: z.number(),
  used: z.number(),
  free: z.number(),
  reserved: z.number(),
  cooling: z.number(),
  suspect: z.number(),
});

export const networkPutAnswerSchema = z.object({
  network: recorded,
  revision: z.int(),
  created: z.boolean(),
});
export const networkGetAnswerSchema = z.object({
  network: recorded,
  revision: z.int(),
  usage: usageSchema,
});
export const networkListAnswerSchema = z.object({
  networks: z.array(z.object({ network: recorded, revision: z.int() })),
  cursor: z.string().optional(),
});
export const networkDeleteAnswerSchema = z.object({ deleted: z.boolean() });

export type NetworkUsage = z.infer<typeof usageSchema>;
export type NetworkPutAnswer = z.infer<typeof networkPutAnswerSchema>;
export type NetworkGetAnswer = z.infer<typeof networkGetAnswerSchema>;
export type NetworkListAnswer = z.infer<typeof networkListAnswerSchema>;
export type NetworkDeleteAnswer = z.infer<typeof networkDeleteAnswerSchema>;

/** The subnets of a network, IPv4 first. */
export const subnetsOf = ({ subnet, ipv6 }: Pick<Network, 'subnet' | 'ipv6'>): IpPrefix[] =>
  [subnet, ipv6?.subnet].filter((one) => one !== undefined).map((one) => IpPrefix.parse(one));

function checkType(keys: NetworkKeys): void {
  const { type } = keys;
  for (const [key, types] of Object.entries(TYPES_WITH)) {
    const given = Object.entries(keys).some(([one, value]) => one === key && value !== undefined);
    const fits = types.some((one) => one === type);
    if (given && !fits) refuse(key, `is for ${types.join(' and ')} networks, this one is ${type}`);
  }
  if (keys.subnet === undefined && keys.ipv6 === undefined && type !== 'isolated') {
    refuse('subnet', `a ${type} network needs one`);
  }
  if ((type === 'macvtap' || type === 'sriov') && keys.parent === undefined) {
    refuse('parent', `a ${type} network needs one`);
  }
}

function checkBridge({ type, network }: NetworkKeys, bridge: string): void {
  if (!BRIDGE_TYPES.includes(type)) {
    // The name of the network stands for "none": records carry it.
    if (bridge !== network) refuse('bridge', `a ${type} network has none`);
    return;
  }
  if (!isDeviceName(bridge)) refuse('bridge', `"${bridge}" cannot name a device`);
  if (isNetworkdName(bridge)) refuse('bridge', `systemd-networkd claims the name "${bridge}"`);
}

function checkGatewayMode(keys: NetworkKeys): void {
  if (keys.gatewayMode === undefined || hasGatewayMode(keys)) return;
  const why =
    keys.uplink === undefined
      ? 'needs an uplink: without one the host is the gateway'
      : 'needs a gateway';
  refuse('gatewayMode', why);
}

const checkedExclude = (text: string, index: number): string =>
  at(`exclude.${index}`, () => (text.includes('/') ? IpPrefix : IpAddress).parse(text)).toString();

function checkedDns(given: NonNullable<NetworkKeys['dns']>): NonNullable<NetworkKeys['dns']> {
  const servers = given.servers?.map((text, index) =>
    at(`dns.servers.${index}`, () => IpAddress.parse(text)).toString(),
  );
  return { ...given, ...(servers !== undefined && { servers }) };
}

function checkedDhcp<Dhcp extends { ntp?: readonly string[] | undefined }>(given: Dhcp): Dhcp {
  const ntp = given.ntp?.map((text, index) =>
    at(`dhcp.ntp.${index}`, () => IpAddress.parse(text)).toString(),
  );
  return { ...given, ...(ntp !== undefined && { ntp }) };
}

function checkedRoutes(
  given: NonNullable<NetworkKeys['routes']>,
  subnets: readonly IpPrefix[],
): { to: string; via: string }[] {
  return given.map((route, index) => {
    const to = at(`routes.${index}.to`, () => IpPrefix.parse(route.to));
    const via = at(`routes.${index}.via`, () => IpAddress.parse(route.via));
    const path = `routes.${index}.via`;
    if (via.family !== to.family) refuse(path, `${route.via} is not of the family of ${route.to}`);
    if (!subnets.some((subnet) => subnet.contains(via))) {
      refuse(path, `${route.via} is in no subnet of this network`);
    }
    return { to: to.toString(), via: via.toString() };
  });
}
