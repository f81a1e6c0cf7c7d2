import { IpAddress, MacAddress } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { Link } from '#native/link.ts';
import type { Kernel } from '../kernel.ts';
import { isMadeByAgent } from '../ownership.ts';

// Refuses MACs and addresses of a request that this host or the gateway has: the ledger does not know these.

type Taker = Pick<Link, 'name' | 'index' | 'mac'>;

/**
 * MAC_IN_USE: the bridge, one of its ports, a workload of another network on the bridge or, as far as this host knows,
 * the gateway has the MAC. Only for a MAC that a request asks for: other MACs are drawn at random, and nobody has them.
 */
export function refuseBridgeMac(
  kernel: Kernel,
  text: string,
  network: Network,
  bridge: Taker,
): void {
  const mac = MacAddress.parse(text);
  if (bridge.mac?.equals(mac) === true) throw macInUse(mac, bridge.name);
  // A bridge that is still to be made has no index, and no entries.
  if (bridge.index !== 0) refuseForwarded(kernel, mac, { bridge: bridge.index });
  refuseGatewayMac(kernel, text, network, bridge);
}

/** MAC_IN_USE: the gateway behind a device has the MAC. This host knows that only if it has asked for the gateway. */
export function refuseGatewayMac(
  { neighbours }: Kernel,
  text: string,
  network: Network,
  { index }: Taker,
): void {
  const mac = MacAddress.parse(text);
  const gateways = new Set([network.gateway, network.ipv6?.gateway]);
  const gateway = neighbours
    .list()
    .filter(({ ifindex }) => ifindex === index)
    .find((one) => one.mac?.equals(mac) && gateways.has(one.address.toString()));
  if (gateway !== undefined) throw macInUse(mac, `the gateway ${gateway.address.toString()}`);
}

/**
 * MAC_IN_USE: the bridge has a permanent entry for the MAC, to the host or to another port than `own`. No workload can
 * have the MAC that a port of ours gets from the agent. If a port of ours has the MAC all the same, its holder has just
 * given it to the port: that does not count.
 */
export function refuseForwarded(
  kernel: Kernel,
  mac: MacAddress,
  { bridge, own }: { readonly bridge: number; readonly own?: number },
): void {
  const { links, neighbours } = kernel;
  const found = neighbours.findForwarding({ master: bridge, mac });
  if (found === null || found.ifindex === own) return;
  if (found.local !== true && found.fixed !== true) return;
  const holder = links.get(found.ifindex);
  const given = found.local === true && holder?.master === bridge && isMadeByAgent(holder);
  if (!given) throw macInUse(mac, holder?.name ?? 'another port');
}

export const macInUse = (mac: MacAddress, holder: string): VoltError =>
  new VoltError('MAC_IN_USE', `mac: ${holder} has ${mac.toString()} on this host`, {
    details: { path: 'mac', mac: mac.toString(), holder },
  });

/**
 * ADDRESS_OUT_OF_RANGE: the host has one of the addresses on the device. `path` is the key that names the addresses.
 */
export function refuseHostAddresses(
  { links, addresses }: Kernel,
  { name }: Pick<Link, 'name'>,
  asked: readonly string[],
  path: string,
): void {
  const ifindex = asked.length === 0 ? null : links.indexOf(name);
  if (ifindex === null) return;
  const held = addresses.list({ ifindex }).filter((one) => one.ifindex === ifindex);
  for (const [place, text] of asked.entries()) {
    const address = IpAddress.parse(text.split('/')[0] ?? text);
    if (!held.some((one) => one.address.address.equals(address))) continue;
    const message = `${path}.${place}: this host itself has ${address.toString()}, on ${name}`;
    throw new VoltError('ADDRESS_OUT_OF_RANGE', message, {
      details: { path: `${path}.${place}`, address: address.toString(), device: name },
    });
  }
}
