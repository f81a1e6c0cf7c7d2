import { deriveMac, InterfaceAddress, IpPrefix } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import type { Kernel } from '../kernel.ts';
import type { Log } from '../log.ts';
import { DEVICE_GROUP } from './network.ts';

const DEFAULT_MTU = 1500;

const bridgeTag = (network: string): string => `volt:bridge:${network}`;

/**
 * Looks without touching: the device that is the network's bridge on this host, null when it has to be made.
 * A device of that name that is no bridge is INTERFACE_EXISTS.
 */
export function findBridge(kernel: Kernel, network: Network): Link | null {
  const link = kernel.links.get(network.bridge);
  if (link !== null) refuseOtherKind(link, network);
  return link;
}

/** The MTU that the network's bridge has, or would get. */
export const bridgeMtu = (found: Link | null, network: Network): number =>
  found?.mtu ?? network.mtu ?? DEFAULT_MTU;

/**
 * Index of the network's bridge, as `findBridge` found it: adopted when it is foreign (systemd-networkd may own
 * it), made when it is not there: fixed MAC, so that it does not follow its lowest port; the gateway's address; up.
 * The tag comes last, so that a bridge of ours without it is one whose making was interrupted, and is
 * completed.
 */
export function ensureBridge(
  kernel: Kernel,
  network: Network,
  { found, host, log }: { found: Link | null; host: string; log: Log },
): number {
  const name = network.bridge;
  const mac = deriveMac(`bridge ${host} ${name}`);
  let link = found;
  if (link === null) {
    try {
      link = kernel.links.createBridge({ name, mac, group: DEVICE_GROUP });
      log.info({ bridge: name, network: network.network }, 'bridge made');
    } catch (error) {
      // Somebody, networkd for one, made it between the look and the making.
      if (!isKernelError(error, 'EEXIST')) throw error;
      link = kernel.links.get(name);
      if (link === null) throw error;
    }
  }
  refuseOtherKind(link, network);
  const { index } = link;
  const tag = bridgeTag(network.network);
  if (link.alias === tag) return index;
  const interrupted = link.group === DEVICE_GROUP && link.mac?.equals(mac) === true;
  if (!interrupted || link.alias !== undefined) return index;
  pinMtu(kernel, link, network.mtu ?? DEFAULT_MTU);
  for (const address of gatewayAddresses(network)) {
    try {
      kernel.addresses.add({ ifindex: index, address, noDad: true });
    } catch (error) {
      if (!isKernelError(error, 'EEXIST')) throw error;
    }
  }
  kernel.links.set(link, { up: true });
  kernel.links.set(link, { alias: tag });
  return index;
}

/**
 * An adopted bridge keeps the MTU that it had: one that nobody has set follows its lowest port, and would carry
 * less for everybody because of one workload.
 */
export function keepMtu(kernel: Kernel, found: Link | null, portMtu: number): void {
  if (found === null || portMtu >= found.mtu) return;
  const now = kernel.links.get(found.index);
  if (now !== null && now.mtu !== found.mtu) kernel.links.set(found, { mtu: found.mtu });
}

// A bridge's MTU follows its lowest port until somebody has set it to another value than it had
// (BROPT_MTU_SET_BY_USER); a value given at creation does not count.
function pinMtu(kernel: Kernel, link: Link, mtu: number): void {
  kernel.links.set(link, { mtu: mtu - 1 });
  kernel.links.set(link, { mtu });
}

function gatewayAddresses(network: Network): InterfaceAddress[] {
  const families = [network, network.ipv6];
  return families.flatMap((family) => {
    if (family?.gateway === undefined || family.subnet === undefined) return [];
    return [InterfaceAddress.parse(`${family.gateway}/${IpPrefix.parse(family.subnet).length}`)];
  });
}

function refuseOtherKind(link: Link, network: Network): void {
  if (link.kind === 'bridge') return;
  throw new VoltError(
    'INTERFACE_EXISTS',
    `network ${network.network} wants bridge ${link.name}, which is a ${link.kind ?? 'device'}`,
    { details: { name: link.name, kind: link.kind ?? null } },
  );
}
