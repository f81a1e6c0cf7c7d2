import { randomUUID } from 'node:crypto';
import { encode, encodeAnswer, MAX_PAYLOAD_BYTES } from '#protocol/envelope.ts';
import { eventHeaders, eventId, eventSource, type EventType } from '#protocol/events.ts';
import { subjects } from '#protocol/subjects.ts';
import { parseTraceContext } from '#protocol/trace-context.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Log } from '../log.ts';
import { Outbox } from './outbox.ts';
import { type PendingEvent, PublishError } from './pending-event.ts';
import { type RequestTrace, tracedRequest } from '../trace.ts';

/** What happened, for the event stream. */
export interface Outcome {
  readonly type: EventType;
  /** The network it concerns; `-` where there is none. */
  readonly network: string;
  /** The attachment, network or host that it is about. */
  readonly subject: string;
  readonly operation: string;
  /** With host and operation it makes the event's id: the same outcome is the same event. */
  readonly requestId: string;
  /** False for what is no outcome yet (a retryable failure): an event of its own each time. */
  readonly final?: boolean;
  /** Of the request that caused it. */
  readonly trace: { readonly traceparent?: string; readonly tracestate?: string };
  readonly body: Readonly<Record<string, unknown>>;
  /** By phase: `ipam`, `kernel`; `publish` is added when the event goes out. */
  readonly durationMs?: Readonly<Record<string, number>>;
}

export interface EventsOptions {
  readonly host: string;
  readonly subjectPrefix: string;
  readonly stateDir: string;
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

/** For `durationMs`, which is complete when the event goes out. */
const DURATIONS_BYTES = 1_024;
const SHORT_TEXT = 256;
const SHORT_MAP_BYTES = 4_096;
/** `NATS/1.0`, the name of the header with the event's id, and what the client adds. */
const HEADERS_BYTES = 256;

/** The events of this host: kept until the event stream has them, CloudEvents on the wire. */
export class EventLog {
  readonly #options: EventsOptions;
  readonly #outbox: Outbox;

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

  /** How many the stream refuses for what they are: they are tried again, for as long as it does. */
  get setAside(): number {
    return this.#outbox.setAside;
  }

  /** So many events wait that nothing should be begun that makes further ones. */
  get full(): boolean {
    return this.#outbox.full;
  }

  /** Resolves when all events that were added before outlive a power failure. */
  sync(): Promise<void> {
    return this.#outbox.sync();
  }

  start(): void {
    this.#outbox.start();
  }

  /** Publishes no `repaired` event until disposed; all others as always. */
  holdRepairs(): Disposable {
    return this.#outbox.hold();
  }

  add(outcome: Outcome): void {
    const { host } = this.#options;
    const { type, network, subject, operation, requestId, trace, body, durationMs } = outcome;
    const attempt = outcome.final === false ? `${operation} ${randomUUID()}` : operation;
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

  /** The bus is back: what waits for a retry is tried at once. */
  nudge(): void {
    this.#outbox.nudge();
  }

  stop(timeoutMs: number): Promise<void> {
    return this.#outbox.stop(timeoutMs);
  }

  async #publish(event: PendingEvent): Promise<void> {
    const { publish } = this.#options;
    const { message, trace } = this.#messageOf(event);
    await tracedRequest(trace, () => publish(message));
  }

  /** Throws PublishError for what is no event: an agent of another version may have stored it. */
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
      // It was stored for any server; this one may take less.
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

type Body = Outcome['body'];

/**
 * A body that an event of at most `most` bytes has room for. What is too large for it is shortened, the largest first: of a map its short
 * values stay, the first 4 KiB, of a text its beginning, of a list nothing. `truncated` names what was.
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

/** In bytes; infinite for what cannot be encoded. */
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
export function endedLease(lease: Lease, reason: string): Outcome['body'] {
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
