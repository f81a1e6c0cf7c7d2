import { IpPrefix } from './address.ts';
import { VoltError } from './errors.ts';
import { gatewayHolder, type Network } from './network.ts';

// What a host serves to the workloads of a network on its bridge: DHCP, router advertisements, names.

/** How long a workload may use what DHCP has told it, without asking again. */
export const DEFAULT_LEASE_SECONDS = 3600;

/** The end of a network's names, where the network says nothing else: kept for private use by ICANN. */
const DEFAULT_DOMAIN = 'internal';

/** RFC 2132: what one option of DHCP may have, in bytes. */
const OPTION_BYTES = 255;

type ServedKeys = Pick<
  Network,
  | 'network'
  | 'type'
  | 'uplink'
  | 'gatewayMode'
  | 'subnet'
  | 'gateway'
  | 'ipv6'
  | 'dhcp'
  | 'dns'
  | 'routes'
>;

export const servesDhcp = ({ dhcp }: Pick<Network, 'dhcp'>): boolean =>
  dhcp !== undefined && dhcp !== false;

export const servesNames = ({ dns }: Pick<Network, 'dns'>): boolean => dns?.names === true;

export const isServed = (network: Pick<Network, 'dhcp' | 'dns'>): boolean =>
  servesDhcp(network) || servesNames(network);

/** What the names of a network's workloads end in: `volt0.internal`. */
export const zoneOf = ({ network, dns }: Pick<Network, 'network' | 'dns'>): string =>
  `${network}.${dns?.domain ?? DEFAULT_DOMAIN}`;

interface WorkloadDns {
  readonly servers?: string[] | undefined;
  readonly search?: string[] | undefined;
  readonly domain?: string | undefined;
}

const NO_DNS: WorkloadDns = Object.freeze({});

/** The servers and domains that a workload is to use: the gateway and the zone, where the network has names. */
export function workloadDns(network: ServedKeys): WorkloadDns {
  const { dns } = network;
  if (dns === undefined) return NO_DNS;
  const { names, ...rest } = dns;
  if (names !== true) return names === undefined ? dns : rest;
  const zone = zoneOf(network);
  return {
    servers: gatewaysOf(network),
    search: [...new Set([zone, ...(dns.search ?? [])])],
    domain: zone,
  };
}

/** The gateways of both families, IPv4 first. */
export const gatewaysOf = ({ gateway, ipv6 }: Pick<Network, 'gateway' | 'ipv6'>): string[] =>
  [gateway, ipv6?.gateway].filter((one) => one !== undefined);

/**
 * RFC 3442: destinations and routers of option 121. Whoever takes this option ignores the router of option 3, so the
 * default route is among them. Empty for a network without routes of IPv4.
 */
export function classlessRoutes({ routes = [], gateway }: ServedKeys): Buffer {
  const own = routes.filter(({ to }) => !to.includes(':'));
  if (own.length === 0) return Buffer.alloc(0);
  const hasDefault = gateway === undefined || own.some(({ to }) => to === '0.0.0.0/0');
  const all = [...own, ...(hasDefault ? [] : [{ to: '0.0.0.0/0', via: gateway }])];
  return Buffer.concat(
    all.map(({ to, via }) => {
      const { first, length } = IpPrefix.parse(to);
      const significant = first.toBytes().subarray(0, Math.ceil(length / 8));
      return Buffer.from([length, ...significant, ...via.split('.').map(Number)]);
    }),
  );
}

/**
 * UNSUPPORTED: no host can serve what a network asks for. `details.path` is the key, after the `path` that leads to the
 * network in a request.
 */
export function refuseUnserved(network: ServedKeys, path: '' | 'network.' = ''): void {
  if (servesDhcp(network)) refuseFirst(`${path}dhcp`, dhcpFlaws(network));
  if (servesNames(network)) refuseFirst(`${path}dns.names`, nameFlaws(network));
}

function refuseFirst(path: string, flaws: readonly (string | undefined)[]): void {
  const why = flaws.find((one) => one !== undefined);
  if (why !== undefined)
    throw new VoltError('UNSUPPORTED', `${path}: ${why}`, { details: { path } });
}

/** Requests are answered from the address that the host has in the subnet. */
function placeFlaw(network: ServedKeys): string | undefined {
  const { type, uplink } = network;
  const holder = gatewayHolder(network);
  if (holder === 'bridge' || holder === 'anycast') return undefined;
  return uplink === undefined
    ? `not supported on ${type} networks`
    : 'needs the gateway on the bridge of each host, so gatewayMode "anycast"';
}

function dhcpFlaws(network: ServedKeys): (string | undefined)[] {
  const { subnet, gateway, ipv6, dns } = network;
  const routes = classlessRoutes(network).length;
  // Each name with a byte for each of its labels' lengths, and one at its end.
  const search = (workloadDns(network).search ?? []).reduce(
    (sum, name) => sum + name.length + 2,
    0,
  );
  return [
    placeFlaw(network),
    subnet !== undefined && gateway === undefined ? 'needs a gateway' : undefined,
    ipv6 !== undefined && ipv6.gateway === undefined ? 'needs ipv6.gateway' : undefined,
    ipv6 !== undefined && IpPrefix.parse(ipv6.subnet).length < 64
      ? `needs an ipv6.subnet of /64 or smaller, not ${ipv6.subnet}`
      : undefined,
    routes > OPTION_BYTES
      ? `routes take ${routes} bytes, and an option of DHCP has ${OPTION_BYTES}`
      : undefined,
    dns !== undefined && search > OPTION_BYTES
      ? `dns.search takes ${search} bytes, and an option of DHCP has ${OPTION_BYTES}`
      : undefined,
  ];
}

function nameFlaws(network: ServedKeys): (string | undefined)[] {
  const gateways = gatewaysOf(network);
  const self = network.dns?.servers?.find((one) => gateways.includes(one));
  return [
    placeFlaw(network),
    gateways.length === 0 ? 'needs a gateway' : undefined,
    self === undefined ? undefined : `dns.servers has ${self}, which would ask itself`,
  ];
}
