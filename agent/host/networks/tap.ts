import { hostEndMac, MacAddress } from '#protocol/address.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import { createTap, VNET_HDR_SIZE } from '#native/tun.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Kernel } from '../kernel.ts';
import { setIpv6 } from './ipv6.ts';
import { type Device } from './network-type.ts';
import { DEVICE_GROUP } from '../ownership.ts';

/** What a TAP is made with before anybody knows its lease. */
export interface TapStart {
  readonly name: string;
  readonly mtu: number;
  readonly tap: AttachRequest['tap'];
  /** The workload's own; the lease may say another one in the end. */
  readonly mac: string;
  /** The index of the bridge that it becomes a port of; without one it stands alone. */
  readonly master?: number;
}

export interface TapOrder extends Omit<TapStart, 'mac' | 'master'> {
  /** The MAC is the workload's own. */
  readonly lease: Pick<Lease, 'mac'>;
  /** The alias: `deviceTag` of the attachment. */
  readonly tag: string;
  readonly port?: BridgePort;
}

export type TapFinish = Pick<TapOrder, 'lease' | 'tag' | 'port'>;

/** A device that is made, and is down: nobody may use it yet. Disposed, it is gone unless it was finished. */
export interface StartedDevice<Finish> extends Disposable {
  /** Gives the device what the lease says, and sets it up. */
  readonly finish: (order: Finish, undo: DisposableStack) => Device;
  /** Leaves the device to the caller, who deletes it: disposing deletes it on the main thread, which takes some 20 ms. */
  readonly leave: () => { readonly index: number };
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

/** Makes a persistent TAP, tagged and up, in the namespace of `kernel`, where the calling thread is. */
export function makeTap(kernel: Kernel, order: TapOrder, undo: DisposableStack): Device {
  const { port, lease, ...start } = order;
  using started = startTap(kernel, {
    ...start,
    mac: lease.mac,
    ...(port !== undefined && { master: port.master }),
  });
  return started.finish(order, undo);
}

/**
 * The first half of `makeTap`. The TAP becomes persistent last: an agent that dies before leaves nothing, since the
 * kernel removes the device with its last descriptor.
 */
export function startTap(
  kernel: Kernel,
  { name, mtu, master, tap: asked, mac }: TapStart,
): StartedDevice<TapFinish> {
  const { queues, vnetHdr } = tapShape(asked);
  const { ownerUid, ownerGid } = asked ?? {};
  using starting = new DisposableStack();
  const tap = starting.use(
    createTap({
      name,
      queues,
      vnetHdr,
      ...(ownerUid !== undefined && { ownerUid }),
      ...(ownerGid !== undefined && { ownerGid }),
    }),
  );
  const index = kernel.links.indexOf(name);
  if (index === null) throw new VoltError('INTERNAL', `TAP ${name} vanished while it was made`);
  const link = { index, name };
  kernel.links.set(link, {
    mac: hostEndMac(MacAddress.parse(mac)),
    mtu,
    ...(master !== undefined && { master }),
    group: DEVICE_GROUP,
  });
  closeToIpv6(name);
  const own = starting.move();
  return {
    finish: ({ lease, tag, port }, undo) => {
      const hostMac = hostEndMac(MacAddress.parse(lease.mac));
      if (lease.mac !== mac) kernel.links.set(link, { mac: hostMac });
      port?.beforeUp(link);
      kernel.links.set(link, { alias: tag, up: true });
      tap.persist();
      undo.defer(() => kernel.links.delete(link));
      return {
        type: 'tap',
        name,
        ifindex: index,
        mac: hostMac.toString(),
        mtu,
        ...(port !== undefined && { bridge: port.bridge }),
        queues,
        vnetHdr,
        ...(vnetHdr && { vnetHdrSize: VNET_HDR_SIZE }),
      };
    },
    leave: () => {
      // Its descriptor is closed by whoever disposes of this; without it the device would go at once.
      tap.persist();
      return { index };
    },
    [Symbol.dispose]: () => own.dispose(),
  };
}

/** What `closeToIpv6` sets (`LinkSettings`). */
export const CLOSED_TO_IPV6 = { 'ipv6.disable_ipv6': 1 } as const;

/**
 * To be called before the port is up: keeps the host's own IPv6 off the port. A port on which the host itself talks to
 * the workload is a way in (OSSN-0069), and its multicast memberships make every further attach slower.
 */
export const closeToIpv6 = (name: string): void => setIpv6(name, 'disable_ipv6', '1');
