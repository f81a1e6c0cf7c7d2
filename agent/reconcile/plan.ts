import type { Attachment, Difference } from '#protocol/attachment.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Config } from '../config.ts';
import type { AttachmentRecord } from '../journal.ts';
import type { Network } from '#protocol/network.ts';
import type { LinkSettings } from '#native/link.ts';
import { ifbName, rateOf } from '../networks/bandwidth.ts';
import { bridgeTag, gatewayAddresses } from '../networks/bridge.ts';
import { portDifferences } from '../networks/bridge-port.ts';
import { BRIDGE_SETTINGS, hostSettings } from '../networks/host-only.ts';
import { CLOSED_TO_HOST } from '../networks/macvtap.ts';
import { DEVICE_GROUP, deviceTag, taggedId } from '../networks/network.ts';
import { CLOSED_TO_IPV6 } from '../networks/tap.ts';
import type { Observed, SeenLink } from './observe.ts';

/** One thing to do, and why. */
export type Action =
  /** The device is there and not as it should be: it is set in place. */
  | { readonly kind: 'mend'; readonly id: string; readonly differences: readonly Difference[] }
  /** The device is gone: it is made again under the same name, with the same addresses. */
  | { readonly kind: 'remake'; readonly id: string; readonly differences: readonly Difference[] }
  /** Another holds the addresses of a fenced attachment: its port is closed again. */
  | { readonly kind: 'close'; readonly id: string; readonly differences: readonly Difference[] }
  /** The workload is gone: the attachment ends. */
  | {
      readonly kind: 'detach';
      readonly id: string;
      readonly reason: 'namespace-gone' | 'reboot';
      readonly differences: readonly Difference[];
    }
  /** A device of ours that is nobody's, or another one than its attachment has. */
  | {
      readonly kind: 'remove';
      readonly id: string;
      readonly link: SeenLink;
      readonly differences: readonly Difference[];
    }
  /** A lease of this host of which there is neither record nor device. */
  | {
      readonly kind: 'release';
      readonly id: string;
      readonly lease: Lease;
      readonly differences: readonly Difference[];
    }
  /** The ledger has no lease of what stands here: it is told of it, and says whose it is. */
  | { readonly kind: 'reassert'; readonly id: string; readonly differences: readonly Difference[] };

export interface PlanOptions {
  readonly records: readonly AttachmentRecord[];
  readonly observed: Observed;
  /** All leases of this host by id, read before records and kernel; undefined where the ledger was not asked. */
  readonly leases?: ReadonlyMap<string, Lease> | undefined;
  /** Since when (`now`'s clock) something has been seen that is acted upon when it stays. */
  readonly suspects: ReadonlyMap<string, number>;
  readonly now: number;
  readonly bootId: string;
  readonly onReboot: Config['onReboot'];
}

export interface Plan {
  readonly actions: readonly Action[];
  /** For the next plan of all records: what has to be seen again before anything is done. */
  readonly suspects: ReadonlyMap<string, number>;
}

/** So long apart two observations must agree before anything is ended or removed. */
export const GRACE_MS = 10_000;

/**
 * What has to be done so that the host is what the records say. Names nothing that is not tagged as ours; what lies
 * inside a workload's own namespace is left alone.
 */
export function plan(options: PlanOptions): Plan {
  const { records, observed, now } = options;
  const suspects = new Map<string, number>();
  /** True when it was seen a grace ago, too. */
  const stays = (key: string): boolean => {
    const since = options.suspects.get(key) ?? now;
    suspects.set(key, since);
    return now - since >= GRACE_MS;
  };
  const actions: Action[] = [];
  const bridges = new Set<string>();
  for (const record of records) {
    const action = actionFor(record, options, stays);
    if (action !== undefined) actions.push(action);
    const bridge = record.attachment?.device?.bridge;
    if (bridge === undefined || record.state !== 'attached' || bridges.has(bridge)) continue;
    bridges.add(bridge);
    const differences = action === undefined ? bridgeDifferences(record, observed) : [];
    if (differences.length > 0) actions.push({ kind: 'mend', id: record.id, differences });
  }
  if (observed.whole)
    actions.push(...strays(records, observed, stays), ...leaseless(options, stays));
  return { actions, suspects };
}

function actionFor(
  record: AttachmentRecord,
  { observed, bootId, onReboot }: PlanOptions,
  stays: (key: string) => boolean,
): Action | undefined {
  const { id, attachment, state } = record;
  if (attachment === undefined) return undefined;
  if (state === 'fenced') {
    const link = linkOf(attachment, observed);
    if (link?.up !== true) return undefined;
    return {
      kind: 'close',
      id,
      differences: [{ id, what: 'device.up', expected: false, observed: true }],
    };
  }
  if (state !== 'attached') return undefined;
  const boot: Difference = { id, what: 'boot', expected: bootId, observed: record.bootId };
  const rebooted = record.bootId !== bootId;
  if (rebooted && (attachment.kind === 'container' || onReboot === 'release')) {
    return { kind: 'detach', id, reason: 'reboot', differences: [boot] };
  }
  const gone = namespaceGone(record, attachment, observed);
  if (gone !== undefined) {
    if (!stays(`namespace ${id}`)) return undefined;
    return { kind: 'detach', id, reason: 'namespace-gone', differences: [gone] };
  }
  const again = rebooted ? [boot] : [];
  if (!isOnHost(attachment)) return remakeInside(attachment, observed, again);
  const link = linkOf(attachment, observed);
  if (link === undefined) {
    const missing = { id, what: 'device', expected: attachment.device.name, observed: null };
    return { kind: 'remake', id, differences: [...again, missing] };
  }
  const differences = [...again, ...linkDifferences(record, attachment, link, observed)];
  return differences.length === 0 ? undefined : { kind: 'mend', id, differences };
}

/** Of a VM's namespace that was made for it, and goes with a reboot or by somebody's hand, or the TAP inside. */
function remakeInside(
  { id, kind, netns, device }: Attachment,
  observed: Observed,
  again: readonly Difference[],
): Action | undefined {
  if (kind !== 'vm' || netns === undefined) return undefined;
  const missing = (what: string, expected: string | null): Action => ({
    kind: 'remake',
    id,
    differences: [...again, { id, what, expected, observed: null }],
  });
  if (!observed.namespaces.has(netns)) return missing('netns', netns);
  return observed.inside.get(id) === null ? missing('device', device?.name ?? null) : undefined;
}

/** True when a device alone, without its place on a bridge, is as its attachment says, or nobody's business. */
export function agrees({ attachment, state }: AttachmentRecord, link: SeenLink): boolean {
  if (attachment === undefined || !isOnHost(attachment)) return true;
  if (state === 'fenced') return !link.up;
  if (state !== 'attached' || link.index !== attachment.device.ifindex) return true;
  const { device } = attachment;
  return (
    link.name === device.name &&
    link.up &&
    link.mac === device.mac &&
    link.mtu === device.mtu &&
    link.group === DEVICE_GROUP &&
    (device.bridge === undefined || link.master !== undefined)
  );
}

type OnHost = Attachment & { readonly device: NonNullable<Attachment['device']> };

/** True for an attachment whose device lies in the host's own namespace, and is no function of a NIC. */
const isOnHost = (attachment: Attachment): attachment is OnHost =>
  attachment.type !== 'isolated' &&
  ['tap', 'veth', 'macvtap'].includes(attachment.device?.type ?? '');

/**
 * The device of an attachment. An index may have been given to somebody else's device since: the alias decides. One that
 * has lost its alias is told by index, name and group together.
 */
function linkOf(attachment: Attachment, observed: Observed): SeenLink | undefined {
  const { device } = attachment;
  const link = observed.links.get(device?.ifindex ?? 0);
  if (link === undefined || device === null) return undefined;
  if (link.alias === deviceTag(attachment)) return link;
  const untagged = link.alias === undefined && link.group === DEVICE_GROUP;
  return untagged && link.name === device.name ? link : undefined;
}

/** Without a path, a pair goes with whatever namespace its other end was moved to. */
function namespaceGone(
  record: AttachmentRecord,
  attachment: Attachment,
  observed: Observed,
): Difference | undefined {
  const { id, kind, netns } = attachment;
  if (kind !== 'container') return undefined;
  if (netns === undefined) {
    if (attachment.device?.type !== 'veth' || linkOf(attachment, observed)) return undefined;
    return { id, what: 'device', expected: attachment.device.name, observed: null };
  }
  const identity = observed.namespaces.get(netns) ?? null;
  const expected = record.namespaceIdentity ?? identity ?? netns;
  if (identity === expected) return undefined;
  return { id, what: 'netns', expected, observed: identity };
}

function linkDifferences(
  { network }: AttachmentRecord,
  attachment: OnHost,
  link: SeenLink,
  observed: Observed,
): Difference[] {
  const { id, device, ports } = attachment;
  const wanted = { ...CLOSED_TO_IPV6, ...(device.type === 'macvtap' && CLOSED_TO_HOST) };
  const bridge = link.master === undefined ? undefined : observed.links.get(link.master);
  const compared: [what: string, expected: unknown, observed: unknown][] = [
    ['device.alias', deviceTag(attachment), link.alias ?? null],
    ['device.name', device.name, link.name],
    ['device.mac', device.mac, link.mac ?? null],
    ['device.mtu', device.mtu, link.mtu],
    ['device.up', true, link.up],
    ['device.group', DEVICE_GROUP, link.group],
    // A macvtap's master is nobody's business but its parent's.
    ...(device.bridge === undefined
      ? []
      : [['device.bridge', device.bridge, bridge?.name ?? null] as [string, unknown, unknown]]),
  ];
  const port =
    network === undefined || device.bridge === undefined || link.bridgePort === undefined
      ? []
      : portDifferences(link.bridgePort, network, ports.length > 0);
  return [
    ...compared
      .filter(([, expected, found]) => expected !== found)
      .map(([what, expected, found]) => ({ id, what, expected, observed: found })),
    ...port.map(({ key, ...values }) => ({ id, what: `device.port.${key}`, ...values })),
    ...settingDifferences(id, 'device', wanted, link),
    ...limitDifferences(attachment, observed),
  ];
}

/** Settings below /proc/sys; a device that has none of a family, without IPv6 for one, lacks nothing. */
const settingDifferences = (
  id: string,
  what: string,
  wanted: LinkSettings,
  { settings = {} }: SeenLink,
): Difference[] =>
  Object.entries(wanted).flatMap(([name, expected]) => {
    const observed = Object.entries(settings).find(([one]) => one === name)?.[1];
    if (observed === undefined || observed === expected) return [];
    return [{ id, what: `${what}.${name}`, expected, observed }];
  });

function limitDifferences(attachment: OnHost, observed: Observed): Difference[] {
  const { id, device, bandwidth } = attachment;
  const { ingressBitsPerSecond: ingress, egressBitsPerSecond: egress } = bandwidth;
  const { ifindex } = device;
  const ifb = observed.names.get(ifbName(ifindex));
  const serves =
    ifb?.alias === deviceTag(attachment) && ifb.up && observed.redirects.get(ifindex) === ifb.index;
  const compared = [
    { what: 'bandwidth.ingress', limit: ingress, found: observed.limits.get(ifindex) },
    {
      what: 'bandwidth.egress',
      limit: egress,
      found: serves ? observed.limits.get(ifb.index) : undefined,
    },
  ];
  return compared.flatMap(({ what, limit, found }) => {
    if (limit === undefined || found === rateOf(limit)) return [];
    return [{ id, what, expected: rateOf(limit), observed: found ?? null }];
  });
}

/** Of the address and state of a bridge that this agent made, and of what the host has to do for its network. */
function bridgeDifferences({ id, network }: AttachmentRecord, observed: Observed): Difference[] {
  const bridge = network === undefined ? undefined : observed.names.get(network.bridge);
  if (network === undefined || bridge === undefined) return [];
  return [
    ...ownBridgeDifferences(id, network, bridge, observed),
    ...(network.type === 'host-only' ? routingDifferences(id, network, bridge, observed) : []),
  ];
}

/** One that was there before is its owner's. */
function ownBridgeDifferences(
  id: string,
  network: Network,
  bridge: SeenLink,
  observed: Observed,
): Difference[] {
  if (bridge.group !== DEVICE_GROUP || bridge.alias !== bridgeTag(network.network)) return [];
  const held = observed.addresses.get(bridge.index) ?? new Set();
  const lacking = gatewayAddresses(network)
    .map(String)
    .filter((address) => !held.has(address));
  return [
    ...(bridge.up ? [] : [{ id, what: 'bridge.up', expected: true, observed: false }]),
    ...lacking.map((address) => ({
      id,
      what: 'bridge.address',
      expected: address,
      observed: null,
    })),
  ];
}

function routingDifferences(
  id: string,
  network: Network,
  bridge: SeenLink,
  { settings }: Observed,
): Difference[] {
  const off = hostSettings(network)
    .map((path) => path.join('.'))
    .filter((name) => settings.has(name) && settings.get(name) === '0');
  return [
    ...settingDifferences(id, 'bridge', BRIDGE_SETTINGS, bridge),
    ...off.map((name) => ({ id, what: `sysctl ${name}`, expected: '1', observed: '0' })),
  ];
}

function strays(
  records: readonly AttachmentRecord[],
  { links }: Observed,
  stays: (key: string) => boolean,
): Action[] {
  const known = new Map(records.map((record) => [record.id, record]));
  const names = new Set(records.map(({ deviceName }) => deviceName));
  return [...links.values()].flatMap((link): Action[] => {
    const tagged = taggedId(link.alias);
    const record = tagged === undefined ? undefined : known.get(tagged);
    if (!isStray(link, record, names.has(link.name))) return [];
    if (!stays(`device ${link.index} ${link.name} ${link.alias ?? ''}`)) return [];
    const id = tagged ?? link.name;
    const what = record === undefined ? 'record' : 'device';
    const expected = record === undefined ? null : record.deviceName;
    return [
      { kind: 'remove', id, link, differences: [{ id, what, expected, observed: link.name }] },
    ];
  });
}

/**
 * True for a device of ours that no attachment has. `record` is that of its tag; `named`: a record has its name, which
 * tells whose it is where the tag is lost.
 */
export function isStray(
  link: SeenLink,
  record: AttachmentRecord | undefined,
  named: boolean,
): boolean {
  if (!isOurs(link)) return false;
  if (taggedId(link.alias) === undefined) return !named;
  return record === undefined || isAnother(link, record);
}

/**
 * True for a device that an agent made: tagged as an attachment's, or in our group and without any tag, which it loses
 * by somebody's hand. One whose deletion an agent's death has interrupted has another group by then.
 */
function isOurs({ name, kind, alias, group }: SeenLink): boolean {
  // Hardware is never deleted; a bridge without its tag is one that is still to be finished.
  if (kind === undefined || (alias === undefined && kind === 'bridge')) return false;
  if (alias !== undefined && taggedId(alias) === undefined) return false;
  return group === DEVICE_GROUP || (group > DEVICE_GROUP && PUT_AWAY.test(name));
}

/** The name of a device that was taken out of use (`putAway`). */
const PUT_AWAY = /^vdel\d+$/;

/** True for a device with the tag of a record that is neither its device nor what belongs to that. */
function isAnother(
  { index, name }: SeenLink,
  { attachment, state, deviceName }: AttachmentRecord,
): boolean {
  if (state !== 'attached' || attachment === undefined || !isOnHost(attachment)) return false;
  const { ifindex } = attachment.device;
  return index !== ifindex && name !== deviceName && name !== ifbName(ifindex);
}

/** Leases without a record, and records without their lease. */
function leaseless(
  { records, observed, leases, bootId, onReboot }: PlanOptions,
  stays: (key: string) => boolean,
): Action[] {
  if (leases === undefined) return [];
  const actions: Action[] = [];
  const known = new Set<string>();
  for (const { id, state, attachment } of records) {
    known.add(id);
    if (state !== 'attached' || attachment === undefined) continue;
    const { generation } = attachment;
    const observedGeneration = leases.get(id)?.generation ?? null;
    if (observedGeneration === generation || !stays(`record ${id} ${generation}`)) continue;
    const difference = { id, what: 'lease', expected: generation, observed: observedGeneration };
    actions.push({ kind: 'reassert', id, differences: [difference] });
  }
  const unrecorded = [...leases.values()].filter(({ id }) => !known.has(id));
  if (unrecorded.length === 0) return actions;
  // Where a device stands, the record was lost and the workload may live.
  const devices = new Set([...observed.links.values()].map(({ alias }) => taggedId(alias)));
  for (const lease of unrecorded) {
    const { id, generation, kind } = lease;
    const kept = lease.bootId !== bootId && kind === 'vm' && onReboot === 'recreate';
    if (kept || devices.has(id) || !stays(`lease ${id} ${generation}`)) continue;
    const difference = { id, what: 'record', expected: null, observed: { generation } };
    actions.push({ kind: 'release', id, lease, differences: [difference] });
  }
  return actions;
}
