import { isDeepStrictEqual } from 'node:util';
import { InterfaceAddress, IpPrefix, MacAddress } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import { gatewayHolder, type Network } from '#protocol/network.ts';
import type { AssignedAddress } from '#native/address.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { atOnce, type Steps } from '#native/steps.ts';
import { writeSysctl } from '#native/sysctl.ts';
import type { LetGo } from '#ipam-store/ledger.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { arrivalFacts, guardFacts, hostLocalFacts, trustedFacts } from '../firewall/port-filter.ts';
import type { Fact } from '../firewall/ruleset.ts';
import type { Kernel } from '../kernel.ts';
import type { Forwarding } from '../networks/forwarding.ts';
import { conflictOf, overlapWithHost, ownAddresses } from '../own-addresses.ts';
import type { Log } from '../../log.ts';
import type { SeenLink } from '../reconcile/observe.ts';
import type { Applied } from './applied.ts';
import { type BridgeDifference, compareBridge } from './comparison.ts';
import {
  anycastMac,
  type BridgeDescription,
  bridgeMac,
  type BridgeNeeds,
  describeBridge,
} from './description.ts';
import { type BridgeProblem, problemsOf } from './problems.ts';
import { addLocalRoute, removeLocalRoute } from './routes.ts';
import { readIfThere } from './settings.ts';
import { type BridgeSnapshot, glance, look } from './snapshot.ts';
import { refuseAsUplink, wayOutMtu } from './uplink.ts';
import { DEVICE_GROUP, bridgeTag, bridgeTagOf, isBridgeOf, isMadeByAgent } from '../ownership.ts';

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

type Facts = (made: boolean) => readonly Fact[];

/** A definition, and what it asks for on this host. */
interface Described {
  readonly network: Network;
  readonly description: BridgeDescription;
  readonly facts: Facts;
}

interface Standing {
  readonly mac?: MacAddress | undefined;
  readonly mtu?: number | undefined;
  readonly adopted: boolean;
}

export interface NeedsOfType extends BridgeNeeds {
  /** What the firewall has to hold for the bridge, which the agent `made` or adopted. */
  readonly facts: Facts;
}

// linux/if_bridge.h.
const BR_STATE_DISABLED = 0;
const BR_STATE_FORWARDING = 3;
/** States that a port of a bridge without spanning tree stays in. */
const SETTLED: ReadonlySet<number> = new Set([BR_STATE_DISABLED, BR_STATE_FORWARDING]);

/** RFC 791; the kernel makes no bridge that carries less. */
const LEAST_MTU = 68;
const HELD_MS = 1_000;

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
  #held:
    | { readonly list: readonly AssignedAddress[]; readonly count: number; readonly until: number }
    | undefined;

  constructor(options: BridgesOptions) {
    this.#options = options;
  }

  /** The addresses of this host that are not for workloads. The gateway's, which the ledger knows, are not among them. */
  ownAddresses(network: Network): ReadonlyMap<string, string> {
    const gateways = new Set([network.gateway, network.ipv6?.gateway]);
    const own = ownAddresses(this.#options.kernel, network, this.#heldAddresses());
    return new Map([...own].filter(([address]) => !gateways.has(address)));
  }

  /** Read again after a second, or at once when the host has more or fewer IPv4 addresses: every attach asks. */
  #heldAddresses(): readonly AssignedAddress[] {
    const { addresses } = this.#options.kernel;
    const count = addresses.count();
    const now = performance.now();
    if (this.#held === undefined || this.#held.count !== count || now >= this.#held.until) {
      this.#held = { list: addresses.list(), count, until: now + HELD_MS };
    }
    return this.#held.list;
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

  /** Makes what is missing of a network, and repairs what a glance has shown to differ; answers the bridge. */
  ensure(network: Network, seen: BridgeSnapshot): Link {
    const { applied, attached } = this.#options;
    const { description, facts } = this.#describe(network);
    const before = applied.descriptionOf(network.network);
    if (this.isKnown(network) && seen.link !== null) {
      return this.#repair(description, facts, seen);
    }
    if (!isDeepStrictEqual(before, description)) {
      if (before !== undefined) this.#takeAway(before, description);
      applied.put(description);
    }
    try {
      const link = this.#apply(description, facts, seen.link);
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
    if (seen.link !== null) return this.#repair(description, facts, seen);
    if (description.adopted === true) throw ownerGone(description);
    return this.#apply(description, facts, null);
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
    if (link !== null) this.#protect(description, facts, link);
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
      this.#takeAway(before ?? describedBefore(kernel, description), description);
      applied.put(description);
    }
    if (link === null && description.adopted === true) this.#noteProblems(network.network);
    else if (isNew || link === null || !this.#networks.has(network.network)) {
      this.#apply(description, facts, link);
      this.#noteProblems(network.network);
    } else this.#protect(description, facts, link);
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
    this.#apply(description, facts, seen.link);
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
    if (before !== undefined) this.#takeAway(before, undefined);
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
  #keep(network: Network, facts: Facts): void {
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

  #apply(description: BridgeDescription, facts: Facts | undefined, found: Link | null): Link {
    const { kernel, applied } = this.#options;
    if (found === null && !this.#renamedBack(description)) {
      const made = this.#withMtu(description);
      applied.put(made);
      if (!this.#make(made))
        applied.put(asMadeBy(kernel.links.get(description.bridge), description));
    }
    const now = applied.descriptionOf(description.network) ?? description;
    return this.#repair(now, facts, look(kernel, now));
  }

  /** Gives a bridge of ours that somebody has renamed its name back. Kernels before 6.2 rename only what is down. */
  #renamedBack({ network, bridge: name }: BridgeDescription): boolean {
    const { links } = this.#options.kernel;
    const link = links.bridges().find((one) => bridgeTagOf(one)?.network === network);
    if (link === undefined) return false;
    links.set(link, { up: false });
    links.set(link, { name });
    this.#options.log.warn({ bridge: name, name: link.name }, 'bridge has its name again');
    return true;
  }

  /** With the MTU that the bridge is going to be made with. */
  #withMtu(description: BridgeDescription): BridgeDescription {
    const { kernel } = this.#options;
    const { mtu, uplink } = description;
    if (mtu !== undefined) return description;
    const nic = uplink === undefined ? null : kernel.links.get(uplink.device);
    return { ...description, mtu: nic?.mtu ?? wayOutMtu(kernel) };
  }

  /** False where somebody, networkd for one, has made it between the look and the making. */
  #make(description: BridgeDescription): boolean {
    const { kernel, log } = this.#options;
    const { bridge: name, network, mac, uplink } = description;
    try {
      const link = kernel.links.createBridge({
        name,
        mac: MacAddress.parse(mac),
        group: DEVICE_GROUP,
      });
      const nic = uplink === undefined ? null : kernel.links.get(uplink.device);
      pinMtu(kernel, link, description.mtu ?? nic?.mtu ?? wayOutMtu(kernel));
      log.info({ bridge: name, network }, 'bridge made');
      return true;
    } catch (error) {
      if (!isKernelError(error, 'EEXIST')) throw error;
      return false;
    }
  }

  /** Puts right what a snapshot has shown to differ, in the order in which it is needed. */
  #repair(
    description: BridgeDescription,
    facts: Facts | undefined,
    snapshot: BridgeSnapshot,
  ): Link {
    const { link } = snapshot;
    if (link === null) {
      throw new VoltError('NOT_FOUND', `bridge ${description.bridge} vanished while it was made`);
    }
    refuseOtherKind(link, description);
    if (facts !== undefined) this.#protect(description, facts, link);
    for (const one of compareBridge(description, snapshot)) {
      if (one.repairable) this.#put(description, one, { link, uplink: snapshot.uplink ?? null });
    }
    // What it has been given before is gone by now.
    const { gateways, undecided } = description;
    const said = bridgeTagOf(link)?.gateways ?? [];
    const kept = [...gateways, ...undecided.filter((one) => snapshot.addresses?.includes(one))];
    if (snapshot.addresses !== undefined && said.some((one) => !kept.includes(one))) {
      this.#options.kernel.links.set(link, {
        alias: bridgeTag({ network: description.network, gateways: kept }),
      });
    }
    return link;
  }

  /** What the firewall has to know of the bridge, before its first port. */
  #protect(description: BridgeDescription, facts: Facts, link: Link): void {
    const { firewall } = this.#options;
    const { bridge, mac, uplink } = description;
    const own = isBridgeOf(link, description);
    const localMac = own ? MacAddress.parse(mac) : link.mac;
    firewall.put(`bridge:${bridge}`, [
      // Ports of others on a bridge that was there are none of our business.
      ...(own ? guardFacts : arrivalFacts)(link),
      ...(localMac === undefined ? [] : hostLocalFacts(localMac)),
      ...(uplink === undefined ? [] : trustedFacts(uplink.device)),
      ...facts(own),
    ]);
  }

  #put(
    description: BridgeDescription,
    { what, expected, observed }: BridgeDifference,
    { link, uplink }: { readonly link: Link; readonly uplink: Link | null },
  ): void {
    const { kernel, applied, forwarding } = this.#options;
    const { network, bridge } = description;
    const { links } = kernel;
    switch (what) {
      case 'bridge.alias': {
        // Before the addresses: whoever comes next takes them away again when they are the network's no more.
        const had = bridgeTagOf(link)?.gateways ?? [];
        links.set(link, {
          alias: bridgeTag({ network, gateways: [...had, ...description.gateways] }),
        });
        return;
      }
      case 'bridge.group':
        links.set(link, { group: DEVICE_GROUP });
        return;
      case 'bridge.mac':
        links.set(link, { mac: MacAddress.parse(description.mac) });
        return;
      case 'bridge.mtu':
        this.#setMtu(description, link, Number(expected));
        return;
      case 'bridge.stp_state':
        switchSpanningTreeOff(kernel, link);
        return;
      case 'bridge.arp':
        links.set(link, { arp: true });
        return;
      case 'bridge.address':
        if (expected === null) removeAddress(kernel, link, String(observed));
        else addAddress(kernel, link, String(expected));
        return;
      case 'bridge.route':
        addLocalRoute(kernel, String(expected), link.index);
        return;
      case 'bridge.ipv6.forwarding': {
        const path = settingOf(bridge, 'ipv6.forwarding').join('/');
        applied.noteSetting(path, { found: String(observed), set: String(expected) });
        forwarding.makeRouter(bridge);
        return;
      }
      case 'bridge.up':
        links.set(link, { up: true });
        return;
      case 'uplink.bridge':
      case 'uplink.up':
        if (uplink !== null) this.#takeUplink(description, uplink, link);
        return;
      default: {
        if (what.startsWith('sysctl ')) {
          forwarding.switchOn(description.forwards);
          return;
        }
        const setting = settingOf(bridge, what.slice('bridge.'.length));
        this.#set(setting, String(expected));
      }
    }
  }

  /** Below 1280 the kernel takes IPv6 off a device, and gives it back with the settings of a new device. */
  #setMtu(description: BridgeDescription, link: Link, mtu: number): void {
    const { links } = this.#options.kernel;
    links.set(link, { mtu });
    if (link.settings?.['ipv6.accept_ra'] !== undefined) return;
    const now = links.get(link.index);
    for (const one of now === null ? [] : compareBridge(description, { link: now })) {
      if (one.what.startsWith('bridge.ipv6.')) {
        this.#put(description, one, { link, uplink: null });
      }
    }
  }

  /** Its addresses and routes are left alone. */
  #takeUplink({ bridge, uplink }: BridgeDescription, nic: Link, link: Link): void {
    const { kernel, applied, log } = this.#options;
    if (uplink === undefined) return;
    refuseAsUplink(kernel, uplink, nic, { name: bridge, index: link.index });
    applied.noteUplink(nic.name, { up: nic.up });
    becomePort(kernel, nic, link);
    if (nic.master !== link.index) {
      log.info({ bridge, uplink: nic.name }, 'uplink taken into the bridge');
    }
  }

  #set(path: readonly string[], value: string): void {
    const { applied, log } = this.#options;
    const found = readIfThere(path);
    if (found === undefined || found === value) return;
    applied.noteSetting(path.join('/'), { found, set: value });
    writeSysctl(path, value);
    log.warn({ sysctl: path.join('.'), value, found }, 'set for networks of this host');
  }

  /** Takes away what was described `before` and is not described `after`. */
  #takeAway(before: BridgeDescription, after: BridgeDescription | undefined): void {
    const { kernel, firewall, forwarding, log } = this.#options;
    const link = kernel.links.get(before.bridge);
    const leaves = after?.bridge !== before.bridge;
    if (before.uplink !== undefined && (leaves || after.uplink?.device !== before.uplink.device)) {
      this.#releaseUplink(before.uplink.device, link);
    }
    forwarding.switchOff(
      before.forwards.filter((family) => !this.#forwards(family, before, after)),
    );
    if (!leaves) {
      // It was made of the MAC that the bridge had then, which is another host's too where the gateway is anycast.
      const stale = before.mac === after.mac ? undefined : before.linkLocal;
      if (stale !== undefined && link !== null && isBridgeOf(link, before)) {
        removeAddress(kernel, link, stale);
      }
      for (const to of before.localRoutes) {
        if (link !== null && !after.localRoutes.includes(to))
          removeLocalRoute(kernel, to, link.index);
      }
      this.#restoreAll(before, settingNames(after));
      return;
    }
    firewall.remove(`bridge:${before.bridge}`);
    if (link !== null && link.kind !== 'bridge') return;
    if (link !== null && isBridgeOf(link, before)) {
      kernel.links.delete(link);
      log.info({ bridge: link.name, network: before.network }, 'bridge removed');
    } else if (link !== null) {
      for (const to of before.localRoutes) removeLocalRoute(kernel, to, link.index);
    }
    this.#restoreAll(before, []);
  }

  /** Restores the settings of a bridge but those that are `kept`; of a bridge that is gone, forgets them. */
  #restoreAll(before: BridgeDescription, kept: readonly string[]): void {
    for (const name of settingNames(before)) {
      if (!kept.includes(name)) this.#restore(settingOf(before.bridge, name));
    }
  }

  /** Whether another network, or the same as it is described now, needs the host to forward a family. */
  #forwards(
    family: 4 | 6,
    before: BridgeDescription,
    after: BridgeDescription | undefined,
  ): boolean {
    const others = this.#options.applied.descriptions.filter(
      ({ network }) => network !== before.network,
    );
    return [...others, ...(after === undefined ? [] : [after])].some(({ forwards }) =>
      forwards.includes(family),
    );
  }

  /** Gives a setting the value that was found, unless somebody has changed it since. */
  #restore(path: readonly string[]): void {
    const { applied, log } = this.#options;
    const key = path.join('/');
    const changed = applied.settings[key];
    if (changed === undefined) return;
    if (readIfThere(path) === changed.set) {
      writeSysctl(path, changed.found);
      log.info({ sysctl: path.join('.'), value: changed.found }, 'set back as it was found');
    }
    applied.forgetSetting(key);
  }

  #releaseUplink(device: string, bridge: Link | null): void {
    const { kernel, applied, log } = this.#options;
    const nic = kernel.links.get(device);
    const found = applied.uplink(device);
    if (nic !== null && bridge !== null && nic.master === bridge.index) {
      kernel.links.set(nic, { master: null });
      log.info({ bridge: bridge.name, uplink: device }, 'uplink taken out of the bridge');
    }
    // Of one that has become somebody else's port, nothing is changed.
    const isFree = nic?.master === undefined || nic.master === bridge?.index;
    if (nic !== null && isFree && found?.up === false) kernel.links.set(nic, { up: false });
    applied.forgetUplink(device);
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

/** As it is described, of a bridge that another agent, or somebody else, has made meanwhile: it keeps its maker's MAC. */
function asMadeBy(link: Link | null, described: BridgeDescription): BridgeDescription {
  if (link?.mac === undefined) return described;
  if (!isMadeByAgent(link)) return { ...described, adopted: true };
  const { linkLocal } = described;
  return {
    ...described,
    mac: link.mac.toString(),
    ...(linkLocal !== undefined && { linkLocal: `${link.mac.linkLocal().toString()}/64` }),
  };
}

const settingNames = ({ bridgeSettings, ownSettings }: BridgeDescription): string[] =>
  Object.keys({ ...bridgeSettings, ...ownSettings });

/** `ipv4.route_localnet` of a bridge, as components below `/proc/sys`. */
function settingOf(bridge: string, name: string): string[] {
  const [family = '', key = ''] = name.split('.');
  return ['net', family, 'conf', bridge, key];
}

// A bridge's MTU follows its lowest port until somebody has set it to another value than it had
// (BROPT_MTU_SET_BY_USER); a value given at creation does not count.
function pinMtu(kernel: Kernel, link: Link, mtu: number): void {
  kernel.links.set(link, { mtu: mtu === LEAST_MTU ? mtu + 1 : mtu - 1 });
  kernel.links.set(link, { mtu });
}

/** Ports that came while there was spanning tree would pass nothing for up to 30 s more, by timers that go on. */
function switchSpanningTreeOff({ links }: Kernel, bridge: Link): void {
  links.setBridge(bridge, { IFLA_BR_STP_STATE: 0 });
  for (const port of links.list()) {
    const state = port.bridgePort?.IFLA_BRPORT_STATE;
    if (port.master !== bridge.index || state === undefined || SETTLED.has(state)) continue;
    try {
      links.setBridgePort(port, { IFLA_BRPORT_STATE: BR_STATE_FORWARDING });
    } catch (error) {
      // It is down by now, or gone.
      if (!isKernelError(error, 'ENETDOWN', 'ENODEV', 'EOPNOTSUPP', 'EINVAL')) throw error;
    }
  }
}

/** DEVICE_BUSY: a device stands on the NIC that this host does not see, in a namespace without a number here. */
function becomePort({ links }: Kernel, nic: Link, bridge: Link): void {
  try {
    links.set(nic, { ...(nic.master !== bridge.index && { master: bridge.index }), up: true });
  } catch (error) {
    if (!isKernelError(error, 'EBUSY')) throw error;
    throw new VoltError('DEVICE_BUSY', `uplink: ${nic.name} carries a macvlan or the like`, {
      details: { path: 'uplink.device', device: nic.name },
      cause: error,
    });
  }
}

function addAddress(kernel: Kernel, { index: ifindex }: Link, text: string): void {
  try {
    kernel.addresses.add({ ifindex, address: InterfaceAddress.parse(text), noDad: true });
  } catch (error) {
    if (!isKernelError(error, 'EEXIST')) throw error;
  }
}

/** Without promotion the kernel takes other addresses of the same subnet away with the first of them. */
function removeAddress(kernel: Kernel, { index: ifindex, name }: Link, text: string): void {
  const address = InterfaceAddress.parse(text);
  try {
    if (address.address.family === 4) {
      writeSysctl(['net', 'ipv4', 'conf', name, 'promote_secondaries'], '1');
    }
    kernel.addresses.remove({ ifindex, address });
  } catch (error) {
    if (!isKernelError(error, 'EADDRNOTAVAIL')) throw error;
  }
}

function refuseOtherKind(link: Link, { network }: { readonly network: string }): void {
  if (link.kind === 'bridge') return;
  throw new VoltError(
    'INTERFACE_EXISTS',
    `network ${network} wants bridge ${link.name}, which is a ${link.kind ?? 'device'}`,
    { details: { name: link.name, kind: link.kind ?? null } },
  );
}
