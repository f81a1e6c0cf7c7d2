import { randomUUID } from 'node:crypto';
import { encode, encodeAnswer, MAX_PAYLOAD_BYTES } from '#protocol/envelope.ts';
import type { EventBodies } from '#protocol/event-bodies.ts';
import {
  type DetachedReason,
  eventHeaders,
  eventId,
  eventSource,
  type EventType,
} from '#protocol/events.ts';
import { subjects } from '#protocol/subjects.ts';
import { parseTraceContext } from '#protocol/trace-context.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Log } from '../log.ts';
import type { Announcement, AttachmentRecord, Journal } from './journal.ts';
import { Outbox } from './outbox.ts';
import { type PendingEvent, PublishError } from './pending-event.ts';
import { type RequestTrace, tracedRequest } from '../trace.ts';

/** The content of a new event, before it has an id and a time. */
/** The body of an event without what is put there when it goes out. */
type Told<Type extends EventType> = Distributed<EventBodies[Type]>;
type Distributed<Whole> = Whole extends unknown
  ? Readonly<Omit<Whole, 'requestId' | 'durationMs'>>
  : never;

export interface EventDraft<Type extends EventType> {
  readonly type: Type;
  /** The network that the event concerns; `-` where there is none. */
  readonly network: string;
  /** The attachment, network or host that the event is about. */
  readonly subject: string;
  readonly operation: string;
  /** Host, operation and request id make the event's id: what is added twice is one event. */
  readonly requestId: string;
  /** False for a retryable failure, which may happen again: each is an event of its own. */
  readonly final?: boolean;
  /** The trace of the request that caused the event. */
  readonly trace: { readonly traceparent?: string; readonly tracestate?: string };
  readonly body: Told<Type>;
  /** By phase: `ipam`, `kernel`; `publish` is added when the event goes out. */
  readonly durationMs?: Readonly<Record<string, number>>;
}

export interface EventsOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly stateDir: string;
  /** The records, each with its announcement while the `attached` event is not stored yet. */
  readonly journal: Pick<Journal, 'put' | 'untold' | 'untoldIds' | 'noteTold'>;
  readonly log: Log;
  /** The largest message that NATS takes now, headers included. */
  readonly maxPayload: () => number;
  /** Resolves once the event stream has acknowledged. */
  readonly publish: (event: {
    subject: string;
    id: string;
    headers: Readonly<Record<string, string>>;
    payload: Uint8Array;
  }) => Promise<void>;
}

/** Announcements wait for this time, so that storing and publishing one does not hold up the next request. */
const ANNOUNCE_AFTER_MS = 20;
/** For `durationMs`, which is complete when the event goes out. */
const DURATIONS_BYTES = 1_024;
const SHORT_TEXT = 256;
const SHORT_MAP_BYTES = 4_096;
/** `NATS/1.0`, the name of the header with the event's id, and what the client adds. */
const HEADERS_BYTES = 256;

/**
 * The events of this host: kept until the event stream has them, CloudEvents on the wire.
 *
 * The events of one subject are in order. The `attached` event of an attachment is stored some milliseconds after the
 * answer; every other event of that attachment first stores the `attached` event, if that still waits.
 */
export class EventLog {
  readonly #options: EventsOptions;
  readonly #outbox: Outbox;
  #announcing: NodeJS.Timeout | undefined;

  constructor(options: EventsOptions) {
    this.#options = options;
    this.#outbox = new Outbox({
      stateDir: options.stateDir,
      log: options.log,
      publish: (event) => this.#publish(event),
    });
  }

  get pending(): number {
    return this.#outbox.pending;
  }

  /** The event that has waited longest: when it was made, and why the stream has not taken it. */
  get oldest(): Outbox['oldest'] {
    return this.#outbox.oldest;
  }

  /** The number of events that the stream refuses for their size or form; they are tried again and again. */
  get setAside(): number {
    return this.#outbox.setAside;
  }

  /** True while so many events wait that nothing should be begun that makes more of them. */
  get full(): boolean {
    return this.#outbox.full;
  }

  /** Resolves when all events that were added before survive a power failure. */
  sync(): Promise<void> {
    return this.#outbox.sync();
  }

  /** Stores what an earlier agent of this host has left to announce, and begins to publish. */
  start(): void {
    this.#outbox.start();
    this.#announceAll();
  }

  /** Publishes no `repaired` event until disposed; all others are published as always. */
  holdRepairs(): Disposable {
    return this.#outbox.hold();
  }

  /** Stores the event, after the `attached` event of its subject where that is not stored yet. */
  add<Type extends EventType>(draft: EventDraft<Type>): void {
    this.announce(draft.subject);
    this.#store(draft);
  }

  /**
   * Writes the record of an attachment whose `attached` event is stored soon, and before any other event of the
   * attachment. Throws the error of the disk (ENOSPC): then neither record nor event is there.
   */
  putAttached(record: AttachmentRecord, announcement: Announcement): void {
    this.announce(record.id);
    this.#options.journal.put(record, announcement);
    this.#announcing ??= setTimeout(() => {
      this.#announcing = undefined;
      this.#announceAll();
    }, ANNOUNCE_AFTER_MS);
  }

  /** Stores the `attached` event of this attachment now, if it is not stored yet. */
  announce(id: string): void {
    const { journal } = this.#options;
    const untold = journal.untold(id);
    if (untold === undefined) return;
    const { announcement, attachment } = untold;
    this.#store({
      type: 'attached',
      network: attachment.network,
      subject: id,
      operation: 'attach',
      requestId: announcement.requestId,
      trace: announcement,
      body: attachment,
      durationMs: announcement.durationMs,
    });
    // Only now: an agent that dies in between stores the event again, under the same id.
    journal.noteTold(id);
  }

  #announceAll(): void {
    for (const id of this.#options.journal.untoldIds()) this.announce(id);
  }

  #store<Type extends EventType>(draft: EventDraft<Type>): void {
    const { host } = this.#options;
    const { type, network, subject, operation, requestId, trace, body, durationMs } = draft;
    const attempt = draft.final === false ? `${operation} ${randomUUID()}` : operation;
    const { traceparent, tracestate } = trace;
    this.#outbox.add({
      id: eventId({ host, operation: attempt, requestId }),
      type,
      network,
      subject,
      time: new Date().toISOString(),
      body: fitting({ ...body, requestId }),
      durationMs: durationMs ?? {},
      ...(traceparent !== undefined && { traceparent }),
      ...(tracestate !== undefined && { tracestate }),
    });
  }

  /** The bus is back: events that wait for their next try are tried now. */
  nudge(): void {
    this.#outbox.nudge();
  }

  /** Stores what is left to announce, and publishes for `timeoutMs` at most. */
  stop(timeoutMs: number): Promise<void> {
    clearTimeout(this.#announcing);
    this.#announceAll();
    return this.#outbox.stop(timeoutMs);
  }

  async #publish(event: PendingEvent): Promise<void> {
    const { publish } = this.#options;
    const { message, trace } = this.#messageOf(event);
    await tracedRequest(trace, () => publish(message));
  }

  /** Throws PublishError for an entry that is no event: an agent of another version may have stored it. */
  #messageOf(event: PendingEvent): {
    message: Parameters<EventsOptions['publish']>[0];
    trace: RequestTrace;
  } {
    const { host, subjectPrefix, maxPayload } = this.#options;
    const { id, type, network, subject: about, time, body } = event;
    const { traceparent, tracestate } = parseTraceContext(event);
    const durationMs = { ...event.durationMs, publish: Date.now() - Date.parse(time) };
    const serverTakes = maxPayload();
    try {
      const subject = subjects(subjectPrefix).event(host, network, type);
      const headers = eventHeaders({
        id,
        type,
        source: eventSource(host),
        subject: about,
        time,
        // The request's own context, not that of this publication: a reader joins the request.
        ...(traceparent !== undefined && { traceparent }),
      });
      // The event was stored for any server; this server may take smaller messages only.
      const most = serverTakes - sizeOf(headers) - HEADERS_BYTES;
      const payload = encode({ ...fitting(body, most), durationMs });
      const message = { subject, id, headers, payload };
      const trace = {
        name: `publish ${type}`,
        role: 'producer' as const,
        attributes: { 'messaging.system': 'nats', 'messaging.destination.name': subject },
        ...(traceparent !== undefined && { traceparent }),
        ...(tracestate !== undefined && { tracestate }),
      };
      return { message, trace };
    } catch (cause) {
      throw new PublishError('never', String(cause), { cause });
    }
  }
}

type Body = Readonly<Record<string, unknown>>;

/**
 * A body that fits an event of at most `most` bytes. While the body is too large, its largest field is shortened: a map
 * keeps its short values, 4 KiB at most, a text its beginning, a list nothing. `truncated` names the shortened fields.
 */
export function fitting(body: Body, most = MAX_PAYLOAD_BYTES): Body {
  const room = Math.min(MAX_PAYLOAD_BYTES, most) - DURATIONS_BYTES;
  if (sizeOf(body) <= room) return body;
  let fit = body;
  const sizes = Object.entries(body).map(([key, value]) => ({ key, bytes: sizeOf(value) }));
  const largestFirst = sizes.toSorted((a, b) => b.bytes - a.bytes).map(({ key }) => key);
  for (const [index, key] of largestFirst.entries()) {
    if (sizeOf(fit) <= room) break;
    const truncated = largestFirst.slice(0, index + 1);
    fit = { ...fit, [key]: shortened(body[key]), truncated };
  }
  return fit;
}

/** In bytes; infinite for a value that cannot be encoded. */
function sizeOf(value: unknown): number {
  try {
    return encodeAnswer(value).byteLength;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

function shortened(value: unknown): unknown {
  if (typeof value === 'string') return value.slice(0, SHORT_TEXT);
  if (typeof value === 'number' || typeof value === 'boolean') return value;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  const short: Record<string, unknown> = {};
  let bytes = 0;
  for (const [key, one] of Object.entries(value)) {
    if (typeof one === 'object') continue;
    const entry = { [key.slice(0, SHORT_TEXT)]: shortened(one) };
    bytes += sizeOf(entry);
    if (bytes > SHORT_MAP_BYTES) break;
    Object.assign(short, entry);
  }
  return short;
}

/** The body of the `detached` event of a lease that ended without an attachment of this host. */
export function endedLease(lease: Lease, reason: DetachedReason): Told<'detached'> {
  const { id, generation, network, workload, kind, host, mac, addresses } = lease;
  return {
    id,
    generation,
    workload,
    kind,
    network,
    host,
    mac,
    addresses: addresses.map((address) => ({ address })),
    state: 'detached',
    reason,
  };
}
