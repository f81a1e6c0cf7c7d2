import { VoltError } from '#protocol/errors.ts';
import type { Link } from '#native/link.ts';
import type { Route } from '#native/route.ts';
import type { Kernel } from '../kernel.ts';
import type { BridgeDescription } from './description.ts';
import { isMadeByAgent } from '../ownership.ts';

/** The main table; others are somebody's policy, not the way out. */
const MAIN_TABLE = 254;
const DEFAULT_MTU = 1500;

type Uplink = NonNullable<BridgeDescription['uplink']>;

/**
 * Throws where a NIC cannot become a port of a bridge. UNSUPPORTED: it is no Ethernet device, a bridge, or the agent's
 * own, or routes of the host lead out of it, which a port loses (`allowDefaultRoute` takes that into account).
 * DEVICE_BUSY: it is a port of another device.
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
  if (isMadeByAgent(nic)) throw refuse('UNSUPPORTED', "is a workload's");
  if (nic.master !== undefined) {
    if (nic.master === bridge.index) return;
    throw refuse('DEVICE_BUSY', 'is a port of another device already');
  }
  if (allowDefaultRoute) return;
  const used = kernel.routes.list().find((route) => leadsOut(route, nic.index));
  if (used === undefined) return;
  throw refuse(
    'UNSUPPORTED',
    `carries this host's ${nameOf(used)}, which a port of ${bridge.name} loses; ` +
      '"allowDefaultRoute": true says that this is wanted',
  );
}

/** The MTU of the way to other hosts: the least of the devices that default routes lead out of. */
export function wayOutMtu({ routes, links }: Kernel): number {
  const devices = routes
    .list({ table: MAIN_TABLE })
    .filter(isDefault)
    .flatMap((route) => devicesOf(route));
  const mtus = [...new Set(devices)].map((index) => links.get(index)?.mtu);
  return Math.min(...mtus.filter((mtu) => mtu !== undefined), DEFAULT_MTU);
}

/** Beyond its own segment: by default, or by a router there. In every table, since rules may lead to any. */
const leadsOut = (route: Route, index: number): boolean =>
  devicesOf(route).includes(index) &&
  (isDefault(route) || route.via !== undefined || route.nexthops !== undefined);

const isDefault = ({ to }: Route): boolean => to === undefined || to.length === 0;

const devicesOf = ({ ifindex, nexthops = [] }: Route): readonly number[] =>
  ifindex === undefined ? nexthops : [ifindex, ...nexthops];

const nameOf = (route: Route): string =>
  isDefault(route) ? 'default route' : `route to ${route.to?.toString() ?? 'others'}`;
