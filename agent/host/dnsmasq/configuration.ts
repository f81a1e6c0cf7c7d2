import { IpPrefix } from '#protocol/address.ts';
import {
  classlessRoutes,
  DEFAULT_LEASE_SECONDS,
  servesDhcp,
  servesNames,
  workloadDns,
  zoneOf,
} from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';

// What dnsmasq is told (man 8 dnsmasq, version 2.90). Pure.

/** Where the dnsmasq of one network finds and keeps its files. */
export interface Places {
  /** A file for each workload, in the words of `dhcp-host`. */
  readonly hosts: string;
  /** Files in the words of /etc/hosts. */
  readonly names: string;
  readonly leases: string;
  readonly pid: string;
  /** Who dnsmasq becomes when it was started by root. */
  readonly user: string | undefined;
}

export interface Served {
  readonly network: Network;
  /** Of the network's workloads, if they have no other of their own. */
  readonly mtu: number;
  /** The MTU of workloads that have another, by MAC. */
  readonly otherMtus: ReadonlyMap<string, number>;
}

/** The configuration of one network's dnsmasq. */
export function configuration(served: Served, places: Places): string {
  const { network } = served;
  const lines = [
    '# Written by the Volt network agent. It writes this file anew whenever the network changes.',
    'keep-in-foreground',
    'log-facility=-',
    `pid-file=${places.pid}`,
    ...(places.user === undefined ? [] : [`user=${places.user}`]),
    `interface=${network.bridge}`,
    // Otherwise dnsmasq would take port 53 of the host's loopback.
    'except-interface=lo',
    // On this bridge alone, also when its addresses come later.
    'bind-dynamic',
    // Neither the host's resolvers nor its /etc/hosts are the workloads' business.
    'no-resolv',
    'no-hosts',
    ...(servesNames(network) ? nameLines(network, places) : ['port=0']),
    ...(servesDhcp(network) ? dhcpLines(served, places) : []),
  ];
  return `${lines.join('\n')}\n`;
}

/**
 * There is no `domain` on purpose: without one dnsmasq gives no lease a name under the zone, so that a name goes with its
 * file, at once.
 */
const nameLines = (network: Network, { names }: Places): string[] => [
  `hostsdir=${names}`,
  'cache-size=1000',
  'domain-needed',
  `local=/${zoneOf(network)}/`,
  ...subnetsOf(network).map((subnet) => `rev-server=${subnet}`),
  ...(network.dns?.servers ?? []).map((server) => `server=${server}`),
];

function dhcpLines({ network, mtu, otherMtus }: Served, { hosts, leases }: Places): string[] {
  const { subnet, gateway, ipv6, dhcp } = network;
  const { leaseSeconds = DEFAULT_LEASE_SECONDS, ntp = [] } = typeof dhcp === 'object' ? dhcp : {};
  const { servers = [], search = [], domain } = workloadDns(network);
  const [ntp4, ntp6] = byFamily(ntp);
  const [servers4, servers6] = byFamily(servers);
  const routes = classlessRoutes(network);
  return [
    `dhcp-hostsdir=${hosts}`,
    `dhcp-leasefile=${leases}`,
    // The default is a thousand.
    'dhcp-lease-max=1000000',
    // Whoever is in no file is none of this host's, and gets no answer.
    'dhcp-ignore=tag:!known',
    'dhcp-ignore-names',
    // A workload is known by its MAC: the guest's next system names itself differently.
    'dhcp-ignore-clid',
    // Who asks for an address of before is answered at once, also when dnsmasq knows nothing of it any more.
    'dhcp-authoritative',
    // The ledger knows who has which address.
    'no-ping',
    ...(subnet === undefined
      ? []
      : [
          `dhcp-range=${IpPrefix.parse(subnet).first.toString()},static,${maskOf(subnet)},${leaseSeconds}`,
          option('option:router', gateway === undefined ? [] : [gateway]),
          option('option:dns-server', servers4),
          ...(domain === undefined ? [] : [option('option:domain-name', [domain])]),
          ...(search.length === 0 ? [] : [option('option:domain-search', search)]),
          ...(ntp4.length === 0 ? [] : [option('option:ntp-server', ntp4)]),
          ...(routes.length === 0 ? [] : [option('121', [hexOf(routes)])]),
          option('option:mtu', [String(mtu)]),
          ...[...new Set(otherMtus.values())].map((one) =>
            option(`tag:mtu${one},option:mtu`, [String(one)]),
          ),
          ...[...otherMtus].map(([mac, one]) => `dhcp-mac=set:mtu${one},${mac}`),
        ]),
    ...(ipv6 === undefined
      ? []
      : [
          `dhcp-range=${IpPrefix.parse(ipv6.subnet).first.toString()},static,${IpPrefix.parse(ipv6.subnet).length},${leaseSeconds}`,
          'enable-ra',
          `ra-param=${network.bridge},mtu:${mtu},600,1800`,
          ...(servers6.length === 0 ? [] : [option('option6:dns-server', bracketed(servers6))]),
          ...(search.length === 0 ? [] : [option('option6:domain-search', search)]),
          ...(ntp6.length === 0 ? [] : [option('option6:ntp-server', bracketed(ntp6))]),
        ]),
  ];
}

/** What dnsmasq is to tell one workload; undefined where it has no address of a family that is served. */
export function hostLine({
  mac,
  addresses,
  hostname,
}: Omit<NamedWorkload, 'id'> & { readonly mac: string }): string | undefined {
  const [own4, own6] = byFamily(addresses);
  const first = [...own4.slice(0, 1), ...bracketed(own6.slice(0, 1))];
  if (first.length === 0) return undefined;
  // A host name with dots is known to the guest by its first label, and in DNS as a whole.
  const label = hostname?.split('.')[0];
  // Without the dot dnsmasq would read `ignore` as an order, and `12h` as the time of a lease.
  return [mac, ...first, ...(label === undefined ? [] : [`${label}.`])].join(',');
}

/** The names of one workload, with a mark at the end of each line that says whose it is. */
export const nameLinesOf = (
  network: Network,
  { id, hostname, addresses }: NamedWorkload,
): string[] =>
  hostname === undefined
    ? []
    : addresses.map((address) => `${address} ${hostname}.${zoneOf(network)} # ${id}`);

export interface NamedWorkload {
  readonly id: string;
  readonly hostname?: string | undefined;
  /** Without prefix lengths. */
  readonly addresses: readonly string[];
}

const subnetsOf = ({ subnet, ipv6 }: Network): string[] =>
  [subnet, ipv6?.subnet].filter((one) => one !== undefined);

/** Without values, dnsmasq sends no such option, where it would send one of its own otherwise. */
const option = (name: string, values: readonly string[]): string =>
  ['dhcp-option=', [name, ...values].join(',')].join('');

const byFamily = (addresses: readonly string[]): [v4: string[], v6: string[]] => [
  addresses.filter((one) => !one.includes(':')),
  addresses.filter((one) => one.includes(':')),
];

const bracketed = (addresses: readonly string[]): string[] => addresses.map((one) => `[${one}]`);

/** As dnsmasq takes raw bytes. */
const hexOf = (bytes: Buffer): string => bytes.toString('hex').replaceAll(/(..)(?!$)/g, '$1:');

function maskOf(subnet: string): string {
  const { length } = IpPrefix.parse(subnet);
  const bits = length === 0 ? 0 : (0xffff_ffff << (32 - length)) >>> 0;
  return [24, 16, 8, 0].map((shift) => (bits >>> shift) & 0xff).join('.');
}
