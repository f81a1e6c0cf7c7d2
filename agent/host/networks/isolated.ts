import { lstatSync } from 'node:fs';
import { join } from 'node:path';
import type { AttachRequest, Attachment } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { tapName } from '#protocol/names.ts';
import { servesDhcp, servesNames } from '#protocol/guest-services.ts';
import type { Network } from '#protocol/network.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { Namespace } from '#native/namespace.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Attached, Description } from '../description.ts';
import { Kernel } from '../kernel.ts';
import { claimTap, linkOfRecord, NOTHING_TO_REMOVE, noDescriptor, setLinkDown } from './device.ts';
import { hostAddress, LOOPBACK } from './loopback.ts';
import { openToIpv6, refuseWithoutIpv6 } from './ipv6.ts';
import {
  type AttachedDevice,
  type AttachmentChange,
  type CheckedAttach,
  type KnownOfAttach,
  type NetworkType,
  refuseChanges,
  refuseUnsupported,
  type RemovingDevice,
} from './network-type.ts';
import { makeTap } from './tap.ts';
import { openIfThere, RequestedNamespace, type WorkloadNamespace } from './workload.ts';
import { madeNamespace, type WorkloadNamespaces } from './workload-namespaces.ts';
import { deviceTag } from '../ownership.ts';

/** Where `ip netns` looks. */
const NETNS_FOLDER = '/run/netns';
const DEFAULT_MTU = 1500;

/**
 * A network namespace of its own for each workload, with `lo` up and no way out. A container gets the namespace's
 * path; a VM a TAP inside it. A namespace that the request names is used and left, every other one is made here
 * and goes with the attachment.
 */
export class Isolated implements NetworkType {
  readonly #kernel: Kernel;
  readonly #journal: Pick<Journal, 'namesDevice'>;
  readonly #namespaces: WorkloadNamespaces;

  constructor(options: {
    kernel: Kernel;
    journal: Pick<Journal, 'namesDevice'>;
    namespaces: WorkloadNamespaces;
  }) {
    this.#kernel = options.kernel;
    this.#journal = options.journal;
    this.#namespaces = options.namespaces;
  }

  check(request: AttachRequest, network: Network, known: KnownOfAttach = {}): CheckedAttach {
    refuseUnsupported(network, [
      ['ports', (request.ports?.length ?? 0) > 0],
      ['bandwidth', request.bandwidth !== undefined],
      ['ifname', request.ifname !== undefined],
      ['network.dhcp', servesDhcp(network)],
      ['network.dns.names', servesNames(network)],
    ]);
    refuseWithoutIpv6(network);
    const { netns } = request;
    const given = netns === undefined ? undefined : new RequestedNamespace(netns, known.named);
    const path = join(NETNS_FOLDER, `volt-${request.id}`);
    if (given === undefined && lstatSync(path, { throwIfNoEntry: false }) !== undefined) {
      throw new VoltError('INTERFACE_EXISTS', `there is a namespace ${path} already`, {
        details: { netns: path },
      });
    }
    const name = known.deviceName ?? tapName(request, (one) => this.#journal.namesDevice(one));
    return {
      deviceName: request.kind === 'vm' ? name : path,
      ...(given === undefined && { before: { madeNamespace: path } }),
      prepare: () => given?.kernel,
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        const order = { request, network, lease, name };
        if (given !== undefined) return this.#setUp(given, order, undo);
        using handle = Namespace.create(path);
        undo.defer(() => Namespace.remove(path));
        this.#namespaces.note(request.id, handle);
        using kernel = new Kernel(handle);
        return this.#setUp({ handle, kernel, path }, order, undo);
      },
      [Symbol.dispose]: () => given?.[Symbol.dispose](),
    };
  }

  #setUp(namespace: WorkloadNamespace, order: Order, undo: DisposableStack): AttachedDevice {
    // For the day on which no path leads there (`standsByNumber`).
    if (order.request.kind === 'container') this.#kernel.namespaceIds.give(namespace.handle);
    return setUp(namespace, order, undo);
  }

  /** A VM's TAP goes first: whoever still holds it keeps the namespace alive. */
  detach(record: AttachmentRecord): RemovingDevice {
    const made = madeNamespace(record);
    if (made === undefined) {
      leaveGiven(record);
      return NOTHING_TO_REMOVE;
    }
    const handle = openIfThere(made);
    const link = handle === null ? null : linkInside(handle, record);
    Namespace.remove(made);
    if (handle === null) return NOTHING_TO_REMOVE;
    this.#namespaces.forget(handle);
    return { removed: deleteInside(handle, link) };
  }

  describe(record: Attached): Description {
    return describeIsolated(record);
  }

  /** Nothing passes between namespaces, so there is nothing to filter. */
  filterOf(): Attachment['filter'] {
    return 'none';
  }

  checkChange(change: AttachmentChange): void {
    refuseChanges(change, ['ports', 'bandwidth', 'filterAddresses']);
  }

  /** Nothing leaves the namespace anyway; a VM's port is closed all the same. */
  setDown(record: AttachmentRecord): void {
    const handle = openIfThere(record.attachment?.netns ?? '');
    if (handle === null) return;
    using _handle = handle;
    using kernel = new Kernel(handle);
    setLinkDown(kernel, linkOfRecord(kernel, record));
  }

  claim(attachment: Attachment): Descriptor[] {
    const { id, device, netns = '' } = attachment;
    const handle = device?.type === 'tap' ? openIfThere(netns) : null;
    if (handle === null) throw noDescriptor(id, device);
    using _handle = handle;
    using kernel = new Kernel(handle);
    // A TAP is looked for in the namespace in which /dev/net/tun is opened.
    return handle.run(() => claimTap(kernel, attachment));
  }
}

/** All of it lies in the namespace: a VM's TAP, which is made again there, or a container's addresses on `lo`. */
export function describeIsolated({
  attachment,
  namespaceIdentity: identity,
}: Attached): Description {
  const { id, generation, device, netns, addresses } = attachment;
  if (netns === undefined) return { id, generation };
  const own = {
    netns,
    ...(identity !== undefined && { identity }),
    loopback: true,
    madeAgain: device !== null,
  };
  if (device === null) {
    const held = addresses.map(({ address }) => hostAddress(address).toString());
    return { id, generation, inside: { ...own, addresses: held } };
  }
  const { ifindex, name, mac, mtu } = device;
  const link = { what: 'device', ifindex, name, mac, mtu } as const;
  return { id, generation, inside: { ...own, link, addresses: [] } };
}

interface Order {
  readonly request: AttachRequest;
  readonly network: Network;
  readonly lease: Lease;
  readonly name: string;
}

function setUp(
  namespace: WorkloadNamespace,
  { request, network, lease, name }: Order,
  undo: DisposableStack,
): AttachedDevice {
  const { handle, kernel, path } = namespace;
  const mtu = request.mtu ?? network.mtu ?? DEFAULT_MTU;
  kernel.links.set(LOOPBACK, { up: true });
  if (request.kind === 'vm') {
    const device = handle.run(() =>
      makeTap(kernel, { name, mtu, tap: request.tap, lease, tag: deviceTag(lease) }, undo),
    );
    return { device, filter: 'none', netns: path };
  }
  if (network.ipv6 !== undefined) handle.run(() => openToIpv6(LOOPBACK.name));
  kernel.batch(
    lease.addresses.map(hostAddress).map((address) => ({
      ...kernel.addresses.addition({ ifindex: LOOPBACK.index, address, noDad: true }),
      accept: 'EEXIST' as const,
    })),
  );
  return { device: null, filter: 'none', netns: path };
}

/** Takes out of a namespace that the request named what was put there. */
function leaveGiven({ attachment, namespaceIdentity: identity }: AttachmentRecord): void {
  const handle = openIfThere(attachment?.netns ?? '');
  if (handle === null) return;
  using _handle = handle;
  if (handle.identity !== identity) return;
  using kernel = new Kernel(handle);
  for (const { address } of attachment?.addresses ?? []) {
    try {
      kernel.addresses.remove({ ifindex: LOOPBACK.index, address: hostAddress(address) });
    } catch (error) {
      if (!isKernelError(error, 'EADDRNOTAVAIL')) throw error;
    }
  }
}

function linkInside(handle: Namespace, record: AttachmentRecord): Link | null {
  using kernel = new Kernel(handle);
  const link = linkOfRecord(kernel, record);
  setLinkDown(kernel, link);
  return link;
}

async function deleteInside(handle: Namespace, link: Link | null): Promise<void> {
  using _handle = handle;
  if (link === null) return;
  using kernel = new Kernel(handle);
  await kernel.links.deleteAsync(link);
}
