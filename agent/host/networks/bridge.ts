import { deriveMac, type MacAddress } from '#protocol/address.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { arrivalFacts, guardFacts, hostLocalFacts, trustedFacts } from '../firewall/port-filter.ts';
import type { Fact } from '../firewall/ruleset.ts';
import type { Kernel } from '../kernel.ts';
import type { Log } from '../../log.ts';
import { bridgeTagOf, gatewayAddresses, giveGateways } from './gateways.ts';
import { DEVICE_GROUP } from './network-type.ts';
import { refuseBridgeMac, refuseHostAddresses } from './taken.ts';

const DEFAULT_MTU = 1500;
/** The main table; others are somebody's policy, not the way out. */
const MAIN_TABLE = 254;

/** What of a request concerns the bridge. */
type Asked = Pick<AttachRequest, 'mtu' | 'mac' | 'addresses'>;

export interface NetworkBridgeOptions {
  readonly host: string;
  readonly kernel: Kernel;
  readonly firewall: Firewall;
  readonly log: Log;
  /** What else is to hold in the firewall for a bridge of this network. */
  readonly facts: (network: Network) => readonly Fact[];
}

/**
 * The bridge of a network on this host, from looking to having it. It is adopted when it is foreign
 * (systemd-networkd may own it), and made when it is not there: fixed MAC, so that it does not follow its
 * lowest port; the gateway's address; up. An `uplink` becomes a port of it.
 */
export class NetworkBridge {
  readonly #network: Network;
  readonly #options: NetworkBridgeOptions;
  #found: Link | null = null;
  #uplink: Link | undefined;
  #portMtu = 0;

  constructor(network: Network, options: NetworkBridgeOptions) {
    this.#network = network;
    this.#options = options;
  }

  /**
   * Looks without touching. INTERFACE_EXISTS: a device of that name is no bridge. INVALID_REQUEST: the port is to
   * have a larger MTU than the bridge. MAC_IN_USE, ADDRESS_OUT_OF_RANGE: it is to have what is the host's or the
   * gateway's. PARENT_NOT_FOUND, DEVICE_BUSY, UNSUPPORTED: the uplink is not there, a port
   * of another bridge, or carries the host's default route.
   */
  look({ mtu: askedMtu, mac, addresses = [] }: Asked): void {
    const { bridge, mtu } = this.#network;
    const { kernel, host } = this.#options;
    this.#found = kernel.links.get(bridge);
    if (this.#found !== null) refuseOtherKind(this.#found, this.#network);
    if (mac !== undefined) {
      const toBe = { name: bridge, index: 0, mac: bridgeMac(host, this.#network) };
      refuseBridgeMac(kernel, mac, this.#network, this.#found ?? toBe);
    }
    refuseHostAddresses(kernel, { name: bridge }, addresses, 'addresses');
    this.#uplink = this.#lookForUplink();
    const limit = this.#found?.mtu ?? mtu ?? this.#wayOutMtu();
    this.#portMtu = portMtu(askedMtu ?? Math.min(mtu ?? limit, limit), {
      name: bridge,
      mtu: limit,
    });
  }

  /** ADDRESS_OUT_OF_RANGE: the lease's address is one of the host's on a bridge whose addresses are not ours. */
  refuseOwn({ addresses }: Pick<Lease, 'addresses'>): void {
    const found = this.#found;
    const { kernel, host } = this.#options;
    if (found === null || isOurs(found, host, this.#network)) return;
    refuseHostAddresses(kernel, found, addresses, 'addresses');
  }

  /** Makes what `look` has not found; answers the bridge's index, and the MTU of the port to be made. */
  ensure(): { readonly master: number; readonly mtu: number } {
    const link = this.#found ?? this.#make();
    this.protect(link);
    if (isOurs(link, this.#options.host, this.#network)) this.#finish(link);
    this.#takeUplink(link);
    return { master: link.index, mtu: this.#portMtu };
  }

  /** Like `ensure`, and gives a bridge of ours what it has lost. */
  repair(): { readonly master: number } {
    this.look({});
    const found = this.#found;
    const { master } = this.ensure();
    if (found !== null && bridgeTagOf(found)?.network === this.#network.network)
      this.#address(found);
    return { master };
  }

  /** Puts what the firewall has to know of the bridge, before its first port. */
  protect(link: Link): void {
    const { firewall, facts, host } = this.#options;
    const { bridge, uplink } = this.#network;
    firewall.put(`bridge:${bridge}`, [
      // Ports of others on a bridge that was there are none of our business.
      ...(isOurs(link, host, this.#network) ? guardFacts : arrivalFacts)(link),
      ...(link.mac === undefined ? [] : hostLocalFacts(link.mac)),
      ...(uplink === undefined ? [] : trustedFacts(uplink.device)),
      ...facts(this.#network),
    ]);
  }

  /** After the port is made: an adopted bridge keeps the MTU that it had. */
  keepMtu(): void {
    if (this.#found !== null) keepMtu(this.#options.kernel, this.#found, this.#portMtu);
  }

  #make(): Link {
    const { host, log, kernel } = this.#options;
    const { bridge: name, network } = this.#network;
    const mac = bridgeMac(host, this.#network);
    try {
      const made = kernel.links.createBridge({ name, mac, group: DEVICE_GROUP });
      log.info({ bridge: name, network }, 'bridge made');
      return made;
    } catch (error) {
      // Somebody, networkd for one, made it between the look and the making.
      const link = isKernelError(error, 'EEXIST') ? kernel.links.get(name) : null;
      if (link === null) throw error;
      refuseOtherKind(link, this.#network);
      return link;
    }
  }

  /** Goes on with a making that was interrupted: without a tag, or down. A tag of another network is left as it is. */
  #finish(link: Link): void {
    const { kernel } = this.#options;
    const tag = bridgeTagOf(link);
    if (tag === undefined ? link.alias !== undefined : tag.network !== this.#network.network)
      return;
    const wanted = gatewayAddresses(this.#network).map(String);
    if (tag === undefined || !link.up) {
      pinMtu(kernel, link, this.#network.mtu ?? this.#wayOutMtu());
      this.#address(link);
    } else if (wanted.some((one) => !tag.gateways.includes(one))) {
      giveGateways(kernel, link, this.#network);
    }
  }

  #address(link: Link): void {
    const { kernel } = this.#options;
    giveGateways(kernel, link, this.#network);
    kernel.links.set(link, { up: true });
  }

  /** The MTU of the way to other hosts: the uplink's, or that of the device with the default route. */
  #wayOutMtu(): number {
    if (this.#uplink !== undefined) return this.#uplink.mtu;
    const { links } = this.#options.kernel;
    const mtus = defaultRouteDevices(this.#options.kernel).map((index) => links.get(index)?.mtu);
    return Math.min(...mtus.filter((mtu) => mtu !== undefined), DEFAULT_MTU);
  }

  #lookForUplink(): Link | undefined {
    const { uplink, bridge } = this.#network;
    if (uplink === undefined) return undefined;
    const { device, allowDefaultRoute = false } = uplink;
    const { kernel } = this.#options;
    const link = kernel.links.get(device);
    const details = { path: 'uplink.device', device };
    if (link === null) {
      throw new VoltError('PARENT_NOT_FOUND', `uplink: there is no device ${device}`, { details });
    }
    if (link.master !== undefined) {
      if (link.master === this.#found?.index) return link;
      const message = `uplink: ${device} is a port of another device already`;
      throw new VoltError('DEVICE_BUSY', message, { details });
    }
    if (!allowDefaultRoute && defaultRouteDevices(kernel).includes(link.index)) {
      const message =
        `uplink: ${device} carries this host's default route, which a port of ${bridge} loses; ` +
        '"allowDefaultRoute": true says that this is wanted';
      throw new VoltError('UNSUPPORTED', message, { details });
    }
    return link;
  }

  /** Its addresses and routes are left alone. */
  #takeUplink(bridge: Link): void {
    const uplink = this.#uplink;
    if (uplink === undefined || uplink.master === bridge.index) return;
    const { kernel, log } = this.#options;
    kernel.links.set(uplink, { master: bridge.index, up: true });
    log.info({ bridge: bridge.name, uplink: uplink.name }, 'uplink taken into the bridge');
  }
}

/** The MTU that a port is to have. INVALID_REQUEST: it is more than the bridge's. */
export function portMtu(asked: number, bridge: Pick<Link, 'name' | 'mtu'>): number {
  if (asked <= bridge.mtu) return asked;
  const message = `mtu: ${asked} is more than the ${bridge.mtu} of bridge ${bridge.name}`;
  throw new VoltError('INVALID_REQUEST', message, { details: { path: 'mtu', limit: bridge.mtu } });
}

/**
 * After a port is made on a bridge that was there: gives it the MTU back that it was found with. One that nobody
 * has set follows its lowest port, and would carry less for everybody because of one workload.
 */
export function keepMtu({ links }: Kernel, bridge: Link, mtu: number): void {
  if (mtu >= bridge.mtu) return;
  const now = links.get(bridge.index);
  if (now !== null && now.mtu !== bridge.mtu) links.set(bridge, { mtu: bridge.mtu });
}

const bridgeMac = (host: string, { bridge }: Network): MacAddress =>
  deriveMac(`bridge ${host} ${bridge}`);

const isOurs = (link: Link, host: string, network: Network): boolean =>
  link.group === DEVICE_GROUP && link.mac?.equals(bridgeMac(host, network)) === true;

/** Indices of devices that default routes of the main table lead out of. */
const defaultRouteDevices = ({ routes }: Kernel): number[] =>
  routes
    .list({ table: MAIN_TABLE })
    .filter(({ to }) => to === undefined || to.length === 0)
    .flatMap(({ ifindex }) => ifindex ?? []);

// A bridge's MTU follows its lowest port until somebody has set it to another value than it had
// (BROPT_MTU_SET_BY_USER); a value given at creation does not count.
function pinMtu(kernel: Kernel, link: Link, mtu: number): void {
  kernel.links.set(link, { mtu: mtu - 1 });
  kernel.links.set(link, { mtu });
}

function refuseOtherKind(link: Link, network: Network): void {
  if (link.kind === 'bridge') return;
  throw new VoltError(
    'INTERFACE_EXISTS',
    `network ${network.network} wants bridge ${link.name}, which is a ${link.kind ?? 'device'}`,
    { details: { name: link.name, kind: link.kind ?? null } },
  );
}
