import type { AttachRequest, Attachment, Difference } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { tapName, vethNames } from '#protocol/names.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { Namespace, namespaceIdentity } from '#native/namespace.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { AttachmentRecord, Journal } from '../journal.ts';
import { Kernel } from '../kernel.ts';
import type { Log } from '../log.ts';
import { NetworkBridge } from './bridge.ts';
import {
  type AttachedDevice,
  type CheckedAttach,
  DEVICE_GROUP,
  deviceTag,
  isTagOf,
  type NetworkType,
  type RemovingDevice,
} from './network.ts';
import { observePort } from './observe.ts';
import type { Removal } from './removal.ts';
import { makeTap } from './tap.ts';
import { makeVeth, type TargetNamespace } from './veth.ts';

const DEFAULT_IFNAME = 'eth0';
/** An agent never leaves it. */
const HOST_NAMESPACE = namespaceIdentity('/proc/self/ns/net');

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
    refuseUnsupported(request, network);
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
    const peerName = request.netns === undefined ? names.container : ifnameOf(request);
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
    const link = this.#linkOf(record);
    if (link === null) return { removed: Promise.resolve() };
    try {
      // The name is free and the port closed when this returns. Kernels before 6.2 rename only what is down.
      kernel.links.set(link, { up: false });
      kernel.links.set(link, { name: `vdel${link.index}` });
    } catch (error) {
      if (!isKernelError(error, 'ENODEV')) throw error;
      return { removed: Promise.resolve() };
    }
    return { removed: removal.delete({ index: link.index, alias: link.alias }) };
  }

  setDown(record: AttachmentRecord): void {
    const link = this.#linkOf(record);
    if (link === null) return;
    try {
      this.#options.kernel.links.set(link, { up: false });
    } catch (error) {
      if (!isKernelError(error, 'ENODEV')) throw error;
    }
  }

  observe(attachment: Attachment): Difference[] {
    return observePort(this.#options.kernel, attachment);
  }

  /** The device of a record, by index when it is known, else by the name of its open intent. */
  #linkOf(record: AttachmentRecord): Link | null {
    const { kernel } = this.#options;
    const { attachment, id, deviceName } = record;
    if (attachment?.device !== undefined && attachment.device !== null) {
      const link = kernel.links.get(attachment.device.ifindex);
      return link?.alias === deviceTag(attachment) ? link : null;
    }
    const link = kernel.links.get(deviceName);
    if (link === null) return null;
    const untagged = link.alias === undefined && link.group === DEVICE_GROUP;
    return untagged || isTagOf(link.alias, id) ? link : null;
  }
}

type VethNames = ReturnType<typeof vethNames>;

const ifnameOf = (request: AttachRequest): string => request.ifname ?? DEFAULT_IFNAME;

/** What belongs to other network types, or comes with a later release, is refused, never ignored. */
function refuseUnsupported(request: AttachRequest, network: Network): void {
  const given: [string, boolean][] = [
    ['ports', (request.ports?.length ?? 0) > 0],
    ['bandwidth', request.bandwidth !== undefined],
    ['dryRun', request.dryRun === true],
    ['network.uplink', network.uplink !== undefined],
    ['network.portIsolation', network.portIsolation === true],
    ['network.dhcp', network.dhcp !== undefined],
  ];
  for (const [path, present] of given) {
    if (!present) continue;
    throw new VoltError('UNSUPPORTED', `${path}: not supported on ${network.type} networks`, {
      details: { path },
    });
  }
}

/** The namespace of a request: the file is opened at once, a socket inside it by `enter`. */
class RequestedNamespace implements TargetNamespace, Disposable {
  readonly path: string;
  readonly handle: Namespace;
  #kernel: Kernel | undefined;

  constructor(path: string) {
    this.path = path;
    this.handle = openNamespaceFile(path);
    if (this.handle.identity !== HOST_NAMESPACE) return;
    this.handle[Symbol.dispose]();
    throw new VoltError('INVALID_REQUEST', `netns: ${path} is the host's own namespace`, {
      details: { path: 'netns' },
    });
  }

  /** Throws INTERFACE_EXISTS when the namespace has an interface of that name. */
  enter(ifname: string): void {
    if (this.kernel.links.indexOf(ifname) === null) return;
    throw new VoltError('INTERFACE_EXISTS', `${this.path} has an interface ${ifname} already`, {
      details: { netns: this.path, ifname },
    });
  }

  get kernel(): Kernel {
    this.#kernel ??= new Kernel(this.handle);
    return this.#kernel;
  }

  [Symbol.dispose](): void {
    this.#kernel?.[Symbol.dispose]();
    this.handle[Symbol.dispose]();
  }
}

function openNamespaceFile(path: string): Namespace {
  try {
    return Namespace.open(path);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new VoltError('NAMESPACE_NOT_FOUND', `netns: ${reason}`, {
      details: { path: 'netns', netns: path },
      cause: error,
    });
  }
}
