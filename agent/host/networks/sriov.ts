import { MacAddress } from '#protocol/address.ts';
import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { servesDhcp, servesNames } from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { Namespace } from '#native/namespace.ts';
import {
  bindDriver,
  driverOf,
  iommuGroupOf,
  networkDeviceOf,
  unbindDriver,
  type VirtualFunction,
  virtualFunctions,
} from '#native/sriov.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Attached, Description } from '../description.ts';
import { Kernel } from '../kernel.ts';
import type { Log } from '../../log.ts';
import { noDescriptor, setLinkDown } from './device.ts';
import { configureInterface, withdrawRules } from './interface.ts';
import { refuseSmallMtu, refuseWithoutIpv6 } from './ipv6.ts';
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
import { closeToIpv6 } from './tap.ts';
import { DEFAULT_IFNAME, openIfThere, RequestedNamespace } from './workload.ts';
import { describedInside } from './interface.ts';
import { DEVICE_GROUP, deviceTag, isTaggedByAnother } from '../ownership.ts';

const VFIO = 'vfio-pci';

export interface SriovOptions {
  readonly kernel: Kernel;
  readonly journal: Pick<Journal, 'get' | 'values'>;
  readonly log: Log;
}

type VfSettings = NonNullable<Link['vfs']>[number];

/** A virtual function as it was found. It is recorded before anything of it is changed, and restored at the end. */
interface Found {
  readonly pciAddress: string;
  readonly number: number;
  readonly parent: string;
  readonly name: string;
  readonly mac: string;
  readonly mtu: number;
  /** The settings that the physical function had for it. */
  readonly settings: {
    readonly mac: string;
    readonly vlan: number;
    readonly qos: number;
    readonly minMbps: number;
    readonly maxMbps: number;
    readonly spoofCheck: boolean;
    readonly trust: boolean;
  };
}

/**
 * Virtual functions of a NIC (SR-IOV). A container gets one as its interface, a VM gets one that is bound to
 * `vfio-pci`. A function is free if no record names it and its network device is unused in the namespace of the host.
 * It is given back as it was found, once nothing of the attachment is left on it.
 */
export class Sriov implements NetworkType {
  readonly #options: SriovOptions;

  constructor(options: SriovOptions) {
    this.#options = options;
  }

  check(request: AttachRequest, network: Network, known?: KnownOfAttach): CheckedAttach {
    refuseUnsupported(network, [
      ['ports', (request.ports?.length ?? 0) > 0],
      ['bandwidth', request.bandwidth !== undefined],
      ['tap', request.tap !== undefined],
      ['dryRun', request.dryRun === true],
      ['network.portIsolation', network.portIsolation === true],
      ['network.dhcp', servesDhcp(network)],
      ['network.dns.names', servesNames(network)],
    ]);
    const { kind, netns, ifname = DEFAULT_IFNAME } = request;
    if (kind === 'container' && netns === undefined) {
      throw new VoltError('INVALID_REQUEST', 'netns: a container on an sriov network needs one', {
        details: { path: 'netns' },
      });
    }
    refuseWithoutIpv6(network);
    const found = this.#freeFunction(request, network);
    refuseSmallMtu(network, request.mtu ?? network.mtu ?? found.mtu, undefined);
    const namespace = netns === undefined ? undefined : new RequestedNamespace(netns, known?.named);
    return {
      deviceName: found.name,
      before: { ...found },
      prepare: () => namespace?.enter(ifname),
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const order = { found, request, network, lease };
        // Needs no undo: the second half of a detach restores the settings from the record.
        this.#applySettings(order);
        const device =
          namespace === undefined
            ? this.#toVfio(order)
            : this.#toNamespace({ ...order, namespace, ifname }, undo);
        return { device, filter: this.filterOf(network) };
      },
      [Symbol.dispose]: () => namespace?.[Symbol.dispose](),
    };
  }

  /**
   * The function is in the namespace of the container, or bound to the driver of the VMM. The NIC holds it to its MAC.
   */
  describe(record: Attached): Description {
    const { id, generation, kind, device, mac, netns } = record.attachment;
    if (device?.pciAddress === undefined) return { id, generation };
    if (kind === 'container') {
      if (netns === undefined) return { id, generation };
      const inside = describedInside(record.attachment, { ...device, netns, what: 'device' });
      return { id, generation, inside };
    }
    const found = foundOf(record);
    const parent = found && { name: found.parent, number: found.number, mac };
    const { pciAddress } = device;
    const own = { pciAddress, driver: VFIO, ...(parent !== null && { parent }) };
    return { id, generation, virtualFunction: own };
  }

  filterOf({ spoofCheck }: Network): Attachment['filter'] {
    return spoofCheck === false ? 'none' : 'mac';
  }

  /**
   * Takes the function from the workload at once, if the kernel allows it. When `removed` resolves, the function is as
   * it was found.
   */
  detach(record: AttachmentRecord): RemovingDevice {
    const found = foundOf(record);
    withdrawRules(record);
    return { removed: found === null ? Promise.resolve() : this.#giveBack(record, found) };
  }

  checkChange(change: AttachmentChange): void {
    refuseChanges(change, ['ports', 'bandwidth', 'filterAddresses']);
  }

  /** Sets a container's interface down. For a VM, disables the link of its function, if the NIC can do that. */
  setDown(record: AttachmentRecord): void {
    const found = foundOf(record);
    if (found === null) return;
    if (record.request.kind === 'container') {
      using inside = insideOf(record, found);
      if (inside !== null) setLinkDown(inside.kernel, inside.link);
      return;
    }
    const LINK_DISABLED = 2;
    const state = { vf: found.number, link_state: LINK_DISABLED };
    this.#setIfPossible(found, { IFLA_VF_LINK_STATE: state });
  }

  claim({ id, device }: Attachment): Descriptor[] {
    throw noDescriptor(id, device);
  }

  #parent(name: string): Link | null {
    return this.#options.kernel.links.getWithVfs(name);
  }

  /**
   * PARENT_NOT_FOUND: there is no such device. NO_FREE_VF: no function is free. INVALID_REQUEST: the MTU is larger than
   * that of the parent.
   */
  #freeFunction(request: AttachRequest, network: Network): Found {
    const { parent: name = '' } = network;
    const mtu = request.mtu ?? network.mtu;
    const parent = this.#parent(name);
    const details = { path: 'network.parent', parent: name };
    if (parent === null) {
      throw new VoltError('PARENT_NOT_FOUND', `there is no device ${name}`, { details });
    }
    if (mtu !== undefined && mtu > parent.mtu) {
      const message = `mtu: ${mtu} is more than the ${parent.mtu} of ${name}`;
      throw new VoltError('INVALID_REQUEST', message, {
        details: { path: request.mtu === undefined ? 'network.mtu' : 'mtu', limit: parent.mtu },
      });
    }
    const all = virtualFunctions(name);
    const taken = new Set(
      this.#options.journal.values().map((record) => foundOf(record)?.pciAddress),
    );
    for (const one of all) {
      const found = taken.has(one.pciAddress) ? null : this.#unused(one, parent);
      if (found !== null) return found;
    }
    throw new VoltError(
      'NO_FREE_VF',
      `none of the ${all.length} virtual functions of ${name} is free`,
      {
        details: { ...details, functions: all.length },
      },
    );
  }

  /**
   * The function as it is found, if nobody uses it: its network device is in this namespace, down, and no port of
   * anything. Null if it is in use.
   */
  #unused({ number, pciAddress }: VirtualFunction, parent: Link): Found | null {
    const name = networkDeviceOf(pciAddress);
    const link = name === undefined ? null : this.#options.kernel.links.get(name);
    if (link?.mac === undefined || link.up || link.master !== undefined) return null;
    const settings = settingsOf(parent, number);
    if (settings === null) return null;
    const { mac, mtu } = link;
    return {
      pciAddress,
      number,
      parent: parent.name,
      name: link.name,
      mac: mac.toString(),
      mtu,
      settings,
    };
  }

  #applySettings({ found, network, lease }: Order): void {
    const { number: vf } = found;
    const { vlan, rate, trust, spoofCheck = true } = network;
    this.#set(found, 'mac', { IFLA_VF_MAC: { vf, mac: MacAddress.parse(lease.mac) } });
    if (vlan !== undefined)
      this.#set(found, 'network.vlan', { IFLA_VF_VLAN: { vf, vlan, qos: 0 } });
    if (rate !== undefined) {
      const { minMbps = 0, maxMbps = 0 } = rate;
      const limits = { vf, min_tx_rate: minMbps, max_tx_rate: maxMbps };
      this.#set(found, 'network.rate', { IFLA_VF_RATE: limits });
    }
    if (spoofCheck !== found.settings.spoofCheck) {
      const setting = { vf, setting: Number(spoofCheck) };
      this.#set(found, 'network.spoofCheck', { IFLA_VF_SPOOFCHK: setting });
    }
    if (trust !== undefined) {
      this.#set(found, 'network.trust', { IFLA_VF_TRUST: { vf, setting: Number(trust) } });
    }
  }

  /** UNSUPPORTED: the driver of the NIC does not support the setting; `path` names its key. */
  #set({ parent }: Found, path: string, settings: VfSettings): void {
    const index = this.#options.kernel.links.indexOf(parent);
    try {
      this.#options.kernel.links.setVf({ index: index ?? 0, name: parent }, settings);
    } catch (cause) {
      if (!isKernelError(cause, 'EOPNOTSUPP')) throw cause;
      throw new VoltError('UNSUPPORTED', `${path}: not supported by the driver of ${parent}`, {
        details: { path, parent },
        cause,
      });
    }
  }

  #toVfio({ found, request, network, lease }: Order): Device {
    const { pciAddress, name } = found;
    const { links } = this.#options.kernel;
    const link = links.get(name);
    const iommuGroup = iommuGroupOf(pciAddress);
    if (iommuGroup === undefined) {
      throw new VoltError('UNSUPPORTED', `${pciAddress}: this host has no IOMMU for it`);
    }
    try {
      bindDriver(pciAddress, VFIO);
    } catch (cause) {
      if (!isKernelError(cause, 'ENODEV', 'ENOENT')) throw cause;
      const message = `${pciAddress} cannot be bound to ${VFIO}: is its module loaded?`;
      throw new VoltError('UNSUPPORTED', message, { cause });
    }
    return {
      type: 'vf',
      name,
      ifindex: link?.index ?? 0,
      mac: lease.mac,
      mtu: request.mtu ?? network.mtu ?? found.mtu,
      pciAddress,
      driver: VFIO,
      iommuGroup,
    };
  }

  #toNamespace(
    order: Order & { namespace: RequestedNamespace; ifname: string },
    undo: DisposableStack,
  ): Device {
    const { found, request, network, lease, namespace, ifname } = order;
    const { links, namespaceIds } = this.#options.kernel;
    const link = links.get(found.name);
    if (link === null) throw new VoltError('INTERNAL', `${found.name} vanished`);
    namespaceIds.give(namespace.handle);
    const mac = MacAddress.parse(lease.mac);
    const mtu = request.mtu ?? network.mtu ?? found.mtu;
    links.set(link, { alias: deviceTag(lease), group: DEVICE_GROUP });
    closeToIpv6(found.name);
    this.#setMac(link, mac);
    links.set(link, { mtu, name: ifname, namespace: namespace.handle });
    const inside = namespace.kernel.links.get(ifname);
    if (inside === null) throw new VoltError('INTERNAL', `${ifname} is not in ${namespace.path}`);
    configureInterface(inside, { namespace, lease, network }, undo);
    const driver = driverOf(found.pciAddress);
    return {
      type: 'vf',
      name: ifname,
      ifindex: inside.index,
      mac: lease.mac,
      mtu,
      pciAddress: found.pciAddress,
      ...(driver !== undefined && { driver }),
    };
  }

  async #giveBack(record: AttachmentRecord, found: Found): Promise<void> {
    const { kernel } = this.#options;
    this.#takeOut(record, found);
    if (driverOf(found.pciAddress) === VFIO) await unbindDriver(found.pciAddress);
    // When a namespace ends, the kernel gives the device back some time later, under any free name.
    const name = networkDeviceOf(found.pciAddress);
    if (name === undefined && driverOf(found.pciAddress) !== undefined) {
      throw new VoltError('INTERNAL', `${found.pciAddress} is still in another namespace`);
    }
    this.#restoreSettings(found);
    const link = name === undefined ? null : kernel.links.get(name);
    // If somebody else has tagged it since, it belongs to them now.
    if (link === null || isTaggedByAnother(link, record.id)) return;
    setLinkDown(kernel, link);
    const free = link.name === found.name || kernel.links.indexOf(found.name) === null;
    kernel.links.set(link, {
      mtu: found.mtu,
      group: 0,
      alias: '',
      ...(free && { name: found.name }),
    });
    this.#restoreMac({ index: link.index, name: free ? found.name : link.name }, found);
  }

  /** If its MAC cannot be restored, the function keeps another one: the next attachment brings its own MAC. */
  #restoreMac(link: Pick<Link, 'index' | 'name'>, found: Found): void {
    const { log } = this.#options;
    try {
      this.#setMac(link, MacAddress.parse(found.mac));
    } catch (error) {
      if (!isKernelError(error, 'EADDRNOTAVAIL')) throw error;
      log.warn({ device: link.name, mac: found.mac }, 'MAC not restored');
    }
    // Sets the MAC in the settings back, too: the physical function has noted there what the virtual function asked
    // for.
    const vf = found.number;
    this.#setIfPossible(found, {
      IFLA_VF_MAC: { vf, mac: MacAddress.parse(found.settings.mac) },
    });
  }

  /**
   * A virtual function asks the physical function for its MAC. If the physical function has changed a setting of the
   * virtual function, it refuses until the virtual function was reset. Setting the device up resets it.
   */
  #setMac(link: Pick<Link, 'index' | 'name'>, mac: MacAddress): void {
    const { links } = this.#options.kernel;
    if (links.get(link.index)?.mac?.equals(mac) === true) return;
    try {
      links.set(link, { mac });
    } catch (error) {
      if (!isKernelError(error, 'EADDRNOTAVAIL')) throw error;
      links.set(link, { up: true });
      links.set(link, { up: false });
      links.set(link, { mac });
    }
  }

  /** Moves the function out of the container's namespace, into that of the host. */
  #takeOut(record: AttachmentRecord, found: Found): void {
    using inside = insideOf(record, found);
    if (inside === null) return;
    setLinkDown(inside.kernel, inside.link);
    using host = Namespace.current();
    const { index } = inside.link;
    // A name that no other device has: the function gets its own name back when it is on the host.
    const name = `vf-${found.pciAddress.replaceAll(/[:.]/g, '').slice(-10)}`;
    inside.kernel.links.set(inside.link, { name });
    inside.kernel.links.set({ index, name }, { namespace: host });
  }

  #restoreSettings(found: Found): void {
    const { number: vf, settings } = found;
    const { mac, vlan, qos, minMbps, maxMbps, spoofCheck, trust } = settings;
    const all: VfSettings[] = [
      { IFLA_VF_MAC: { vf, mac: MacAddress.parse(mac) } },
      { IFLA_VF_VLAN: { vf, vlan, qos } },
      { IFLA_VF_RATE: { vf, min_tx_rate: minMbps, max_tx_rate: maxMbps } },
      { IFLA_VF_SPOOFCHK: { vf, setting: Number(spoofCheck) } },
      { IFLA_VF_TRUST: { vf, setting: Number(trust) } },
    ];
    for (const one of all) this.#setIfPossible(found, one);
  }

  /**
   * A setting that the driver does not support was never changed, so there is nothing to restore. If the parent is
   * gone, so are its functions.
   */
  #setIfPossible({ parent }: Found, settings: VfSettings): void {
    const { kernel, log } = this.#options;
    const index = kernel.links.indexOf(parent);
    if (index === null) return;
    try {
      kernel.links.setVf({ index, name: parent }, settings);
    } catch (error) {
      if (!isKernelError(error, 'EOPNOTSUPP', 'EINVAL', 'ENODEV')) throw error;
      log.debug(
        { parent, settings: Object.keys(settings), error: String(error) },
        'VF setting not changed',
      );
    }
  }
}

interface Order {
  readonly found: Found;
  readonly request: AttachRequest;
  readonly network: Network;
  readonly lease: Lease;
}

function settingsOf(parent: Link | null, number: number): Found['settings'] | null {
  const vf = parent?.vfs?.find(({ IFLA_VF_MAC: one }) => one?.vf === number);
  if (vf?.IFLA_VF_MAC === undefined) return null;
  return {
    mac: vf.IFLA_VF_MAC.mac.toString(),
    vlan: vf.IFLA_VF_VLAN?.vlan ?? 0,
    qos: vf.IFLA_VF_VLAN?.qos ?? 0,
    minMbps: vf.IFLA_VF_RATE?.min_tx_rate ?? 0,
    maxMbps: vf.IFLA_VF_RATE?.max_tx_rate ?? 0,
    spoofCheck: vf.IFLA_VF_SPOOFCHK?.setting !== 0,
    trust: vf.IFLA_VF_TRUST?.setting === 1,
  };
}

/** What `check` put into the record; null for a record of another type. */
function foundOf({ networkType, before }: AttachmentRecord): Found | null {
  if (networkType !== 'sriov' || before === undefined) return null;
  return isFound(before) ? before : null;
}

const isFound = (value: object): value is Found =>
  'pciAddress' in value && 'settings' in value && 'parent' in value && 'number' in value;

/** A container's interface; null if its path leads to another namespace, or if the namespace does not have it. */
function insideOf(
  record: AttachmentRecord,
  { pciAddress }: Found,
): ({ readonly kernel: Kernel; readonly link: Link } & Disposable) | null {
  const { request, namespaceIdentity: identity } = record;
  const handle = openIfThere(request.netns ?? '');
  if (handle === null) return null;
  using scope = new DisposableStack();
  scope.use(handle);
  if (handle.identity !== identity) return null;
  const kernel = scope.use(new Kernel(handle));
  const link = kernel.links.list().find(({ parentDevice }) => parentDevice?.name === pciAddress);
  if (link === undefined) return null;
  const open = scope.move();
  return { kernel, link, [Symbol.dispose]: () => open.dispose() };
}
