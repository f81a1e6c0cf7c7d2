import { IpPrefix } from '#protocol/address.ts';
import { isKernelError } from '#native/errors.ts';
import type { Route } from '#native/route.ts';
import type { Kernel } from '../kernel.ts';

/** The routing table of the host's own addresses. */
export const LOCAL_TABLE = 255;
/** Larger than the metric of the kernel's own local routes, so that those come first. */
const LOCAL_METRIC = 10;

const localRoute = (to: string, ifindex: number): Route => ({
  to: IpPrefix.parse(to),
  ifindex,
  local: true,
  table: LOCAL_TABLE,
  metric: LOCAL_METRIC,
});

/** Makes the host accept packets for `to` that come in by a device as its own. */
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
