import { IpPrefix } from '#protocol/address.ts';
import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import { readSysctl, writeSysctl } from '#native/sysctl.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { hostOnlyFacts, isolatedFacts } from '../firewall/host-nat.ts';
import type { Fact } from '../firewall/ruleset.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import type { Log } from '../../log.ts';
import type { Bridged } from './bridged.ts';
import {
  type KnownOfAttach,
  type AttachedDevice,
  type AttachmentChange,
  type CheckedAttach,
  type NetworkType,
  refuseUnsupported,
  type RemovingDevice,
} from './network-type.ts';
import type { PortMaps } from './port-maps.ts';

/** The routing table of the host's own addresses; unicast routes of ours come after the kernel's. */
const LOCAL_TABLE = 255;
const LOCAL_METRIC = 10;

/** Settings of the whole host that such a network needs, by their paths below `/proc/sys`. */
export const hostSettings = ({ ipv6 }: Pick<Network, 'ipv6'>): readonly (readonly string[])[] => [
  IPV4_FORWARDING,
  ...(ipv6 === undefined ? [] : [IPV6_FORWARDING]),
];
export const IPV4_FORWARDING = ['net', 'ipv4', 'ip_forward'];
export const IPV6_FORWARDING = ['net', 'ipv6', 'conf', 'all', 'forwarding'];
/** Of the bridge of such a network. */
export const BRIDGE_SETTINGS = { 'ipv4.route_localnet': 1 } as const;

export interface HostOnlyOptions {
  readonly kernel: Kernel;
  readonly bridged: Bridged;
  readonly portMaps: PortMaps;
  readonly log: Log;
}

/**
 * A bridge and subnet of this host: outward by masquerade, inward by port map alone. The ports are those of a
 * bridged network; what differs is what the firewall and the host's routing make of the bridge.
 */
export class HostOnly implements NetworkType {
  readonly #options: HostOnlyOptions;
  /** Bridges that the host's routing was prepared for. */
  readonly #prepared = new Set<string>();

  constructor(options: HostOnlyOptions) {
    this.#options = options;
  }

  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach {
    refuseUnsupported(network, [['network.dhcp', network.dhcp !== undefined]]);
    const { bridged, portMaps } = this.#options;
    const { id, ports = [] } = request;
    const port = bridged.checkPort(request, network, factsOf, known);
    return {
      deviceName: port.deviceName,
      prepare: () => {
        port.prepare();
        portMaps.check(id, ports, network);
      },
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const attached = port.attach(lease, undo);
        // A bridge that is made again has none of the settings of before.
        if (known?.deviceName !== undefined) this.#prepared.delete(network.bridge);
        this.#prepareHost(network);
        if (ports.length === 0) return attached;
        undo.defer(() => portMaps.remove(id));
        portMaps.put(
          id,
          ports,
          lease.addresses.map((address) => ({ address })),
        );
        return attached;
      },
      [Symbol.dispose]: () => port[Symbol.dispose](),
    };
  }

  update(change: AttachmentChange, undo: DisposableStack): void {
    const { bridged, portMaps } = this.#options;
    const { before, after, network } = change;
    const { id, addresses } = after;
    portMaps.check(id, after.ports, network);
    bridged.updatePort(change, undo);
    undo.defer(() => portMaps.put(id, before.ports, addresses));
    portMaps.put(id, after.ports, addresses);
  }

  resume(attachment: Attachment, network: Network): void {
    const { bridged, portMaps } = this.#options;
    const { id, ports, addresses } = attachment;
    bridged.resumePort(attachment, network, factsOf);
    if (ports.length > 0) portMaps.put(id, ports, addresses);
  }

  mend(attachment: Attachment, network: Network): void {
    const { bridged, portMaps } = this.#options;
    const { id, ports, addresses } = attachment;
    bridged.mendPort(attachment, network, factsOf);
    this.#prepared.delete(network.bridge);
    this.#prepareHost(network);
    if (ports.length > 0) portMaps.put(id, ports, addresses);
  }

  detach(record: AttachmentRecord): RemovingDevice {
    this.#options.portMaps.remove(record.id);
    return this.#options.bridged.detach(record);
  }

  setDown(record: AttachmentRecord): void {
    this.#options.portMaps.remove(record.id);
    this.#options.bridged.setDown(record);
  }

  observe(attachment: Attachment): Difference[] {
    return this.#options.bridged.observe(attachment);
  }

  claim(attachment: Attachment): Descriptor[] {
    return this.#options.bridged.claim(attachment);
  }

  /**
   * What the host needs for a bridge beside the firewall: forwarding, and a way for what was mapped from
   * loopback addresses. Each setting that this changes is logged.
   */
  #prepareHost({ bridge, ipv6 }: Network): void {
    if (this.#prepared.has(bridge)) return;
    this.#set(['net', 'ipv4', 'conf', bridge, 'route_localnet'], '1');
    this.#set(IPV4_FORWARDING, '1');
    if (ipv6 !== undefined) {
      this.#keepRouterAdvertisements();
      this.#set(IPV6_FORWARDING, '1');
      this.#routeLoopback(bridge);
    }
    this.#prepared.add(bridge);
  }

  #set(path: readonly string[], value: string): void {
    if (readSysctl(path) === value) return;
    writeSysctl(path, value);
    this.#options.log.warn({ sysctl: path.join('.'), value }, 'set for host-only networks');
  }

  /** A host that forwards ignores router advertisements, and loses the routes that it has from them. */
  #keepRouterAdvertisements(): void {
    const { kernel } = this.#options;
    if (readSysctl(IPV6_FORWARDING) === '1') return;
    for (const { name } of kernel.links.list()) {
      const path = ['net', 'ipv6', 'conf', name, 'accept_ra'];
      if (readIfThere(path) === '1') this.#set(path, '2');
    }
  }

  /** Replies to what was mapped from ::1 come in by the bridge, where ::1 is nobody's address otherwise. */
  #routeLoopback(bridge: string): void {
    const { kernel } = this.#options;
    const ifindex = kernel.links.indexOf(bridge);
    if (ifindex === null) return;
    const to = IpPrefix.parse('::1/128');
    try {
      kernel.routes.add({ to, ifindex, local: true, table: LOCAL_TABLE, metric: LOCAL_METRIC });
    } catch (error) {
      if (!isKernelError(error, 'EEXIST')) throw error;
    }
  }
}

const factsOf = (network: Network): Fact[] => [
  ...hostOnlyFacts(network),
  ...(network.portIsolation === true ? isolatedFacts(network) : []),
];

/** A device, or a kernel, may have no IPv6 at all. */
export function readIfThere(path: readonly string[]): string | undefined {
  try {
    return readSysctl(path);
  } catch (error) {
    if (isKernelError(error, 'ENOENT')) return undefined;
    throw error;
  }
}
