import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import {
  isServed,
  refuseUnserved,
  servesDhcp,
  servesNames,
  zoneOf,
} from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';
import { servingFacts } from '../firewall/port-filter.ts';
import type { Fact } from '../firewall/ruleset.ts';

/** RFC 1035: of a name in DNS, without the dot at its end. */
const NAME_CHARACTERS = 253;

/** Where Debian has daemons; the PATH of a service may lack them. */
const MORE_FOLDERS = ['/usr/sbin', '/sbin', '/usr/local/sbin'];

/** Debian has them in dnsmasq-base and dnsmasq-utils. */
export const GUEST_PROGRAMS = ['dnsmasq', 'dhcp_release', 'dhcp_release6'] as const;

/** The path of a program, or undefined where the host does not have it. */
export function programPath(name: (typeof GUEST_PROGRAMS)[number]): string | undefined {
  const folders = [...(process.env['PATH'] ?? '').split(':'), ...MORE_FOLDERS];
  return folders
    .filter((folder) => folder !== '')
    .map((folder) => join(folder, name))
    .find((path) => existsSync(path));
}

/**
 * UNSUPPORTED: this host cannot serve what the network asks for. Its workloads would come up without an address, or
 * without names.
 */
export function refuseUnservedHere(
  network: Network,
  { hostname }: Pick<AttachRequest, 'hostname'>,
): void {
  if (!isServed(network)) return;
  refuseUnserved(network, 'network.');
  refuseLongName(network, hostname);
  const missing = GUEST_PROGRAMS.find((name) => programPath(name) === undefined);
  if (missing === undefined) return;
  const path = servesDhcp(network) ? 'network.dhcp' : 'network.dns.names';
  throw new VoltError(
    'UNSUPPORTED',
    `${path}: this host has no ${missing} (Debian: apt-get install dnsmasq-base dnsmasq-utils)`,
    { details: { path, program: missing } },
  );
}

function refuseLongName(network: Network, hostname: string | undefined): void {
  if (!servesNames(network) || hostname === undefined) return;
  const name = `${hostname}.${zoneOf(network)}`;
  if (name.length <= NAME_CHARACTERS) return;
  throw new VoltError(
    'UNSUPPORTED',
    `hostname: with its zone it is ${name.length} characters long, and a name in DNS has ${NAME_CHARACTERS} at most`,
    { details: { path: 'hostname' } },
  );
}

/** The firewall's facts of a network that is served, and has a segment beyond the host. */
export const segmentFacts = (network: Network): Fact[] =>
  isServed(network) && network.uplink !== undefined
    ? servingFacts(network.uplink.device, servesDhcp(network))
    : [];
