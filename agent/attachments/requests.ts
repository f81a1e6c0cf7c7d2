import { randomUUID } from 'node:crypto';
import type { z } from 'zod';
import {
  type AttachAnswer,
  attachAnswerSchema,
  type AttachRequest,
  type DetachAnswer,
  detachAnswerSchema,
  type DetachRequest,
  type DryRunAnswer,
  type UpdateAnswer,
  updateAnswerSchema,
  type UpdateRequest,
} from '#protocol/attachment.ts';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import type { Attachments, Call } from './attachments.ts';
import type { Detaches } from './detaches.ts';
import { toVoltError } from '../errors.ts';
import type { Clocks } from '../health/clocks.ts';
import type { EventLog } from '../storage/events.ts';
import type { Journal } from '../storage/journal.ts';
import {
  type Asked,
  isBefore,
  type RequestLog,
  type Position,
  positionOf,
  type Remembered,
  type RememberedOperation,
  type StoredPosition,
} from './request-log.ts';
import { phases, type Phase } from '../measure.ts';
import type { IdLocks } from '../schedule/id-lock.ts';
import type { Updates } from './updates.ts';

export interface RequestsOptions {
  readonly host: string;
  readonly attachments: Attachments;
  readonly updates: Updates;
  readonly detaches: Detaches;
  readonly journal: Journal;
  readonly requestLog: RequestLog;
  readonly events: EventLog;
  readonly locks: IdLocks;
  readonly clocks: Pick<Clocks, 'streamNowNs'>;
}

/** A request from the job stream. */
export interface JobCall extends Call {
  readonly position: Position;
  /** Whether a retryable error ends the job all the same: it has been tried for long enough. */
  readonly isLast: (error: VoltError) => boolean;
  /** Called once the event of a failure is stored. */
  readonly onFailureTold: () => void;
}

interface Identified {
  readonly id: string;
  readonly requestId: string;
}

/**
 * All requests that change attachments pass here, direct requests and jobs. Requests for one id run one after the
 * other. A repeated request gets its first answer. A job that a later one has overtaken ends as SUPERSEDED.
 */
export class Requests {
  readonly #options: RequestsOptions;

  constructor(options: RequestsOptions) {
    this.#options = options;
  }

  /**
   * Remembers the outcomes of an earlier agent of this host that died before it could remember them. A repeated request
   * then gets its first answer, and nothing is done twice.
   */
  resume(): void {
    const { journal, requestLog } = this.#options;
    for (const { id, request, detach } of journal.values()) {
      const untold = journal.untold(id);
      if (untold !== undefined) {
        const { announcement, attachment } = untold;
        const { requestId: _, ...content } = announcement.repeat ?? request;
        const answer = { attachment, replayed: announcement.repeat !== undefined };
        keepFirst(requestLog, { operation: 'attach', id, content, ...announcement }, answer);
      }
      if (detach?.reason === 'requested') {
        const { generation } = detach;
        const content = generation === undefined ? { id } : { id, generation };
        const answer = { detached: true, releasing: true };
        keepFirst(requestLog, { operation: 'detach', id, content, ...detach }, answer);
      }
    }
  }

  attach(request: AttachRequest, call: Call | JobCall): Promise<AttachAnswer> {
    const { attachments } = this.#options;
    return this.#run('attach', request, call, attachAnswerSchema, {
      work: (identified) => attachments.attach(identified, call),
      again: async (identified, first) => {
        const before = { ...first, replayed: true };
        if (!this.#lives(first)) return before;
        try {
          return await attachments.attach(identified, call);
        } catch (error) {
          // After a reboot the lease may be the same, while another request has attached other content.
          if (error instanceof VoltError && error.code === 'ALREADY_ATTACHED') return before;
          throw error;
        }
      },
    });
  }

  /** What an attach would do, or the error that it would throw. Nothing is done, published or remembered. */
  dryRun(request: AttachRequest, call: Call): Promise<DryRunAnswer> {
    return this.#options.attachments.dryRun(request, call);
  }

  detach(request: DetachRequest, asked: Call | JobCall): Promise<DetachAnswer> {
    const { attachments, clocks } = this.#options;
    // A direct detach is later than every job that is stored by now.
    const now: Position = { storedNs: clocks.streamNowNs(), sequence: 0 };
    const call = 'isLast' in asked ? asked : { ...asked, position: now };
    return this.#run('detach', request, call, detachAnswerSchema, {
      work: (identified) => attachments.detach(identified, call),
      again: (_, first) => first,
    });
  }

  update(request: UpdateRequest, call: Call | JobCall): Promise<UpdateAnswer> {
    const { updates } = this.#options;
    return this.#run('update', request, call, updateAnswerSchema, {
      work: (identified) => updates.update(identified, call),
      again: (_, first) => first,
    });
  }

  /**
   * Resolves when the event of a job that succeeded is stored. Every job has an event of its own, even one that changed
   * nothing. Waits for the end of a detach, until the deadline at most.
   */
  async told(
    operation: RememberedOperation,
    { id, requestId }: Identified,
    answer: object,
    call: Call,
  ): Promise<void> {
    const { events, journal, host, detaches } = this.#options;
    events.announce(id);
    if (operation !== 'detach') return;
    const record = journal.get(id);
    await detaches.finished(id, call.deadline);
    // The end of this job's own detach has stored the event already.
    if (record?.detach?.requestId === requestId) return;
    const { detached, releasing } = detachAnswerSchema.parse(answer);
    // This job released a lease without a record, and has stored the event of that.
    if (detached && !releasing) return;
    events.add({
      type: 'detached',
      network: '-',
      subject: id,
      operation,
      requestId,
      trace: call.trace,
      body: { id, host, state: 'detached', reason: 'absent' },
    });
  }

  /** Whether the attachment is still the one that an attach once answered. */
  #lives({ attachment }: AttachAnswer): boolean {
    const record = this.#options.journal.get(attachment.id);
    return record?.state === 'attached' && record.generation === attachment.generation;
  }

  #run<
    Request extends { readonly id: string; readonly requestId?: string | undefined },
    Answer extends object,
  >(
    operation: RememberedOperation,
    request: Request,
    call: Call | JobCall,
    schema: z.ZodType<Answer>,
    does: {
      readonly work: (request: Request & Identified) => Promise<Answer>;
      /** The answer to a repeat of a request that had this `first` answer. */
      readonly again: (request: Request & Identified, first: Answer) => Promise<Answer> | Answer;
    },
  ): Promise<Answer> {
    const { locks, requestLog } = this.#options;
    const { requestId, ...content } = request;
    const identified = { ...request, requestId: requestId ?? randomUUID() };
    const job = 'isLast' in call ? call : undefined;
    const asked: Asked = {
      operation,
      id: request.id,
      requestId,
      content,
      position: call.position,
    };
    const work = async (): Promise<Answer> => {
      let known: Remembered | undefined;
      try {
        known = requestLog.find(asked);
        if (known !== undefined) {
          if ('error' in known) throw known.error;
          return await does.again(identified, schema.parse(known.answer));
        }
        if (job !== undefined) this.#refuseOvertaken(asked, job.position);
        if (operation === 'attach') this.#refuseWhenUntold();
        const answer = await does.work(identified);
        requestLog.keep(asked, { answer });
        return answer;
      } catch (cause) {
        const error = toVoltError(cause);
        // The request was for another machine with this host id: nothing to remember or report here.
        if (error.code === 'HOST_CONFLICT') throw error;
        if (known === undefined && !error.retryable && !isOfOther(error)) {
          requestLog.keep(asked, { error });
        }
        this.#tellFailure(asked, identified, call, error);
        throw error;
      }
    };
    return locks.take(request.id, call.deadline, () => this.#measured(operation, request, work));
  }

  /** Does the work, and notes how long it took and what it came to. */
  async #measured<Answer extends object>(
    operation: RememberedOperation,
    { id, network = '' }: { readonly id: string; readonly network?: string },
    work: () => Promise<Answer>,
  ): Promise<Answer> {
    const { journal, attachments } = this.#options;
    const started = performance.now();
    // A detach removes the record.
    const recorded = journal.get(id)?.networkType;
    let result: Phase['result'] = 'error';
    try {
      const answer = await work();
      result = 'replayed' in answer && answer.replayed === true ? 'replayed' : 'ok';
      return answer;
    } finally {
      const type = recorded ?? attachments.typeOf(network) ?? 'unknown';
      phases.note({ operation, phase: 'answer', type, result, ms: performance.now() - started });
    }
  }

  /** Each attach makes events. While too many wait for NATS, no attach is begun. */
  #refuseWhenUntold(): void {
    if (!this.#options.events.full) return;
    throw new VoltError('OVERLOADED', 'too many events wait for NATS on this host');
  }

  /** Refuses an attach job if a later detach has run, and a detach job if a later attach has run. */
  #refuseOvertaken({ id, operation }: Asked, position: Position): void {
    const other = operation === 'attach' ? 'detach' : 'attach';
    const last = this.#options.requestLog.lastOf(id, other);
    if (last === undefined || !isBefore(position, last)) return;
    throw new VoltError('SUPERSEDED', `a later ${other} of ${id} has run`, {
      details: { id, operation, by: other },
    });
  }

  #tellFailure(
    { operation, id }: Asked,
    request: Identified & { readonly network?: string },
    call: Call | JobCall,
    error: VoltError,
  ): void {
    const { events, journal } = this.#options;
    // A retryable error is not the final outcome: a repeat may succeed, and then has an event of its own. The agent
    // repeats a job itself, and the job's sender gets only the last outcome.
    const final = !error.retryable || ('isLast' in call && call.isLast(error));
    if (!final && 'isLast' in call) return;
    events.add({
      type: 'failed',
      network: request.network ?? journal.get(id)?.request.network ?? '-',
      subject: id,
      operation,
      requestId: request.requestId,
      final,
      trace: call.trace,
      body: { ...toErrorBody(error), operation, request: { ...request } },
    });
    if ('isLast' in call) call.onFailureTold();
  }
}

function keepFirst(
  requestLog: RequestLog,
  asked: Omit<Asked, 'position'> & { readonly position?: StoredPosition },
  answer: object,
): void {
  const position = positionOf(asked.position);
  const { operation, id, requestId, content } = asked;
  if (requestLog.knows(operation, requestId)) return;
  requestLog.keep({ operation, id, requestId, content, position }, { answer });
}

/** Another request had this request id: the outcome of that other one stays remembered. */
const isOfOther = ({ code, details }: VoltError): boolean =>
  code === 'INVALID_REQUEST' && details?.['path'] === 'requestId';
