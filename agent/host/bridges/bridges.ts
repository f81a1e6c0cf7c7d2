import { isDeepStrictEqual } from 'node:util';
import { IpPrefix, MacAddress } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import { gatewayHolder, type Network } from '#protocol/network.ts';
import type { AssignedAddress } from '#native/address.ts';
import type { Link } from '#native/link.ts';
import { atOnce, type Steps } from '#native/steps.ts';
import type { LetGo } from '#ipam-store/ledger.ts';
import type { Firewall } from '../firewall/firewall.ts';
import type { Kernel } from '../kernel.ts';
import type { Forwarding } from '../networks/forwarding.ts';
import { conflictOf, overlapWithHost, ownAddresses } from '../own-addresses.ts';
import type { Log } from '../../log.ts';
import type { SeenLink } from '../reconcile/observe.ts';
import type { Applied } from './applied.ts';
import { type BridgeFacts, BridgeMaker, refuseOtherKind, removeAddress } from './bridge-maker.ts';
import { type BridgeDifference, compareBridge } from './comparison.ts';
import {
  anycastMac,
  type BridgeDescription,
  bridgeMac,
  type BridgeNeeds,
  describeBridge,
} from './description.ts';
import { type BridgeProblem, problemsOf } from './problems.ts';
import { type BridgeSnapshot, glance, look } from './snapshot.ts';
import { refuseAsUplink, wayOutMtu } from './uplink.ts';
import { bridgeTagOf, isBridgeOf, isMadeByAgent } from '../ownership.ts';

export interface BridgesOptions {
  readonly host: string;
  readonly kernel: Kernel;
  readonly firewall: Firewall;
  readonly forwarding: Pick<Forwarding, 'switchOn' | 'switchOff' | 'makeRouter'>;
  readonly applied: Applied;
  /** What a network needs of the host around its bridge; undefined for a network that has none. */
  readonly needsOf: (network: Network) => NeedsOfType | undefined;
  /** The networks that workloads are attached to here, or are being attached or detached. */
  readonly inUse: () => ReadonlySet<string>;
  /** Those that a workload has been attached to. */
  readonly attached: () => ReadonlySet<string>;
  readonly log: Log;
}

/** A definition, and what it asks for on this host. */
interface Described {
  readonly network: Network;
  readonly description: BridgeDescription;
  readonly facts: BridgeFacts;
}

interface Standing {
  readonly mac?: MacAddress | undefined;
  readonly mtu?: number | undefined;
  readonly adopted: boolean;
}

export interface NeedsOfType extends BridgeNeeds {
  /** What the firewall has to hold for the bridge, which the agent `made` or adopted. */
  readonly facts: BridgeFacts;
}

/** What of one network is not as described. */
export interface NetworkDifferences {
  readonly network: string;
  readonly differences: readonly BridgeDifference[];
}

/**
 * What networks have on this host beside their workloads' devices: bridge, gateways, uplink, routes, settings, rules. Each
 * has one owner, its network. It is described (`description`), compared with what is there (`comparison`), and made,
 * repaired and taken away here and nowhere else. A bridge that somebody else made is adopted: it gets ports, an uplink and
 * rules, and its owner's addresses, MAC, MTU and state are left alone.
 */
export class Bridges {
  readonly #options: BridgesOptions;
  /** The definitions that were applied, by name. */
  readonly #networks = new Map<string, Described>();
  readonly #problems = new Map<string, readonly BridgeProblem[]>();
  /** The addresses of this host, as they were read last. */
  #held: readonly AssignedAddress[] | undefined;
  readonly #maker: BridgeMaker;

  constructor(options: BridgesOptions) {
    this.#options = options;
    this.#maker = new BridgeMaker(options);
  }

  /** The addresses of this host that are not for workloads. The gateway's, which the ledger knows, are not among them. */
  ownAddresses(network: Network): ReadonlyMap<string, string> {
    const gateways = new Set([network.gateway, network.ipv6?.gateway]);
    const own = ownAddresses(this.#options.kernel, network, this.#heldAddresses());
    return new Map([...own].filter(([address]) => !gateways.has(address)));
  }

  /** Read again when one has changed: every attach asks. */
  #heldAddresses(): readonly AssignedAddress[] {
    const { kernel } = this.#options;
    if (kernel.addressesChanged()) this.#held = undefined;
    this.#held ??= kernel.addresses.list();
    return this.#held;
  }

  /** Networks that have something on this host. */
  get names(): string[] {
    const { kernel, applied } = this.#options;
    const tagged = kernel.links.bridges().flatMap((link) => bridgeTagOf(link)?.network ?? []);
    return [...new Set([...applied.descriptions.map(({ network }) => network), ...tagged])];
  }

  /** What a network is to have on this host. */
  describe(network: Network): BridgeDescription {
    return this.#describe(network).description;
  }

  /** The MTU that the bridge has, or will have. */
  mtuOf(network: Network, { link, uplink }: BridgeSnapshot): number {
    const description = this.describe(network);
    if (link !== null && !isBridgeOf(link, description)) return link.mtu;
    return description.mtu ?? link?.mtu ?? uplink?.mtu ?? wayOutMtu(this.#options.kernel);
  }

  /**
   * What there is of a network, as far as one message tells; for `ensure`. Throws where the network cannot have its bridge
   * and uplink here. INTERFACE_EXISTS: the bridge is no bridge, or another network's. NETWORK_CONFLICT: the host itself has
   * something in its subnets. PARENT_NOT_FOUND, UNSUPPORTED, DEVICE_BUSY: of the uplink (`refuseAsUplink`).
   */
  look(network: Network): BridgeSnapshot {
    const { kernel } = this.#options;
    this.#refuseWithoutOwner(network);
    const { description } = this.#describe(network);
    let seen = glance(kernel, description);
    if (seen.link !== null) refuseOtherKind(seen.link, network);
    if (!this.isKnown(network)) {
      this.#refuseShared(network, seen.link);
      this.#refuseOverlap(network);
      if (network.uplink !== undefined) this.release(network.uplink.device);
      // What a network that was had here may have gone.
      seen = glance(kernel, description);
    }
    if (network.uplink === undefined) return seen;
    const { device, allowDefaultRoute = false } = network.uplink;
    const { link, uplink } = seen;
    if (uplink === undefined || uplink === null) {
      throw new VoltError('PARENT_NOT_FOUND', `uplink: there is no device ${device}`, {
        details: { path: 'uplink.device', device },
      });
    }
    const bridge = { name: network.bridge, index: link?.index };
    refuseAsUplink(kernel, { device, allowDefaultRoute }, uplink, bridge);
    return seen;
  }

  /** Whether this definition of a network was applied on this host. */
  isKnown(network: Network): boolean {
    return this.#networks.get(network.network)?.network === network;
  }

  /** Makes what is missing of a network, and repairs what a glance, `looked`, has shown to differ; answers the bridge. */
  ensure(network: Network, looked: BridgeSnapshot): Link {
    const { kernel, applied, attached } = this.#options;
    const { description, facts } = this.#describe(network);
    // Of several first attaches that wait for their leases one makes the bridge.
    const seen = looked.link === null ? glance(kernel, description) : looked;
    const before = applied.descriptionOf(network.network);
    if (this.isKnown(network) && seen.link !== null) {
      return this.#maker.repair(description, facts, seen);
    }
    if (!isDeepStrictEqual(before, description)) {
      if (before !== undefined) this.#maker.takeAway(before, description);
      applied.put(description);
    }
    try {
      const link = this.#maker.apply(description, facts, seen.link);
      this.#keep(network, facts);
      this.#noteProblems(network.network);
      return link;
    } catch (error) {
      // Nobody would need what was made so far.
      if (!attached().has(network.network)) this.remove(network.network);
      throw error;
    }
  }

  /** The bridge of a network that workloads are attached to here, as it was described last; made again when it is gone. */
  standing(network: Network): Link {
    const { kernel, applied } = this.#options;
    const description = applied.descriptionOf(network.network);
    const known = this.#networks.get(network.network)?.network ?? network;
    if (description === undefined) return this.ensure(network, this.look(network));
    const seen = glance(kernel, description);
    const { facts } = this.#describe(known);
    if (seen.link !== null) return this.#maker.repair(description, facts, seen);
    if (description.adopted === true) throw ownerGone(description);
    return this.#maker.apply(description, facts, null);
  }

  /** Before the firewall is loaded: notes what has to hold for a network that an earlier agent has brought here. */
  resume(network: Network): void {
    const { description, facts } = this.#describe(network);
    const { link } = glance(this.#options.kernel, description);
    const before = this.#options.applied.descriptionOf(network.network);
    if (before === undefined) {
      // Of an agent that kept no account.
      this.#options.applied.put(description);
    } else if (before.mtu === undefined && network.mtu === undefined && description.mtu) {
      // Of one that did not note the MTU.
      this.#options.applied.put({ ...before, mtu: description.mtu });
    }
    this.#keep(network, facts);
    if (link !== null) this.#maker.protect(description, facts, link);
  }

  /**
   * Makes of all networks that have something here what the ledger says of them now. Those that it does not have any
   * more go. Of `unknown` networks, of which there are attachments and no definition, only the addresses go that hosts
   * have to let go of. Rejects after all were tried, with the first error.
   */
  revise(
    networks: ReadonlyMap<string, Network>,
    letGo: readonly LetGo[],
    unknown: ReadonlySet<string>,
  ): void {
    const errors: unknown[] = [];
    const changed = this.names.map((name) => [name, networks.get(name)] as const);
    // First what frees names, addresses and uplinks for others.
    for (const [name, network] of changed.toSorted(([, a], [, b]) => order(a) - order(b))) {
      try {
        const left = letGo.filter((one) => one.network === name).map(({ address }) => address);
        if (network !== undefined && this.#options.needsOf(network) !== undefined) {
          this.ensureAll(network, left);
        } else if (unknown.has(name)) this.#letGo(name, left);
        else this.remove(name);
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }

  /** All of a network, whatever is there: of one without attachments, only where its bridge stands. */
  ensureAll(network: Network, letGo: readonly string[] = []): void {
    const { kernel, applied, inUse } = this.#options;
    const { description, facts } = this.#describe(network);
    const { link } = glance(kernel, description);
    if (link === null && !inUse().has(network.network)) {
      this.remove(network.network);
      return;
    }
    const before = applied.descriptionOf(network.network);
    const isNew = !isDeepStrictEqual(before, description);
    if (isNew) {
      this.#maker.takeAway(before ?? describedBefore(kernel, description), description);
      applied.put(description);
    }
    if (link === null && description.adopted === true) this.#noteProblems(network.network);
    else if (isNew || link === null || !this.#networks.has(network.network)) {
      this.#maker.apply(description, facts, link);
      this.#noteProblems(network.network);
    } else this.#maker.protect(description, facts, link);
    this.#keep(network, facts);
    this.#letGo(network.network, letGo);
  }

  /** What of these networks, or of all that have something here, is not as described; reads only. */
  *compare(names: Iterable<string> = this.#applied()): Steps<NetworkDifferences[]> {
    const { kernel, applied } = this.#options;
    const found: NetworkDifferences[] = [];
    for (const network of names) {
      yield;
      const description = applied.descriptionOf(network);
      if (description === undefined) continue;
      const snapshot = look(kernel, description);
      const differences = compareBridge(description, snapshot);
      const problems = [
        ...problemsOf(description, snapshot, differences),
        ...this.#overlapsOf(description),
      ];
      if (problems.length === 0) this.#problems.delete(network);
      else this.#problems.set(network, problems);
      if (differences.length > 0) found.push({ network, differences });
    }
    return found;
  }

  /** What the host has been given in a subnet since the network came here: workloads may not reach each other, or it. */
  #overlapsOf({ network, bridge, uplink, subnets }: BridgeDescription): BridgeProblem[] {
    const { links } = this.#options.kernel;
    const prefixes = subnets.map((text) => IpPrefix.parse(text));
    return this.#heldAddresses().flatMap(({ ifindex, address }) => {
      const own = IpPrefix.around(address.address, address.prefixLength);
      const subnet = prefixes.find((one) => one.family === own.family && one.overlaps(own));
      const device = subnet && links.nameOf(ifindex);
      if (subnet === undefined || device === bridge || device === uplink?.device) return [];
      const reason = `network ${network}: this host has ${address.toString()} on ${device ?? `#${ifindex}`}, in its subnet ${subnet.toString()}`;
      return [{ kind: 'foreign' as const, reason, commands: [] }];
    });
  }

  /** What only an operator can change, in words, by network: as it was when each was compared last. */
  get problems(): readonly BridgeProblem[] {
    return [...this.#problems.values()].flat();
  }

  /** Why a workload of this network may have no traffic; of an adopted bridge, for whoever attaches to it. */
  warningsOf(network: string): string[] {
    return (this.#problems.get(network) ?? []).map(({ reason }) => reason);
  }

  /** Puts right what differs of a network now. Rejects where something of it cannot be done. */
  repair(name: string): void {
    const { kernel, applied, attached, inUse } = this.#options;
    const description = applied.descriptionOf(name);
    if (description === undefined) return;
    const known = this.#networks.get(name);
    const seen = glance(kernel, description);
    if (seen.link === null && !attached().has(name)) {
      // Whoever is being attached makes it, if need be.
      if (!inUse().has(name)) this.remove(name);
      return;
    }
    // Its owner makes it again.
    if (seen.link === null && description.adopted === true) return;
    const facts = known?.facts;
    this.#maker.apply(description, facts, seen.link);
  }

  /** The networks whose bridge or uplink this device is, and is not as it should be. */
  disturbedBy(link: SeenLink, gone: boolean): string[] {
    return this.#options.applied.descriptions
      .filter(
        (description) =>
          isDisturbed(description, link, gone) ||
          // An adopted bridge is back, or its owner has changed what was amiss.
          (description.bridge === link.name && this.#problems.has(description.network)),
      )
      .map(({ network }) => network);
  }

  /** The networks whose bridge has this index. */
  networksOn(ifindex: number): string[] {
    const name = this.#options.kernel.links.nameOf(ifindex);
    return this.#options.applied.descriptions
      .filter(({ bridge }) => bridge === name)
      .map(({ network }) => network);
  }

  /** The networks that need the host to forward one of these families. */
  networksForwarding(families: readonly (4 | 6)[]): string[] {
    return this.#options.applied.descriptions
      .filter(({ forwards }) => forwards.some((family) => families.includes(family)))
      .map(({ network }) => network);
  }

  /** Takes networks off this host that nobody is attached to; answers which. */
  clean(): string[] {
    const used = this.#options.inUse();
    const unused = this.names.filter((name) => !used.has(name));
    for (const name of unused) this.remove(name);
    return unused;
  }

  /** Takes away all that a network has on this host. What was there before is as it was found. */
  remove(name: string): void {
    const { kernel, applied, log } = this.#options;
    const before = applied.descriptionOf(name);
    if (before !== undefined) this.#maker.takeAway(before, undefined);
    for (const link of kernel.links.bridges()) {
      if (bridgeTagOf(link)?.network === name) kernel.links.delete(link);
    }
    applied.remove(name);
    this.#networks.delete(name);
    this.#problems.delete(name);
    log.info({ network: name }, 'nothing of this network is left on this host');
  }

  #noteProblems(network: string): void {
    atOnce(this.compare([network]));
  }

  /** What was applied, which `ensure` goes by while the definition stays. */
  #keep(network: Network, facts: BridgeFacts): void {
    const description = this.#options.applied.descriptionOf(network.network);
    if (description !== undefined) {
      this.#networks.set(network.network, { network, description, facts });
    }
  }

  #applied(): string[] {
    return this.#options.applied.descriptions.map(({ network }) => network);
  }

  #describe(network: Network): Omit<Described, 'network'> {
    const known = this.#networks.get(network.network);
    if (known?.network === network) return known;
    const { host, needsOf } = this.#options;
    const needs = needsOf(network);
    if (needs === undefined) throw new Error(`network ${network.network} has no bridge`);
    const { facts, ...rest } = needs;
    const { mac = bridgeMac(host, network), adopted, ...standing } = this.#standing(network);
    const mtu = network.mtu ?? standing.mtu;
    return { description: describeBridge(network, { mac, mtu, adopted, needs: rest }), facts };
  }

  /**
   * What stands is kept: MAC and MTU that a bridge of ours was made with, also when the host has another id or way out by
   * now, and that a bridge is somebody else's, also while it is gone.
   */
  #standing(network: Network): Standing {
    const { kernel, applied } = this.#options;
    const before = applied.descriptionOf(network.network);
    const isAnycast = gatewayHolder(network) === 'anycast';
    if (before?.bridge === network.bridge) {
      const mac = MacAddress.parse(before.mac);
      const own = isAnycast || mac.equals(anycastMac(network)) ? {} : { mac };
      return { ...own, mtu: before.mtu, adopted: before.adopted === true };
    }
    const link = kernel.links.get(network.bridge);
    if (link === null) return { adopted: false };
    const tag = bridgeTagOf(link)?.network;
    // One without a tag is still being made.
    const isOurs = isMadeByAgent(link) && (tag === undefined || tag === network.network);
    if (!isOurs) return { adopted: tag === undefined && !isMadeByAgent(link) };
    const isOther = !isAnycast && link.mac?.equals(anycastMac(network)) === false;
    return {
      ...{ adopted: false, mtu: tag === undefined ? undefined : link.mtu },
      ...(isOther && { mac: link.mac }),
    };
  }

  /** An adopted bridge that its owner has deleted. Where nobody is attached any more, the network begins anew. */
  #refuseWithoutOwner({ network }: Network): void {
    const { kernel, applied, attached } = this.#options;
    const description = applied.descriptionOf(network);
    if (description?.adopted !== true || kernel.links.indexOf(description.bridge) !== null) return;
    if (attached().has(network)) throw ownerGone(description);
    this.remove(network);
  }

  /** Takes networks that nobody is attached to off a NIC of the host, for another network that wants it. */
  release(device: string): void {
    const { applied, inUse } = this.#options;
    const used = inUse();
    for (const { network, uplink } of applied.descriptions) {
      if (uplink?.device === device && !used.has(network)) this.remove(network);
    }
  }

  /** One bridge carries one network: rules and addresses of two would hold for both. */
  #refuseShared({ network, bridge }: Network, link: Link | null): void {
    const { applied, inUse } = this.#options;
    const tagged = link === null ? undefined : bridgeTagOf(link)?.network;
    const others = applied.descriptions
      .filter((one) => one.bridge === bridge)
      .map((one) => one.network);
    for (const other of new Set([...others, ...(tagged === undefined ? [] : [tagged])])) {
      if (other === network) continue;
      if (!inUse().has(other)) {
        this.remove(other);
        continue;
      }
      throw new VoltError(
        'INTERFACE_EXISTS',
        `network ${network} wants bridge ${bridge}, which is network ${other}'s on this host`,
        { details: { name: bridge, kind: 'bridge', network: other } },
      );
    }
  }

  /**
   * What another network has left here, that has nobody attached, goes: the ledger lets no two networks overlap, so it is a
   * network that was.
   */
  #refuseOverlap(network: Network): void {
    const { kernel, inUse } = this.#options;
    for (;;) {
      const overlap = overlapWithHost(kernel, network);
      if (overlap === undefined) return;
      const other = bridgeTagOf(kernel.links.get(overlap.ifindex) ?? {})?.network;
      if (other === undefined || inUse().has(other)) throw conflictOf(network, overlap);
      this.remove(other);
    }
  }

  /** Takes addresses from the bridge of a network: others are given them now. */
  #letGo(name: string, addresses: readonly string[]): void {
    if (addresses.length === 0) return;
    const { kernel, applied } = this.#options;
    const kept = applied.descriptionOf(name)?.gateways ?? [];
    for (const link of kernel.links.bridges()) {
      if (bridgeTagOf(link)?.network !== name) continue;
      for (const { ifindex, address } of kernel.addresses.list({ ifindex: link.index })) {
        const text = address.toString();
        if (ifindex !== link.index) continue;
        const described = kept.includes(text) && this.#networks.has(name);
        if (!described && addresses.includes(bare(text))) removeAddress(kernel, link, text);
      }
    }
  }
}

const ownerGone = ({ network, bridge }: BridgeDescription): VoltError =>
  new VoltError(
    'PARENT_NOT_FOUND',
    `network ${network}: bridge ${bridge}, which was there before any agent, is gone; its owner has to make it again`,
    { details: { path: 'bridge', device: bridge } },
  );

/** As far as one message about one device tells. */
function isDisturbed(
  { network, bridge, uplink, mac, mtu }: BridgeDescription,
  link: SeenLink,
  gone: boolean,
): boolean {
  if (uplink?.device === link.name) return gone || !link.up || link.master === undefined;
  // Somebody may have renamed it.
  if (bridge !== link.name) return !gone && bridgeTagOf(link)?.network === network;
  if (gone || !link.up) return true;
  const tagged = bridgeTagOf(link) !== undefined;
  if (!isMadeByAgent(link)) return tagged;
  if (link.noArp === true || link.forwardDelayMs !== undefined) return true;
  return !tagged || link.mac !== mac || (mtu !== undefined && mtu !== link.mtu);
}

/** Those that go come first. */
const order = (network: Network | undefined): number => Number(network !== undefined);

const bare = (address: string): string => address.replace(/\/.*/, '');

/** What an agent that kept no account has made of a network: its bridge alone is known. */
const describedBefore = (kernel: Kernel, after: BridgeDescription): BridgeDescription => {
  const other = kernel.links
    .bridges()
    .find((link) => bridgeTagOf(link)?.network === after.network && link.name !== after.bridge);
  return { ...after, bridge: other?.name ?? after.bridge, forwards: [] };
};
