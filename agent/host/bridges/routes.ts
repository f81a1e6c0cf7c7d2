import { IpPrefix } from '#protocol/address.ts';
import { isKernelError } from '#native/errors.ts';
import type { Route } from '#native/route.ts';
import type { Kernel } from '../kernel.ts';

/** The routing table of the host's own addresses. */
export const LOCAL_TABLE = 255;
/** After the kernel's own. */
const LOCAL_METRIC = 10;

const localRoute = (to: string, ifindex: number): Route => ({
  to: IpPrefix.parse(to),
  ifindex,
  local: true,
  table: LOCAL_TABLE,
  metric: LOCAL_METRIC,
});

/** Lets what comes in by a device for `to` be for this host. */
export function addLocalRoute({ routes }: Kernel, to: string, ifindex: number): void {
  try {
    routes.add(localRoute(to, ifindex));
  } catch (error) {
    if (!isKernelError(error, 'EEXIST')) throw error;
  }
}

export function removeLocalRoute({ routes }: Kernel, to: string, ifindex: number): void {
  try {
    routes.remove(localRoute(to, ifindex));
  } catch (error) {
    if (!isKernelError(error, 'ESRCH', 'ENODEV')) throw error;
  }
}
