import type { Link } from '#native/link.ts';
import { subscribe } from '#native/netlink-events.ts';
import { RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF } from '#native/rtnetlink.ts';
import { writeSysctl } from '#native/sysctl.ts';
import { foreignForwardingFacts } from '../firewall/host-nat.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { readIfThere } from '../bridges/settings.ts';
import type { Kernel } from '../kernel.ts';
import type { Log } from '../../log.ts';
import { isMadeByAgent } from '../ownership.ts';

export type Family = 4 | 6;

export const IPV4_FORWARDING = ['net', 'ipv4', 'ip_forward'];
export const IPV6_FORWARDING = ['net', 'ipv6', 'conf', 'all', 'forwarding'];

const FAMILIES = [4, 6] as const;
export const SWITCHES = { 4: IPV4_FORWARDING, 6: IPV6_FORWARDING } as const;

/**
 * The value that this agent writes into the switch; an operator, Docker and libvirt write 1. For the kernel, any value
 * but 0 means on. So one write both switches forwarding on and says who did it, and the two cannot disagree: an
 * operator who writes 1 takes over, and a reboot forgets both.
 */
const SWITCHED_BY_AGENT = '2';
const SWITCHED_BY_OPERATOR = '1';

const OWNER = 'forwarding';
/** Delay between an event and the look at the switches: each new device causes events, too. */
const LOOK_MS = 50;

/** Who has switched on the host's packet forwarding. */
export type ForwardingSwitch = 'nobody' | 'agent' | 'operator';

/** Reads the switch of one address family; `nobody` if the kernel does not have that family. */
export function forwardingSwitch(family: Family): ForwardingSwitch {
  const value = readIfThere(SWITCHES[family]) ?? '0';
  if (value === '0') return 'nobody';
  return value === SWITCHED_BY_AGENT ? 'agent' : 'operator';
}

/**
 * The host's packet forwarding. If this agent switches it on, that is for its own networks alone: the firewall drops
 * packets that would be forwarded between two devices that are not ours. If an operator has switched it on, it is the
 * operator's, and the firewall has no such rule.
 */
export class Forwarding implements Disposable {
  readonly #kernel: Kernel;
  readonly #firewall: Firewall;
  readonly #log: Log;
  #watch: Disposable | undefined;
  #look: NodeJS.Timeout | undefined;
  /** The families for which the firewall has such a rule. */
  #closed: readonly Family[] = [];

  constructor({ kernel, firewall, log }: { kernel: Kernel; firewall: Firewall; log: Log }) {
    this.#kernel = kernel;
    this.#firewall = firewall;
    this.#log = log;
  }

  /** Puts the facts of an earlier agent's switches into the firewall, and follows the switches from now on. */
  start(): void {
    this.#revise();
    const look = (): void => {
      this.#look ??= setTimeout(() => {
        this.#look = undefined;
        this.#revise();
      }, LOOK_MS).unref();
    };
    const groups = [RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF];
    this.#watch ??= subscribe(groups, { onMessage: look, onOverrun: look });
  }

  /** Makes the host forward these families. Each setting that this changes is logged. */
  switchOn(families: readonly Family[]): void {
    if (families.includes(4) && forwardingSwitch(4) === 'nobody') this.#switchOn4();
    if (families.includes(6) && forwardingSwitch(6) === 'nobody') this.#switchOn6();
  }

  /** Makes the host a router on one bridge: it then ignores router advertisements of workloads. */
  makeRouter(bridge: string): void {
    this.#keepingRoutes(() => this.#set(ofDevice(6, bridge), '1'));
  }

  /** Switches off what `switchOn` has switched on. What an operator has switched on stays. */
  switchOff(families: readonly Family[] = FAMILIES): void {
    for (const family of families) {
      if (forwardingSwitch(family) !== 'agent') continue;
      const kept = this.#kernel.links
        .list()
        .filter(isOfHost)
        .map(({ name }) => ofDevice(family, name))
        .filter((path) => readIfThere(path) === SWITCHED_BY_OPERATOR);
      this.#set(SWITCHES[family], '0');
      for (const path of kept) writeIfThere(path, SWITCHED_BY_OPERATOR);
    }
    this.#revise();
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#look);
    this.#watch?.[Symbol.dispose]();
  }

  /** Brings the facts in the firewall to what the switches say. */
  #revise(): void {
    this.#close(FAMILIES.filter((family) => forwardingSwitch(family) === 'agent'));
  }

  /** Makes the firewall drop packets of exactly these families that are forwarded between devices that are not ours. */
  #close(families: readonly Family[]): void {
    if (families.join() === this.#closed.join()) return;
    if (families.length === 0) this.#firewall.remove(OWNER);
    else {
      const opened = families.includes(4) ? openedByOperator(this.#kernel) : [];
      this.#firewall.put(OWNER, foreignForwardingFacts(families, opened));
    }
    this.#closed = families;
  }

  /** The firewall closes before the switch is written, so that nothing passes in between. */
  #closeAlso(family: Family): void {
    this.#close(FAMILIES.filter((one) => one === family || forwardingSwitch(one) === 'agent'));
  }

  /** The switch overwrites the setting of every device; devices whose setting means something get it back. */
  #switchOn4(): void {
    const opened = openedByOperator(this.#kernel);
    const macvtaps = this.#kernel.links.list().filter(isOwnMacvtap);
    this.#closeAlso(4);
    this.#set(IPV4_FORWARDING, SWITCHED_BY_AGENT);
    for (const name of opened) writeIfThere(ofDevice(4, name), SWITCHED_BY_OPERATOR);
    // While no guest holds a macvtap, the kernel gives its packets to the host, which must not forward them.
    for (const { name } of macvtaps) writeIfThere(ofDevice(4, name), '0');
  }

  /**
   * IPv6 is forwarded by the whole host or not at all. The setting of a device, which the switch overwrites, too, says
   * whether the host is a router there and so ignores router advertisements. Devices, and the default for new ones, get
   * their setting back: otherwise the host would lose its own routes.
   */
  #switchOn6(): void {
    const devices = this.#kernel.links.list().filter(isOfHost);
    const found = ['default', ...devices.map(({ name }) => name)].map((name) => ({
      name,
      value: readIfThere(ofDevice(6, name)),
    }));
    this.#closeAlso(6);
    this.#keepingRoutes(() => {
      this.#set(IPV6_FORWARDING, SWITCHED_BY_AGENT);
      for (const { name, value } of found) {
        if (value !== undefined) writeIfThere(ofDevice(6, name), value);
      }
    });
  }

  /**
   * When an IPv6 forwarding setting is written, even that of one device, the kernel forgets the routes from router
   * advertisements on devices with an `accept_ra` below 2. So these devices have 2 during `work`.
   */
  #keepingRoutes(work: () => void): void {
    const devices = this.#kernel.links.list().filter(isOfHost);
    const listening = ['default', ...devices.map(({ name }) => name)].filter(
      (name) => readIfThere(acceptRa(name)) === '1',
    );
    for (const name of listening) writeIfThere(acceptRa(name), '2');
    work();
    for (const name of listening) writeIfThere(acceptRa(name), '1');
  }

  #set(path: readonly string[], value: string): void {
    writeSysctl(path, value);
    this.#log.warn({ sysctl: path.join('.'), value }, 'sysctl set, for the networks of this host');
  }
}

const ofDevice = (family: Family, name: string): string[] => [
  'net',
  `ipv${family}`,
  'conf',
  name,
  'forwarding',
];
const acceptRa = (name: string): string[] => ['net', 'ipv6', 'conf', name, 'accept_ra'];

/** Devices with a setting of their own: not the ports of workloads, of which there may be thousands. */
const isOfHost = (link: Link): boolean => !isMadeByAgent(link) || link.kind === 'bridge';
const isOwnMacvtap = (link: Link): boolean => isMadeByAgent(link) && link.kind === 'macvtap';

/** Devices for which an operator has switched IPv4 forwarding on, one by one. */
const openedByOperator = ({ links }: Kernel): string[] =>
  links
    .list()
    .filter((link) => isOfHost(link) && link.settings?.['ipv4.forwarding'] === 1)
    .map(({ name }) => name);

/** A device may be gone by now. */
function writeIfThere(path: readonly string[], value: string): void {
  if ((readIfThere(path) ?? value) !== value) writeSysctl(path, value);
}
