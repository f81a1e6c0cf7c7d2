import { MacAddress } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { ForwardingEntry } from '#native/neighbour.ts';
import type { Kernel } from '../kernel.ts';
import type { DescribedPort } from '../description.ts';
import { FILTERED_GROUPS } from '../firewall/port-filter.ts';
import { refuseForwarded } from './taken.ts';

/** The settings of a bridge port that the kernel has just made. */
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

/** What a port is for. */
export interface PortUse {
  readonly network: Pick<Network, 'filter' | 'portIsolation'>;
  readonly hairpin: boolean;
}

/**
 * The settings in which an attachment's port differs from a new one. A port under the filter has a single MAC behind
 * it. The agent tells the bridge that MAC, and the bridge learns nothing from the port.
 */
const ownSettings = ({ network: { filter, portIsolation }, hairpin }: PortUse): PortSettings => ({
  ...(filter && { IFLA_BRPORT_GROUP_FWD_MASK: FILTERED_GROUPS, IFLA_BRPORT_LEARNING: 0 }),
  ...(hairpin && { IFLA_BRPORT_MODE: 1 }),
  ...(portIsolation === true && { IFLA_BRPORT_ISOLATED: 1 }),
});

/** All settings of the port of an attachment. */
export const portSettings = (use: PortUse): PortSettings => ({ ...FRESH, ...ownSettings(use) });

/** Sets up a port that was just made. MAC_IN_USE: the bridge itself, another port, or a workload there has the MAC. */
export function setNewPort(
  kernel: Kernel,
  port: Port & { readonly master: number },
  use: PortUse & { /** The workload's. */ readonly mac: string },
): void {
  const { links, neighbours } = kernel;
  const settings = ownSettings(use);
  const entry = forwardingTo(port, use.mac);
  try {
    kernel.batch([
      ...(Object.keys(settings).length > 0 ? [links.bridgePortChange(port, settings)] : []),
      ...(use.network.filter ? [neighbours.forwardingAddition(entry)] : []),
    ]);
  } catch (error) {
    if (!isKernelError(error, 'EEXIST')) throw error;
    refuseForwarded(kernel, entry.mac, { bridge: port.master });
    // The bridge has learned the MAC where the workload was before.
    neighbours.replaceForwarding(entry);
  }
}

/** Repairs a port, whatever was done to it. MAC_IN_USE as for `setNewPort`. */
export function mendPort(
  kernel: Kernel,
  port: Port,
  { settings = {}, fixed, mac }: DescribedPort,
): void {
  // Comes first, so that frames that the bridge has delivered by a learned entry are not flooded.
  if (fixed === true) putForwarding(kernel, port, mac);
  const found = kernel.links.get(port.index)?.bridgePort ?? {};
  const differing = portDifferences(found, settings);
  if (differing.length > 0) {
    const changed = differing.map(({ key, expected }) => [key, expected]);
    kernel.links.setBridgePort(port, Object.fromEntries(changed));
  }
  if (fixed === false) removeForwarding(kernel, port, mac);
}

/** Removes the fixed entry of a port that is not under the filter any more: the bridge learns what is behind it. */
function removeForwarding({ links, neighbours }: Kernel, port: Port, mac: string): void {
  const entry = forwardingTo(port, mac);
  const master = links.get(port.index)?.master;
  const found = master === undefined ? null : neighbours.findForwarding({ master, mac: entry.mac });
  if (found?.fixed === true && found.ifindex === port.index) neighbours.removeForwarding(entry);
}

/**
 * Makes the bridge forward frames for a workload's MAC to its port, whatever entry the bridge has for that MAC. The
 * bridge makes an entry of its own for the MAC of each port, in place of any other entry, and the holder of a TAP may
 * give it the MAC of a neighbour. MAC_IN_USE: the bridge itself, a port that is not ours, or another workload has the
 * MAC.
 */
export function putForwarding(kernel: Kernel, port: Pick<Port, 'index'>, mac: string): void {
  const entry = forwardingTo(port, mac);
  const bridge = kernel.links.get(port.index)?.master;
  if (bridge !== undefined) refuseForwarded(kernel, entry.mac, { bridge, own: port.index });
  kernel.neighbours.replaceForwarding(entry);
}

const forwardingTo = ({ index }: Pick<Port, 'index'>, mac: string): ForwardingEntry => ({
  ifindex: index,
  mac: MacAddress.parse(mac),
  fixed: true,
});

/**
 * The differences between a port and what it should be. A setting that the kernel does not report is one that it does
 * not have: no difference.
 */
export function portDifferences(
  found: PortSettings,
  wanted: PortSettings,
): { key: string; expected: number; observed: number }[] {
  const settings: Readonly<Record<string, number | undefined>> = found;
  return Object.entries(wanted).flatMap(([key, expected = 0]) => {
    const observed = settings[key];
    return observed === undefined || observed === expected ? [] : [{ key, expected, observed }];
  });
}
