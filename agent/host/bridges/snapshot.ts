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

/** What is there of one network's objects. What was not looked at is undefined, and nothing is said of it. */
export interface BridgeSnapshot {
  readonly link: Link | null;
  /** The device that the network names as uplink; null where there is none. */
  readonly uplink?: Link | null;
  /** `10.42.0.1/24`, of the bridge. */
  readonly addresses?: readonly string[];
  /** Who has switched on that the host forwards; a family that the kernel does not have is missing. */
  readonly forwarding?: ReadonlyMap<Family, ForwardingSwitch>;
  /** Destinations for which the bridge has a route of type local. */
  readonly localRoutes?: readonly string[];
}

/** What one message, or two where there is an uplink, tell: what an attach looks at. */
export function glance(kernel: Kernel, { bridge, uplink }: BridgeDescription): BridgeSnapshot {
  const { links } = kernel;
  return {
    link: links.get(bridge),
    ...(uplink !== undefined && { uplink: links.get(uplink.device) }),
  };
}

/** All that there is of a network's objects. */
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
