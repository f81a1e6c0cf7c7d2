import { hostEndMac, MacAddress } from '#protocol/address.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Kernel } from '../kernel.ts';
import { type Device } from './network-type.ts';
import { type BridgePort, closeToIpv6, type StartedDevice } from './tap.ts';
import { configureInterface } from './interface.ts';
import type { Routing } from './interface-routes.ts';
import type { WorkloadNamespace } from './workload.ts';
import { DEVICE_GROUP } from '../ownership.ts';

/** What a pair is made with before anybody knows its lease. */
export interface VethStart {
  readonly name: string;
  /** The name of the workload's end: `eth0` inside its namespace, `veth-…-c` without one. */
  readonly peerName: string;
  readonly mtu: number;
  readonly namespace?: WorkloadNamespace;
  /** The workload's own; the lease may say another one in the end. */
  readonly mac: string;
  /** The index of the bridge that the host's end becomes a port of. */
  readonly master: number;
}

export interface VethOrder extends Omit<VethStart, 'mac' | 'master'> {
  readonly port: BridgePort;
  readonly lease: Pick<Lease, 'mac' | 'addresses'>;
  /** The alias: `deviceTag` of the attachment. */
  readonly tag: string;
  readonly network: Routing;
}

export type VethFinish = Pick<VethOrder, 'lease' | 'tag' | 'port' | 'network'>;

/**
 * Makes a veth pair. The host's end is on the bridge, tagged and up. The workload's end is made inside its namespace
 * under its final name, with addresses and routes, and is up. Without a namespace it stays on the host, down, for the
 * caller to move: a move would remove addresses.
 */
export function makeVeth(kernel: Kernel, order: VethOrder, undo: DisposableStack): Device {
  const { lease, port, ...start } = order;
  using started = startVeth(kernel, { ...start, mac: lease.mac, master: port.master });
  return started.finish(order, undo);
}

/** The first half of `makeVeth`: the pair is there, and down. */
export function startVeth(
  kernel: Kernel,
  { name, peerName, mtu, namespace, mac, master }: VethStart,
): StartedDevice<VethFinish> {
  const peerMac = MacAddress.parse(mac);
  const link = kernel.links.createVeth({
    name,
    mac: hostEndMac(peerMac),
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
  using starting = new DisposableStack();
  starting.defer(() => kernel.links.delete(link));
  closeToIpv6(name);
  // The kernel reports the other end of a pair by its index in its own namespace.
  const peer = { index: link.linkIndex ?? 0, name: peerName };
  if (namespace === undefined) closeToIpv6(peerName);
  const own = starting.move();
  return {
    finish: ({ lease, tag, port, network }, undo) => {
      undo.use(own.move());
      if (lease.mac !== mac) setMacs(kernel, { link, peer, namespace }, lease.mac);
      port.beforeUp(link);
      kernel.links.set(link, { alias: tag, up: true });
      if (namespace !== undefined) configureInterface(peer, { namespace, lease, network }, undo);
      return {
        type: 'veth',
        name,
        ifindex: link.index,
        mac: hostEndMac(MacAddress.parse(lease.mac)).toString(),
        mtu,
        bridge: port.bridge,
        peer: {
          name: peerName,
          ifindex: peer.index,
          mac: MacAddress.parse(lease.mac).toString(),
          ...(namespace !== undefined && { netns: namespace.path }),
        },
      };
    },
    leave: () => {
      own.move();
      return { index: link.index };
    },
    [Symbol.dispose]: () => own.dispose(),
  };
}

interface Pair {
  readonly link: { readonly index: number; readonly name: string };
  readonly peer: { readonly index: number; readonly name: string };
  readonly namespace: WorkloadNamespace | undefined;
}

function setMacs(kernel: Kernel, { link, peer, namespace }: Pair, text: string): void {
  const mac = MacAddress.parse(text);
  kernel.links.set(link, { mac: hostEndMac(mac) });
  (namespace?.kernel ?? kernel).links.set(peer, { mac });
}
