import { hostEndMac, MacAddress } from '#protocol/address.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { createTap, VNET_HDR_SIZE } from '#native/tun.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Kernel } from '../kernel.ts';
import { setIpv6 } from './ipv6.ts';
import { type Device } from './network-type.ts';
import { DEVICE_GROUP } from '../ownership.ts';

export interface TapOrder {
  readonly name: string;
  readonly mtu: number;
  readonly tap: AttachRequest['tap'];
  /** The MAC is the workload's own. */
  readonly lease: Pick<Lease, 'mac'>;
  /** The alias: `deviceTag` of the attachment. */
  readonly tag: string;
  /** The bridge that it becomes a port of; without one it stands alone. */
  readonly port?: BridgePort;
}

/** A place on a bridge. */
export interface BridgePort {
  readonly bridge: string;
  readonly master: number;
  /** Runs when the device exists and is not up yet: no frame of it passes before this has returned. */
  readonly beforeUp: (device: { readonly index: number; readonly name: string }) => void;
}

/** Queues and header of a TAP as the request has them, or the defaults that QEMU and Firecracker expect. */
export const tapShape = (tap: AttachRequest['tap']): { queues: number; vnetHdr: boolean } => ({
  queues: tap?.queues ?? 1,
  vnetHdr: tap?.vnetHdr ?? true,
});

/**
 * Makes a persistent TAP, tagged and up, in the namespace of `kernel`, where the calling thread is. It becomes
 * persistent last: an agent that dies before leaves nothing, since the kernel removes the device with its last
 * descriptor.
 */
export function makeTap(kernel: Kernel, order: TapOrder, undo: DisposableStack): Device {
  const { name, mtu, lease, tag, port } = order;
  const { queues, vnetHdr } = tapShape(order.tap);
  const { ownerUid, ownerGid } = order.tap ?? {};
  using tap = createTap({
    name,
    queues,
    vnetHdr,
    ...(ownerUid !== undefined && { ownerUid }),
    ...(ownerGid !== undefined && { ownerGid }),
  });
  const index = kernel.links.indexOf(name);
  if (index === null) throw new VoltError('INTERNAL', `TAP ${name} vanished while it was made`);
  const link = { index, name };
  const mac = hostEndMac(MacAddress.parse(lease.mac));
  kernel.links.set(link, {
    mac,
    mtu,
    ...(port !== undefined && { master: port.master }),
    group: DEVICE_GROUP,
    alias: tag,
  });
  closeToIpv6(name);
  port?.beforeUp(link);
  kernel.links.set(link, { up: true });
  tap.persist();
  undo.defer(() => kernel.links.delete(link));
  return {
    type: 'tap',
    name,
    ifindex: index,
    mac: mac.toString(),
    mtu,
    ...(port !== undefined && { bridge: port.bridge }),
    queues,
    vnetHdr,
    ...(vnetHdr && { vnetHdrSize: VNET_HDR_SIZE }),
  };
}

/** What `closeToIpv6` sets (`LinkSettings`). */
export const CLOSED_TO_IPV6 = { 'ipv6.disable_ipv6': 1 } as const;

/**
 * To be called before the port is up: keeps the host's own IPv6 off the port. A port on which the host itself talks to
 * the workload is a way in (OSSN-0069), and its multicast memberships make every further attach slower.
 */
export const closeToIpv6 = (name: string): void => setIpv6(name, 'disable_ipv6', '1');
