import type { MacAddress } from '#protocol/address.ts';
import type { Values } from './codec.ts';
import { isKernelError } from './errors.ts';
import type { Namespace } from './namespace.ts';
import type { NetlinkSocket, Request } from './netlink.ts';
import type { Received } from './netlink-message.ts';
import type { BRIDGE, BRIDGE_PORT, LINK, VF_INFO } from './rtnetlink.ts';
import type { Steps } from './steps.ts';
import {
  AF_BRIDGE,
  IFF_NOARP,
  IFF_UP,
  type LinkInfo,
  linkMessage,
  NLM_F_CREATE,
  NLM_F_ECHO,
  NLM_F_EXCL,
  RTEXT_FILTER_SKIP_STATS,
  RTEXT_FILTER_VF,
  RTM_DELLINK,
  RTM_GETLINK,
  RTM_NEWLINK,
  RTM_SETLINK,
} from './rtnetlink.ts';

/** IFNAMSIZ without the terminating zero. */
const MAX_NAME_BYTES = 15;
/** linux/if_arp.h. */
const ARPHRD_ETHER = 1;
/** Of USER_HZ, in which the kernel tells times of bridges. */
const MS_PER_JIFFY = 10;

// Places in the arrays that describe a device's settings (enum in linux/ip.h, less one, and in linux/ipv6.h).
const SETTINGS = {
  'ipv4.forwarding': { of: 'IFLA_INET_CONF', place: 0 },
  'ipv4.rp_filter': { of: 'IFLA_INET_CONF', place: 7 },
  'ipv4.arp_ignore': { of: 'IFLA_INET_CONF', place: 18 },
  'ipv4.route_localnet': { of: 'IFLA_INET_CONF', place: 25 },
  'ipv6.forwarding': { of: 'IFLA_INET6_CONF', place: 0 },
  'ipv6.accept_ra': { of: 'IFLA_INET6_CONF', place: 3 },
  'ipv6.disable_ipv6': { of: 'IFLA_INET6_CONF', place: 26 },
} as const;
const SETTING_PLACES = Object.entries(SETTINGS);
const SETTING_BYTES = 4;

/** By family and name as below `/proc/sys/net/<family>/conf/<device>/`. */
export type LinkSettings = Partial<Readonly<Record<LinkSetting, number>>>;
export type LinkSetting = keyof typeof SETTINGS;

const isSetting = (name: string): name is LinkSetting => Object.hasOwn(SETTINGS, name);

/** The settings that are there, each with its name. */
export const settingEntries = (settings: LinkSettings): [LinkSetting, number][] =>
  Object.entries(settings).flatMap(([name, value]) => (isSetting(name) ? [[name, value]] : []));

/** A network device as the kernel reports it. */
export interface Link {
  readonly index: number;
  readonly name: string;
  /** `bridge`, `veth`, `tun`, …; absent for loopback and most hardware. */
  readonly kind?: string;
  /** Absent where the device has no Ethernet address. */
  readonly mac?: MacAddress;
  readonly mtu: number;
  /** IFF_UP: set up by somebody. A TAP that nobody holds is up without a carrier. */
  readonly up: boolean;
  readonly carrier: boolean;
  /** Index of the bridge that it is a port of. */
  readonly master?: number;
  /** 0 is the default group. */
  readonly group: number;
  readonly alias?: string;
  /** IFLA_LINK: of a veth the index of its peer, of a macvlan that of its parent. */
  readonly linkIndex?: number;
  /**
   * IFLA_LINK_NETNSID: `linkIndex` counts in another namespace, which ours knows under this id. Absent when it
   * counts here.
   */
  readonly linkNamespaceId?: number;
  /** Of a TAP. */
  readonly tun?: {
    readonly owner?: number;
    readonly group?: number;
    readonly persistent: boolean;
    readonly multiQueue: boolean;
    /** Queues held by a process; of a single-queue device 1 when it has a carrier. */
    readonly queues: number;
  };
  /** Ethernet (ARPHRD_ETHER): what a bridge takes as a port. Loopback and tunnels of IP packets are not. */
  readonly ethernet: boolean;
  /** IFF_NOARP: it neither answers nor asks who has an address, by ARP or by neighbour discovery. */
  readonly noArp?: true;
  /** Of a bridge with spanning tree: for so long a new port passes nothing, twice. */
  readonly forwardDelayMs?: number;
  /** Of a macvlan or macvtap: 1 private, 2 vepa, 4 bridge, 8 passthru. */
  readonly macvlanMode?: number;
  /** Settings below `/proc/sys/net`: those of `SETTINGS` that the device has. */
  readonly settings?: LinkSettings;
  /** Of a bridge's port. */
  readonly bridgePort?: Values<typeof BRIDGE_PORT>;
  /** Settings of the virtual functions of a PF, by VF number; only from `getWithVfs`. */
  readonly vfs?: readonly Values<typeof VF_INFO>[];
  /** `0000:01:00.0` and `pci`. */
  readonly parentDevice?: { readonly name: string; readonly bus: string };
}

/** What RTM_SETLINK can change in one message. Keys left out stay as they are. */
export interface LinkChange {
  readonly name?: string;
  readonly up?: boolean;
  readonly arp?: boolean;
  readonly mtu?: number;
  readonly mac?: MacAddress;
  /** Index of a bridge; null takes the port out. */
  readonly master?: number | null;
  readonly group?: number;
  readonly alias?: string;
  readonly namespace?: Namespace;
}

/** A device by index; with its name, errors and traces say that. */
export type LinkReference = number | Pick<Link, 'index' | 'name'>;

interface NewLink {
  readonly name: string;
  readonly mac?: MacAddress;
  readonly mtu?: number;
  readonly group?: number;
}

/** Devices of one network namespace, over one netlink socket. Errors are KernelError. */
export class Links {
  readonly #socket: NetlinkSocket;

  constructor(socket: NetlinkSocket) {
    this.#socket = socket;
  }

  /** One device by index or name; null when there is none. */
  get(which: number | string): Link | null {
    return this.#get(which, RTEXT_FILTER_SKIP_STATS);
  }

  /** One device by index in the namespace of that number (`NamespaceIds`); null when either is not there. */
  getIn(namespaceId: number, index: number): Link | null {
    const attributes = {
      IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS,
      IFLA_TARGET_NETNSID: namespaceId,
    };
    const subject = `#${index} in namespace #${namespaceId}`;
    const request = linkRequest(RTM_GETLINK, subject, { ifi_index: index }, attributes);
    try {
      return this.#socket.find(request, 'ENODEV', parseLink);
    } catch (error) {
      if (isKernelError(error, 'EINVAL')) return null;
      throw error;
    }
  }

  /** All devices of the namespace of that number (`NamespaceIds`); none when there is no such namespace. */
  listIn(namespaceId: number): Link[] {
    const attributes = {
      IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS,
      IFLA_TARGET_NETNSID: namespaceId,
    };
    const subject = `links of namespace #${namespaceId}`;
    try {
      return this.#socket.dump(linkRequest(RTM_GETLINK, subject, {}, attributes), parseLink);
    } catch (error) {
      if (isKernelError(error, 'EINVAL')) return [];
      throw error;
    }
  }

  /** The index of the device of that name, null when there is none. Much cheaper than `get`. */
  indexOf(name: string): number | null {
    return this.#socket.deviceIndex(name);
  }

  /** The name of the device of that index, null when there is none. As cheap. */
  nameOf(index: number): string | null {
    return this.#socket.deviceName(index);
  }

  /** Like `get`, with the settings of the device's virtual functions. */
  getWithVfs(which: number | string): Link | null {
    return this.#get(which, RTEXT_FILTER_SKIP_STATS | RTEXT_FILTER_VF);
  }

  /** All devices. */
  list(): Link[] {
    return this.#socket.dump(ALL_LINKS, parseLink);
  }

  /** The same, with pauses (`NetlinkSocket.dumpSteps`). */
  listSteps(): Steps<Link[]> {
    return this.pickSteps((link) => link);
  }

  /** What `pick` takes of each device, so that the rest of thousands is not kept. */
  pickSteps<T>(pick: (link: Link) => T): Steps<T[]> {
    return this.#socket.dumpSteps(ALL_LINKS, (message) => pick(parseLink(message)));
  }

  /** All bridges: the kernel tells of no other devices, where it knows of bridges at all. */
  bridges(): Link[] {
    return this.#socket.dump(ALL_BRIDGES, parseLink).filter(({ kind }) => kind === 'bridge');
  }

  /** A bridge, down. The MAC keeps it from following its lowest port. */
  createBridge(bridge: NewLink): Link {
    return this.#create(bridge, { IFLA_LINKINFO: { kind: 'bridge' } });
  }

  /**
   * A veth pair, both ends down; the peer in its namespace under its final name. EEXIST when either name is
   * taken. Each end has one queue: the kernel's own choice is one for each CPU that may ever be there, which serve
   * XDP alone and make up a third of the time that a pair takes on two CPUs, more on more.
   */
  createVeth(
    pair: NewLink & {
      readonly master?: number;
      readonly peer: NewLink & { readonly namespace?: Namespace };
    },
  ): Link {
    const { master, peer } = pair;
    const made = this.#create(pair, {
      ...ONE_QUEUE,
      ...(master !== undefined && { IFLA_MASTER: master }),
      IFLA_LINKINFO: {
        kind: 'veth',
        data: {
          VETH_INFO_PEER: {
            ...commonAttributes(peer),
            ...ONE_QUEUE,
            ...(peer.namespace !== undefined && { IFLA_NET_NS_FD: peer.namespace.fd }),
          },
        },
      },
    });
    // The kernel enslaves the new device after it has told what it made.
    return master === undefined ? made : { ...made, master };
  }

  /**
   * A macvlan, or macvtap, on a parent device, down; made in `namespace` when one is given. `index` is the
   * ifindex that it is to have: EEXIST when either that or the name is taken.
   */
  createMacvlan(
    device: NewLink & {
      readonly kind: 'macvlan' | 'macvtap';
      readonly index: number;
      readonly parent: number;
      readonly mode: number;
      readonly namespace?: Namespace;
    },
  ): void {
    const { kind, index, parent, mode, namespace } = device;
    const request = linkRequest(
      RTM_NEWLINK,
      device.name,
      { ifi_index: index },
      {
        ...commonAttributes(device),
        IFLA_LINK: parent,
        ...(namespace !== undefined && { IFLA_NET_NS_FD: namespace.fd }),
        IFLA_LINKINFO: { kind, data: { IFLA_MACVLAN_MODE: mode } },
      },
    );
    // No NLM_F_ECHO: the kernel would send it to whichever socket has our port id in that namespace.
    this.#socket.request({ ...request, flags: NLM_F_CREATE | NLM_F_EXCL });
  }

  /** An intermediate functional block, down: a queue for frames that come in by other devices. */
  createIfb(device: NewLink): Link {
    return this.#create(device, { IFLA_LINKINFO: { kind: 'other', name: 'ifb' } });
  }

  /** Changes a device, all in one message. */
  set(link: LinkReference, change: LinkChange): void {
    this.#socket.request(this.change(link, change));
  }

  /** The request of `set`, for a batch. */
  change(link: LinkReference, change: LinkChange): Request {
    const index = indexOf(link);
    const { name, up, arp, mtu, mac, master, group, alias, namespace } = change;
    const header = {
      ifi_index: index,
      ifi_flags: (up === true ? IFF_UP : 0) | (arp === false ? IFF_NOARP : 0),
      ifi_change: (up === undefined ? 0 : IFF_UP) | (arp === undefined ? 0 : IFF_NOARP),
    };
    const attributes: Values<typeof LINK> = {
      ...(name !== undefined && { IFLA_IFNAME: name }),
      ...(mac !== undefined && { IFLA_ADDRESS: mac }),
      ...(mtu !== undefined && { IFLA_MTU: mtu }),
      ...(master !== undefined && { IFLA_MASTER: master ?? 0 }),
      ...(group !== undefined && { IFLA_GROUP: group }),
      ...(alias !== undefined && { IFLA_IFALIAS: alias }),
      ...(namespace !== undefined && { IFLA_NET_NS_FD: namespace.fd }),
    };
    return linkRequest(RTM_SETLINK, subjectOf(link), header, attributes);
  }

  /** Changes settings of a bridge itself. The kernel takes those of a kind of device with RTM_NEWLINK alone. */
  setBridge(link: LinkReference, data: Values<typeof BRIDGE>): void {
    const header = { ifi_index: indexOf(link) };
    const attributes = { IFLA_LINKINFO: { kind: 'bridge', data } } as const;
    this.#socket.request(linkRequest(RTM_NEWLINK, subjectOf(link), header, attributes));
  }

  /** Changes how a bridge treats one of its ports. */
  setBridgePort(link: LinkReference, port: Values<typeof BRIDGE_PORT>): void {
    this.#socket.request(this.bridgePortChange(link, port));
  }

  /** The request of `setBridgePort`, for a batch. */
  bridgePortChange(link: LinkReference, port: Values<typeof BRIDGE_PORT>): Request {
    const header = { ifi_family: AF_BRIDGE, ifi_index: indexOf(link) };
    return linkRequest(RTM_SETLINK, subjectOf(link), header, { IFLA_PROTINFO: port });
  }

  /** Changes settings of one virtual function of a PF. */
  setVf(link: LinkReference, settings: Values<typeof VF_INFO>): void {
    const header = { ifi_index: indexOf(link) };
    this.#socket.request(
      linkRequest(RTM_SETLINK, subjectOf(link), header, { IFLA_VFINFO_LIST: [settings] }),
    );
  }

  /** Deletes a device and waits: 16 ms and more, whatever it is. ENODEV is success. */
  delete(link: LinkReference): void {
    const header = { ifi_index: indexOf(link) };
    try {
      this.#socket.request(linkRequest(RTM_DELLINK, subjectOf(link), header, {}));
    } catch (error) {
      if (!isKernelError(error, 'ENODEV')) throw error;
    }
  }

  /** The same off the main thread. The socket takes nothing else meanwhile. */
  async deleteAsync(link: LinkReference): Promise<void> {
    const header = { ifi_index: indexOf(link) };
    await this.#deleteAsync(linkRequest(RTM_DELLINK, subjectOf(link), header, {}));
  }

  /** The same of a device in the namespace of that number (`NamespaceIds`). EINVAL, no such number, is success, too. */
  async deleteInAsync(namespaceId: number, index: number): Promise<void> {
    const subject = `#${index} in namespace #${namespaceId}`;
    const attributes = { IFLA_TARGET_NETNSID: namespaceId };
    try {
      await this.#deleteAsync(linkRequest(RTM_DELLINK, subject, { ifi_index: index }, attributes));
    } catch (error) {
      if (!isKernelError(error, 'EINVAL')) throw error;
    }
  }

  /** Deletes all devices of a group in one transaction, off the main thread. */
  async deleteGroupAsync(group: number): Promise<void> {
    await this.#deleteAsync(linkRequest(RTM_DELLINK, `group ${group}`, {}, { IFLA_GROUP: group }));
  }

  async #deleteAsync(request: Request): Promise<void> {
    try {
      await this.#socket.requestAsync(request);
    } catch (error) {
      if (!isKernelError(error, 'ENODEV')) throw error;
    }
  }

  #get(which: number | string, mask: number): Link | null {
    const byIndex = typeof which === 'number';
    // The kernel refuses to look for what cannot be a name.
    if (!byIndex && Buffer.byteLength(which) > MAX_NAME_BYTES) return null;
    const request = linkRequest(
      RTM_GETLINK,
      byIndex ? `#${which}` : which,
      byIndex ? { ifi_index: which } : {},
      { ...(!byIndex && { IFLA_IFNAME: which }), IFLA_EXT_MASK: mask },
    );
    return this.#socket.find(request, 'ENODEV', parseLink);
  }

  /** Kernels since 6.2 answer with the device that they made (NLM_F_ECHO); earlier ones are asked for it. */
  #create(link: NewLink, attributes: Values<typeof LINK>): Link {
    const made = this.#new(link, attributes) ?? this.get(link.name);
    if (made === null) throw new Error(`${link.name} vanished after it was made`);
    return made;
  }

  #new(link: NewLink, attributes: Values<typeof LINK>): Link | undefined {
    const all = { ...commonAttributes(link), ...attributes };
    const flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
    let made: Link | undefined;
    this.#socket.request({ ...linkRequest(RTM_NEWLINK, link.name, {}, all), flags }, (message) => {
      made = parseLink(message);
    });
    return made;
  }
}

const indexOf = (link: LinkReference): number => (typeof link === 'number' ? link : link.index);

const subjectOf = (link: LinkReference): string =>
  typeof link === 'number' ? `#${link}` : link.name;

const commonAttributes = ({ name, mac, mtu, group }: NewLink) => ({
  IFLA_IFNAME: name,
  ...(mac !== undefined && { IFLA_ADDRESS: mac }),
  ...(mtu !== undefined && { IFLA_MTU: mtu }),
  ...(group !== undefined && { IFLA_GROUP: group }),
});

const ONE_QUEUE = { IFLA_NUM_TX_QUEUES: 1, IFLA_NUM_RX_QUEUES: 1 } as const;

const OPERATIONS = new Map([
  [RTM_NEWLINK, 'RTM_NEWLINK'],
  [RTM_DELLINK, 'RTM_DELLINK'],
  [RTM_GETLINK, 'RTM_GETLINK'],
  [RTM_SETLINK, 'RTM_SETLINK'],
]);

const linkRequest = (
  type: number,
  subject: string,
  header: Parameters<typeof linkMessage.write>[1],
  attributes: Values<typeof LINK>,
): Request => ({
  type,
  operation: OPERATIONS.get(type) ?? String(type),
  subject,
  write: (writer) => linkMessage.write(writer, header, attributes),
});

const ALL_LINKS = linkRequest(RTM_GETLINK, 'links', {}, { IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS });
const ALL_BRIDGES = linkRequest(
  RTM_GETLINK,
  'bridges',
  {},
  { IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS, IFLA_LINKINFO: { kind: 'bridge' } },
);

/** A link from the body of an RTM_NEWLINK message: an answer, a dump's row, an event. */
export function parseLink({ body }: Received): Link {
  const { header, attributes } = linkMessage.read(body);
  const { IFLA_LINKINFO: info, IFLA_PARENT_DEV_NAME: parent } = attributes;
  const carrier = attributes.IFLA_CARRIER === 1;
  return {
    index: header.ifi_index,
    name: attributes.IFLA_IFNAME ?? '',
    mtu: attributes.IFLA_MTU ?? 0,
    up: (header.ifi_flags & IFF_UP) !== 0,
    carrier,
    ...((header.ifi_flags & IFF_NOARP) !== 0 && { noArp: true as const }),
    ethernet: header.ifi_type === ARPHRD_ETHER,
    group: attributes.IFLA_GROUP ?? 0,
    ...(info !== undefined && info.kind !== 'none' && { kind: kindName(info) }),
    ...(attributes.IFLA_ADDRESS !== undefined && { mac: attributes.IFLA_ADDRESS }),
    ...(attributes.IFLA_MASTER !== undefined && { master: attributes.IFLA_MASTER }),
    ...(attributes.IFLA_IFALIAS !== undefined && { alias: attributes.IFLA_IFALIAS }),
    ...(attributes.IFLA_LINK !== undefined && { linkIndex: attributes.IFLA_LINK }),
    ...(attributes.IFLA_LINK_NETNSID !== undefined && {
      linkNamespaceId: attributes.IFLA_LINK_NETNSID,
    }),
    ...(info?.port !== undefined && { bridgePort: info.port }),
    ...(attributes.IFLA_AF_SPEC !== undefined && { settings: settingsIn(attributes.IFLA_AF_SPEC) }),
    ...(attributes.IFLA_VFINFO_LIST !== undefined && { vfs: attributes.IFLA_VFINFO_LIST }),
    ...(parent !== undefined && {
      parentDevice: { name: parent, bus: attributes.IFLA_PARENT_DEV_BUS_NAME ?? '' },
    }),
    ...kindFields(info, carrier),
  };
}

function settingsIn({
  AF_INET,
  AF_INET6,
}: NonNullable<Values<typeof LINK>['IFLA_AF_SPEC']>): LinkSettings {
  const arrays = {
    IFLA_INET_CONF: AF_INET?.IFLA_INET_CONF,
    IFLA_INET6_CONF: AF_INET6?.IFLA_INET6_CONF,
  };
  const found: Record<string, number> = {};
  for (const [name, { of, place }] of SETTING_PLACES) {
    const array = arrays[of];
    const at = place * SETTING_BYTES;
    if (array === undefined || array.length < at + SETTING_BYTES) continue;
    // Small numbers, all of them.
    found[name] = array[at] ?? 0;
  }
  return found;
}

const kindName = (info: LinkInfo): string => (info.kind === 'other' ? info.name : info.kind);

function kindFields(
  info: LinkInfo | undefined,
  carrier: boolean,
): Pick<Link, 'tun' | 'macvlanMode' | 'forwardDelayMs'> {
  if (info?.kind === 'bridge') {
    const { IFLA_BR_STP_STATE: stp = 0, IFLA_BR_FORWARD_DELAY: delay = 0 } = info.data ?? {};
    return stp === 0 ? {} : { forwardDelayMs: delay * MS_PER_JIFFY };
  }
  if (info?.kind === 'tun') {
    const { data = {} } = info;
    const multiQueue = data.IFLA_TUN_MULTI_QUEUE === 1;
    return {
      tun: {
        ...(data.IFLA_TUN_OWNER !== undefined && { owner: data.IFLA_TUN_OWNER }),
        ...(data.IFLA_TUN_GROUP !== undefined && { group: data.IFLA_TUN_GROUP }),
        persistent: data.IFLA_TUN_PERSIST === 1,
        multiQueue,
        queues: multiQueue ? (data.IFLA_TUN_NUM_QUEUES ?? 0) : Number(carrier),
      },
    };
  }
  if (info?.kind === 'macvlan' || info?.kind === 'macvtap') {
    const mode = info.data?.IFLA_MACVLAN_MODE;
    return mode === undefined ? {} : { macvlanMode: mode };
  }
  return {};
}
