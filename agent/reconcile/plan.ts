import type { Attachment, Difference } from '#protocol/attachment.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Config } from '../config.ts';
import type { AttachmentRecord } from '../journal.ts';
import { bridgeTag, gatewayAddresses } from '../networks/bridge.ts';
import { DEVICE_GROUP, deviceTag, taggedId } from '../networks/network.ts';
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
  /** A device of ours whose attachment nobody knows. */
  | {
      readonly kind: 'remove';
      readonly id: string;
      readonly index: number;
      readonly alias: string;
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
    actions.push(...orphans(records, observed, stays), ...leaseless(options, stays));
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
  if (!isOnHost(attachment)) {
    const { netns } = attachment;
    // A namespace that was made for a VM goes with a reboot, or by somebody's hand.
    if (attachment.kind !== 'vm' || netns === undefined) return undefined;
    if (observed.namespaces.has(netns)) return undefined;
    const missing = { id, what: 'netns', expected: netns, observed: null };
    return { kind: 'remake', id, differences: [...again, missing] };
  }
  const link = linkOf(attachment, observed);
  if (link === undefined) {
    const missing = { id, what: 'device', expected: attachment.device.name, observed: null };
    return { kind: 'remake', id, differences: [...again, missing] };
  }
  const differences = [...again, ...linkDifferences(attachment, link, observed)];
  return differences.length === 0 ? undefined : { kind: 'mend', id, differences };
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

function linkDifferences(attachment: OnHost, link: SeenLink, observed: Observed): Difference[] {
  const { id, device } = attachment;
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
  return compared
    .filter(([, expected, found]) => expected !== found)
    .map(([what, expected, found]) => ({ id, what, expected, observed: found }));
}

/** Of a bridge that this agent made; one that was there is its owner's. */
function bridgeDifferences({ id, network }: AttachmentRecord, observed: Observed): Difference[] {
  const bridge = network === undefined ? undefined : observed.names.get(network.bridge);
  if (network === undefined || bridge === undefined) return [];
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

function orphans(
  records: readonly AttachmentRecord[],
  { links }: Observed,
  stays: (key: string) => boolean,
): Action[] {
  const known = new Set(records.map(({ id }) => id));
  return [...links.values()].flatMap(({ index, name, alias, group }): Action[] => {
    const id = taggedId(alias);
    // Devices that are being deleted carry a group of their deletion.
    if (id === undefined || alias === undefined || known.has(id) || group !== DEVICE_GROUP)
      return [];
    if (!stays(`device ${index} ${alias}`)) return [];
    const differences = [{ id, what: 'record', expected: null, observed: name }];
    return [{ kind: 'remove', id, index, alias, differences }];
  });
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
