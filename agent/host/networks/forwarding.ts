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

const ACCEPT_REDIRECTS = ['net', 'ipv4', 'conf', 'all', 'accept_redirects'];

const FAMILIES = [4, 6] as const;
export const SWITCHES = { 4: IPV4_FORWARDING, 6: IPV6_FORWARDING } as const;

/**
 * The value that this agent writes into the switch; an operator, Docker and libvirt write 1. For the kernel, any value
 * but 0 means on. So one write both switches forwarding on and says who did it, and the two cannot disagree: an
 * operator who writes 1 takes over, and a reboot forgets both.
 */
const SWITCHED_BY_AGENT = '2';

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
  #tellSwitchedOff: ((families: readonly Family[]) => void) | undefined;
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
        const off = FAMILIES.filter((family) => forwardingSwitch(family) === 'nobody');
        if (off.length > 0) this.#tellSwitchedOff?.(off);
      }, LOOK_MS).unref();
    };
    const groups = [RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF];
    this.#watch ??= subscribe(groups, { onMessage: look, onOverrun: look });
  }

  /** Calls `tell` after each change of forwarding settings that leaves switches of these families off. */
  onSwitchedOff(tell: (families: readonly Family[]) => void): void {
    this.#tellSwitchedOff = tell;
  }

  /** Makes the host forward these families. Each setting that this changes is logged. */
  switchOn(families: readonly Family[]): void {
    for (const family of families) {
      if (forwardingSwitch(family) !== 'nobody') continue;
      this.#closeAlso(family);
      this.#write(family, SWITCHED_BY_AGENT);
    }
  }

  /** Makes the host a router on a bridge of the agent's own: it then ignores router advertisements of workloads. */
  makeRouter(bridge: string): void {
    this.#keepingRoutes(() => this.#set(ofDevice(6, bridge), '1'));
  }

  /** Switches off what `switchOn` has switched on. What an operator has switched on stays. */
  switchOff(families: readonly Family[] = FAMILIES): void {
    for (const family of families) {
      if (forwardingSwitch(family) === 'agent') this.#write(family, '0');
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

  /**
   * Writes a switch. The kernel overwrites other settings with it, which get back what was found there: the forwarding of
   * each device and the default for new ones, and with IPv4 `all.accept_redirects`, which a hardened host has switched off.
   */
  #write(family: Family, value: string): void {
    const links = this.#kernel.links.list();
    const beside = family === 4 ? besideSwitch4(links) : besideSwitch6(links);
    const write = (): void => {
      this.#set(SWITCHES[family], value);
      for (const [path, before] of beside) writeIfThere(path, before);
    };
    if (family === 4) write();
    else this.#keepingRoutes(write);
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

/** Settings that the kernel overwrites with a switch, and their values now. */
type Beside = (readonly [path: readonly string[], value: string])[];

/**
 * inet_forward_change (net/ipv4/devinet.c). IPv4 is forwarded from each device whose own setting says so. A 0 there is not
 * kept: the switch is for all devices, and for those that come later. That of an own macvtap is: while no guest holds it,
 * the kernel gives its packets to the host, which must not forward them.
 */
const besideSwitch4 = (links: readonly Link[]): Beside => [
  ...found([ACCEPT_REDIRECTS, ...links.filter(isOwnMacvtap).map(({ name }) => ofDevice(4, name))]),
  ...found(hostSettings(4, links)).filter(([, value]) => value !== '0'),
];

/**
 * addrconf_fixup_forwarding (net/ipv6/addrconf.c). IPv6 is forwarded by the whole host or not at all. The setting of a
 * device says whether the host is a router there and so ignores router advertisements: it would lose its own routes.
 */
const besideSwitch6 = (links: readonly Link[]): Beside => found(hostSettings(6, links));

const hostSettings = (family: Family, links: readonly Link[]): string[][] =>
  ['default', ...links.filter(isOfHost).map(({ name }) => name)].map((name) =>
    ofDevice(family, name),
  );

/** Without those that have the value of the switch: the kernel has set them with it. */
const found = (paths: readonly (readonly string[])[]): Beside =>
  paths.flatMap((path) => {
    const value = readIfThere(path);
    return value === undefined || value === SWITCHED_BY_AGENT ? [] : [[path, value] as const];
  });

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
