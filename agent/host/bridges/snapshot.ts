import { IpPrefix } from '#protocol/address.ts';
import type { Link } from '#native/link.ts';
import type { Kernel } from '../kernel.ts';
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
  /** Settings of the host that the description names; those that the kernel does not have are missing. */
  readonly settings?: ReadonlyMap<string, string>;
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
  const settings = new Map<string, string>();
  for (const name of Object.keys(description.hostSettings)) {
    const value = readIfThere(name.split('.'));
    if (value !== undefined) settings.set(name, value);
  }
  if (link === null) return { ...seen, settings };
  const { index: ifindex } = link;
  return {
    ...seen,
    settings,
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
