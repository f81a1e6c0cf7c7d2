import { VoltError } from '#protocol/errors.ts';
import type { Link } from '#native/link.ts';
import type { Route } from '#native/route.ts';
import type { Kernel } from '../kernel.ts';
import type { BridgeDescription } from './description.ts';
import { isMadeByAgent } from '../ownership.ts';

/** The main table. Other tables hold somebody's policy routes, not the host's way out. */
const MAIN_TABLE = 254;
const DEFAULT_MTU = 1500;

/**
 * Kinds of devices that take all frames of the device that they stand on, as a bridge does: the kernel lets one of them
 * have it (rx_handler). VLANs are none of them: they get their frames first, and work on a port.
 */
const TAKING: ReadonlySet<string> = new Set(['macvlan', 'macvtap', 'ipvlan', 'ipvtap', 'macsec']);

type Uplink = NonNullable<BridgeDescription['uplink']>;

/**
 * Throws if a NIC cannot become a port of a bridge. UNSUPPORTED: the NIC is not an Ethernet device, is a bridge, or was
 * made by an agent; or routes of the host lead out of the NIC, and are lost when it becomes a port (`allowDefaultRoute`
 * accepts that). DEVICE_BUSY: the NIC is a port of another device; or a macvlan or the like stands on it, in this
 * namespace or in another that has a number here.
 */
export function refuseAsUplink(
  kernel: Kernel,
  { device, allowDefaultRoute }: Uplink,
  nic: Link,
  bridge: { readonly name: string; readonly index: number | undefined },
): void {
  const details = { path: 'uplink.device', device };
  const refuse = (code: 'UNSUPPORTED' | 'DEVICE_BUSY', reason: string): VoltError =>
    new VoltError(code, `uplink: ${device} ${reason}`, { details });
  if (!nic.ethernet) throw refuse('UNSUPPORTED', 'is no Ethernet device');
  if (nic.kind === 'bridge') throw refuse('UNSUPPORTED', 'is a bridge itself');
  if (isMadeByAgent(nic)) throw refuse('UNSUPPORTED', 'is a device that an agent made');
  if (nic.master !== undefined) {
    if (nic.master === bridge.index) return;
    const other = kernel.links.nameOf(nic.master) ?? 'another device';
    throw refuse('DEVICE_BUSY', `is a port of ${other} already`);
  }
  const above = takingDevice(kernel, nic);
  if (above !== undefined) {
    throw refuse(
      'DEVICE_BUSY',
      `carries ${above.kind} ${above.name}, and cannot be a port before that is gone`,
    );
  }
  if (allowDefaultRoute) return;
  const used = kernel.routes.list().find((route) => leadsOut(route, nic.index));
  if (used === undefined) return;
  throw refuse(
    'UNSUPPORTED',
    `carries this host's ${nameOf(used)}, which is lost when it becomes a port of ${bridge.name}; ` +
      'set "allowDefaultRoute": true if that is wanted',
  );
}

/** A device on a NIC of this namespace that keeps the NIC from becoming a port. */
function takingDevice({ links, namespaceIds }: Kernel, nic: Link): Link | undefined {
  const standsOn = ({ kind = '', linkIndex }: Link): boolean =>
    TAKING.has(kind) && linkIndex === nic.index;
  const here = links.list().find((link) => standsOn(link) && link.linkNamespaceId === undefined);
  if (here !== undefined) return here;
  // There, the NIC is told by the number that this namespace has here, too.
  const isHere = (id: number | undefined): boolean => {
    const same = id === undefined ? null : links.getIn(id, nic.index);
    return same?.name === nic.name && same.mac?.toString() === nic.mac?.toString();
  };
  for (const id of namespaceIds.list()) {
    const there = links.listIn(id).find((link) => standsOn(link) && isHere(link.linkNamespaceId));
    if (there !== undefined) return there;
  }
  return undefined;
}

/** The MTU towards other hosts: the smallest MTU of the devices that carry default routes, and 1500 at most. */
export function wayOutMtu({ routes, links }: Kernel): number {
  const devices = routes
    .list({ table: MAIN_TABLE })
    .filter(isDefault)
    .flatMap((route) => devicesOf(route));
  const mtus = [...new Set(devices)].map((index) => links.get(index)?.mtu);
  return Math.min(...mtus.filter((mtu) => mtu !== undefined), DEFAULT_MTU);
}

/**
 * True for a route that leads beyond the device's own segment: a default route, or a route by a router. Routes of all
 * tables count, since rules may lead to any table.
 */
const leadsOut = (route: Route, index: number): boolean =>
  devicesOf(route).includes(index) &&
  (isDefault(route) || route.via !== undefined || route.nexthops !== undefined);

const isDefault = ({ to }: Route): boolean => to === undefined || to.length === 0;

const devicesOf = ({ ifindex, nexthops = [] }: Route): readonly number[] =>
  ifindex === undefined ? nexthops : [ifindex, ...nexthops];

const nameOf = (route: Route): string =>
  isDefault(route) ? 'default route' : `route to ${route.to?.toString() ?? 'others'}`;
