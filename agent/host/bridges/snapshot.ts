import { IpPrefix } from '#protocol/address.ts';
import type { Link } from '#native/link.ts';
import type { Kernel } from '../kernel.ts';
import {
  type Family,
  type ForwardingSwitch,
  forwardingSwitch,
  SWITCHES,
} from '../networks/forwarding.ts';
import { LOCAL_TABLE } from './routes.ts';
import { readIfThere } from './settings.ts';
import type { BridgeDescription } from './description.ts';

/** One network's objects as they are on the host. A field that was not read is undefined, and is not compared. */
export interface BridgeSnapshot {
  readonly link: Link | null;
  /** The device that the network names as uplink; null if there is no such device. */
  readonly uplink?: Link | null;
  /** Name of the device that the uplink is a port of, where that is not this bridge. */
  readonly uplinkMaster?: string;
  /** Addresses of the bridge: `10.42.0.1/24`. */
  readonly addresses?: readonly string[];
  /** Who has switched on the host's forwarding, by family. A family that the kernel does not have is missing. */
  readonly forwarding?: ReadonlyMap<Family, ForwardingSwitch>;
  /** Destinations for which the bridge has a route of type local. */
  readonly localRoutes?: readonly string[];
}

/** Reads the bridge, and the uplink if there is one, with one netlink request each: what an attach needs. */
export function glance(kernel: Kernel, { bridge, uplink }: BridgeDescription): BridgeSnapshot {
  const { links } = kernel;
  const link = links.get(bridge);
  if (uplink === undefined) return { link };
  const nic = links.get(uplink.device);
  const { master } = nic ?? {};
  const other = master === undefined || master === link?.index ? null : links.nameOf(master);
  return { link, uplink: nic, ...(other !== null && { uplinkMaster: other }) };
}

/** Reads all of a network's objects. */
export function look(kernel: Kernel, description: BridgeDescription): BridgeSnapshot {
  const seen = glance(kernel, description);
  const { link } = seen;
  const forwarding = new Map(
    description.forwards
      .filter((family) => readIfThere(SWITCHES[family]) !== undefined)
      .map((family) => [family, forwardingSwitch(family)] as const),
  );
  if (link === null) return { ...seen, forwarding };
  const { index: ifindex } = link;
  return {
    ...seen,
    forwarding,
    addresses: kernel.addresses
      .list({ ifindex })
      .filter((one) => one.ifindex === ifindex)
      .map(({ address }) => address.toString()),
    ...(description.localRoutes.length > 0 && { localRoutes: localRoutesOf(kernel, ifindex) }),
  };
}

const localRoutesOf = ({ routes }: Kernel, ifindex: number): string[] =>
  routes
    .list({ table: LOCAL_TABLE, local: true })
    .filter((route) => route.ifindex === ifindex && route.to !== undefined)
    .map(({ to }) => (to instanceof IpPrefix ? to.toString() : ''));
