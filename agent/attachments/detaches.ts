import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';
import type { Ledger, Self } from '#ipam-store/ledger.ts';
import { mayHaveBeenDone } from '../errors.ts';
import { endedLease, type EventLog } from '../storage/events.ts';
import type { AttachmentRecord, DetachIntent, Journal } from '../storage/journal.ts';
import type { Log } from '../log.ts';
import type { NetworkTypes } from '../host/networks/network-type.ts';
import { phases } from '../measure.ts';
import { withDeadline } from '../schedule/id-lock.ts';

export interface DetachesOptions {
  readonly self: Self;
  readonly ledger: Ledger;
  readonly journal: Journal;
  readonly events: EventLog;
  readonly networkTypes: NetworkTypes;
  readonly log: Log;
}

const RETRY_FIRST_MS = 50;
const RETRY_MOST_MS = 5_000;
/** The same reason again is told after so long. */
const TELL_AGAIN_MS = 60_000;

/**
 * Detaches under way. The first half is done when `begin` returns: the record says so, the port is closed and its name
 * is free. The second half follows by itself: the kernel confirms the deletion, the lease is released, the event is
 * stored, the record is removed. It is repeated until it succeeds.
 */
export class Detaches {
  readonly #options: DetachesOptions;
  readonly #underWay = new Map<string, Promise<void>>();
  readonly #releasing = new Set<string>();
  #stopped = false;

  constructor(options: DetachesOptions) {
    this.#options = options;
  }

  begin(record: AttachmentRecord, detach: DetachIntent): void {
    const { journal, networkTypes } = this.#options;
    const detaching: AttachmentRecord = { ...record, state: 'detaching', detach };
    journal.putAnyway(detaching);
    const type = networkTypes[record.networkType];
    const remove = (): Promise<void> => type?.detach(detaching).removed ?? Promise.resolve();
    const finishing = this.#finish(detaching, detach, remove).finally(() => {
      this.#underWay.delete(record.id);
    });
    this.#underWay.set(record.id, finishing);
  }

  /** Waits for a detach of this id, if there is one, until `deadline` at most. */
  async finished(id: string, deadline: number): Promise<void> {
    const underWay = this.#underWay.get(id);
    if (underWay === undefined) return;
    await withDeadline(underWay, deadline, () =>
      this.#options.ledger.status.state === 'ready'
        ? new VoltError('DEADLINE_EXCEEDED', `${id} is still being detached`)
        : new VoltError('STORE_UNAVAILABLE', `${id} is still being detached: Redis is away`),
    );
  }

  /** Whether the lease is being released, or may have been. The device is gone by then. */
  isReleasing(id: string): boolean {
    return this.#releasing.has(id);
  }

  /** Resolves when all detaches that are under way now have ended. */
  async idle(): Promise<void> {
    await Promise.all(this.#underWay.values());
  }

  /** Stops the repeats. The records of unfinished detaches stay, and the next agent finishes them. */
  stop(): void {
    this.#stopped = true;
  }

  async #finish(
    record: AttachmentRecord,
    detach: DetachIntent,
    remove: () => Promise<void>,
  ): Promise<void> {
    const { journal, log } = this.#options;
    let told = { reason: '', atMs: 0 };
    for (let waitMs = RETRY_FIRST_MS; !this.#stopped;) {
      try {
        await remove();
        const ending = await this.#withLease(record);
        await this.#release(ending);
        this.#report(ending, detach);
        journal.remove(record.id);
        this.#releasing.delete(record.id);
        phases.note({
          operation: 'detach',
          phase: 'total',
          type: record.networkType,
          result: 'ok',
          ms: Date.now() - Date.parse(detach.startedAt),
        });
        return;
      } catch (error) {
        const reason = String(error);
        const nowMs = performance.now();
        if (reason !== told.reason || nowMs - told.atMs >= TELL_AGAIN_MS) {
          told = { reason, atMs: nowMs };
          log.warn({ id: record.id, error: reason }, 'detach not finished yet: trying again');
        }
        await sleep(waitMs, undefined, { ref: false });
        waitMs = Math.min(waitMs * 2, RETRY_MOST_MS);
      }
    }
  }

  /** Finds the lease of an attach that did not finish. `kept`: the id had this lease before that attach. */
  async #withLease(began: AttachmentRecord): Promise<AttachmentRecord> {
    const { ledger, self, journal } = this.#options;
    const record = journal.get(began.id) ?? began;
    const { attachment } = record;
    const known = attachment !== undefined && record.generation !== undefined;
    if (known || record.kept !== undefined) return record;
    const lease = await ledger.getLease(record.id);
    if (lease === null || lease.host !== self.host) return record;
    const { generation } = lease;
    const kept = attachment === undefined && generation <= (record.seenGeneration ?? 0);
    const ending = { ...record, generation, ...(kept && { kept: lease }) };
    if (kept) journal.putAnyway(ending);
    return ending;
  }

  async #release(record: AttachmentRecord): Promise<void> {
    const { ledger, self } = this.#options;
    const { generation } = record;
    if (generation === undefined) return;
    // Addresses that no workload has ever used need no cool-down.
    const cool = record.attachment !== undefined || record.kept !== undefined;
    this.#releasing.add(record.id);
    try {
      await ledger.release({ ...self, id: record.id, generation, cool });
    } catch (error) {
      // Another host or attachment holds the id now: this host has no lease to release.
      const code = error instanceof VoltError ? error.code : undefined;
      if (code === 'STALE_GENERATION' || code === 'WRONG_HOST') return;
      if (!mayHaveBeenDone(error)) this.#releasing.delete(record.id);
      throw error;
    }
  }

  #report(record: AttachmentRecord, detach: DetachIntent): void {
    const { attachment, kept } = record;
    const ended = attachment
      ? { ...attachment, state: 'detached' as const, reason: detach.reason }
      : kept && endedLease(kept, detach.reason);
    if (ended === undefined) return;
    // A repeated attach may fail each time and end another attachment each time. The generation tells them apart.
    const ofAttach = detach.reason === 'failed' || detach.reason === 'fenced';
    this.#options.events.add({
      type: 'detached',
      network: record.request.network,
      subject: record.id,
      operation: ofAttach ? `detach ${(attachment ?? kept)?.generation ?? 0}` : 'detach',
      requestId: detach.requestId,
      trace: detach,
      body: ended,
      durationMs: { total: Date.now() - Date.parse(detach.startedAt) },
    });
  }
}
