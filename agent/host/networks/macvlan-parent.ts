import type { MacAddress } from '#protocol/address.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { isKernelError, type KernelError } from '#native/errors.ts';
import type { Link, LinkChange } from '#native/link.ts';
import type { Namespace } from '#native/namespace.ts';
import type { Bridges } from '../bridges/bridges.ts';
import type { Kernel } from '../kernel.ts';
import { conflictOf, overlapWithHost } from '../own-addresses.ts';
import { refuseSmallMtu } from './ipv6.ts';
import { refuseGatewayMac, refuseHostAddresses } from './taken.ts';
import { DEVICE_GROUP } from '../ownership.ts';

/** MACVLAN_MODE_… of linux/if_link.h. */
const MODES = { private: 1, vepa: 2, bridge: 4, passthru: 8 } as const;

/** Definitions whose subnets were found to be nobody's else on this host. */
const looked = new WeakSet<Network>();

/** What of a request concerns the parent. */
type Asked = Pick<AttachRequest, 'mtu' | 'mac' | 'addresses'>;

/** The NIC of this host that a network names as parent: looked at, then given macvlans and macvtaps. */
export class MacvlanParent {
  readonly #kernel: Kernel;
  readonly #network: Network;
  readonly #bridges: Pick<Bridges, 'release'>;
  readonly #mode: keyof typeof MODES;
  #found: { readonly link: Link; readonly mtu: number } | undefined;

  constructor(kernel: Kernel, network: Network, bridges: Pick<Bridges, 'release'>) {
    this.#kernel = kernel;
    this.#network = network;
    this.#bridges = bridges;
    this.#mode = network.mode ?? 'bridge';
  }

  /**
   * Looks without touching. PARENT_NOT_FOUND: there is no such device. UNSUPPORTED: it is no Ethernet device.
   * NETWORK_CONFLICT: the host has something in the network's subnets beside the parent. INVALID_REQUEST: a larger MTU
   * than the parent has. MAC_IN_USE, ADDRESS_OUT_OF_RANGE: what is the gateway's, or the
   * host's on the parent.
   */
  look({ mtu: askedMtu, mac, addresses = [] }: Asked): void {
    const { parent: name, mtu: ownMtu } = this.#network;
    const link = name === undefined ? null : this.#kernel.links.get(name);
    if (link === null) throw this.#notFound();
    if (link.mac === undefined || link.mac.isZero) {
      throw this.#error('UNSUPPORTED', `${link.name} is no Ethernet device`);
    }
    // It may still be the uplink of a network that is gone.
    if (link.master !== undefined) this.#bridges.release(link.name);
    this.#refuseOverlap();
    if (mac !== undefined) refuseGatewayMac(this.#kernel, mac, this.#network, link);
    refuseHostAddresses(this.#kernel, link, addresses, 'addresses');
    const mtu = askedMtu ?? Math.min(ownMtu ?? link.mtu, link.mtu);
    if (mtu > link.mtu) {
      throw new VoltError(
        'INVALID_REQUEST',
        `mtu: ${mtu} is more than the ${link.mtu} of parent ${link.name}`,
        { details: { path: 'mtu', limit: link.mtu } },
      );
    }
    refuseSmallMtu(this.#network, mtu, askedMtu === undefined ? link.name : undefined);
    this.#found = { link, mtu };
  }

  /**
   * Makes a device on it, down, in its namespace when one is given. DEVICE_BUSY: passthru wants the parent alone, or
   * it is a port of a bridge or bond. What the kernel knows of that may lie in namespaces out of sight.
   */
  create(device: {
    readonly kind: 'macvlan' | 'macvtap';
    readonly name: string;
    readonly index: number;
    readonly mac: MacAddress;
    readonly namespace?: Namespace;
  }): { readonly mtu: number } {
    if (this.#found === undefined) throw new Error('the parent has not been looked at');
    const { link, mtu } = this.#found;
    const mode = MODES[this.#mode];
    const own = { ...device, mtu, group: DEVICE_GROUP, parent: link.index, mode };
    try {
      this.#kernel.links.createMacvlan(own);
    } catch (error) {
      throw isKernelError(error) ? this.#refusal(error, device.kind) : error;
    }
    return { mtu };
  }

  /**
   * Runs what tags a device and sets it up, with what has to be set beside: a passthru device was made with the
   * parent's MAC, and gives it its own; the kernel puts the parent's back when the device ends. MAC_IN_USE: another
   * device on the parent has this one.
   */
  settingUp(mac: MacAddress, work: (own: Pick<LinkChange, 'mac'>) => void): void {
    try {
      work(this.#mode === 'passthru' ? { mac } : {});
    } catch (error) {
      if (!isKernelError(error, 'EADDRINUSE')) throw error;
      throw this.#error('MAC_IN_USE', `another device on it has ${mac.toString()}`, error);
    }
  }

  #refuseOverlap(): void {
    if (looked.has(this.#network)) return;
    const overlap = overlapWithHost(this.#kernel, this.#network);
    if (overlap !== undefined) throw conflictOf(this.#network, overlap);
    looked.add(this.#network);
  }

  #refusal(error: KernelError, kind: string): Error {
    switch (error.code) {
      // What else the kernel refuses so, look has refused.
      case 'EINVAL':
        return this.#error(
          'DEVICE_BUSY',
          this.#mode === 'passthru'
            ? 'it carries another macvlan or macvtap, and passthru wants it alone'
            : 'a macvlan or macvtap in mode passthru has it alone',
          error,
        );
      case 'EBUSY':
        return this.#error('DEVICE_BUSY', 'it is a port of another device', error);
      case 'ENODEV':
        return this.#notFound(error);
      case 'EOPNOTSUPP':
        return this.#error('UNSUPPORTED', `this kernel has no ${kind}`, error);
      default:
        return error;
    }
  }

  #notFound(cause?: unknown): VoltError {
    return this.#error('PARENT_NOT_FOUND', 'there is no such device on this host', cause);
  }

  #error(
    code: 'PARENT_NOT_FOUND' | 'UNSUPPORTED' | 'DEVICE_BUSY' | 'MAC_IN_USE',
    reason: string,
    cause?: unknown,
  ): VoltError {
    const { network, parent } = this.#network;
    const details = { network, parent, mode: this.#mode };
    return new VoltError(code, `parent ${parent ?? '?'} of network ${network}: ${reason}`, {
      details,
      cause,
    });
  }
}
