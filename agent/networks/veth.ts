import {
  hostEndMac,
  InterfaceAddress,
  IpAddress,
  IpPrefix,
  MacAddress,
} from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import type { Namespace } from '#native/namespace.ts';
import { writeSysctl } from '#native/sysctl.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Kernel } from '../kernel.ts';
import { DEVICE_GROUP, type Device, deviceTag } from './network.ts';
import { closeToIpv6 } from './tap.ts';

export interface VethOrder {
  readonly name: string;
  /** The workload's end: `eth0` inside its namespace, `veth-…-c` without one. */
  readonly peerName: string;
  readonly mtu: number;
  readonly namespace?: TargetNamespace;
}

/** The workload's namespace, and the kernel's configuration seen from inside. */
export interface TargetNamespace {
  readonly handle: Namespace;
  readonly path: string;
  readonly kernel: Kernel;
}

const LOOPBACK_INDEX = 1;

/**
 * Makes a veth pair: the host's end on the bridge, tagged and up; the workload's end made inside its
 * namespace under its final name, addressed, routed and up. Without a namespace it stays on the host, down,
 * for the caller to move: addresses would not survive that.
 */
export function makeVeth(
  kernel: Kernel,
  order: VethOrder & {
    readonly master: number;
    readonly lease: Lease;
    readonly network: Network;
  },
  undo: DisposableStack,
): Device {
  const { name, peerName, mtu, namespace, master, lease, network } = order;
  const { bridge } = network;
  const peerMac = MacAddress.parse(lease.mac);
  const mac = hostEndMac(peerMac);
  const link = kernel.links.createVeth({
    name,
    mac,
    mtu,
    group: DEVICE_GROUP,
    master,
    peer: {
      name: peerName,
      mac: peerMac,
      mtu,
      ...(namespace !== undefined && { namespace: namespace.handle }),
    },
  });
  undo.defer(() => kernel.links.delete(link));
  closeToIpv6(name);
  kernel.links.set(link, { alias: deviceTag(lease), up: true });
  // The kernel reports the other end of a pair by its index there.
  const peer = { index: link.linkIndex ?? 0, name: peerName };
  if (namespace === undefined) closeToIpv6(peerName);
  else configurePeer(peer, { namespace, lease, network });
  return {
    type: 'veth',
    name,
    ifindex: link.index,
    mac: mac.toString(),
    mtu,
    bridge,
    peer: {
      name: peerName,
      ifindex: peer.index,
      mac: peerMac.toString(),
      ...(namespace !== undefined && { netns: namespace.path }),
    },
  };
}

function configurePeer(
  peer: { readonly index: number; readonly name: string },
  order: { namespace: TargetNamespace; lease: Lease; network: Network },
): void {
  const { namespace, lease, network } = order;
  const { index, name } = peer;
  const inside = namespace.kernel;
  // Whoever answers router solicitations on this segment must not become the workload's gateway.
  if (network.ipv6 !== undefined) {
    namespace.handle.run(() => writeSysctl(['net', 'ipv6', 'conf', name, 'accept_ra'], '0'));
  }
  const addresses = lease.addresses.map((text) => InterfaceAddress.parse(text));
  inside.batch([
    ...addresses.map((address) =>
      inside.addresses.addition({ ifindex: index, address, noDad: true }),
    ),
    inside.links.change({ index: LOOPBACK_INDEX, name: 'lo' }, { up: true }),
    inside.links.change(peer, { up: true }),
    ...gatewaysOf(network).map((via) => ({
      ...inside.routes.addition({ via, ifindex: index }),
      // A workload with several interfaces keeps the default route of the first.
      accept: 'EEXIST' as const,
    })),
    ...(network.routes ?? []).map(({ to, via }) =>
      inside.routes.addition({ to: IpPrefix.parse(to), via: IpAddress.parse(via), ifindex: index }),
    ),
  ]);
}

const gatewaysOf = ({ gateway, ipv6 }: Network): IpAddress[] =>
  [gateway, ipv6?.gateway].filter((one) => one !== undefined).map((one) => IpAddress.parse(one));
