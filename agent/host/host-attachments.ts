import { MacAddress } from '#protocol/address.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Network } from '#protocol/network.ts';
import { settingEntries } from '#native/link.ts';
import { atOnce } from '#native/steps.ts';
import { writeSysctl } from '#native/sysctl.ts';
import { compare, deviceIn, type Finding, linkDiffering } from './comparator.ts';
import type { Attached, DescribedDevice, Describe, Description } from './description.ts';
import type { Firewall } from './firewall/firewall.ts';
import type { Kernel } from './kernel.ts';
import { limitBandwidth } from './networks/bandwidth.ts';
import { mendPort } from './networks/bridge-port.ts';
import { numberNamespace } from './networks/lost-paths.ts';
import type { AttachmentRecord } from '../storage/journal.ts';
import type { NetworkTypes } from './networks/network-type.ts';
import { filterFacts } from './networks/port-facts.ts';
import type { PortMaps } from './networks/port-maps.ts';
import { isMadeFor } from './ownership.ts';
import { type Looking, lookUp, seen } from './reconcile/observe.ts';

/** The record of something that has been attached, with its network. */
export type OnNetwork = Attached & Required<Pick<Attached, 'network'>>;

/**
 * Compares what the attachments of this host have in the kernel with their records, and sets it to what the records
 * say.
 */
export interface HostAttachments {
  /** Returns what should be there for a record. */
  readonly describe: Describe;
  /**
   * The differences now, also inside the workload's namespace. Never throws UnansweredError: a namespace that does not
   * answer is reported as a difference.
   */
  compare(record: Attached): Finding;
  /**
   * Repairs an attachment in place: its device keeps its index. Also repairs what the device needs on the host. Touches
   * nothing inside a workload's namespace. NOT_FOUND: the device is gone.
   */
  mend(record: OnNetwork): void;
  /**
   * Changes a live attachment from `before` to `after` without losing a packet; registers the undo that restores
   * `before`.
   */
  update(
    change: { readonly before: OnNetwork; readonly after: OnNetwork },
    undo: DisposableStack,
  ): void;
  /** Whether a device that an agent has made for this attachment has the name that its record reserves. */
  hasLeftover(record: AttachmentRecord): boolean;
  /** Gives the firewall the facts of an attachment; at the start of an agent, before the firewall is loaded. */
  resume(record: OnNetwork): void;
}

export interface HostAttachmentsOptions {
  readonly kernel: Kernel;
  readonly firewall: Firewall;
  readonly portMaps: PortMaps;
  readonly networkTypes: NetworkTypes;
}

export function openHostAttachments(
  options: HostAttachmentsOptions & Pick<HostAttachments, 'describe'>,
): HostAttachments {
  const { kernel, firewall, networkTypes, describe } = options;
  const looking: Looking = { kernel, firewall, describe, deep: true };
  const typeOf = ({ network }: { readonly network: Network }) => networkTypes[network.type];
  return {
    describe,
    compare: (record) => {
      const description = describe(record);
      const found = atOnce(lookUp(looking, [record]));
      return description === undefined
        ? { remedy: 'none', differences: [], reported: [] }
        : compare(description, found);
    },
    mend: (record) => {
      const description = describe(record);
      if (description === undefined) return;
      // An attachment that has no device on the host needs no bridge there.
      if (description.device !== undefined) typeOf(record)?.prepareNetwork?.(record.network);
      apply(options, description);
    },
    update: ({ before, after }, undo) => {
      const [from, to] = [describe(before), describe(after)];
      if (from === undefined || to === undefined) return;
      undo.defer(() => apply(options, from, to));
      apply(options, to, from);
    },
    hasLeftover: ({ id, deviceName }) => {
      const link = kernel.links.get(deviceName);
      return link !== null && isMadeFor(id, link);
    },
    resume: (record) => {
      numberNamespace(kernel, record.attachment);
      const description = describe(record);
      if (description === undefined) return;
      typeOf(record)?.resumeNetwork?.(record.network);
      putFilter(options, description);
      putMaps(options, description, description);
    },
  };
}

/**
 * Sets the objects of an attachment to the description. `before`: the description that they were made by, if that is
 * another. The device goes up only after its filter is in force.
 */
function apply(
  options: HostAttachmentsOptions,
  description: Description,
  before: Description = description,
): void {
  const { kernel } = options;
  const { device, closed = false } = description;
  if (device === undefined || closed) return;
  const goesUp = mendLink(kernel, description, device);
  putFilter(options, description);
  const link = { index: device.ifindex, name: device.name };
  if (device.port !== undefined) mendPort(kernel, link, device.port);
  const limited = [device, before.device].some((one) => Object.keys(one?.limits ?? {}).length > 0);
  if (limited) limitBandwidth(kernel, { ...link, alias: device.alias }, device.limits);
  if (goesUp) kernel.links.set(link, { up: true });
  putMaps(options, description, before);
}

/**
 * Sets the described attributes of a device that differ, in one message except for name and sysctls. True if the device
 * has to be set up afterwards.
 */
function mendLink({ links }: Kernel, description: Description, device: DescribedDevice): boolean {
  const found = links.get(device.ifindex);
  const snapshot = { links: new Map(found === null ? [] : [[found.index, seen(found)]]) };
  const link = deviceIn(description, snapshot);
  if (link === undefined) {
    throw new VoltError('NOT_FOUND', `${description.id}: its device is gone`);
  }
  const differing = new Set(linkDiffering(device, link, snapshot).map(([what]) => what));
  const { index } = link;
  const renamed = differing.has('device.name');
  if (renamed) {
    // Kernels before 6.2 rename only what is down.
    links.set({ index, name: link.name }, { up: false });
    links.set({ index, name: link.name }, { name: device.name });
  }
  const master = device.port === undefined ? null : links.indexOf(device.port.bridge);
  const marked = differing.has('device.alias') || differing.has('device.group');
  const change = {
    ...(differing.has('device.mac') && { mac: MacAddress.parse(device.mac) }),
    ...(differing.has('device.mtu') && { mtu: device.mtu }),
    ...(master !== null && link.master !== master && { master }),
    ...(marked && { group: device.group, alias: device.alias }),
  };
  if (Object.keys(change).length > 0) links.set({ index, name: device.name }, change);
  for (const [setting, value] of settingEntries(device.settings)) {
    const [family = '', key = ''] = setting.split('.');
    if (!differing.has(`device.${setting}`)) continue;
    writeSysctl(['net', family, 'conf', device.name, key], String(value));
  }
  return renamed || differing.has('device.up');
}

/** A filter on a single device is a chain on it, and needs the device to exist. */
function putFilter(
  { kernel, firewall }: Pick<HostAttachmentsOptions, 'kernel' | 'firewall'>,
  { filter }: Description,
): void {
  if (filter === undefined) return;
  if (filter.on === 'device' && kernel.links.nameOf(filter.ifindex) === null) return;
  firewall.put(filter.owner, filterFacts(filter));
}

function putMaps(
  { portMaps }: Pick<HostAttachmentsOptions, 'portMaps'>,
  { id, maps }: Description,
  before: Description,
): void {
  if (maps === undefined || maps.ports.length + (before.maps?.ports.length ?? 0) === 0) return;
  portMaps.put(id, maps.ports, maps.addresses);
}
