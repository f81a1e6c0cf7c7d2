import { existsSync } from 'node:fs';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import { readSysctl, writeSysctl } from '#native/sysctl.ts';

// IPv6 may be missing: a kernel that was started with `ipv6.disable=1` has none, a device with an MTU below 1280 has
// none, and `disable_ipv6` switches it off on a device.

/** RFC 8200: the smallest MTU of a link with IPv6. The kernel takes IPv6 off a device with a smaller MTU. */
const LEAST_MTU = 1280;

/** UNSUPPORTED: the network has IPv6, and this host has none. */
export function refuseWithoutIpv6({ network, ipv6 }: Pick<Network, 'network' | 'ipv6'>): void {
  if (ipv6 === undefined || hasIpv6()) return;
  const message = `network ${network} has IPv6, which is switched off on this host (ipv6.disable=1)`;
  throw new VoltError('UNSUPPORTED', message, { details: { path: 'network.ipv6' } });
}

/** INVALID_REQUEST: the network has IPv6, and `mtu` is too small for it. `of` names the device whose MTU it is. */
export function refuseSmallMtu(
  { network, ipv6 }: Pick<Network, 'network' | 'ipv6'>,
  mtu: number,
  of: string | undefined,
): void {
  if (ipv6 === undefined || mtu >= LEAST_MTU) return;
  const which = of === undefined ? `mtu: ${mtu}` : `mtu: ${of} has ${mtu}, which`;
  const message = `${which} is too small for the IPv6 of network ${network}, which needs ${LEAST_MTU}`;
  throw new VoltError('INVALID_REQUEST', message, { details: { path: 'mtu', least: LEAST_MTU } });
}

/** Lets a device of ours have IPv6 addresses, whatever the default for new devices is. False if it can have none. */
export function openToIpv6(name: string): boolean {
  const path = ['net', 'ipv6', 'conf', name, 'disable_ipv6'];
  try {
    if (readSysctl(path) !== '0') writeSysctl(path, '0');
    return true;
  } catch (error) {
    if (isKernelError(error, 'ENOENT')) return false;
    throw error;
  }
}

/** Writes an IPv6 setting of a device. A device without IPv6 does not need it: success. */
export function setIpv6(name: string, setting: string, value: string): void {
  try {
    writeSysctl(['net', 'ipv6', 'conf', name, setting], value);
  } catch (error) {
    if (!isKernelError(error, 'ENOENT')) throw error;
  }
}

const hasIpv6 = (): boolean => existsSync('/proc/sys/net/ipv6/conf');
