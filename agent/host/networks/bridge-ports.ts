import { InterfaceAddress } from '#protocol/address.ts';
import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { tapName, vethNames } from '#protocol/names.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import {
  type Attached,
  type DescribedFilter,
  describedDevice,
  type Description,
} from '../description.ts';
import type { Firewall } from '../firewall/firewall.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Bridges } from '../bridges/bridges.ts';
import type { Kernel } from '../kernel.ts';
import { deviceTag } from '../ownership.ts';
import { ifbOf, limitBandwidth } from './bandwidth.ts';
import { NetworkBridge } from './bridge.ts';
import { portSettings, setNewPort } from './bridge-port.ts';
import { claimTap, linkOfRecord, NOTHING_TO_REMOVE, retire, setLinkDown } from './device.ts';
import type {
  AttachedDevice,
  AttachmentChange,
  CheckedAttach,
  Device,
  KnownOfAttach,
  RemovingDevice,
} from './network-type.ts';
import { withdrawRules } from './interface.ts';
import { refuseWithoutIpv6 } from './ipv6.ts';
import { filterFacts } from './port-facts.ts';
import type { Removal } from './removal.ts';
import { refuseHostAddresses } from './taken.ts';
import { type BridgePort, CLOSED_TO_IPV6, makeTap } from './tap.ts';
import { makeVeth } from './veth.ts';
import { DEFAULT_IFNAME, RequestedNamespace } from './workload.ts';
import { describedInside } from './interface.ts';

export interface BridgePortsOptions {
  readonly host: string;
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Pick<Journal, 'namesDevice'>;
  readonly firewall: Firewall;
  readonly bridges: Bridges;
}

/** The firewall's owner of the facts of an attachment's port. */
const portOwner = (id: string): string => `port:${id}`;

/** Ports of bridges on this host, for every network type with a bridge: a TAP for a VM, a veth pair for a container. */
export class BridgePorts {
  readonly #options: BridgePortsOptions;

  constructor(options: BridgePortsOptions) {
    this.#options = options;
  }

  check(
    request: AttachRequest,
    network: Network,
    { deviceName, named }: KnownOfAttach = {},
  ): CheckedAttach {
    refuseWithoutIpv6(network);
    const { kernel, journal, firewall } = this.#options;
    firewall.ready();
    const taken = (name: string): boolean =>
      journal.namesDevice(name) || kernel.links.indexOf(name) !== null;
    const bridge = new NetworkBridge(network, this.#options);
    if (request.kind === 'vm') {
      return this.#checkedTap(request, network, bridge, deviceName ?? tapName(request, taken));
    }
    const names =
      deviceName === undefined
        ? vethNames(request, taken)
        : { host: deviceName, container: deviceName.replace(/-h$/, '-c') };
    return this.#checkedVeth(request, network, bridge, { ...names, named });
  }

  #checkedTap(
    request: AttachRequest,
    network: Network,
    bridge: NetworkBridge,
    name: string,
  ): CheckedAttach {
    const { kernel } = this.#options;
    return {
      deviceName: name,
      prepare: () => bridge.look(request),
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        bridge.refuseOwn(lease);
        const { master, mtu } = bridge.ensure();
        const port = this.#port({ request, network, lease, master }, undo);
        const tag = deviceTag(lease);
        const device = makeTap(kernel, { name, mtu, tap: request.tap, lease, tag, port }, undo);
        bridge.keepMtu();
        return attached(network, device);
      },
      [Symbol.dispose]: () => {},
    };
  }

  #checkedVeth(
    request: AttachRequest,
    network: Network,
    bridge: NetworkBridge,
    names: { readonly host: string; readonly container: string } & Pick<KnownOfAttach, 'named'>,
  ): CheckedAttach {
    const { kernel } = this.#options;
    const { netns } = request;
    const peerName = netns === undefined ? names.container : (request.ifname ?? DEFAULT_IFNAME);
    const namespace = netns === undefined ? undefined : new RequestedNamespace(netns, names.named);
    return {
      deviceName: names.host,
      prepare: () => {
        bridge.look(request);
        namespace?.enter(peerName);
      },
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        bridge.refuseOwn(lease);
        const { master, mtu } = bridge.ensure();
        const port = this.#port({ request, network, lease, master }, undo);
        const inside = namespace === undefined ? {} : { namespace };
        const order = { name: names.host, peerName, mtu, port, lease, network, ...inside };
        const device = makeVeth(kernel, { ...order, tag: deviceTag(lease) }, undo);
        bridge.keepMtu();
        return attached(network, device);
      },
      [Symbol.dispose]: () => namespace?.[Symbol.dispose](),
    };
  }

  /** The bridge port of one attachment: it is under the filter before it is up. */
  #port(
    order: { request: AttachRequest; network: Network; lease: Lease; master: number },
    undo: DisposableStack,
  ): BridgePort {
    const { firewall } = this.#options;
    const { request, network, lease, master } = order;
    const { id, ports = [] } = request;
    const hairpin = ports.length > 0;
    return {
      bridge: network.bridge,
      master,
      beforeUp: ({ index, name }) => {
        undo.defer(() => firewall.remove(portOwner(id)));
        const { mac, addresses } = lease;
        const device = { name, ifindex: index };
        const filter = describedFilter(network, { id, device, mac, addresses, hairpin });
        firewall.put(filter.owner, filterFacts(filter));
        this.#limit({ index, name, alias: deviceTag(lease) }, request, undo);
        setNewPort(this.#options.kernel, { index, name, master }, { network, mac, hairpin });
      },
    };
  }

  #limit(
    device: { index: number; name: string; alias: string },
    request: AttachRequest,
    undo: DisposableStack,
  ): void {
    const { id, bandwidth } = request;
    if (bandwidth === undefined) return;
    const { kernel } = this.#options;
    undo.defer(() => {
      const ifb = ifbOf(kernel, { id, request }, device.index);
      if (ifb !== null) kernel.links.delete(ifb);
    });
    limitBandwidth(kernel, device, bandwidth);
  }

  /** ADDRESS_OUT_OF_RANGE: the host itself has one of the `filterAddresses` on the bridge. */
  checkChange({ after, network }: AttachmentChange): void {
    const { filterAddresses = [] } = after;
    const { bridge: name } = network;
    refuseHostAddresses(this.#options.kernel, { name }, filterAddresses, 'filterAddresses');
  }

  /** Makes or repairs the bridge, as far as this agent may. */
  prepareNetwork(network: Network): void {
    this.#options.bridges.standing(network);
  }

  /** Gives the firewall the facts of an existing bridge, before the firewall loads. */
  resumeNetwork(network: Network): void {
    const { bridges, firewall } = this.#options;
    if (!firewall.has(`bridge:${network.bridge}`)) bridges.resume(network);
  }

  detach(record: AttachmentRecord): RemovingDevice {
    const { kernel, removal, firewall } = this.#options;
    const link = linkOfRecord(kernel, record);
    const { removed } = link === null ? NOTHING_TO_REMOVE : retire(kernel, removal, link, record);
    withdrawRules(record);
    // The port is down by now.
    firewall.remove(portOwner(record.id));
    if (link?.master !== undefined) this.#forgetNeighbours(link.master, record);
    const ifb = ifbOf(kernel, record, record.attachment?.device?.ifindex ?? link?.index);
    if (ifb === null) return { removed };
    return {
      removed: Promise.all([removed, removal.delete({ index: ifb.index, alias: ifb.alias })]).then(
        () => {},
      ),
    };
  }

  /** Removes the neighbour entries of the attachment's addresses: the next holder of an address has another MAC. */
  #forgetNeighbours(bridge: number, { attachment }: AttachmentRecord): void {
    const { neighbours } = this.#options.kernel;
    for (const text of attachment?.addresses ?? []) {
      const { address } = InterfaceAddress.parse(text.address);
      try {
        neighbours.remove({ ifindex: bridge, address });
      } catch (error) {
        if (!isKernelError(error, 'ENOENT', 'ENODEV', 'ENXIO')) throw error;
      }
    }
  }

  setDown(record: AttachmentRecord): void {
    const { kernel } = this.#options;
    // Takes the port out of the bridge, too. Otherwise its holder could give it a neighbour's MAC, which replaces the
    // neighbour's forwarding entry even while the port is down.
    setLinkDown(kernel, linkOfRecord(kernel, record), { leave: true });
  }

  claim(attachment: Attachment): Descriptor[] {
    return claimTap(this.#options.kernel, attachment);
  }
}

/** The description of an attachment's port on a bridge, for every type of network that has one. */
export function describePort({ attachment, network }: Attached): Description {
  const { id, generation, device, mac, bandwidth, ports } = attachment;
  if (device === null) return { id, generation };
  const hairpin = ports.length > 0;
  const { peer, bridge = network?.bridge ?? '' } = device;
  const place = network && {
    settings: portSettings({ network, hairpin }),
    fixed: network.filter,
  };
  const own = attachment.addresses.map(({ address }) => address);
  const addresses = [...own, ...(attachment.filterAddresses ?? [])];
  return {
    id,
    generation,
    device: describedDevice(
      { id, generation, device },
      { settings: CLOSED_TO_IPV6, port: { bridge, mac, ...place }, limits: bandwidth },
    ),
    ...(network !== undefined && {
      filter: describedFilter(network, { id, device, mac, addresses, hairpin }),
    }),
    ...(peer?.netns !== undefined && {
      inside: describedInside(attachment, { ...peer, netns: peer.netns, what: 'device.peer' }),
    }),
  };
}

const describedFilter = (
  network: Network,
  {
    id,
    device: { name, ifindex },
    ...port
  }: {
    readonly id: string;
    readonly device: Pick<Device, 'name' | 'ifindex'>;
    readonly mac: string;
    readonly addresses: readonly string[];
    readonly hairpin: boolean;
  },
): DescribedFilter => ({
  owner: portOwner(id),
  filter: portFilter(network),
  on: 'bridge',
  device: name,
  ifindex,
  linkLocal: network.linkLocal,
  ...port,
});

/** How the ports of a network's bridge are held to their addresses. */
export const portFilter = ({ filter }: Pick<Network, 'filter'>): Attachment['filter'] =>
  filter ? 'full' : 'none';

const attached = (network: Network, device: Device): AttachedDevice => ({
  device,
  filter: portFilter(network),
});
