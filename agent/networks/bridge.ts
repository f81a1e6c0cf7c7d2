import { deriveMac, InterfaceAddress, IpPrefix, type MacAddress } from '#protocol/address.ts';
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
 * The bridge of a network on this host, from looking to having it. It is adopted when it is foreign
 * (systemd-networkd may own it), and made when it is not there: fixed MAC, so that it does not follow its
 * lowest port; the gateway's address; up.
 */
export class NetworkBridge {
  readonly #kernel: Kernel;
  readonly #network: Network;
  readonly #options: { readonly host: string; readonly log: Log };
  #found: Link | null = null;
  #portMtu = 0;

  constructor(kernel: Kernel, network: Network, options: { host: string; log: Log }) {
    this.#kernel = kernel;
    this.#network = network;
    this.#options = options;
  }

  /**
   * Looks without touching. INTERFACE_EXISTS: a device of that name is no bridge. INVALID_REQUEST: the port is to
   * have a larger MTU than the bridge.
   */
  look(askedMtu: number | undefined): void {
    const { bridge, mtu } = this.#network;
    this.#found = this.#kernel.links.get(bridge);
    if (this.#found !== null) refuseOtherKind(this.#found, this.#network);
    const limit = this.#found?.mtu ?? mtu ?? DEFAULT_MTU;
    this.#portMtu = askedMtu ?? mtu ?? limit;
    if (this.#portMtu <= limit) return;
    throw new VoltError(
      'INVALID_REQUEST',
      `mtu: ${this.#portMtu} is more than the ${limit} of bridge ${bridge}`,
      { details: { path: 'mtu', limit } },
    );
  }

  /** Makes what `look` has not found; answers the bridge's index, and the MTU of the port to be made. */
  ensure(): { readonly master: number; readonly mtu: number } {
    const link = this.#found ?? this.#make();
    const mac = bridgeMac(this.#options.host, this.#network);
    // The tag comes last: a bridge of ours without it is one whose making was interrupted.
    const interrupted = link.group === DEVICE_GROUP && link.mac?.equals(mac) === true;
    if (interrupted && link.alias === undefined) this.#complete(link);
    return { master: link.index, mtu: this.#portMtu };
  }

  /**
   * After the port is made. An adopted bridge keeps the MTU that it had: one that nobody has set follows its
   * lowest port, and would carry less for everybody because of one workload.
   */
  keepMtu(): void {
    const found = this.#found;
    if (found === null || this.#portMtu >= found.mtu) return;
    const now = this.#kernel.links.get(found.index);
    if (now !== null && now.mtu !== found.mtu) {
      this.#kernel.links.set(found, { mtu: found.mtu });
    }
  }

  #make(): Link {
    const { host, log } = this.#options;
    const { bridge: name, network } = this.#network;
    const mac = bridgeMac(host, this.#network);
    try {
      const made = this.#kernel.links.createBridge({ name, mac, group: DEVICE_GROUP });
      log.info({ bridge: name, network }, 'bridge made');
      return made;
    } catch (error) {
      // Somebody, networkd for one, made it between the look and the making.
      const link = isKernelError(error, 'EEXIST') ? this.#kernel.links.get(name) : null;
      if (link === null) throw error;
      refuseOtherKind(link, this.#network);
      return link;
    }
  }

  #complete(link: Link): void {
    const { links, addresses } = this.#kernel;
    pinMtu(this.#kernel, link, this.#network.mtu ?? DEFAULT_MTU);
    for (const address of gatewayAddresses(this.#network)) {
      try {
        addresses.add({ ifindex: link.index, address, noDad: true });
      } catch (error) {
        if (!isKernelError(error, 'EEXIST')) throw error;
      }
    }
    links.set(link, { up: true });
    links.set(link, { alias: bridgeTag(this.#network.network) });
  }
}

const bridgeMac = (host: string, { bridge }: Network): MacAddress =>
  deriveMac(`bridge ${host} ${bridge}`);

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
