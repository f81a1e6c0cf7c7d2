import { randomUUID } from 'node:crypto';
import { encode } from '#protocol/envelope.ts';
import { eventHeaders, eventId, type EventType } from '#protocol/events.ts';
import { subjects } from '#protocol/subjects.ts';
import type { Lease } from '#ipam-store/ledger.ts';
import type { Log } from './log.ts';
import { Outbox, type PendingEvent } from './outbox.ts';
import { tracedRequest } from './trace.ts';

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
  /** Resolves once the event stream has acknowledged. */
  readonly publish: (event: {
    subject: string;
    id: string;
    headers: Readonly<Record<string, string>>;
    payload: Uint8Array;
  }) => Promise<void>;
}

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
      body: { ...body, requestId },
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

  #publish(event: PendingEvent): Promise<void> {
    const { host, subjectPrefix, publish } = this.#options;
    const subject = subjects(subjectPrefix).event(host, event.network, event.type);
    const trace = {
      name: `publish ${event.type}`,
      role: 'producer' as const,
      attributes: { 'messaging.system': 'nats', 'messaging.destination.name': subject },
      ...(event.traceparent !== undefined && { traceparent: event.traceparent }),
      ...(event.tracestate !== undefined && { tracestate: event.tracestate }),
    };
    const { traceparent } = trace;
    const durationMs = { ...event.durationMs, publish: Date.now() - Date.parse(event.time) };
    return tracedRequest(trace, () =>
      publish({
        subject,
        id: event.id,
        headers: eventHeaders({
          id: event.id,
          type: event.type,
          source: `/volt/network/${host}`,
          subject: event.subject,
          time: event.time,
          // The request's own context, not that of this publication: a reader joins the request.
          ...(traceparent !== undefined && { traceparent }),
        }),
        payload: encode({ ...event.body, durationMs }),
      }),
    );
  }
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
