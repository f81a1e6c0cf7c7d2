import { IpAddress, InterfaceAddress, MacAddress } from '#protocol/address.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { Namespace } from '#native/namespace.ts';
import { writeSysctl } from '#native/sysctl.ts';
import { type KernelOperation, operationsDuring } from '#native/trace.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { Kernel } from '../kernel.ts';
import { readIfThere } from '../bridges/settings.ts';
import { SWITCHES } from './forwarding.ts';
import { LOOPBACK } from './loopback.ts';
import type { NetworkType, NetworkTypes } from './network-type.ts';
import type { NamedNamespace } from './workload.ts';

// A dry run finds out what an attach would do by attaching in a throw-away network namespace, which has copies of those
// objects of the host that the attach would meet.

export interface DryRunOrder {
  readonly request: AttachRequest;
  readonly network: Network;
  readonly lease: Lease;
  /** The name that the device would have on the host. */
  readonly deviceName: string;
  /** The namespace that would be made for it. */
  readonly madeNamespace?: string;
}

export interface DryRunOptions {
  /** The kernel of the host's namespace. */
  readonly kernel: Kernel;
  /** Whether the firewall of the host knows of the network's bridge. */
  readonly knowsBridge: boolean;
  /** Opens the network types over a kernel of the calling thread's namespace, with a firewall of their own. */
  readonly typesOver: (kernel: Kernel) => NetworkTypes & Disposable;
}

/** Operations that change nothing. */
const READING = 'RTM_GET';
/** The other end of a veth pair that stands in for a NIC of the host. */
const STAND_IN_PEER = 'dry-run';

/**
 * The changes, in order, that an attach would make in the kernel. The thread is in the namespace of the host, which is
 * only read. UNSUPPORTED: the type needs hardware. Errors of the kernel are those that the attach would meet.
 */
export function dryRun(options: DryRunOptions, order: DryRunOrder): KernelOperation[] {
  const { network, request, madeNamespace } = order;
  const settings = Object.values(SWITCHES).map((path) => ({ path, value: readIfThere(path) }));
  using stage = Namespace.createUnnamed();
  using workload = Namespace.createUnnamed();
  const away = request.netns !== undefined || madeNamespace !== undefined;
  const netns = `/proc/self/fd/${workload.fd}`;
  const moved = away ? { ...request, netns } : request;
  const named = away ? { path: netns, identity: workload.identity, handle: workload } : undefined;
  const operations = stage.run(() => {
    using kernel = new Kernel();
    setStage(kernel, options.kernel, order);
    for (const { path, value } of settings) if (value !== undefined) writeSysctl(path, value);
    using types = options.typesOver(kernel);
    const type = types[network.type];
    if (type === undefined) throw new VoltError('UNSUPPORTED', `network type ${network.type}`);
    if (options.knowsBridge) attachAnother(type, order);
    return operationsDuring(() => attach(type, { ...order, request: moved }, named));
  });
  const made =
    madeNamespace === undefined ? [] : [{ operation: 'unshare', subject: madeNamespace }];
  return [...made, ...operations.filter(({ operation }) => !operation.startsWith(READING))];
}

/**
 * Copies the host's bridge, parent and uplink, and host addresses of port maps, into the throw-away namespace, so that
 * the attach meets what it would meet on the host.
 */
function setStage(kernel: Kernel, host: Kernel, { network, request }: DryRunOrder): void {
  kernel.links.set(LOOPBACK.index, { up: true });
  const { bridge, uplink, parent } = network;
  const found = bridge === undefined ? null : host.links.get(bridge);
  const standing = found === null ? null : kernel.links.createBridge(found);
  if (found !== null && standing !== null) {
    const { mtu, alias } = found;
    kernel.links.set(standing, { mtu, up: true, ...(alias !== undefined && { alias }) });
  }
  for (const name of [uplink?.device, parent]) {
    const nic = name === undefined ? null : host.links.get(name);
    if (nic?.mac === undefined) continue;
    const { mac, mtu } = nic;
    const made = kernel.links.createVeth({
      name: nic.name,
      mac,
      mtu,
      peer: { name: STAND_IN_PEER, mac: MacAddress.parse('02:00:00:00:00:01') },
    });
    const port = standing !== null && nic.master === found?.index ? { master: standing.index } : {};
    kernel.links.set(made, { up: true, ...port });
  }
  const mapped = (request.ports ?? []).map(({ hostAddress }) => hostAddress);
  // `lo` has these addresses by itself.
  const own = new Set([undefined, '127.0.0.1', '::1', '0.0.0.0', '::']);
  for (const text of new Set(mapped)) {
    if (text === undefined || own.has(text)) continue;
    const address = hostAddress(text);
    kernel.addresses.add({ ifindex: LOOPBACK.index, address, noDad: true });
  }
}

const hostAddress = (text: string): InterfaceAddress => {
  const { family } = IpAddress.parse(text);
  return InterfaceAddress.parse(`${text}/${family === 4 ? 32 : 128}`);
};

/** Attaches a throw-away port first, so that the one-time set-up of a bridge is not counted. */
function attachAnother(type: NetworkType, order: DryRunOrder): void {
  const { network } = order.network;
  const request = { id: 'dry-run', workload: 'dry-run', kind: 'vm', network } as const;
  const lease = { ...order.lease, id: 'dry-run', mac: '02:00:00:00:00:02', addresses: [] };
  attach(type, { ...order, request, lease, deviceName: 'dry-run-tap' });
}

function attach(
  type: NetworkType,
  { request, network, lease, deviceName }: DryRunOrder,
  named?: NamedNamespace,
): void {
  using checked = type.check(request, network, { deviceName, named });
  checked.prepare();
  // Nothing is undone: everything goes with the namespace.
  checked.attach(lease, new DisposableStack());
}
