import { AddressError, deriveMac, InterfaceAddress, IpAddress } from '#protocol/address.ts';
import { type Attachment, type AttachRequest, attachRequestSchema } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { tapName, vethNames } from '#protocol/names.ts';
import { parseRequest } from '#protocol/parse.ts';
import type { Descriptor } from '#native/descriptor.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { openTap, unpersist } from '#native/tun.ts';
import { toVoltError } from './errors.ts';
import { Kernel } from './host/kernel.ts';
import { keepMtu, portMtu } from './host/networks/bridge.ts';
import { type BridgePort, makeTap, tapShape } from './host/networks/tap.ts';
import { makeVeth } from './host/networks/veth.ts';
import { DEFAULT_IFNAME, RequestedNamespace } from './host/networks/workload.ts';
import { isMadeByAgent, isStill, libraryTag } from './host/ownership.ts';

// Ports for a program that links this package instead of asking an agent (docs/library.md). There is no bus, no
// ledger and no port filter here: a bridge, a workload's id, and a device as the agent would make it.

/** Another process may take a name between the look and the making. */
const NAME_TRIES = 8;

/** The device on the bridge. */
export type Device = NonNullable<Attachment['device']>;

export interface PortOptions {
  /** Of both ends. Default: the bridge's. */
  readonly mtu?: number;
  /** The workload's own. Default: derived from the workload's id and the device's name, so the same each time. */
  readonly mac?: string;
}

export interface TapOptions extends PortOptions {
  /** Default 1. More make a multi-queue device, with a descriptor for each. */
  readonly queues?: number;
  /** Frames begin with a virtio_net_hdr of 12 bytes, as QEMU and Firecracker expect. Default true. */
  readonly vnetHdr?: boolean;
}

export interface VethOptions extends PortOptions {
  /** Absolute path of a namespace file. Without it the workload's end stays here, down, for the caller to move. */
  readonly netns?: string;
  /** Name of the workload's end inside `netns`. Default `eth0`. */
  readonly ifname?: string;
  /** For the workload's end, inside `netns`: `10.42.0.5/24`. Who else has them is the caller's business. */
  readonly addresses?: readonly string[];
  /** Default routes, one per family. Needs addresses. */
  readonly gateways?: readonly string[];
}

/** A port of a bridge. Disposing of it takes the device away, at the cost of some 20 ms; twice is harmless. */
export interface Port extends Disposable {
  /** Of the device on the bridge: `tap-abc123`, `veth-abc123-h`. */
  readonly name: string;
  /** The workload's own; that of the device on the bridge differs. */
  readonly mac: string;
  /** All of the device, as the agent's answer to an attach has it. */
  readonly device: Device;
}

/** A TAP for a VM. It goes with the last copy of its descriptors: no crash leaves it behind. */
export interface TapPort extends Port {
  /** The first, and with one queue the only, of `descriptors`. */
  readonly descriptor: Descriptor;
  /**
   * One per queue, non-blocking and close-on-exec, offloads off. They are closed with the port; a child that was
   * given one has a copy, whose device is gone then.
   */
  readonly descriptors: readonly Descriptor[];
}

/** A veth pair for a container. It goes when it is disposed of, or with the namespace of either end. */
export interface VethPort extends Port {
  /** The workload's end. */
  readonly peer: NonNullable<Device['peer']>;
}

/**
 * Makes a TAP on a bridge that is there, up, and opens all its queues. Synchronous, under 2 ms; needs
 * CAP_NET_ADMIN.
 *
 * Throws VoltError, and leaves nothing: NOT_FOUND (no such bridge), INVALID_REQUEST (no bridge, an MTU above the
 * bridge's, an argument out of range), UNSUPPORTED (a bridge that an agent made), BRIDGE_FULL, KERNEL_ERROR.
 */
export function createTap(bridge: string, workload: string, options: TapOptions = {}): TapPort {
  return withVoltErrors(() => {
    const { mtu, mac: ownMac, queues, vnetHdr, ...unknown } = options;
    refuseUnknown(unknown);
    const tap = { queues, vnetHdr };
    const request = parseArguments({ workload, kind: 'vm', mtu, mac: ownMac, tap });
    using kernel = new Kernel();
    using undo = new DisposableStack();
    const place = new Place(kernel, bridge, request.mtu);
    const { mac, device } = whileNamesAreTaken(() => {
      const name = tapName({ id: workload, workload }, place.isTaken);
      const lease = { mac: request.mac ?? macOf(workload, name) };
      const order = { ...place.order(workload), name, tap: request.tap, lease };
      return { ...lease, device: makeTap(kernel, order, undo) };
    });
    place.keepMtu();
    const descriptors = openTap({ name: device.name, ...tapShape(request.tap) });
    undo.defer(() => closeAll(descriptors));
    const [descriptor] = descriptors;
    if (descriptor === undefined) throw new VoltError('INTERNAL', 'a TAP has a queue');
    unpersist(descriptor, device.name);
    undo.move();
    return {
      ...portOf(device, { workload, mac }, () => closeAll(descriptors)),
      descriptor,
      descriptors,
    };
  });
}

/**
 * Makes a veth pair, the host's end on a bridge that is there, up; the workload's end inside `netns` under its
 * final name, addressed, routed and up. Synchronous, under 3 ms; needs CAP_NET_ADMIN, with `netns` CAP_SYS_ADMIN.
 *
 * Throws VoltError, and leaves nothing: as `createTap`, and NAMESPACE_NOT_FOUND, INTERFACE_EXISTS (`ifname` is taken).
 */
export function createVeth(bridge: string, workload: string, options: VethOptions = {}): VethPort {
  return withVoltErrors(() => {
    const { mtu, mac: ownMac, netns, ifname, addresses: _a, gateways: _g, ...unknown } = options;
    refuseUnknown(unknown);
    const given = { workload, kind: 'container', mtu, mac: ownMac, netns, ifname };
    const request = parseArguments(given);
    const { addresses, network } = parseAddresses(options);
    using namespace = netns === undefined ? null : new RequestedNamespace(netns);
    const peerName = request.ifname ?? DEFAULT_IFNAME;
    namespace?.enter(peerName);
    using kernel = new Kernel();
    using undo = new DisposableStack();
    const place = new Place(kernel, bridge, request.mtu);
    const { mac, device } = whileNamesAreTaken(() => {
      const { host: name, container } = vethNames({ id: workload, workload }, place.isTaken);
      const lease = { mac: request.mac ?? macOf(workload, name), addresses };
      const inside = namespace === null ? { peerName: container } : { peerName, namespace };
      const order = { ...place.order(workload), name, ...inside, lease, network };
      return { mac: lease.mac, device: makeVeth(kernel, order, undo) };
    });
    place.keepMtu();
    if (device.peer === undefined) throw new VoltError('INTERNAL', 'a veth has a peer');
    undo.move();
    return { ...portOf(device, { workload, mac }), peer: device.peer };
  });
}

/** A bridge, looked at and found fit, and the MTU that a port of it will have. */
class Place {
  readonly #kernel: Kernel;
  readonly #bridge: Link;
  readonly #mtu: number;

  constructor(kernel: Kernel, name: string, mtu: number | undefined) {
    this.#kernel = kernel;
    this.#bridge = findBridge(kernel, name);
    this.#mtu = portMtu(mtu ?? this.#bridge.mtu, this.#bridge);
  }

  readonly isTaken = (name: string): boolean => this.#kernel.links.indexOf(name) !== null;

  order(workload: string): { mtu: number; tag: string; port: BridgePort } {
    const { name: bridge, index: master } = this.#bridge;
    const port = { bridge, master, beforeUp: () => {} };
    return { mtu: this.#mtu, tag: libraryTag(workload), port };
  }

  keepMtu(): void {
    keepMtu(this.#kernel, this.#bridge, this.#mtu);
  }
}

/** Two devices of one workload have two names, and so two MACs. */
const macOf = (workload: string, name: string): string =>
  deriveMac(`${workload} ${name}`).toString();

function findBridge({ links }: Kernel, name: string): Link {
  const link = links.get(name);
  const details = { path: 'bridge', bridge: name };
  if (link === null) throw new VoltError('NOT_FOUND', `there is no bridge ${name}`, { details });
  if (link.kind !== 'bridge') {
    const message = `bridge: ${name} is no bridge but a ${link.kind ?? 'device'}`;
    throw new VoltError('INVALID_REQUEST', message, { details });
  }
  if (isMadeByAgent(link)) {
    const message =
      `bridge ${name} is an agent's, whose firewall drops what ports it does not know send; ` +
      'attach by way of the agent';
    throw new VoltError('UNSUPPORTED', message, { details });
  }
  return link;
}

/** A misspelt option would be one that has no effect. */
function refuseUnknown(options: object): void {
  const [name] = Object.keys(options);
  if (name !== undefined) throw invalid(name, 'there is no such option');
}

/** The arguments under the rules of an attach request. */
const parseArguments = (given: Readonly<Record<string, unknown>>): AttachRequest =>
  parseRequest(attachRequestSchema, { id: 'library', network: 'library', ...given });

function parseAddresses({ netns, addresses = [], gateways = [] }: VethOptions) {
  if (netns === undefined && addresses.length > 0) {
    // The kernel drops them when the caller moves the device.
    throw invalid('addresses', 'needs netns');
  }
  if (addresses.length === 0 && gateways.length > 0) throw invalid('gateways', 'needs addresses');
  const own = addresses.map((text) => parsed('addresses', () => InterfaceAddress.parse(text)));
  const ways = gateways.map((text) => parsed('gateways', () => IpAddress.parse(text)));
  const [gateway, gateway6] = ([4, 6] as const).map((family) => {
    const [way, another] = ways.filter((one) => one.family === family);
    if (another !== undefined) throw invalid('gateways', 'must be one per family');
    return way === undefined ? {} : { gateway: way.toString() };
  });
  const dual = own.some(({ address }) => address.family === 6);
  return {
    addresses: [...new Set(own.map(String))],
    network: { ...gateway, ...(dual && { ipv6: { ...gateway6 } }) },
  };
}

function parsed<T>(path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw error instanceof AddressError ? invalid(path, error.message) : error;
  }
}

const invalid = (path: string, message: string): VoltError =>
  new VoltError('INVALID_REQUEST', `${path}: ${message}`, { details: { path } });

function whileNamesAreTaken<T>(make: () => T): T {
  for (let tries = 1; ; tries += 1) {
    try {
      return make();
    } catch (error) {
      const taken =
        isKernelError(error, 'EBUSY', 'EEXIST') &&
        ['TUNSETIFF', 'RTM_NEWLINK'].includes(error.operation);
      if (!taken || tries === NAME_TRIES) throw error;
    }
  }
}

function portOf(
  device: Device,
  { workload, mac }: { workload: string; mac: string },
  close: () => void = () => {},
): Port {
  return {
    name: device.name,
    mac,
    device,
    [Symbol.dispose]: () => {
      using _closed = { [Symbol.dispose]: close };
      using kernel = new Kernel();
      // The index may have been given to somebody else's device since: the alias tells.
      const link = kernel.links.get(device.ifindex);
      if (link !== null && isStill({ alias: libraryTag(workload) }, link))
        kernel.links.delete(link);
    },
  };
}

function closeAll(descriptors: readonly Descriptor[]): void {
  for (const descriptor of descriptors) descriptor.close();
}

function withVoltErrors<T>(make: () => T): T {
  try {
    return make();
  } catch (error) {
    throw toVoltError(error);
  }
}
