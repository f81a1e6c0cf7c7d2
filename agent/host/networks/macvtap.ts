import { MacAddress } from '#protocol/address.ts';
import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { tapName } from '#protocol/names.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import {
  characterDevice,
  openMacvtap,
  randomIndex,
  removeCharacterDevice,
} from '#native/macvtap.ts';
import { writeSysctl } from '#native/sysctl.ts';
import { VNET_HDR_SIZE } from '#native/tun.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { macvtapFacts } from '../firewall/port-filter.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Kernel } from '../kernel.ts';
import {
  linkOfRecord,
  mendLink,
  NOTHING_TO_REMOVE,
  noDescriptor,
  retire,
  setLinkDown,
} from './device.ts';
import { refuseWithoutIpv6 } from './ipv6.ts';
import { MacvlanParent } from './macvlan-parent.ts';
import { numberNamespace } from './lost-paths.ts';
import { NamespacedMacvlans } from './macvlan.ts';
import {
  type KnownOfAttach,
  type AttachedDevice,
  type AttachmentChange,
  type CheckedAttach,
  type Device,
  type NetworkType,
  refuseChanges,
  refuseUnsupported,
  type RemovingDevice,
} from './network-type.ts';
import { observeInside, observePort } from './observe.ts';
import type { Removal } from './removal.ts';
import { refuseHostAddresses } from './taken.ts';
import { closeToIpv6, tapShape } from './tap.ts';
import { deviceTag, isTagged } from '../ownership.ts';

export interface MacvtapOptions {
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Pick<Journal, 'namesDevice'>;
  readonly firewall: Firewall;
  /** Finds a macvtap's character device. */
  readonly findDevice?: typeof characterDevice;
}

/** Whose facts in the firewall are those of an attachment's macvtap. */
const portOwner = (id: string): string => `macvtap:${id}`;

/**
 * Workloads beside the host on the segment of one of its NICs: a macvtap for a VM, a macvlan of the same mode for a
 * container, made inside its namespace.
 */
export class Macvtap implements NetworkType {
  readonly #options: MacvtapOptions;
  readonly #macvlans: NamespacedMacvlans;

  constructor(options: MacvtapOptions) {
    this.#options = options;
    this.#macvlans = new NamespacedMacvlans(options.kernel);
  }

  check(request: AttachRequest, network: Network, known: KnownOfAttach = {}): CheckedAttach {
    refuseUnsupported(network, [
      ['ports', (request.ports?.length ?? 0) > 0],
      ['bandwidth', request.bandwidth !== undefined],
      ['network.portIsolation', network.portIsolation === true],
      ['network.dhcp', network.dhcp !== undefined],
    ]);
    refuseWithoutIpv6(network);
    const parent = new MacvlanParent(this.#options.kernel, network);
    const { deviceName, named } = known;
    if (request.kind === 'container')
      return this.#macvlans.check(request, { network, parent, named });
    if (network.filter) this.#options.firewall.ready();
    return this.#checkedMacvtap(request, network, parent, deviceName);
  }

  #checkedMacvtap(
    request: AttachRequest,
    network: Network,
    parent: MacvlanParent,
    deviceName: string | undefined,
  ): CheckedAttach {
    const { kernel, journal } = this.#options;
    const taken = (one: string): boolean =>
      journal.namesDevice(one) || kernel.links.indexOf(one) !== null;
    const name = deviceName ?? tapName(request, taken);
    return {
      deviceName: name,
      prepare: () => parent.look(request),
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const { tap } = request;
        const beforeUp = (ifindex: number): void => {
          undo.defer(() => this.#options.firewall.remove(portOwner(request.id)));
          this.#putFacts(network, { ...lease, device: name, ifindex });
        };
        const { findDevice = characterDevice } = this.#options;
        const order = { name, parent, tap, lease, beforeUp, findDevice };
        const device = makeMacvtap(kernel, order, undo);
        return { device, filter: network.filter ? 'full' : 'none' };
      },
      [Symbol.dispose]: () => {},
    };
  }

  /** A frame that leaves a macvtap is one that its guest sends. Of containers nothing passes by the host. */
  #putFacts(
    { filter, linkLocal }: Network,
    port: {
      readonly id: string;
      readonly device: string;
      readonly ifindex: number;
      readonly mac: string;
      readonly addresses: readonly string[];
    },
  ): void {
    // It may have been under the filter before.
    if (!filter) return this.#options.firewall.remove(portOwner(port.id));
    this.#options.firewall.put(portOwner(port.id), macvtapFacts({ ...port, linkLocal }));
  }

  #putFactsOf(attachment: Attachment, network: Network): void {
    const { id, device, mac, filterAddresses = [] } = attachment;
    if (device?.type !== 'macvtap') return;
    const own = attachment.addresses.map(({ address }) => address);
    const { name, ifindex } = device;
    const addresses = [...own, ...filterAddresses];
    this.#putFacts(network, { id, device: name, ifindex, mac, addresses });
  }

  /** A chain needs its device. */
  resume(attachment: Attachment, network: Network): void {
    numberNamespace(this.#options.kernel, attachment);
    if (this.#options.kernel.links.get(attachment.device?.ifindex ?? 0) === null) return;
    this.#putFactsOf(attachment, network);
  }

  detach(record: AttachmentRecord): RemovingDevice {
    if (record.request.kind === 'container') return this.#macvlans.detach(record);
    const { kernel, removal } = this.#options;
    const link = linkOfRecord(kernel, record);
    const { removed } = link === null ? NOTHING_TO_REMOVE : retire(kernel, removal, link, record);
    this.#options.firewall.remove(portOwner(record.id));
    const index = link?.index ?? record.attachment?.device?.ifindex;
    return {
      removed: index === undefined ? removed : removed.then(() => removeCharacterDevice(index)),
    };
  }

  update(change: AttachmentChange, undo: DisposableStack): void {
    const { before, after, network } = change;
    const filtered = after.filter === 'full';
    refuseChanges(change, ['ports', 'bandwidth', ...(filtered ? [] : FILTER_ADDRESSES)]);
    const { parent: name = '' } = network;
    refuseHostAddresses(
      this.#options.kernel,
      { name },
      after.filterAddresses ?? [],
      'filterAddresses',
    );
    undo.defer(() => this.#putFactsOf(before, network));
    this.#putFactsOf(after, network);
  }

  /** A container's macvlan lies in the workload's namespace. */
  mend(attachment: Attachment, network: Network): void {
    const { device } = attachment;
    if (device?.type !== 'macvtap') return;
    const { kernel } = this.#options;
    mendLink(kernel, attachment);
    closeToHost(device.name);
    this.#putFactsOf(attachment, network);
    kernel.links.set({ index: device.ifindex, name: device.name }, { up: true });
  }

  setDown(record: AttachmentRecord): void {
    const { kernel } = this.#options;
    if (record.request.kind === 'container') this.#macvlans.setDown(record);
    else setLinkDown(kernel, linkOfRecord(kernel, record));
  }

  observe(attachment: Attachment): Difference[] {
    if (attachment.kind === 'container') return observeInside(attachment);
    const { kernel, firewall } = this.#options;
    const { id, filter } = attachment;
    const differences = observePort(kernel, attachment);
    if (filter === 'none' || firewall.has(portOwner(id))) return differences;
    return [...differences, { id, what: 'filter', expected: filter, observed: null }];
  }

  /** Whoever holds a descriptor may change the device's MAC by it (SIOCSIFHWADDR): each claim sets it anew. */
  claim(attachment: Attachment): Descriptor[] {
    const { kernel } = this.#options;
    const { id, device } = attachment;
    if (device?.type !== 'macvtap') throw noDescriptor(id, device);
    const link = kernel.links.get(device.ifindex);
    if (link?.mac === undefined || !isTagged(link, attachment)) {
      throw new VoltError('NOT_FOUND', `${id}: its device is gone`);
    }
    using opened = new DisposableStack();
    const descriptors = openQueues(id, device, { ...link, mac: link.mac });
    for (const descriptor of descriptors) opened.use(descriptor);
    const mac = MacAddress.parse(device.mac);
    if (!link.mac.equals(mac)) kernel.links.set(link, { mac });
    opened.move();
    return descriptors;
  }
}

const FILTER_ADDRESSES = ['filterAddresses'] as const;

/** Makes a macvtap, tagged and up. */
function makeMacvtap(
  kernel: Kernel,
  order: {
    readonly name: string;
    readonly parent: MacvlanParent;
    readonly tap: AttachRequest['tap'];
    readonly lease: Lease;
    /** Runs when the device is there and not yet up. */
    readonly beforeUp: (ifindex: number) => void;
    readonly findDevice: typeof characterDevice;
  },
  undo: DisposableStack,
): Device {
  const { name, parent, tap, lease, beforeUp, findDevice } = order;
  const { queues, vnetHdr } = tapShape(tap);
  const mac = MacAddress.parse(lease.mac);
  const link = { name, index: randomIndex() };
  const { mtu } = parent.create({ ...link, kind: 'macvtap', mac });
  undo.defer(() => {
    kernel.links.delete(link);
    removeCharacterDevice(link.index);
  });
  closeToHost(name);
  beforeUp(link.index);
  const path = findDevice(link);
  parent.settingUp(mac, (own) => {
    kernel.links.set(link, { alias: deviceTag(lease), ...own, up: true });
  });
  return {
    type: 'macvtap',
    name,
    ifindex: link.index,
    mac: mac.toString(),
    mtu,
    path,
    queues,
    vnetHdr,
    ...(vnetHdr && { vnetHdrSize: VNET_HDR_SIZE }),
  };
}

/** What `closeToHost` sets beside IPv6 (`LinkSettings`). */
export const CLOSED_TO_HOST = {
  'ipv4.arp_ignore': 8,
  'ipv4.rp_filter': 1,
  'ipv4.forwarding': 0,
} as const;

/**
 * A macvtap that nobody holds passes what it receives to the host, which would answer ARP requests for its own
 * addresses with the workload's MAC, take what is sent there for itself, past rules for the NIC, and forward the
 * rest. No route leads to a macvtap, so that strict checking of sources drops all of it.
 */
function closeToHost(name: string): void {
  closeToIpv6(name);
  for (const [key, value] of Object.entries(CLOSED_TO_HOST)) {
    const [family = '', setting = ''] = key.split('.');
    writeSysctl(['net', family, 'conf', name, setting], String(value));
  }
}

function openQueues(
  id: string,
  { queues = 1, vnetHdr = true }: Device,
  { name, index, mac }: Pick<Link, 'name' | 'index'> & { readonly mac: MacAddress },
): Descriptor[] {
  try {
    return openMacvtap({ name, index, mac, queues, vnetHdr });
  } catch (cause) {
    if (!isKernelError(cause, 'EBUSY')) throw cause;
    throw new VoltError('DEVICE_BUSY', `${id}: queues of ${name} are held`, {
      details: { name },
      cause,
    });
  }
}
