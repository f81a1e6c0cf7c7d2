import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { Attached, Description } from '../description.ts';
import type { NeedsOfType } from '../bridges/bridges.ts';
import { NO_ROUTER, routerNeeds } from '../bridges/description.ts';
import { refuseUnservedHere, segmentFacts } from '../dnsmasq/demands.ts';
import { isolatedFacts, routingFacts } from '../firewall/host-nat.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { BridgePorts, type BridgePortsOptions, describePort, portFilter } from './bridge-ports.ts';
import {
  type AttachmentChange,
  type CheckedAttach,
  type KnownOfAttach,
  type NetworkType,
  refuseChanges,
  refuseUnsupported,
  type RemovingDevice,
} from './network-type.ts';

/** A bridge of this host, ours or adopted, whose network goes beyond the host. */
export class Bridged implements NetworkType {
  readonly #ports: BridgePorts;

  constructor(options: BridgePortsOptions) {
    this.#ports = new BridgePorts(options);
  }

  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach {
    refuseUnsupported(network, [['ports', (request.ports?.length ?? 0) > 0]]);
    refuseUnservedHere(network, request);
    return this.#ports.check(request, network, known);
  }

  describe(record: Attached): Description {
    return describePort(record);
  }

  needs(network: Network): NeedsOfType {
    return bridgedNeeds(network);
  }

  filterOf(network: Network): Attachment['filter'] {
    return portFilter(network);
  }

  checkChange(change: AttachmentChange): void {
    refuseChanges(change, ['ports']);
    this.#ports.checkChange(change);
  }

  prepareNetwork(network: Network): void {
    this.#ports.prepareNetwork(network);
  }

  resumeNetwork(network: Network): void {
    this.#ports.resumeNetwork(network);
  }

  detach(record: AttachmentRecord): RemovingDevice {
    return this.#ports.detach(record);
  }

  setDown(record: AttachmentRecord): void {
    this.#ports.setDown(record);
  }

  claim(attachment: Attachment): Descriptor[] {
    return this.#ports.claim(attachment);
  }
}

/** The needs of a bridged network: it does not concern the host's addresses, unless it is routed. */
export const bridgedNeeds = (network: Network): NeedsOfType => ({
  ...(network.routed === true ? routerNeeds(network) : NO_ROUTER),
  localRoutes: [],
  facts: (made) => [
    ...routingFacts(network, made),
    ...(network.portIsolation === true ? isolatedFacts(network) : []),
    ...segmentFacts(network),
  ],
});
