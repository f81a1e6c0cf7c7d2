import { MacAddress } from '#protocol/address.ts';
import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { tapName } from '#protocol/names.ts';
import { servesDhcp, servesNames } from '#protocol/guest-services.ts';
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
import type { Bridges } from '../bridges/bridges.ts';
import type { Firewall } from '../firewall/firewall.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import {
  type Attached,
  type DescribedFilter,
  describedDevice,
  type Description,
} from '../description.ts';
import type { Kernel } from '../kernel.ts';
import { linkOfRecord, NOTHING_TO_REMOVE, noDescriptor, retire, setLinkDown } from './device.ts';
import { refuseWithoutIpv6 } from './ipv6.ts';
import { MacvlanParent } from './macvlan-parent.ts';
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
import { filterFacts } from './port-facts.ts';
import type { Removal } from './removal.ts';
import { refuseHostAddresses } from './taken.ts';
import { CLOSED_TO_IPV6, closeToIpv6, tapShape } from './tap.ts';
import { describedInside } from './interface.ts';
import { deviceTag, isTagged } from '../ownership.ts';

export interface MacvtapOptions {
  readonly kernel: Kernel;
  readonly removal: Removal;
  readonly journal: Pick<Journal, 'namesDevice'>;
  readonly firewall: Firewall;
  readonly bridges: Pick<Bridges, 'release'>;
  /** Finds a macvtap's character device. */
  readonly findDevice?: typeof characterDevice;
}

/** The firewall's owner of the facts of an attachment's macvtap. */
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
      ['network.dhcp', servesDhcp(network)],
      ['network.dns.names', servesNames(network)],
    ]);
    refuseWithoutIpv6(network);
    const parent = new MacvlanParent(this.#options.kernel, network, this.#options.bridges);
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
          const { id, mac, addresses } = lease;
          const own = describedFilter(network, { id, device: name, ifindex, mac, addresses });
          this.#options.firewall.put(own.owner, filterFacts(own));
        };
        const { findDevice = characterDevice } = this.#options;
        const order = { name, parent, tap, lease, beforeUp, findDevice };
        const device = makeMacvtap(kernel, order, undo);
        return { device, filter: network.filter ? 'full' : 'none' };
      },
      [Symbol.dispose]: () => {},
    };
  }

  /**
   * Frames that leave a macvtap are those that its guest sends, so the filter is there. Frames of containers do not
   * pass the host.
   */
  describe({ attachment, network }: Attached): Description {
    const { id, generation, kind, device, netns, mac, filterAddresses = [] } = attachment;
    if (device === null) return { id, generation };
    if (kind === 'container') {
      if (netns === undefined) return { id, generation };
      const inside = describedInside(attachment, { ...device, netns, what: 'device' });
      return { id, generation, inside };
    }
    const own = attachment.addresses.map(({ address }) => address);
    const settings = { ...CLOSED_TO_IPV6, ...CLOSED_TO_HOST };
    const { name, ifindex } = device;
    const addresses = [...own, ...filterAddresses];
    return {
      id,
      generation,
      device: describedDevice({ id, generation, device }, { settings, limits: {} }),
      ...(network !== undefined && {
        filter: describedFilter(network, { id, device: name, ifindex, mac, addresses }),
      }),
    };
  }

  filterOf({ filter }: Network, kind: Attachment['kind']): Attachment['filter'] {
    return filter && kind === 'vm' ? 'full' : 'none';
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

  checkChange(change: AttachmentChange): void {
    const { after, network } = change;
    const filtered = after.filter === 'full';
    refuseChanges(change, ['ports', 'bandwidth', ...(filtered ? [] : FILTER_ADDRESSES)]);
    const { parent: name = '' } = network;
    const { filterAddresses = [] } = after;
    refuseHostAddresses(this.#options.kernel, { name }, filterAddresses, 'filterAddresses');
  }

  setDown(record: AttachmentRecord): void {
    const { kernel } = this.#options;
    if (record.request.kind === 'container') this.#macvlans.setDown(record);
    else setLinkDown(kernel, linkOfRecord(kernel, record));
  }

  /**
   * The holder of a descriptor may change the device's MAC with it (SIOCSIFHWADDR), so each claim sets the MAC anew.
   */
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

const describedFilter = (
  { filter, linkLocal }: Network,
  {
    id,
    ...port
  }: Pick<DescribedFilter, 'device' | 'ifindex' | 'mac' | 'addresses'> & { readonly id: string },
): DescribedFilter => ({
  owner: portOwner(id),
  filter: filter ? 'full' : 'none',
  on: 'device',
  linkLocal,
  hairpin: false,
  ...port,
});

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
 * While nobody holds a macvtap, the kernel passes the frames that it receives to the host. The host would answer ARP
 * requests for its own addresses with the workload's MAC, accept packets to these addresses past the rules for the NIC,
 * and forward the rest. No route leads to a macvtap, so strict source checking (`rp_filter`) drops all of them.
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
