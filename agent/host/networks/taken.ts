import { IpAddress, MacAddress } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { Link } from '#native/link.ts';
import type { Kernel } from '../kernel.ts';
import { isMadeByAgent } from '../ownership.ts';

// What a request names and somebody has whom the ledger does not know: this host, or the gateway.

type Taker = Pick<Link, 'name' | 'index' | 'mac'>;

/**
 * MAC_IN_USE for the MAC of the bridge or of one of its ports, for that of a workload of another network there, and for
 * the gateway's as far as this host knows it. A MAC that nobody asked for is drawn, and nobody's.
 */
export function refuseBridgeMac(
  kernel: Kernel,
  text: string,
  network: Network,
  bridge: Taker,
): void {
  const mac = MacAddress.parse(text);
  if (bridge.mac?.equals(mac) === true) throw macInUse(mac, bridge.name);
  refuseForwarded(kernel, mac, { bridge: bridge.index });
  refuseGatewayMac(kernel, text, network, bridge);
}

/** MAC_IN_USE for the MAC that the gateway has beyond a device, where this host has asked for it. */
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
 * MAC_IN_USE where a bridge leads a MAC somewhere for good: to the host, or to another port than `own`. Ports of ours have
 * no MAC that a workload could have, unless their holder has just given it to them: that does not count.
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

/** ADDRESS_OUT_OF_RANGE for what the host has on a device; `path` is the key that names the addresses. */
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
