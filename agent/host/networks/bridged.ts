import { InterfaceAddress } from '#protocol/address.ts';
import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import { tapName, vethNames } from '#protocol/names.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { isolatedFacts, routingFacts } from '../firewall/host-nat.ts';
import { bridgePortFacts, hairpinFacts, trustedFacts } from '../firewall/port-filter.ts';
import type { Fact } from '../firewall/ruleset.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import type { Bridges, NeedsOfType } from '../bridges/bridges.ts';
import { NO_ROUTER, routerNeeds } from '../bridges/description.ts';
import { ifbOf, limitBandwidth, observeBandwidth } from './bandwidth.ts';
import { NetworkBridge } from './bridge.ts';
import { mendPort, setNewPort } from './bridge-port.ts';
import {
  claimTap,
  linkOfRecord,
  mendLink,
  NOTHING_TO_REMOVE,
  retire,
  setLinkDown,
} from './device.ts';
import { withdrawRules } from './interface.ts';
import { refuseWithoutIpv6 } from './ipv6.ts';
import {
  type AttachedDevice,
  type AttachmentChange,
  type CheckedAttach,
  type Device,
  type KnownOfAttach,
  type NetworkType,
  refuseChanges,
  refuseUnsupported,
  type RemovingDevice,
} from './network-type.ts';
import { observePort } from './observe.ts';
import type { Removal } from './removal.ts';
import { refuseHostAddresses } from './taken.ts';
import { type BridgePort, closeToIpv6, makeTap } from './tap.ts';
import { makeVeth } from './veth.ts';
import { DEFAULT_IFNAME, RequestedNamespace } from './workload.ts';
import { deviceTag } from '../ownership.ts';

export interface BridgedOptions {
  readonly host: string;
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Pick<Journal, 'namesDevice'>;
  readonly firewall: Firewall;
  readonly bridges: Bridges;
}

/** Whose facts in the firewall are those of an attachment's port. */
const portOwner = (id: string): string => `port:${id}`;

/** Ports of a bridge on this host: a TAP for a VM, a veth pair for a container. */
export class Bridged implements NetworkType {
  readonly #options: BridgedOptions;

  constructor(options: BridgedOptions) {
    this.#options = options;
  }

  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach {
    refuseUnsupported(network, [
      ['ports', (request.ports?.length ?? 0) > 0],
      ['network.dhcp', network.dhcp !== undefined],
    ]);
    return this.checkPort(request, network, known);
  }

  /** `check` of what is the same for all networks with a bridge. */
  checkPort(
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

  /** The place of one attachment on the bridge: under the filter before it is up. */
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
        firewall.put(portOwner(id), portFacts(network, { device: name, mac, addresses, hairpin }));
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

  update(change: AttachmentChange, undo: DisposableStack): void {
    refuseChanges(change, ['ports']);
    this.updatePort(change, undo);
  }

  /** `update` of what is the same for all networks with a bridge. */
  updatePort({ before, after, network }: AttachmentChange, undo: DisposableStack): void {
    const { kernel } = this.#options;
    const { device, filterAddresses = [] } = after;
    if (device === null) return;
    refuseHostAddresses(kernel, { name: network.bridge }, filterAddresses, 'filterAddresses');
    undo.defer(() => this.#putFacts(before, network));
    this.#putFacts(after, network);
    const limited = { index: device.ifindex, name: device.name, alias: deviceTag(after) };
    if (JSON.stringify(before.bandwidth) !== JSON.stringify(after.bandwidth)) {
      undo.defer(() => limitBandwidth(kernel, limited, before.bandwidth));
      limitBandwidth(kernel, limited, after.bandwidth);
    }
    const hairpin = after.ports.length > 0;
    if (hairpin === before.ports.length > 0) return;
    const set = (on: boolean): void =>
      kernel.links.setBridgePort(
        { index: device.ifindex, name: device.name },
        { IFLA_BRPORT_MODE: Number(on) },
      );
    undo.defer(() => set(!hairpin));
    set(hairpin);
  }

  #putFacts({ id, device, mac, ports, ...attachment }: Attachment, network: Network): void {
    if (device === null) return;
    const own = attachment.addresses.map(({ address }) => address);
    const addresses = [...own, ...(attachment.filterAddresses ?? [])];
    const port = { device: device.name, mac, addresses, hairpin: ports.length > 0 };
    this.#options.firewall.put(portOwner(id), portFacts(network, port));
  }

  resume(attachment: Attachment, network: Network): void {
    const { bridges, firewall } = this.#options;
    this.#putFacts(attachment, network);
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

  /** Whoever gets an address next has another MAC. */
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

  mend(attachment: Attachment, network: Network): void {
    const { kernel, bridges } = this.#options;
    const { device, mac, bandwidth, ports } = attachment;
    if (device === null) return;
    mendLink(kernel, attachment, { master: bridges.standing(network).index });
    const link = { index: device.ifindex, name: device.name };
    closeToIpv6(device.name);
    this.#putFacts(attachment, network);
    mendPort(kernel, link, { network, mac, hairpin: ports.length > 0 });
    if (Object.keys(bandwidth).length > 0) {
      limitBandwidth(kernel, { ...link, alias: deviceTag(attachment) }, bandwidth);
    }
    kernel.links.set(link, { up: true });
  }

  setDown(record: AttachmentRecord): void {
    const { kernel } = this.#options;
    // Out of the bridge, too: a MAC that its holder gives it takes a neighbour's place also while it is down.
    setLinkDown(kernel, linkOfRecord(kernel, record), { leave: true });
  }

  observe(attachment: Attachment): Difference[] {
    const { kernel, firewall } = this.#options;
    const { id } = attachment;
    return [
      ...observePort(kernel, attachment),
      ...observeBandwidth(kernel, attachment),
      ...(firewall.has(portOwner(id))
        ? []
        : [{ id, what: 'filter', expected: attachment.filter, observed: null }]),
    ];
  }

  claim(attachment: Attachment): Descriptor[] {
    return claimTap(this.#options.kernel, attachment);
  }
}

const attached = (network: Network, device: Device): AttachedDevice => ({
  device,
  filter: network.filter ? 'full' : 'none',
});

/** A bridge whose network has nothing to do with the host's addresses, unless it is routed. */
export const bridgedNeeds = (network: Network): NeedsOfType => ({
  ...(network.routed === true ? routerNeeds(network) : NO_ROUTER),
  localRoutes: [],
  facts: (made) => [
    ...routingFacts(network, made),
    ...(network.portIsolation === true ? isolatedFacts(network) : []),
  ],
});

function portFacts(
  { filter, linkLocal }: Network,
  port: { device: string; mac: string; addresses: readonly string[]; hairpin: boolean },
): Fact[] {
  return [
    ...(filter ? bridgePortFacts({ ...port, linkLocal }) : trustedFacts(port.device)),
    ...(port.hairpin ? hairpinFacts(port.device) : []),
  ];
}
