import { IpAddress, IpPrefix } from '#protocol/address.ts';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { subnetsOf, type Network } from '#protocol/network.ts';
import { Conntrack } from '#native/conntrack.ts';
import { type HostPort, portHolder, probePort } from '#native/host-port.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { portMapFacts } from '../firewall/host-nat.ts';
import type { Kernel } from '../kernel.ts';

export type Ports = Attachment['ports'];
type PortMap = Ports[number];

/** The firewall's owner of the port maps of an attachment. */
export const mapsOwner = (id: string): string => `maps:${id}`;

const slotOf = ({ protocol, hostPort }: PortMap): string => `${protocol} ${hostPort}`;

/** The host addresses that a map is for: one given address, or all addresses of one family or of both. */
interface HostEnd {
  readonly family?: 4 | 6;
  readonly address?: IpAddress;
}

function hostEndOf({ hostAddress }: PortMap): HostEnd {
  if (hostAddress === undefined) return {};
  const address = IpAddress.parse(hostAddress);
  const { family, value } = address;
  return value === 0n ? { family } : { family, address };
}

/**
 * The port maps of this host: which attachment has which host port, and the elements in the firewall. As for sockets, a
 * map for all addresses and a map for a given one conflict if they have the same port.
 */
export class PortMaps {
  readonly #firewall: Firewall;
  readonly #kernel: Kernel;
  /** By protocol and host port. */
  readonly #taken = new Map<string, { readonly id: string; readonly end: HostEnd }[]>();
  readonly #mapped = new Map<string, Ports>();
  #conntrack: Conntrack | undefined;

  constructor({ firewall, kernel }: { firewall: Firewall; kernel: Kernel }) {
    this.#firewall = firewall;
    this.#kernel = kernel;
  }

  /**
   * PORT_IN_USE: another attachment, or a process of the host, has a port; the error names it. INVALID_REQUEST: two
   * maps have the same host port, no socket of the host could listen on the address, or the network has no subnet of
   * its family. Ports that `id` itself has do not count.
   */
  check(id: string, ports: AttachRequest['ports'], network: Network): void {
    const families = new Set(subnetsOf(network).map(({ family }) => family));
    for (const [index, map] of (ports ?? []).entries()) {
      const end = hostEndOf(map);
      const path = `ports.${index}`;
      const { address, family } = end;
      if (family !== undefined && !families.has(family)) {
        const message = `${path}.hostAddress: ${network.network} has no IPv${family}`;
        throw new VoltError('INVALID_REQUEST', message, { details: { path } });
      }
      if (address !== undefined) refuseUnboundable(this.#kernel, address, path);
      const first = (ports ?? []).slice(0, index).findIndex((other) => isSameEnd(other, map));
      if (first >= 0) {
        const message = `${path}: has the same host port as ports.${first}`;
        throw new VoltError('INVALID_REQUEST', message, { details: { path } });
      }
      this.#refuseTaken(id, map, path);
      const held = this.#mapped.get(id)?.some((own) => samePort(own, map)) === true;
      if (!held) refuseBound(map, family === undefined ? families : new Set([family]), path);
    }
  }

  /** Replaces the maps of an attachment, in one transaction. */
  put(id: string, ports: Ports, addresses: Attachment['addresses']): void {
    const before = this.#mapped.get(id) ?? [];
    this.#firewall.put(mapsOwner(id), portMapFacts({ ports, addresses }));
    this.#forget(id, before);
    this.#keep(id, ports);
    const targets = new Set(addresses.map(({ address }) => address.split('/')[0] ?? address));
    const changed = [...before, ...ports].filter(
      (map) =>
        !(before.some((one) => samePort(one, map)) && ports.some((one) => samePort(one, map))),
    );
    this.#forgetFlows(changed, targets);
  }

  remove(id: string): void {
    const ports = this.#mapped.get(id);
    if (ports === undefined) return;
    this.#firewall.remove(mapsOwner(id));
    this.#forget(id, ports);
    this.#forgetFlows(ports, new Set());
  }

  #keep(id: string, ports: Ports): void {
    if (ports.length === 0) return;
    this.#mapped.set(id, ports);
    for (const map of ports) {
      const holders = this.#taken.get(slotOf(map)) ?? [];
      this.#taken.set(slotOf(map), [...holders, { id, end: hostEndOf(map) }]);
    }
  }

  #forget(id: string, ports: Ports): void {
    this.#mapped.delete(id);
    for (const map of ports) {
      const others = (this.#taken.get(slotOf(map)) ?? []).filter((one) => one.id !== id);
      if (others.length === 0) this.#taken.delete(slotOf(map));
      else this.#taken.set(slotOf(map), others);
    }
  }

  #refuseTaken(id: string, map: PortMap, path: string): void {
    const end = hostEndOf(map);
    const holder = this.#taken
      .get(slotOf(map))
      ?.find((one) => one.id !== id && overlaps(one.end, end));
    if (holder === undefined) return;
    throw inUse(map, path, { id: holder.id }, `is mapped to ${holder.id}`);
  }

  /**
   * Forgets UDP flows to these ports that began before the change: flows to the host itself if there is a map now, and
   * flows to targets of maps that have ended.
   */
  #forgetFlows(ports: Ports, targets: ReadonlySet<string>): void {
    const numbers = new Set(
      ports.filter(({ protocol }) => protocol === 'udp').map(({ hostPort }) => hostPort),
    );
    if (numbers.size === 0) return;
    this.#conntrack ??= new Conntrack();
    const own = new Set(
      this.#kernel.addresses.list().map(({ address }) => address.address.toString()),
    );
    for (const port of numbers) {
      this.#conntrack.forgetUdp(port, ({ destination, replySource }) => {
        return own.has(destination.toString()) && !targets.has(replySource.toString());
      });
    }
  }
}

const samePort = (a: PortMap, b: PortMap): boolean =>
  slotOf(a) === slotOf(b) && a.hostAddress === b.hostAddress && a.port === b.port;

/** All addresses and a given address overlap; two different given addresses do not, nor do two families. */
const overlaps = (a: HostEnd, b: HostEnd): boolean =>
  (a.family ?? b.family) === (b.family ?? a.family) &&
  (a.address === undefined || b.address === undefined || a.address.equals(b.address));

/**
 * One attachment may have a map for a given address beside one for all addresses: the given address takes precedence.
 */
const isSameEnd = (a: PortMap, b: PortMap): boolean => {
  const [one, other] = [hostEndOf(a), hostEndOf(b)];
  const alike = (one.address === undefined) === (other.address === undefined);
  return slotOf(a) === slotOf(b) && alike && overlaps(one, other);
};

/** Addresses that no socket of this host could listen on, whatever addresses the host has. */
const UNBOUNDABLE = (
  [
    // RFC 1122, RFC 1112, RFC 4291.
    ['0.0.0.0/8', 'is no address of one host'],
    ['224.0.0.0/3', 'is no address of one host'],
    ['ff00::/8', 'is no address of one host'],
    ['fe80::/10', 'is a link-local address, which says nothing without its device'],
    ['::ffff:0:0/96', 'is an IPv4 address: write it as one'],
  ] as const
).map(([text, reason]) => ({ prefix: IpPrefix.parse(text), reason }));

function refuseUnboundable({ addresses }: Kernel, address: IpAddress, path: string): void {
  const found = UNBOUNDABLE.find(({ prefix }) => prefix.contains(address))?.reason;
  const reason = found ?? (isBroadcast(addresses, address) ? 'is a broadcast address' : undefined);
  if (reason === undefined) return;
  const message = `${path}.hostAddress: ${address.toString()} ${reason}`;
  throw new VoltError('INVALID_REQUEST', message, { details: { path: `${path}.hostAddress` } });
}

/** True for the broadcast address of a subnet that the host is on. */
const isBroadcast = (addresses: Kernel['addresses'], address: IpAddress): boolean =>
  address.family === 4 &&
  addresses.list().some(({ address: { address: own, prefixLength } }) => {
    if (own.family !== 4) return false;
    const subnet = IpPrefix.around(own, prefixLength);
    return subnet.contains(address) && address.value > subnet.usable().end.value;
  });

/** Refuses a map if a process of the host holds its port, or if the host does not have its address. */
function refuseBound(map: PortMap, families: ReadonlySet<4 | 6>, path: string): void {
  const { protocol, hostPort: port } = map;
  const { address } = hostEndOf(map);
  for (const family of families) {
    const asked: HostPort = { protocol, family, port, ...(address !== undefined && { address }) };
    const found = probePort(asked);
    if (found === 'absent') {
      const message = `${path}.hostAddress: this host has no address ${map.hostAddress ?? ''}`;
      throw new VoltError('INVALID_REQUEST', message, { details: { path } });
    }
    if (found === 'free') continue;
    const holder = portHolder(asked);
    const who = holder === null ? 'a process' : `${holder.command} (pid ${holder.pid})`;
    throw inUse(map, path, { ...holder }, `is held by ${who} of this host`);
  }
}

const inUse = (map: PortMap, path: string, holder: object, reason: string): VoltError => {
  const { protocol, hostPort, hostAddress } = map;
  const port = `${protocol} port ${hostPort}${hostAddress === undefined ? '' : ` of ${hostAddress}`}`;
  return new VoltError('PORT_IN_USE', `${path}: ${port} ${reason}`, {
    details: {
      path,
      protocol,
      hostPort,
      ...(hostAddress !== undefined && { hostAddress }),
      holder,
    },
  });
};
