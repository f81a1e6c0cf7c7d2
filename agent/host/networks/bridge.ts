import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import type { Link } from '#native/link.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Bridges } from '../bridges/bridges.ts';
import { bridgeMac } from '../bridges/description.ts';
import type { BridgeSnapshot } from '../bridges/snapshot.ts';
import type { Kernel } from '../kernel.ts';
import { refuseSmallMtu } from './ipv6.ts';
import { isBridgeOf } from '../ownership.ts';
import { refuseBridgeMac, refuseHostAddresses } from './taken.ts';

/** The part of a request that concerns the bridge. */
type Asked = Pick<AttachRequest, 'mtu' | 'mac' | 'addresses'>;

export interface NetworkBridgeOptions {
  readonly host: string;
  readonly kernel: Kernel;
  readonly bridges: Bridges;
}

/** The bridge of a network on this host during one attach: first looked at, then made if it is missing. */
export class NetworkBridge {
  readonly #network: Network;
  readonly #options: NetworkBridgeOptions;
  #seen: BridgeSnapshot | undefined;
  #portMtu = 0;

  constructor(network: Network, options: NetworkBridgeOptions) {
    this.#network = network;
    this.#options = options;
  }

  /**
   * Looks at the bridge without changing anything. Throws what `Bridges.look` throws, and INVALID_REQUEST: the MTU of
   * the port would be larger than that of the bridge. MAC_IN_USE, ADDRESS_OUT_OF_RANGE: the host or the gateway has the
   * MAC or an address of the request.
   */
  look({ mtu: askedMtu, mac, addresses = [] }: Asked): void {
    const { bridge, mtu } = this.#network;
    const { kernel, host, bridges } = this.#options;
    const seen = bridges.look(this.#network);
    this.#seen = seen;
    if (mac !== undefined) {
      const toBe = { name: bridge, index: 0, mac: bridgeMac(host, this.#network) };
      refuseBridgeMac(kernel, mac, this.#network, seen.link ?? toBe);
    }
    refuseHostAddresses(kernel, { name: bridge }, addresses, 'addresses');
    const limit = bridges.mtuOf(this.#network, seen);
    this.#portMtu = portMtu(askedMtu ?? Math.min(mtu ?? limit, limit), {
      name: bridge,
      mtu: limit,
    });
    refuseSmallMtu(this.#network, this.#portMtu, askedMtu === undefined ? bridge : undefined);
  }

  /** ADDRESS_OUT_OF_RANGE: the host has an address of the lease on an adopted bridge. */
  refuseOwn({ addresses }: Pick<Lease, 'addresses'>): void {
    const found = this.#seen?.link ?? null;
    const { kernel, bridges } = this.#options;
    if (found === null || isBridgeOf(found, bridges.describe(this.#network))) return;
    refuseHostAddresses(kernel, found, addresses, 'addresses');
  }

  /**
   * Makes the bridge if `look` has not found it. Returns the index of the bridge, and the MTU of the port to be made.
   */
  ensure(): { readonly master: number; readonly mtu: number } {
    if (this.#seen === undefined) throw new Error('the bridge has not been looked at');
    const link = this.#options.bridges.ensure(this.#network, this.#seen);
    return { master: link.index, mtu: this.#portMtu };
  }

  /** To be called after the port is made: a bridge that was there before keeps its MTU. */
  keepMtu(): void {
    const link = this.#seen?.link ?? null;
    if (link !== null) keepMtu(this.#options.kernel, link, this.#portMtu);
  }
}

/** The MTU of a port. INVALID_REQUEST: `asked` is more than the bridge's MTU. */
export function portMtu(asked: number, bridge: Pick<Link, 'name' | 'mtu'>): number {
  if (asked <= bridge.mtu) return asked;
  const message = `mtu: ${asked} is more than the ${bridge.mtu} of bridge ${bridge.name}`;
  throw new VoltError('INVALID_REQUEST', message, { details: { path: 'mtu', limit: bridge.mtu } });
}

/**
 * To be called after a port is made on an existing bridge: restores the MTU that the bridge was found with. An MTU that
 * nobody has set follows the lowest of the ports, so that one workload would lower it for all.
 */
export function keepMtu({ links }: Kernel, bridge: Link, mtu: number): void {
  if (mtu >= bridge.mtu) return;
  const now = links.get(bridge.index);
  if (now !== null && now.mtu !== bridge.mtu) links.set(bridge, { mtu: bridge.mtu });
}
