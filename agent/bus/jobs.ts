import {
  attachRequestSchema,
  detachRequestSchema,
  updateRequestSchema,
} from '#protocol/attachment.ts';
import { decode } from '#protocol/envelope.ts';
import { toErrorBody, VoltError } from '#protocol/errors.ts';
import { ID_PATTERN } from '#protocol/names.ts';
import { parseRequest } from '#protocol/parse.ts';
import { type JobOperation, subjects } from '#protocol/subjects.ts';
import type { About, Admission } from './admission.ts';
import type { Call } from '../attachments/attachments.ts';
import type { Clocks } from '../health/clocks.ts';
import { loggedCause, toVoltError } from '../errors.ts';
import type { EventLog } from '../storage/events.ts';
import { aboutOf, type Headers } from './inbound.ts';
import type { Log } from '../log.ts';
import type { RequestLog, Position } from '../attachments/request-log.ts';
import type { JobCall, Requests } from '../attachments/requests.ts';
import type { Standing } from '../fleet/standing.ts';
import { JOB_WORKING_MS } from './job-consumer.ts';
import { answers } from '../measure.ts';
import { noteIds, type RequestTrace, tracedRequest } from '../trace.ts';

/** One delivery of a job, as the bus hands it over. */
export interface Delivery {
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly headers: Headers;
  readonly position: Position;
  /** Counted by the server, this one too. */
  readonly deliveries: number;
  /** True if it came as soon as it was stored: nothing else was under way, and the agent waited for a job. */
  readonly prompt: boolean;
  /** The job is done and can go. Resolves when the server has confirmed that. */
  done(): Promise<void>;
  /** To be delivered again, after so long. */
  again(delayMs: number): void;
  /** Still under way: no redelivery yet. */
  working(): void;
}

export interface JobsOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly admission: Admission;
  readonly requests: Requests;
  readonly requestLog: RequestLog;
  readonly events: EventLog;
  readonly clocks: Pick<Clocks, 'noteStored'>;
  readonly standing: Standing;
  readonly stopping: () => boolean;
  readonly log: Log;
}

/** All jobs together count as one caller beside those that wait for an answer. */
const CALLER = 'jobs';
/** The time for one attempt; an attempt that takes longer is repeated. */
const ATTEMPT_MS = 60_000;
const RETRY_FIRST_MS = 250;
const RETRY_MOST_MS = 60_000;
/** How often a retryable refusal is tried again: for some twenty minutes. */
const MAX_ATTEMPTS = 30;
/** A job that waits only for the ledger is tried for longer: until the stream forgets it. */
const MAX_ATTEMPTS_AWAY = 1_000;
/** Nothing is wrong with a job that is refused for these. */
const AWAY = new Set(['STORE_UNAVAILABLE', 'RECOVERING', 'SHUTTING_DOWN', 'OVERLOADED']);

/**
 * Jobs out of the stream. The stream delivers a job until it is acknowledged, sometimes twice and out of order;
 * records and the request log know what has been done. A job is acknowledged once its outcome and its event are safe
 * on disk. A job that cannot be done yet comes again, later each time. A job that can never be done ends with a
 * `failed` event.
 */
export class Jobs {
  readonly #options: JobsOptions;
  readonly #attempts = new Attempts();

  constructor(options: JobsOptions) {
    this.#options = options;
  }

  /** Resolves when the delivery has been handled. Throws nothing. */
  async take(delivery: Delivery): Promise<void> {
    const { log, clocks } = this.#options;
    clocks.noteStored({ storedNs: delivery.position.storedNs, prompt: delivery.prompt });
    const working = setInterval(() => delivery.working(), JOB_WORKING_MS);
    try {
      await this.#take(delivery);
    } catch (error) {
      // A job that is not safe on disk, or not acknowledged, comes again, and the request log knows it then.
      log.info(
        { subject: delivery.subject, error: String(error) },
        'job not finished yet: it comes again',
      );
      delivery.again(retryMs(delivery.deliveries));
    } finally {
      clearInterval(working);
    }
  }

  async #take(delivery: Delivery): Promise<void> {
    const { subjectPrefix, host, admission, requestLog, events } = this.#options;
    const { subject, headers } = delivery;
    const job = subjects(subjectPrefix).match(subject);
    const operation = job?.kind === 'job' ? job.operation : undefined;
    const trace: RequestTrace = {
      name: `job.${operation ?? 'unknown'}`,
      role: 'consumer',
      attributes: {
        'volt.host': host,
        'messaging.system': 'nats',
        'messaging.destination.name': subject,
        'volt.job.delivery': delivery.deliveries,
      },
      links: this.#attempts.of(delivery.position),
      ...headers.trace,
    };
    const progress: Progress = { told: false, succeeded: false };
    const started = performance.now();
    const measure = (code: string): void =>
      answers.note({ operation: trace.name, code, ms: performance.now() - started });
    try {
      const deadline = performance.now() + ATTEMPT_MS;
      const about = (): About | undefined => operation && aboutOf(operation, delivery.payload);
      await admission.passIn('change', { caller: CALLER, deadline, about }, () =>
        tracedRequest(trace, () => this.#run(operation, delivery, { trace, deadline, progress })),
      );
      this.#attempts.forget(delivery.position);
      measure('OK');
    } catch (cause) {
      this.#attempts.note(delivery.position, trace.traceparent);
      // Of what was done, another delivery tells.
      if (progress.succeeded) throw cause;
      const error = toVoltError(cause);
      measure(error.code);
      // The job is for the other machine under this host id: no event tells of it, and it goes back.
      if (error.code === 'HOST_CONFLICT') {
        delivery.again(retryMs(delivery.deliveries));
        return;
      }
      if (error.retryable && !isLast(error, delivery)) {
        delivery.again(Math.min(error.retryAfterMs ?? retryMs(delivery.deliveries), RETRY_MOST_MS));
        return;
      }
      if (!progress.told) this.#tellFailure(operation, delivery, trace, error);
      const { code, message } = error;
      const level = code === 'INTERNAL' ? 'error' : 'info';
      this.#options.log[level]({ subject, code, message, cause: loggedCause(error) }, 'job failed');
    }
    await Promise.all([requestLog.sync(), events.sync()]);
    await delivery.done();
  }

  async #run(
    operation: JobOperation | undefined,
    delivery: Delivery,
    { trace, deadline, progress }: Pick<JobCall, 'trace' | 'deadline'> & { progress: Progress },
  ): Promise<void> {
    const { requests, standing, stopping } = this.#options;
    standing.check();
    if (stopping()) throw new VoltError('SHUTTING_DOWN', 'the agent is stopping');
    const work = this.#parsed(operation, delivery, trace);
    const call: JobCall = {
      trace,
      deadline,
      position: delivery.position,
      isLast: (error) => isLast(error, delivery),
      onFailureTold: () => {
        progress.told = true;
      },
    };
    const answer = await work.run(call);
    progress.succeeded = true;
    await requests.told(work.operation, work.request, answer, call);
  }

  /** Parses a job. Throws INVALID_REQUEST or TOO_LARGE for a payload that is no job. */
  #parsed(
    operation: JobOperation | undefined,
    { subject, payload, headers, position }: Delivery,
    trace: RequestTrace,
  ): {
    readonly operation: JobOperation;
    readonly request: { readonly id: string; readonly requestId: string };
    readonly run: (call: JobCall) => Promise<object>;
  } {
    const { requests } = this.#options;
    const named = <Request extends { readonly requestId?: string | undefined }>(
      request: Request,
    ): Request & { readonly requestId: string } => ({
      ...request,
      requestId: request.requestId ?? requestIdOf(position),
    });
    if (operation === undefined) {
      throw new VoltError('INVALID_REQUEST', `${subject} is no job`, {
        details: { path: 'subject' },
      });
    }
    if (headers.flaw !== undefined) throw headers.flaw;
    const body = decode(payload);
    noteIds(trace, body);
    if (operation === 'attach') {
      const request = named(parseRequest(attachRequestSchema, body));
      if (request.dryRun === true) {
        const message = 'dryRun: nobody waits for the answer to a job';
        throw new VoltError('INVALID_REQUEST', message, { details: { path: 'dryRun' } });
      }
      return { operation, request, run: (call) => requests.attach(request, call) };
    }
    if (operation === 'detach') {
      const request = named(parseRequest(detachRequestSchema, body));
      return { operation, request, run: (call) => requests.detach(request, call) };
    }
    const request = named(parseRequest(updateRequestSchema, body));
    return { operation, request, run: (call) => requests.update(request, call) };
  }

  /** The event of a job that failed before it became a request: nobody else tells of it. */
  #tellFailure(
    operation: JobOperation | undefined,
    { payload, position }: Delivery,
    trace: Call['trace'],
    error: VoltError,
  ): void {
    const given = textsOf(payload);
    this.#options.events.add({
      type: 'failed',
      network: '-',
      subject: given.id !== undefined && ID_PATTERN.test(given.id) ? given.id : '-',
      operation: operation ?? 'job',
      requestId: given.requestId ?? requestIdOf(position),
      trace,
      body: { ...toErrorBody(error), operation: operation ?? 'job', request: given },
    });
  }
}

/** The traces of deliveries that have not ended their job, for the next one to be linked with; those of late ones. */
class Attempts {
  readonly #traces = new Map<string, readonly string[]>();

  of(position: Position): readonly string[] {
    return this.#traces.get(requestIdOf(position)) ?? [];
  }

  note(position: Position, traceparent: string | undefined): void {
    if (traceparent === undefined) return;
    const key = requestIdOf(position);
    const before = this.of(position);
    this.#traces.delete(key);
    this.#traces.set(key, [...before, traceparent].slice(-MAX_LINKS));
    const [oldest] = this.#traces.keys();
    if (this.#traces.size > MAX_JOBS_LINKED && oldest !== undefined) this.#traces.delete(oldest);
  }

  forget(position: Position): void {
    this.#traces.delete(requestIdOf(position));
  }
}

const MAX_LINKS = 8;
const MAX_JOBS_LINKED = 1_000;

/** How far an attempt has come. */
interface Progress {
  told: boolean;
  succeeded: boolean;
}

/** Of a job that names none. */
const requestIdOf = ({ storedNs, sequence }: Position): string => `job-${storedNs}-${sequence}`;

const isLast = ({ code }: VoltError, { deliveries }: Delivery): boolean =>
  deliveries >= (AWAY.has(code) ? MAX_ATTEMPTS_AWAY : MAX_ATTEMPTS);

const retryMs = (deliveries: number): number =>
  Math.min(RETRY_FIRST_MS * 2 ** Math.min(deliveries - 1, 16), RETRY_MOST_MS);

/** The ids in a payload that is no request, so that its sender finds the `failed` event. */
function textsOf(payload: Uint8Array): { readonly id?: string; readonly requestId?: string } {
  let body: unknown;
  try {
    body = decode(payload);
  } catch {
    return {};
  }
  if (typeof body !== 'object' || body === null) return {};
  const text = (key: string): string | undefined => {
    const value: unknown = Object.getOwnPropertyDescriptor(body, key)?.value;
    return typeof value === 'string' && value.length <= 128 ? value : undefined;
  };
  const [id, requestId] = [text('id'), text('requestId')];
  return { ...(id !== undefined && { id }), ...(requestId !== undefined && { requestId }) };
}
