import type { FoundDifference } from '#protocol/differences.ts';
import type { Steps } from '#native/steps.ts';
import type { Config } from '../../config.ts';
import type { AttachmentRecord, Journal } from '../../storage/journal.ts';
import type { Slices, Wanted } from '../../schedule/slices.ts';
import type { Standing } from '../../fleet/standing.ts';
import { compare as compareOne } from '../comparator.ts';
import type { Describe } from '../description.ts';
import type { HostAttachments } from '../host-attachments.ts';
import { type Observed, withAnswers } from './observe.ts';
import { plan, type Plan, type PlanOptions } from './plan.ts';

export interface ComparisonOptions {
  readonly bootId: string;
  readonly onReboot: Config['onReboot'];
  readonly journal: Pick<Journal, 'get'>;
  readonly standing: Pick<Standing, 'refusal'>;
  readonly slices: Slices;
  readonly attachments: Pick<HostAttachments, 'describe'>;
}

export interface Comparison {
  readonly plan: Plan;
  readonly observed: Observed;
  /** Attachments whose records changed meanwhile: they are not in the plan. */
  readonly changed: readonly string[];
}

/**
 * Observes what these records name, and plans, in slices, so that requests go on meanwhile. The caller has read the
 * records just now, and the leases after them.
 */
export async function compare(
  { bootId, onReboot, journal, standing, slices, attachments }: ComparisonOptions,
  records: readonly AttachmentRecord[],
  {
    observing,
    wanted,
    ...known
  }: Pick<PlanOptions, 'leases' | 'suspects'> & {
    readonly observing: Steps<Observed>;
    readonly wanted: Wanted;
  },
): Promise<Comparison> {
  const { describe } = attachments;
  const read = new Map(records.map((record) => [record.id, record]));
  const isAsRead = (id: string): boolean => journal.get(id) === read.get(id);
  const seen = await slices.run(observing, wanted);
  const observed = await withAnswers(seen, records, describe);
  const now = performance.now();
  const isOwn = standing.refusal === undefined;
  const options = { ...known, describe, records, observed, isAsRead, isOwn, bootId, onReboot, now };
  const planned = await slices.run(plan(options), wanted);
  const changed = records.map(({ id }) => id).filter((id) => !isAsRead(id));
  return { plan: planned, observed, changed };
}

/** Whether the record is of an attachment that has its device: not one that is being made, or being taken away. */
export const isKept = ({ state }: AttachmentRecord): boolean =>
  state === 'attached' || state === 'fenced';

/**
 * All differences of these records, both those that are repaired and those that are only reported. Records that changed
 * meanwhile are left out, and so are those whose device comes or goes: a detach may wait for Redis for long.
 */
export function* differencesIn(
  records: readonly AttachmentRecord[],
  { observed, changed }: Pick<Comparison, 'observed' | 'changed'>,
  describe: Describe,
): Steps<FoundDifference[]> {
  const found: FoundDifference[] = [];
  const unknown = new Set(changed);
  for (const record of records) {
    yield;
    if (unknown.has(record.id) || !isKept(record)) continue;
    const description = describe(record);
    if (description === undefined) continue;
    const { differences, reported } = compareOne(description, observed);
    found.push(...differences, ...reported);
  }
  return found;
}
