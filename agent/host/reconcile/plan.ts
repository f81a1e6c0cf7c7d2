import type { Attachment } from '#protocol/attachment.ts';
import type { FoundDifference } from '#protocol/differences.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Steps } from '#native/steps.ts';
import type { Config } from '../../config.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { ifbName } from '../networks/bandwidth.ts';
import { compare, deviceIn } from '../comparator.ts';
import type { Describe, Description } from '../description.ts';
import type { Observed, SeenLink } from './observe.ts';
import { type Holder, isStray, taggedId } from '../ownership.ts';

/** One thing to do, and why. */
export type Action =
  /** The device is there but differs: it is repaired in place. */
  | { readonly kind: 'mend'; readonly id: string; readonly differences: readonly FoundDifference[] }
  /** The device is gone: it is made again under the same name, with the same addresses. */
  | {
      readonly kind: 'remake';
      readonly id: string;
      readonly differences: readonly FoundDifference[];
    }
  /** The port of a fenced attachment is open: it is closed again. */
  | {
      readonly kind: 'close';
      readonly id: string;
      readonly differences: readonly FoundDifference[];
    }
  /** The workload is gone: the attachment ends. */
  | {
      readonly kind: 'detach';
      readonly id: string;
      readonly reason: 'namespace-gone' | 'reboot';
      readonly differences: readonly FoundDifference[];
    }
  /** A device of ours that belongs to no attachment, or is not the one of its attachment: it is deleted. */
  | {
      readonly kind: 'remove';
      readonly id: string;
      readonly link: SeenLink;
      readonly differences: readonly FoundDifference[];
    }
  /** A lease of this host that has neither record nor device: it is released. */
  | {
      readonly kind: 'release';
      readonly id: string;
      readonly lease: Lease;
      readonly differences: readonly FoundDifference[];
    }
  /** The objects of a network on the host differ: they are repaired. `id` is the name of the network. */
  | {
      readonly kind: 'network';
      readonly id: string;
      readonly differences: readonly FoundDifference[];
    }
  /** The ledger has no lease of an attachment here: the lease is asserted again, and the ledger says who has it. */
  | {
      readonly kind: 'reassert';
      readonly id: string;
      readonly differences: readonly FoundDifference[];
    };

export interface PlanOptions {
  readonly records: readonly AttachmentRecord[];
  /** Returns what should be there for a record. */
  readonly describe: Describe;
  readonly observed: Observed;
  /** All leases of this host by id, read after the records; undefined where the ledger was not asked. */
  readonly leases?: ReadonlyMap<string, Lease> | undefined;
  /** When each suspect was first seen, by the clock of `now`. It is acted upon only if it stays. */
  readonly suspects: ReadonlyMap<string, number>;
  /**
   * True if an attachment still has the record, or the lack of one, that it had when `records` were read. An attachment
   * whose record has changed since is left out: it may have been observed before or after the change.
   */
  readonly isAsRead?: ((id: string) => boolean) | undefined;
  readonly now: number;
  /**
   * False while this machine may be a copy of another one that is the host, records included. What the records name for
   * an earlier boot may then still be on the other machine.
   */
  readonly isOwn?: boolean | undefined;
  readonly bootId: string;
  readonly onReboot: Config['onReboot'];
}

export interface Plan {
  readonly actions: readonly Action[];
  /** For the next plan of all records: the suspects, which must be seen again before anything is done. */
  readonly suspects: ReadonlyMap<string, number>;
}

/** Two observations this far apart must agree before anything is ended or removed. */
export const GRACE_MS = 10_000;

/**
 * The actions that make the host what the records say. Names only objects that are marked as ours. Leaves what is
 * inside a workload's own namespace alone.
 */
export function* plan(options: PlanOptions): Steps<Plan> {
  const { records, observed, now, isAsRead = () => true } = options;
  const suspects = new Map<string, number>();
  /** True if it was already seen a grace period ago. */
  const stays = (key: string): boolean => {
    const since = options.suspects.get(key) ?? now;
    suspects.set(key, since);
    return now - since >= GRACE_MS;
  };
  const actions: Action[] = [];
  for (const record of records) {
    yield;
    if (!isAsRead(record.id)) continue;
    const action = actionFor(record, options, stays);
    if (action !== undefined) actions.push(action);
  }
  if (!observed.whole) return { actions, suspects };
  const others = [yield* strays(options, stays), yield* leaseless(options, stays)];
  return { actions: [...actions, ...others.flat()], suspects };
}

function actionFor(
  record: AttachmentRecord,
  { observed, describe, isOwn = true, bootId, onReboot }: PlanOptions,
  stays: (key: string) => boolean,
): Action | undefined {
  const { id, attachment, state } = record;
  const description = attachment && describe(record);
  if (attachment === undefined || description === undefined) return undefined;
  if (state === 'fenced') {
    const { remedy, differences } = compare(description, observed);
    return remedy === 'close' ? { kind: 'close', id, differences } : undefined;
  }
  if (state !== 'attached') return undefined;
  const boot: FoundDifference = { id, what: 'boot', expected: bootId, observed: record.bootId };
  const rebooted = record.bootId !== bootId;
  if (rebooted && !isOwn) return undefined;
  if (rebooted && (attachment.kind === 'container' || onReboot === 'release')) {
    return { kind: 'detach', id, reason: 'reboot', differences: [boot] };
  }
  const gone = namespaceGone(record, attachment, description, observed);
  if (gone !== undefined) {
    if (!stays(`namespace ${id}`)) return undefined;
    return { kind: 'detach', id, reason: 'namespace-gone', differences: [gone] };
  }
  const { remedy, ...found } = compare(description, observed);
  const differences = [...(rebooted ? [boot] : []), ...found.differences];
  // What is in a workload's namespace belongs to the workload, unless the namespace was made for the device alone.
  const ours = description.device !== undefined || description.inside?.madeAgain === true;
  if (!ours || remedy === 'close') return undefined;
  if (remedy === 'remake') return { kind: 'remake', id, differences };
  return description.device === undefined || differences.length === 0
    ? undefined
    : { kind: 'mend', id, differences };
}

/**
 * The namespace counts, not the path that led to it. A veth end on this host proves that the other end, and so its
 * namespace, still exists. Without a path, the pair disappears together with the namespace that its other end was moved
 * to.
 */
function namespaceGone(
  record: AttachmentRecord,
  attachment: Attachment,
  description: Description,
  observed: Observed,
): FoundDifference | undefined {
  const { id, kind, netns } = attachment;
  if (kind !== 'container') return undefined;
  const stands =
    attachment.device?.type === 'veth' &&
    description.device !== undefined &&
    deviceIn(description, observed) !== undefined;
  if (stands || observed.elsewhere.has(id)) return undefined;
  if (netns === undefined) {
    if (attachment.device?.type !== 'veth' || description.device === undefined) return undefined;
    return { id, what: 'device', expected: attachment.device.name, observed: null };
  }
  const found = observed.namespaces.get(netns);
  if (found === null) return undefined;
  const identity = found ?? null;
  const expected = record.namespaceIdentity ?? identity ?? netns;
  if (identity === expected) return undefined;
  return { id, what: 'netns', expected, observed: identity };
}

/** The device that a record has on the host. If the record is not attached, that is any device with its tag. */
export function holderOf(record: AttachmentRecord, describe: Describe): Holder {
  const { state, deviceName } = record;
  const device = state === 'attached' ? describe(record)?.device : undefined;
  if (device === undefined) return { deviceName };
  const { ifindex } = device;
  return { deviceName, device: { ifindex, beside: ifbName(ifindex) } };
}

function* strays(
  { records, observed, describe, isAsRead = () => true }: PlanOptions,
  stays: (key: string) => boolean,
): Steps<Action[]> {
  const known = new Map(records.map((record) => [record.id, record]));
  const names = new Set(records.map(({ deviceName }) => deviceName));
  const actions: Action[] = [];
  for (const link of observed.links.values()) {
    yield;
    const tagged = taggedId(link.alias);
    const record = tagged === undefined ? undefined : known.get(tagged);
    if (!isStray(link, record && holderOf(record, describe), names.has(link.name))) continue;
    const id = tagged ?? link.name;
    if (!isAsRead(id)) continue;
    if (!stays(`device ${link.index} ${link.name} ${link.alias ?? ''}`)) continue;
    const what = record === undefined ? 'record' : 'device';
    const expected = record === undefined ? null : record.deviceName;
    const differences: FoundDifference[] = [{ id, what, expected, observed: link.name }];
    actions.push({ kind: 'remove', id, link, differences });
  }
  return actions;
}

/** Leases without a record, and records without their lease. */
function* leaseless(
  { records, observed, leases, bootId, onReboot, isAsRead = () => true }: PlanOptions,
  stays: (key: string) => boolean,
): Steps<Action[]> {
  if (leases === undefined) return [];
  const actions: Action[] = [];
  const known = new Set<string>();
  for (const { id, state, attachment } of records) {
    yield;
    known.add(id);
    if (state !== 'attached' || attachment === undefined || !isAsRead(id)) continue;
    const { generation } = attachment;
    const held = leases.get(id)?.generation ?? null;
    if (held === generation || !stays(`record ${id} ${generation}`)) continue;
    const difference = { id, what: 'lease', expected: generation, observed: held } as const;
    actions.push({ kind: 'reassert', id, differences: [difference] });
  }
  const unrecorded = [...leases.values()].filter(({ id }) => !known.has(id) && isAsRead(id));
  if (unrecorded.length === 0) return actions;
  // If there is a device, the record was lost, and the workload may still run.
  const devices = new Set([...observed.links.values()].map(({ alias }) => taggedId(alias)));
  for (const lease of unrecorded) {
    yield;
    const { id, generation, kind } = lease;
    const kept = lease.bootId !== bootId && kind === 'vm' && onReboot === 'recreate';
    if (kept || devices.has(id) || !stays(`lease ${id} ${generation}`)) continue;
    const difference = { id, what: 'record', expected: null, observed: { generation } } as const;
    actions.push({ kind: 'release', id, lease, differences: [difference] });
  }
  return actions;
}
