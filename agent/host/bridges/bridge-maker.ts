import { InterfaceAddress, MacAddress } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import { isKernelError } from '#native/errors.ts';
import type { Link } from '#native/link.ts';
import { writeSysctl } from '#native/sysctl.ts';
import type { Log } from '../../log.ts';
import type { Firewall } from '../firewall/firewall.ts';
import { arrivalFacts, guardFacts, hostLocalFacts, trustedFacts } from '../firewall/port-filter.ts';
import type { Fact } from '../firewall/ruleset.ts';
import type { Kernel } from '../kernel.ts';
import type { Forwarding } from '../networks/forwarding.ts';
import { DEVICE_GROUP, bridgeTag, bridgeTagOf, isBridgeOf, isMadeByAgent } from '../ownership.ts';
import type { Applied } from './applied.ts';
import { type BridgeDifference, compareBridge } from './comparison.ts';
import type { BridgeDescription } from './description.ts';
import { addLocalRoute, removeLocalRoute } from './routes.ts';
import { readIfThere } from './settings.ts';
import { type BridgeSnapshot, look } from './snapshot.ts';
import { refuseAsUplink, wayOutMtu } from './uplink.ts';

/** What the firewall has to hold for a bridge, which an agent `made` or adopted. */
export type BridgeFacts = (made: boolean) => readonly Fact[];

export interface BridgeMakerOptions {
  readonly kernel: Kernel;
  readonly firewall: Firewall;
  readonly forwarding: Pick<Forwarding, 'switchOn' | 'switchOff' | 'makeRouter'>;
  readonly applied: Applied;
  readonly log: Log;
}

// linux/if_bridge.h.
const BR_STATE_DISABLED = 0;
const BR_STATE_FORWARDING = 3;
/** States that a port of a bridge without spanning tree stays in. */
const SETTLED: ReadonlySet<number> = new Set([BR_STATE_DISABLED, BR_STATE_FORWARDING]);

/** RFC 791; the kernel makes no bridge that carries less. */
const LEAST_MTU = 68;

/** Makes of one network's objects on this host what its description says, and takes them away; nothing else does. */
export class BridgeMaker {
  readonly #options: BridgeMakerOptions;

  constructor(options: BridgeMakerOptions) {
    this.#options = options;
  }

  /** Makes the bridge if it was not `found`, and all that differs; answers the bridge. */
  apply(description: BridgeDescription, facts: BridgeFacts | undefined, found: Link | null): Link {
    const { kernel, applied } = this.#options;
    if (found === null && !this.#renamedBack(description)) {
      const made = this.#withMtu(description);
      applied.put(made);
      if (!this.#make(made))
        applied.put(asMadeBy(kernel.links.get(description.bridge), description));
    }
    const now = applied.descriptionOf(description.network) ?? description;
    return this.repair(now, facts, look(kernel, now));
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
  repair(
    description: BridgeDescription,
    facts: BridgeFacts | undefined,
    snapshot: BridgeSnapshot,
  ): Link {
    const { link } = snapshot;
    if (link === null) {
      throw new VoltError('NOT_FOUND', `bridge ${description.bridge} vanished while it was made`);
    }
    refuseOtherKind(link, description);
    if (facts !== undefined) this.protect(description, facts, link);
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
  protect(description: BridgeDescription, facts: BridgeFacts, link: Link): void {
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
  takeAway(before: BridgeDescription, after: BridgeDescription | undefined): void {
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
}

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
export function removeAddress(kernel: Kernel, { index: ifindex, name }: Link, text: string): void {
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

export function refuseOtherKind(link: Link, { network }: { readonly network: string }): void {
  if (link.kind === 'bridge') return;
  throw new VoltError(
    'INTERFACE_EXISTS',
    `network ${network} wants bridge ${link.name}, which is a ${link.kind ?? 'device'}`,
    { details: { name: link.name, kind: link.kind ?? null } },
  );
}
