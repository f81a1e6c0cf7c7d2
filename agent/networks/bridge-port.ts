import type { Network } from '#protocol/network.ts';
import type { Kernel } from '../kernel.ts';
import { FILTERED_GROUPS } from '../firewall/port-filter.ts';

/** A port of a bridge as the kernel makes it. */
const FRESH = {
  IFLA_BRPORT_MODE: 0,
  IFLA_BRPORT_GUARD: 0,
  IFLA_BRPORT_PROTECT: 0,
  IFLA_BRPORT_FAST_LEAVE: 0,
  IFLA_BRPORT_LEARNING: 1,
  IFLA_BRPORT_UNICAST_FLOOD: 1,
  IFLA_BRPORT_PROXYARP: 0,
  IFLA_BRPORT_MCAST_FLOOD: 1,
  IFLA_BRPORT_BCAST_FLOOD: 1,
  IFLA_BRPORT_GROUP_FWD_MASK: 0,
  IFLA_BRPORT_NEIGH_SUPPRESS: 0,
  IFLA_BRPORT_ISOLATED: 0,
  IFLA_BRPORT_LOCKED: 0,
} as const;

export type PortSettings = { readonly [Key in keyof typeof FRESH]?: number | undefined };

interface Port {
  readonly index: number;
  readonly name: string;
}

/** What differs between the port of an attachment and one that the kernel has just made. */
const ownSettings = (
  { filter, portIsolation }: Pick<Network, 'filter' | 'portIsolation'>,
  hairpin: boolean,
): PortSettings => ({
  ...(filter && { IFLA_BRPORT_GROUP_FWD_MASK: FILTERED_GROUPS }),
  ...(hairpin && { IFLA_BRPORT_MODE: 1 }),
  ...(portIsolation === true && { IFLA_BRPORT_ISOLATED: 1 }),
});

/** Of a port that was just made. */
export function setNewPort(kernel: Kernel, port: Port, network: Network, hairpin: boolean): void {
  const settings = ownSettings(network, hairpin);
  if (Object.keys(settings).length > 0) kernel.links.setBridgePort(port, settings);
}

/** Of one that is there, whatever was done to it. */
export function mendPort(kernel: Kernel, port: Port, network: Network, hairpin: boolean): void {
  const found = kernel.links.get(port.index)?.bridgePort ?? {};
  const differing = portDifferences(found, network, hairpin);
  if (differing.length === 0) return;
  const settings = differing.map(({ key, expected }) => [key, expected]);
  kernel.links.setBridgePort(port, Object.fromEntries(settings));
}

/** How a port differs from what it has to be; what the kernel does not tell of it, it does not have. */
export function portDifferences(
  found: PortSettings,
  network: Pick<Network, 'filter' | 'portIsolation'>,
  hairpin: boolean,
): { key: string; expected: number; observed: number }[] {
  const settings: Readonly<Record<string, number | undefined>> = found;
  return Object.entries({ ...FRESH, ...ownSettings(network, hairpin) }).flatMap(
    ([key, expected = 0]) => {
      const observed = settings[key];
      return observed === undefined || observed === expected ? [] : [{ key, expected, observed }];
    },
  );
}
