import { InterfaceAddress, IpPrefix } from '#protocol/address.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import type { LetGo } from '#ipam-store/ledger.ts';
import type { Kernel } from '../kernel.ts';
import { DEVICE_GROUP } from './network-type.ts';

const TAG = 'volt:bridge:';

/** What the alias of a bridge that an agent made says: its network, and the gateways that it may have got of it. */
export interface BridgeTag {
  readonly network: string;
  readonly gateways: readonly string[];
}

/** Undefined for the alias of anything else. */
export function bridgeTagOf({
  alias,
  group,
}: Pick<Link, 'alias' | 'group'>): BridgeTag | undefined {
  if (group !== DEVICE_GROUP || alias?.startsWith(TAG) !== true) return undefined;
  const [network = '', ...gateways] = alias.slice(TAG.length).split(' ');
  return { network, gateways };
}

/** The addresses that a bridge of ours has on this host. */
export function gatewayAddresses(network: Network): InterfaceAddress[] {
  const families = [network, network.ipv6];
  return families.flatMap((family) => {
    if (family?.gateway === undefined || family.subnet === undefined) return [];
    return [InterfaceAddress.parse(`${family.gateway}/${IpPrefix.parse(family.subnet).length}`)];
  });
}

/**
 * Gives a bridge of ours the gateways of its network. The alias says so before, so that whoever comes next takes them
 * away again when they are the network's no more, whatever has been forgotten of it by then.
 */
export function giveGateways(kernel: Kernel, link: Link, network: Network): void {
  const wanted = gatewayAddresses(network);
  const tag = bridgeTagOf(link);
  const had = tag?.network === network.network ? tag.gateways : [];
  setTag(kernel, link, network.network, [...had, ...wanted.map(String)]);
  for (const address of wanted) {
    try {
      kernel.addresses.add({ ifindex: link.index, address, noDad: true });
    } catch (error) {
      if (!isKernelError(error, 'EEXIST')) throw error;
    }
  }
}

/** The networks of whose bridges this host has one. */
export const bridgedNetworks = (kernel: Kernel): string[] => [
  ...new Set(kernel.links.bridges().flatMap((link) => bridgeTagOf(link)?.network ?? [])),
];

/**
 * Gives the bridges that this agent has made the gateways that their networks say, and takes away the others that it has
 * given them, and those that hosts have to let go of. A bridge that no network has any more keeps no gateway. Of `unknown`
 * networks, of which there are attachments and no definition, only what hosts have to let go of is taken away.
 */
export function reviseBridges(
  kernel: Kernel,
  networks: ReadonlyMap<string, Network>,
  letGo: readonly LetGo[],
  unknown: ReadonlySet<string>,
): void {
  for (const link of kernel.links.bridges()) {
    const tag = bridgeTagOf(link);
    if (tag === undefined) continue;
    const network = networks.get(tag.network);
    const left = letGo.filter((one) => one.network === tag.network).map(({ address }) => address);
    const kept = hasBridge(network, link.name)
      ? gatewayAddresses(network).map(String)
      : tag.gateways.filter((one) => unknown.has(tag.network) && !left.includes(bare(one)));
    const given = [...tag.gateways, ...(network === undefined ? [] : gatewayAddresses(network))];
    const unwanted = new Set([...given.map(String), ...left].filter((one) => !kept.includes(one)));
    for (const { ifindex, address } of kernel.addresses.list({ ifindex: link.index })) {
      const text = address.toString();
      if (ifindex !== link.index || kept.includes(text)) continue;
      if (unwanted.has(text) || unwanted.has(bare(text))) removeAddress(kernel, ifindex, address);
    }
    if (hasBridge(network, link.name)) revise(kernel, link, network);
    setTag(kernel, kernel.links.get(link.index) ?? link, tag.network, kept);
  }
}

function revise(kernel: Kernel, link: Link, network: Network): void {
  giveGateways(kernel, link, network);
  const { mtu = link.mtu } = network;
  if (mtu !== link.mtu) kernel.links.set(link, { mtu });
}

const hasBridge = (network: Network | undefined, name: string): network is Network =>
  network !== undefined &&
  (network.type === 'bridged' || network.type === 'host-only') &&
  network.bridge === name;

const bare = (address: string): string => address.replace(/\/.*/, '');

function setTag({ links }: Kernel, link: Link, network: string, gateways: readonly string[]): void {
  const alias = [`${TAG}${network}`, ...new Set(gateways)].join(' ');
  if (alias !== link.alias) links.set(link, { alias });
}

function removeAddress(kernel: Kernel, ifindex: number, address: InterfaceAddress): void {
  try {
    kernel.addresses.remove({ ifindex, address });
  } catch (error) {
    if (!isKernelError(error, 'EADDRNOTAVAIL')) throw error;
  }
}
