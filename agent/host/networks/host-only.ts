import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { hostOnlyFacts, isolatedFacts } from '../firewall/host-nat.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { NeedsOfType } from '../bridges/bridges.ts';
import { routerNeeds } from '../bridges/description.ts';
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

export interface HostOnlyOptions {
  readonly bridged: Bridged;
  readonly portMaps: PortMaps;
}

/**
 * A bridge and subnet of this host: outward by masquerade, inward by port map alone. The ports are those of a
 * bridged network; what differs is what the firewall and the host's routing make of the bridge.
 */
export class HostOnly implements NetworkType {
  readonly #options: HostOnlyOptions;

  constructor(options: HostOnlyOptions) {
    this.#options = options;
  }

  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach {
    refuseUnsupported(network, [['network.dhcp', network.dhcp !== undefined]]);
    const { bridged, portMaps } = this.#options;
    const { id, ports = [] } = request;
    const port = bridged.checkPort(request, network, known);
    return {
      deviceName: port.deviceName,
      prepare: () => {
        port.prepare();
        portMaps.check(id, ports, network);
      },
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const attached = port.attach(lease, undo);
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
    bridged.resume(attachment, network);
    if (ports.length > 0) portMaps.put(id, ports, addresses);
  }

  mend(attachment: Attachment, network: Network): void {
    const { bridged, portMaps } = this.#options;
    const { id, ports, addresses } = attachment;
    bridged.mend(attachment, network);
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
}

/**
 * What such a network needs around its bridge: forwarding, and a way for replies to what was mapped from ::1 and
 * 127.0.0.1, which come in by the bridge.
 */
export const hostOnlyNeeds = (network: Network): NeedsOfType => {
  const needs = routerNeeds(network);
  return {
    ...needs,
    bridgeSettings: { ...needs.bridgeSettings, 'ipv4.route_localnet': 1 },
    localRoutes: network.ipv6 === undefined ? [] : ['::1/128'],
    facts: () => [
      ...hostOnlyFacts(network),
      ...(network.portIsolation === true ? isolatedFacts(network) : []),
    ],
  };
};
