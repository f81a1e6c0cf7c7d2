import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { refuseUnservedHere, segmentFacts } from '../dnsmasq/demands.ts';
import { hostOnlyFacts, isolatedFacts } from '../firewall/host-nat.ts';
import type { NeedsOfType } from '../bridges/bridges.ts';
import { routerNeeds } from '../bridges/description.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import type { Attached, Description } from '../description.ts';
import { BridgePorts, type BridgePortsOptions, describePort, portFilter } from './bridge-ports.ts';
import {
  type KnownOfAttach,
  type AttachedDevice,
  type AttachmentChange,
  type CheckedAttach,
  type NetworkType,
  type RemovingDevice,
} from './network-type.ts';
import type { PortMaps } from './port-maps.ts';

export interface HostOnlyOptions extends BridgePortsOptions {
  readonly portMaps: PortMaps;
}

/**
 * A bridge and subnet of this host. Packets leave by masquerade, and enter only by port maps. The ports are those of a
 * bridged network; the firewall and the routing of the host treat the bridge differently.
 */
export class HostOnly implements NetworkType {
  readonly #options: HostOnlyOptions;
  readonly #ports: BridgePorts;

  constructor(options: HostOnlyOptions) {
    this.#options = options;
    this.#ports = new BridgePorts(options);
  }

  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach {
    refuseUnservedHere(network, request);
    const { portMaps } = this.#options;
    const { id, ports = [] } = request;
    const port = this.#ports.check(request, network, known);
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

  describe(record: Attached): Description {
    const { ports, addresses } = record.attachment;
    return { ...describePort(record), maps: { ports, addresses } };
  }

  needs(network: Network): NeedsOfType {
    return hostOnlyNeeds(network);
  }

  filterOf(network: Network): Attachment['filter'] {
    return portFilter(network);
  }

  checkChange(change: AttachmentChange): void {
    const { after, network } = change;
    this.#options.portMaps.check(after.id, after.ports, network);
    this.#ports.checkChange(change);
  }

  prepareNetwork(network: Network): void {
    this.#ports.prepareNetwork(network);
  }

  resumeNetwork(network: Network): void {
    this.#ports.resumeNetwork(network);
  }

  detach(record: AttachmentRecord): RemovingDevice {
    this.#options.portMaps.remove(record.id);
    return this.#ports.detach(record);
  }

  setDown(record: AttachmentRecord): void {
    this.#options.portMaps.remove(record.id);
    this.#ports.setDown(record);
  }

  claim(attachment: Attachment): Descriptor[] {
    return this.#ports.claim(attachment);
  }
}

/**
 * The needs of a host-only network: forwarding, and a way for replies to connections that were mapped from ::1 and
 * 127.0.0.1. These replies come in by the bridge.
 */
export const hostOnlyNeeds = (network: Network): NeedsOfType => {
  return {
    ...routerNeeds(network),
    bridgeSettings: { 'ipv4.route_localnet': 1 },
    localRoutes: network.ipv6 === undefined ? [] : ['::1/128'],
    facts: () => [
      ...hostOnlyFacts(network),
      ...(network.portIsolation === true ? isolatedFacts(network) : []),
      ...segmentFacts(network),
    ],
  };
};
