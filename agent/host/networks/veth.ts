import { hostEndMac, MacAddress } from '#protocol/address.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Kernel } from '../kernel.ts';
import { type Device } from './network-type.ts';
import { type BridgePort, closeToIpv6 } from './tap.ts';
import { configureInterface } from './interface.ts';
import type { Routing } from './interface-routes.ts';
import type { WorkloadNamespace } from './workload.ts';
import { DEVICE_GROUP } from '../ownership.ts';

export interface VethOrder {
  readonly name: string;
  /** The name of the workload's end: `eth0` inside its namespace, `veth-…-c` without one. */
  readonly peerName: string;
  readonly mtu: number;
  readonly namespace?: WorkloadNamespace;
  readonly port: BridgePort;
  readonly lease: Pick<Lease, 'mac' | 'addresses'>;
  /** The alias: `deviceTag` of the attachment. */
  readonly tag: string;
  readonly network: Routing;
}

/**
 * Makes a veth pair. The host's end is on the bridge, tagged and up. The workload's end is made inside its namespace
 * under its final name, with addresses and routes, and is up. Without a namespace it stays on the host, down, for the
 * caller to move: a move would remove addresses.
 */
export function makeVeth(kernel: Kernel, order: VethOrder, undo: DisposableStack): Device {
  const { name, peerName, mtu, namespace, port, lease, tag, network } = order;
  const peerMac = MacAddress.parse(lease.mac);
  const mac = hostEndMac(peerMac);
  const link = kernel.links.createVeth({
    name,
    mac,
    mtu,
    group: DEVICE_GROUP,
    master: port.master,
    peer: {
      name: peerName,
      mac: peerMac,
      mtu,
      ...(namespace !== undefined && { namespace: namespace.handle }),
    },
  });
  undo.defer(() => kernel.links.delete(link));
  closeToIpv6(name);
  port.beforeUp(link);
  kernel.links.set(link, { alias: tag, up: true });
  // The kernel reports the other end of a pair by its index in its own namespace.
  const peer = { index: link.linkIndex ?? 0, name: peerName };
  if (namespace === undefined) closeToIpv6(peerName);
  else configureInterface(peer, { namespace, lease, network }, undo);
  return {
    type: 'veth',
    name,
    ifindex: link.index,
    mac: mac.toString(),
    mtu,
    bridge: port.bridge,
    peer: {
      name: peerName,
      ifindex: peer.index,
      mac: peerMac.toString(),
      ...(namespace !== undefined && { netns: namespace.path }),
    },
  };
}
