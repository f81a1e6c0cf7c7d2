import type { Fields } from './fields.ts';
import { type Lease, leaseOf } from './lease.ts';

/** A page of the leases of a network; `position` on the first page, unless the network is not there. */
export interface SnapshotPage {
  readonly position?: string;
  readonly revision?: number;
  readonly leases: readonly Lease[];
  readonly cursor?: string;
}

/** What became of whatever has changed after an entry of a log; `gap` where that entry is not there any more. */
export type LogPage = { readonly gap: true } | Changes;

/** A page of it. */
export interface Changes {
  readonly gap: false;
  /** The last entry of the page, which the next one follows. */
  readonly position: string;
  /** Those that are new, or other than before. */
  readonly leases: readonly Lease[];
  /** Ids that have no lease in the network. */
  readonly gone: readonly string[];
  /** Where the network was edited. */
  readonly revision?: number;
  readonly more: boolean;
}

export function snapshotPageOf(answer: Fields): SnapshotPage {
  const position = answer.optionalText('position');
  const cursor = answer.optionalText('cursor');
  return {
    ...(position !== undefined && { position }),
    ...revisionIn(answer),
    leases: answer.list('leases').map(leaseOf),
    ...(cursor !== undefined && { cursor }),
  };
}

export function logPageOf(answer: Fields): LogPage {
  if (answer.flag('gap')) return { gap: true };
  return {
    gap: false,
    position: answer.text('position'),
    leases: answer.list('leases').map(leaseOf),
    gone: answer.texts('gone'),
    ...revisionIn(answer),
    more: answer.flag('more'),
  };
}

const revisionIn = (answer: Fields): { revision?: number } =>
  answer.has('revision') ? { revision: answer.number('revision') } : {};
