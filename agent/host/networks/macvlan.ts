import { setTimeout as sleep } from 'node:timers/promises';
import { MacAddress } from '#protocol/address.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { Link } from '#native/link.ts';
import { randomIndex } from '#native/macvtap.ts';
import type { Namespace } from '#native/namespace.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { Kernel } from '../kernel.ts';
import { linkOfRecord, NOTHING_TO_REMOVE, putAway, setLinkDown } from './device.ts';
import { configureInterface, withdrawRules } from './interface.ts';
import { findByNumber } from './lost-paths.ts';
import type { MacvlanParent } from './macvlan-parent.ts';
import {
  type AttachedDevice,
  type CheckedAttach,
  type Device,
  type KnownOfAttach,
  type RemovingDevice,
} from './network-type.ts';
import { DEFAULT_IFNAME, openIfThere, RequestedNamespace } from './workload.ts';
import { deviceTag } from '../ownership.ts';

/** The kernel ends a namespace that nobody holds within some tens of milliseconds, unless the host is very busy. */
const GONE_AFTER_MS = 10;
const GONE_TRIES = 200;

/** Macvlans of containers: each is in the container's namespace, with nothing of it on the host. */
export class NamespacedMacvlans {
  readonly #kernel: Kernel;
  /** Deletions, one after the other: each takes a thread and some 16 ms. */
  #deleting: Promise<void> = Promise.resolve();

  constructor(kernel: Kernel) {
    this.#kernel = kernel;
  }

  /**
   * INVALID_REQUEST without a namespace: the agent could not remove a macvlan that was moved to where it cannot see it.
   */
  check(
    request: AttachRequest,
    place: { readonly network: Network; readonly parent: MacvlanParent } & Pick<
      KnownOfAttach,
      'named'
    >,
  ): CheckedAttach {
    const { network, parent, named } = place;
    const { netns, ifname: name = DEFAULT_IFNAME } = request;
    if (netns === undefined) {
      throw new VoltError(
        'INVALID_REQUEST',
        `netns: a container on a ${network.type} network needs one`,
        { details: { path: 'netns' } },
      );
    }
    const namespace = new RequestedNamespace(netns, named);
    return {
      deviceName: name,
      prepare: () => {
        parent.look(request);
        namespace.enter(name);
      },
      attach: (lease: Lease, undo: DisposableStack): AttachedDevice => {
        this.#kernel.namespaceIds.give(namespace.handle);
        const device = makeMacvlan({ name, namespace, parent, lease, network }, undo);
        return { device, filter: 'none' };
      },
      [Symbol.dispose]: () => namespace[Symbol.dispose](),
    };
  }

  /**
   * If the namespace is gone, so is the macvlan. If no path leads to the namespace any more, the macvlan is deleted in
   * it.
   */
  detach(record: AttachmentRecord): RemovingDevice {
    withdrawRules(record);
    using scope = new DisposableStack();
    const found = find(record, scope);
    if (found === null) return { removed: this.#gone(record) };
    const { kernel, link } = found;
    if (link === null || !putAway(kernel, link, record)) return NOTHING_TO_REMOVE;
    const open = scope.move();
    const removed = this.#deleted(() => kernel.links.deleteAsync(link));
    return { removed: removed.finally(() => open.dispose()) };
  }

  #deleted(deletion: () => Promise<void>): Promise<void> {
    const removed = this.#deleting.then(deletion);
    this.#deleting = removed.catch(() => {});
    return removed;
  }

  /**
   * Resolves when the parent receives nothing for the macvlan any more. The kernel takes some time to end a namespace
   * that nobody holds; until it has, nobody else can have the MAC on this parent.
   */
  async #gone({ attachment, network }: AttachmentRecord): Promise<void> {
    if (attachment === undefined) return;
    const found = findByNumber(this.#kernel, attachment);
    if (found !== null) {
      // This needs a socket of its own, since a deletion off the main thread occupies its socket.
      using kernel = new Kernel();
      const { namespaceId, link } = found;
      await this.#deleted(() => kernel.links.deleteInAsync(namespaceId, link.index));
      return;
    }
    const parent = this.#kernel.links.indexOf(network?.parent ?? '');
    if (parent === null) return;
    const mac = MacAddress.parse(attachment.mac);
    for (let tries = 0; tries < GONE_TRIES; tries += 1) {
      if (!this.#kernel.neighbours.receives(parent, mac)) return;
      await sleep(GONE_AFTER_MS);
    }
  }

  setDown(record: AttachmentRecord): void {
    using scope = new DisposableStack();
    const found = find(record, scope);
    if (found !== null) setLinkDown(found.kernel, found.link);
  }
}

/** Makes a macvlan inside its namespace under its final name, tagged, addressed, routed and up. */
function makeMacvlan(
  order: {
    readonly name: string;
    readonly namespace: RequestedNamespace;
    readonly parent: MacvlanParent;
    readonly lease: Lease;
    readonly network: Network;
  },
  undo: DisposableStack,
): Device {
  const { name, namespace, parent, lease, network } = order;
  const mac = MacAddress.parse(lease.mac);
  const link = { name, index: randomIndex() };
  const { mtu } = parent.create({ ...link, kind: 'macvlan', mac, namespace: namespace.handle });
  const { links } = namespace.kernel;
  undo.defer(() => links.delete(link));
  parent.settingUp(mac, (own) => {
    links.set(link, { alias: deviceTag(lease), ...own });
    configureInterface(link, { namespace, lease, network }, undo);
  });
  return { type: 'macvlan', name, ifindex: link.index, mac: mac.toString(), mtu };
}

/**
 * The macvlan of a record (null if it is not there), and the kernel of its namespace, which `scope` holds open. Null if
 * no path leads to that namespace.
 */
function find(
  record: AttachmentRecord,
  scope: DisposableStack,
): { readonly kernel: Kernel; readonly link: Link | null } | null {
  const namespace = namespaceOf(record);
  if (namespace === null) return null;
  scope.use(namespace);
  const kernel = scope.use(new Kernel(namespace));
  const index = record.attachment?.device?.ifindex;
  // Whoever owns the namespace can rename a macvlan and take its tag away, but not change its kind, nor its index,
  // which was drawn at random.
  const known = index === undefined ? null : kernel.links.get(index);
  const link = known?.kind === 'macvlan' ? known : linkOfRecord(kernel, record);
  return { kernel, link: link?.kind === 'macvlan' ? link : null };
}

/** The namespace that a record's path led to, if it still does. */
function namespaceOf({ request, namespaceIdentity }: AttachmentRecord): Namespace | null {
  const namespace = request.netns === undefined ? null : openIfThere(request.netns);
  if (namespace === null || namespace.identity === namespaceIdentity) return namespace;
  namespace[Symbol.dispose]();
  return null;
}
