import {
  hostEndMac,
  InterfaceAddress,
  IpAddress,
  IpPrefix,
  MacAddress,
} from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { Namespace } from '#native/namespace.ts';
import { writeSysctl } from '#native/sysctl.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import { Kernel } from '../kernel.ts';
import { DEVICE_GROUP, type Device, deviceTag } from './network.ts';
import { closeToIpv6 } from './tap.ts';

export interface VethOrder {
  readonly name: string;
  /** The workload's end: `eth0` inside its namespace, `veth-…-c` without one. */
  readonly peerName: string;
  readonly mtu: number;
  readonly namespace?: { readonly handle: Namespace; readonly path: string };
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
  const peer =
    namespace === undefined
      ? peerOnHost(kernel, peerName)
      : configurePeer({ namespace: namespace.handle, name: peerName, lease, network });
  return {
    type: 'veth',
    name,
    ifindex: link.index,
    mac: mac.toString(),
    mtu,
    bridge,
    peer: {
      name: peerName,
      ifindex: peer,
      mac: peerMac.toString(),
      ...(namespace !== undefined && { netns: namespace.path }),
    },
  };
}

function peerOnHost(kernel: Kernel, name: string): number {
  const peer = kernel.links.get(name);
  if (peer === null) throw new VoltError('INTERNAL', `${name} vanished while it was made`);
  closeToIpv6(name);
  return peer.index;
}

function configurePeer(order: {
  namespace: Namespace;
  name: string;
  lease: Lease;
  network: Network;
}): number {
  const { namespace, name, lease, network } = order;
  using inside = new Kernel(namespace);
  const peer = inside.links.get(name);
  if (peer === null) throw new VoltError('INTERNAL', `${name} vanished while it was made`);
  const { index } = peer;
  // Whoever answers router solicitations on this segment must not become the workload's gateway.
  if (network.ipv6 !== undefined) {
    namespace.run(() => writeSysctl(['net', 'ipv6', 'conf', name, 'accept_ra'], '0'));
  }
  for (const address of lease.addresses) {
    inside.addresses.add({ ifindex: index, address: InterfaceAddress.parse(address), noDad: true });
  }
  inside.links.set({ index: LOOPBACK_INDEX, name: 'lo' }, { up: true });
  inside.links.set(peer, { up: true });
  for (const gateway of [network.gateway, network.ipv6?.gateway]) {
    if (gateway === undefined) continue;
    try {
      inside.routes.add({ via: IpAddress.parse(gateway), ifindex: index });
    } catch (error) {
      // A workload with several interfaces keeps the default route of the first.
      if (!isKernelError(error, 'EEXIST')) throw error;
    }
  }
  for (const { to, via } of network.routes ?? []) {
    inside.routes.add({ to: IpPrefix.parse(to), via: IpAddress.parse(via), ifindex: index });
  }
  return index;
}
