import { isDeepStrictEqual } from 'node:util';
import type { Lease } from './lease.ts';
import type { Changes, LogPage, SnapshotPage } from './log.ts';

/** What to ask the ledger next: a page of a snapshot, or of the log. */
export type Ask =
  | { readonly ask: 'snapshot'; readonly cursor?: string }
  | { readonly ask: 'log'; readonly after: string };

/** What has become different. */
export interface Difference {
  /** New, or other than before. */
  readonly set: readonly Lease[];
  /** As they were. */
  readonly gone: readonly Lease[];
  /** Of the network's definition; undefined where the network is not there. */
  readonly revision: number | undefined;
}

interface State {
  readonly leases: Map<string, Lease>;
  readonly revision: number | undefined;
  /** The last entry of the log that is in it; undefined where the network, and so its log, is not there. */
  readonly position: string | undefined;
}

const nothing = (): State => ({ leases: new Map(), revision: undefined, position: undefined });

/**
 * The leases of one network, out of a snapshot and what the log says from there on. Only that: who asks the ledger, and
 * when, is the caller's affair. A snapshot is read while the network changes; it is shown once the log has been read to its
 * end, from before the first page on, and what was shown before stays until then. A page of the log says what is true when
 * it is read, so that after the last one all is as in the ledger, whatever came before it.
 */
export class Replay {
  #shown: State = nothing();
  /** A snapshot that is being read. */
  #next: State | undefined;
  #cursor: string | undefined;
  #wanted: Ask['ask'] | undefined = 'snapshot';
  /** Something may have happened since the ledger was asked last. */
  #nudged = false;
  #isWhole = false;

  get leases(): ReadonlyMap<string, Lease> {
    return this.#shown.leases;
  }

  get revision(): number | undefined {
    return this.#shown.revision;
  }

  get position(): string | undefined {
    return this.#shown.position;
  }

  /** False when all that is known to have happened is shown. */
  get isBehind(): boolean {
    return this.#wanted !== undefined;
  }

  /** The last answer was the last of its kind: what is shown is what was true when that was asked for. */
  get isWhole(): boolean {
    return this.#isWhole;
  }

  /** What to ask now; undefined for nothing. One question at a time, and its answer goes to `takeSnapshot` or `takeLog`. */
  next(): Ask | undefined {
    this.#nudged = false;
    this.#isWhole = false;
    if (this.#wanted === 'snapshot') {
      return { ask: 'snapshot', ...(this.#cursor !== undefined && { cursor: this.#cursor }) };
    }
    const after = (this.#next ?? this.#shown).position;
    return this.#wanted === undefined || after === undefined ? undefined : { ask: 'log', after };
  }

  /** Something may have happened. */
  nudge(): void {
    this.#nudged = true;
    this.#wanted ??= this.#shown.position === undefined ? 'snapshot' : 'log';
  }

  takeSnapshot(page: SnapshotPage): Difference | undefined {
    if (this.#cursor === undefined) {
      this.#next = { leases: new Map(), revision: page.revision, position: page.position };
    }
    const next = this.#next ?? nothing();
    for (const lease of page.leases) next.leases.set(lease.id, lease);
    this.#cursor = page.cursor;
    if (page.cursor !== undefined) return undefined;
    // A network that is not there has no log that could say more.
    if (next.position === undefined) return this.#show(next);
    this.#wanted = 'log';
    return undefined;
  }

  takeLog(page: LogPage): Difference | undefined {
    if (page.gap) {
      this.#wanted = 'snapshot';
      this.#next = undefined;
      return undefined;
    }
    const next = this.#next;
    if (next !== undefined) {
      this.#next = replayed(next, page);
      return page.more ? undefined : this.#show(this.#next);
    }
    const { leases, revision } = this.#shown;
    const ids = [...page.leases.map(({ id }) => id), ...page.gone];
    const was = new Map(ids.map((id) => [id, leases.get(id)]));
    this.#shown = replayed(this.#shown, page);
    if (!page.more) this.#rest();
    return differenceOf(was, this.#shown, revision);
  }

  #show(next: State): Difference | undefined {
    const { leases, revision } = this.#shown;
    const ids = new Set([...leases.keys(), ...next.leases.keys()]);
    const was = new Map([...ids].map((id) => [id, leases.get(id)]));
    this.#shown = next;
    this.#next = undefined;
    this.#rest();
    return differenceOf(was, next, revision);
  }

  #rest(): void {
    this.#wanted = undefined;
    this.#isWhole = true;
    // The answer may be from before the notice.
    if (this.#nudged) this.nudge();
  }
}

/** Changes the leases of `state` in place: a network may have very many. */
function replayed({ leases, revision }: State, page: Changes): State {
  for (const lease of page.leases) leases.set(lease.id, lease);
  for (const id of page.gone) leases.delete(id);
  return { leases, revision: page.revision ?? revision, position: page.position };
}

function differenceOf(
  was: ReadonlyMap<string, Lease | undefined>,
  { leases, revision }: State,
  revisionBefore: number | undefined,
): Difference | undefined {
  const set: Lease[] = [];
  const gone: Lease[] = [];
  for (const [id, before] of was) {
    const now = leases.get(id);
    if (now === undefined && before !== undefined) gone.push(before);
    if (now !== undefined && !isDeepStrictEqual(now, before)) set.push(now);
  }
  const isNone = set.length === 0 && gone.length === 0 && revision === revisionBefore;
  return isNone ? undefined : { set, gone, revision };
}
