import type { Attachment, CheckAnswer, Difference, ListRequest } from '#protocol/attachment.ts';
import type { FoundDifference } from '#protocol/differences.ts';
import { encodeAnswer, EncodedAnswer } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Ledger, Lease } from '#ipam-store/ledger.ts';
import { atOnce, type Steps } from '#native/steps.ts';
import { AnswerPage, LIST_LIMIT } from '../bus/answer-size.ts';
import { answerOf, askedOfLedger } from './check-answer.ts';
import { SharedRun } from '../schedule/shared-run.ts';
import type { AttachmentRecord, Journal } from '../storage/journal.ts';
import type { Preview } from '../host/reconcile/loop.ts';
import type { Slices, Wanted } from '../schedule/slices.ts';

export interface QueriesOptions {
  readonly host: string;
  readonly journal: Journal;
  readonly ledger: Ledger;
  /** Names of all devices of ours on this host, by attachment id. */
  readonly taggedDevices: () => Steps<ReadonlyMap<string, string>>;
  /** All leases of this host, by id. */
  readonly leases: (signal: AbortSignal) => Promise<ReadonlyMap<string, Lease>>;
  /** Differences between records and kernel now, and what reconcile would do, for one attachment or all. */
  readonly preview: (id: string | undefined, wanted: Wanted) => Promise<Preview>;
  /** The current revision of each network in the ledger, by name. */
  readonly currentRevisions: () => Promise<Revisions>;
  readonly slices: Slices;
  /** The largest size of an answer now, in bytes. */
  readonly answerBytes: () => number;
}

type Revisions = ReadonlyMap<string, number>;

/** A record and a lease that differ, as both were at the first comparison. */
interface Suspected {
  readonly id: string;
  readonly record: AttachmentRecord | undefined;
  readonly lease: Lease | undefined;
}

/** The requests that only read: get, list, and check against kernel and ledger. */
export class Queries {
  readonly #options: QueriesOptions;
  readonly #whole = new SharedRun<'whole', EncodedAnswer>((_, signal) => this.#checkAll(signal));

  constructor(options: QueriesOptions) {
    this.#options = options;
  }

  get(id: string): Attachment {
    const { journal, host } = this.#options;
    const record = journal.get(id);
    const attachment = record === undefined ? undefined : attachmentIn(record);
    if (attachment === undefined) {
      throw new VoltError('NOT_FOUND', `${id} is not attached on host ${host}`);
    }
    return attachment;
  }

  /** One page (`ListAnswer`), in the order of ids; `cursor` is the last id of the page before. */
  list(request: ListRequest, deadline: number): Promise<EncodedAnswer> {
    return this.#options.slices.run(this.#page(request), { deadline });
  }

  *#page({ network, workload, kind, state, cursor, ...asked }: ListRequest): Steps<EncodedAnswer> {
    const { journal, answerBytes } = this.#options;
    const labels = Object.entries(asked.labels ?? {});
    const limit = Math.min(asked.limit ?? LIST_LIMIT, LIST_LIMIT);
    const page = new AnswerPage({ limit, bytes: answerBytes() });
    let last: string | undefined;
    for (let at = journal.after(cursor); at !== undefined; at = journal.after(at.id)) {
      yield;
      const one = attachmentIn(at);
      const matches =
        (network === undefined || one?.network === network) &&
        (workload === undefined || one?.workload === workload) &&
        (kind === undefined || one?.kind === kind) &&
        (state === undefined || one?.state === state) &&
        labels.every(([key, value]) => one?.labels[key] === value);
      if (one === undefined || !matches) continue;
      if (!page.add(one.id, one)) return page.encoded('attachments', { cursor: last });
      last = one.id;
    }
    return page.encoded('attachments', {});
  }

  /** Compares record, kernel and ledger of one attachment; without the ledger while it cannot be asked. */
  async check(id: string, deadline: number): Promise<CheckAnswer> {
    const { ledger, preview, currentRevisions, answerBytes } = this.#options;
    this.#recordOf(id);
    const { told, away } = await askedOfLedger(async () => ({
      lease: (await ledger.getLease(id)) ?? undefined,
      current: await currentRevisions(),
    }));
    const { plan, differences: observed } = await preview(id, { deadline });
    const record = this.#recordOf(id);
    const differences = [...(record.closed === undefined ? [] : [record.closed]), ...observed];
    if (told !== undefined && isAttached(record)) {
      if (record.closed === undefined) {
        differences.push(...compareLease(record.attachment, told.lease));
      }
      differences.push(...this.#revisionDifferences(record, told.current));
    }
    return atOnce(answerOf({ differences, plan, away, mostBytes: answerBytes() }));
  }

  /** As `check` (`CheckAnswer`), for all attachments and for leases without a record. Callers share a run. */
  checkAll(deadline: number): Promise<EncodedAnswer> {
    return this.#whole.ask('whole', deadline);
  }

  async #checkAll(signal: AbortSignal): Promise<EncodedAnswer> {
    const { slices, journal, leases, preview, currentRevisions, answerBytes } = this.#options;
    const first = await askedOfLedger(async () => ({
      leases: await leases(signal),
      current: await currentRevisions(),
    }));
    const compared = await slices.run(this.#compare(first.told), { signal });
    const { ofLedger } = compared;
    const differences = [...compared.differences];
    // The leases are read again: an attach or a detach since the first reading is no difference.
    const suspected = [...ofLedger].map((id) => ({
      id,
      record: journal.get(id),
      lease: first.told?.leases.get(id),
    }));
    const second =
      suspected.length === 0
        ? { told: new Map<string, Lease>() }
        : await askedOfLedger(() => leases(signal));
    if (second.told !== undefined) {
      const again = this.#compareAgain(suspected, second.told);
      differences.push(...(await slices.run(again, { signal })));
    }
    const { plan, differences: observed } = await preview(undefined, { signal });
    differences.push(...observed);
    const away = first.away ?? second.away;
    const answering = answerOf({ differences, plan, away, mostBytes: answerBytes() });
    const answer = await slices.run(answering, { signal });
    return slices.once(() => new EncodedAnswer(encodeAnswer(answer)));
  }

  /** Differences between records and their networks, and the ids whose record and lease differ. */
  *#compare(
    told: { readonly leases: ReadonlyMap<string, Lease>; readonly current: Revisions } | undefined,
  ): Steps<{
    readonly differences: Difference[];
    readonly ofLedger: ReadonlySet<string>;
  }> {
    const { journal } = this.#options;
    const differences: Difference[] = [];
    const ofLedger = new Set<string>();
    for (let at = journal.after(); at !== undefined; at = journal.after(at.id)) {
      yield;
      const { id } = at;
      // Read again, since the record may have changed during the pause.
      const record = journal.get(id);
      if (record?.closed !== undefined) differences.push(record.closed);
      if (record === undefined || record.closed !== undefined || !isAttached(record)) continue;
      if (told !== undefined) {
        if (compareLease(record.attachment, told.leases.get(id)).length > 0) ofLedger.add(id);
        differences.push(...this.#revisionDifferences(record, told.current));
      }
    }
    for (const { id } of told?.leases.values() ?? []) {
      if (journal.get(id) === undefined) ofLedger.add(id);
    }
    return { differences, ofLedger };
  }

  /** Compares once more where nothing has changed meanwhile: the same record, or a lease of the same generation. */
  *#compareAgain(
    suspected: Iterable<Suspected>,
    leases: ReadonlyMap<string, Lease>,
  ): Steps<FoundDifference[]> {
    const { journal, taggedDevices } = this.#options;
    const differences: FoundDifference[] = [];
    let devices: ReadonlyMap<string, string> | undefined;
    for (const { id, record, lease: before } of suspected) {
      yield;
      const lease = leases.get(id);
      if (journal.get(id) !== record) continue;
      if (record !== undefined) {
        if (isAttached(record)) differences.push(...compareLease(record.attachment, lease));
      } else if (lease !== undefined && lease.generation === before?.generation) {
        devices ??= yield* taggedDevices();
        const { addresses, generation } = lease;
        const observed = { addresses, generation, device: devices.get(id) ?? null };
        differences.push({ id, what: 'record', expected: null, observed });
      }
    }
    return differences;
  }

  /** Compares the attachment's revision of its network with the current one. */
  #revisionDifferences(
    { id, attachment, revision }: Attached,
    current: Revisions,
  ): FoundDifference[] {
    const { network } = attachment;
    const expected = current.get(network);
    if (expected === undefined || expected === revision) return [];
    return [{ id, what: 'network.revision', expected, observed: revision ?? null }];
  }

  #recordOf(id: string): AttachmentRecord {
    const { journal, host } = this.#options;
    const record = journal.get(id);
    if (record !== undefined) return record;
    throw new VoltError('NOT_FOUND', `${id} is not attached on host ${host}`);
  }
}

type Attached = AttachmentRecord & Required<Pick<AttachmentRecord, 'attachment'>>;

const isAttached = (record: AttachmentRecord): record is Attached =>
  record.state === 'attached' && record.attachment !== undefined;

function attachmentIn(record: AttachmentRecord): Attachment | undefined {
  const { attachment, state } = record;
  return attachment === undefined ? undefined : { ...attachment, state };
}

function compareLease(attachment: Attachment, lease: Lease | undefined): FoundDifference[] {
  const { id, generation, host, mac } = attachment;
  const addresses = attachment.addresses.map(({ address }) => address);
  const expected = { generation, host, mac, addresses };
  const observed = lease && {
    generation: lease.generation,
    host: lease.host,
    mac: lease.mac,
    addresses: lease.addresses,
  };
  if (observed !== undefined && JSON.stringify(expected) === JSON.stringify(observed)) return [];
  return [{ id, what: 'lease', expected, observed: observed ?? null }];
}
