import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import { tapName, vethNames } from '#protocol/names.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord, Journal } from '../journal.ts';
import type { Kernel } from '../kernel.ts';
import type { Log } from '../log.ts';
import { NetworkBridge } from './bridge.ts';
import { claimTap, linkOfRecord, NOTHING_TO_REMOVE, retire, setLinkDown } from './device.ts';
import {
  type AttachedDevice,
  type CheckedAttach,
  type NetworkType,
  refuseUnsupported,
  type RemovingDevice,
} from './network.ts';
import { observePort } from './observe.ts';
import type { Removal } from './removal.ts';
import { makeTap } from './tap.ts';
import { makeVeth } from './veth.ts';
import { DEFAULT_IFNAME, RequestedNamespace } from './workload.ts';

export interface BridgedOptions {
  readonly host: string;
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Journal;
  readonly log: Log;
}

/** Ports of a bridge on this host: a TAP for a VM, a veth pair for a container. */
export class Bridged implements NetworkType {
  readonly #options: BridgedOptions;

  constructor(options: BridgedOptions) {
    this.#options = options;
  }

  check(request: AttachRequest, network: Network): CheckedAttach {
    refuseUnsupported(network, [
      ['ports', (request.ports?.length ?? 0) > 0],
      ['bandwidth', request.bandwidth !== undefined],
      ['dryRun', request.dryRun === true],
      ['network.uplink', network.uplink !== undefined],
      ['network.portIsolation', network.portIsolation === true],
      ['network.dhcp', network.dhcp !== undefined],
    ]);
    const { kernel, journal } = this.#options;
    const taken = (name: string): boolean =>
      journal.namesDevice(name) || kernel.links.indexOf(name) !== null;
    return request.kind === 'vm'
      ? this.#checkedTap(request, network, tapName(request, taken))
      : this.#checkedVeth(request, network, vethNames(request, taken));
  }

  #checkedTap(request: AttachRequest, network: Network, name: string): CheckedAttach {
    const { kernel } = this.#options;
    const bridge = new NetworkBridge(kernel, network, this.#options);
    return {
      deviceName: name,
      prepare: () => bridge.look(request.mtu),
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const { master, mtu } = bridge.ensure();
        const order = { name, mtu, bridge: network.bridge, tap: request.tap, master, lease };
        const device = makeTap(kernel, order, undo);
        bridge.keepMtu();
        return { device, filter: 'none' };
      },
      [Symbol.dispose]: () => {},
    };
  }

  #checkedVeth(request: AttachRequest, network: Network, names: VethNames): CheckedAttach {
    const { kernel } = this.#options;
    const bridge = new NetworkBridge(kernel, network, this.#options);
    const peerName =
      request.netns === undefined ? names.container : (request.ifname ?? DEFAULT_IFNAME);
    const namespace =
      request.netns === undefined ? undefined : new RequestedNamespace(request.netns);
    return {
      deviceName: names.host,
      prepare: () => {
        bridge.look(request.mtu);
        namespace?.enter(peerName);
      },
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const { master, mtu } = bridge.ensure();
        const order = {
          name: names.host,
          peerName,
          mtu,
          master,
          lease,
          network,
          ...(namespace !== undefined && { namespace }),
        };
        const device = makeVeth(kernel, order, undo);
        bridge.keepMtu();
        return { device, filter: 'none' };
      },
      [Symbol.dispose]: () => namespace?.[Symbol.dispose](),
    };
  }

  detach(record: AttachmentRecord): RemovingDevice {
    const { kernel, removal } = this.#options;
    const link = linkOfRecord(kernel, record);
    return link === null ? NOTHING_TO_REMOVE : retire(kernel, removal, link);
  }

  setDown(record: AttachmentRecord): void {
    const { kernel } = this.#options;
    setLinkDown(kernel, linkOfRecord(kernel, record));
  }

  observe(attachment: Attachment): Difference[] {
    return observePort(this.#options.kernel, attachment);
  }

  claim(attachment: Attachment): Descriptor[] {
    return claimTap(this.#options.kernel, attachment);
  }
}

type VethNames = ReturnType<typeof vethNames>;
