import { createHash } from 'node:crypto';

export const EVENT_TYPES = [
  'attached',
  'detached',
  'updated',
  'failed',
  'repaired',
  'suspect',
  'recovering',
  'recovered',
  'host-up',
  'host-down',
  'network-changed',
] as const;

export type EventType = (typeof EVENT_TYPES)[number];

/** Why an attachment has ended: `reason` of `detached`. */
export const DETACHED_REASONS = [
  'requested',
  'absent',
  'expired',
  'failed',
  'fenced',
  'interrupted',
  'namespace-gone',
  'reboot',
  'reclaimed',
] as const;

export type DetachedReason = (typeof DETACHED_REASONS)[number];

/** What was done about a difference: `action` of `repaired`. */
export const REPAIR_ACTIONS = ['mend', 'remake', 'close', 'network', 'firewall'] as const;

export type RepairAction = (typeof REPAIR_ACTIONS)[number];

/**
 * The id of an outcome, and so its `Nats-Msg-Id`: a function of host, operation and request, so that the
 * same outcome told twice is one event.
 */
export const eventId = (outcome: { host: string; operation: string; requestId: string }): string =>
  createHash('sha256')
    .update(JSON.stringify([outcome.host, outcome.operation, outcome.requestId]))
    .digest('hex')
    .slice(0, 32);

/** The host that tells the event, as `ce-source`. A reader ignores an event whose subject names another host. */
export const eventSource = (host: string): string => `/volt/network/${host}`;

export interface EventAttributes {
  readonly id: string;
  readonly type: string;
  /** As of `eventSource`. */
  readonly source: string;
  /** The attachment, network or host that it is about. */
  readonly subject: string;
  /** RFC 3339. */
  readonly time: string;
  readonly traceparent?: string;
  readonly tracestate?: string;
}

/** Headers of CloudEvents 1.0 in NATS binary mode. Text of others is percent-encoded, as that binding asks. */
export const eventHeaders = (event: EventAttributes): Record<string, string> => ({
  'ce-specversion': '1.0',
  'ce-id': event.id,
  'ce-type': `volt.net.${event.type}`,
  'ce-source': event.source,
  'ce-subject': percentEncoded(event.subject),
  'ce-time': event.time,
  'ce-datacontenttype': 'application/msgpack',
  ...(event.traceparent !== undefined && { traceparent: event.traceparent }),
  ...(event.tracestate !== undefined && { tracestate: event.tracestate }),
});

/** All but printable ASCII, and of that space, `"` and `%` (CloudEvents HTTP binding, 3.1.3.2, which NATS's refers to). */
const percentEncoded = (text: string): string =>
  text.toWellFormed().replace(/[^!#$&-~]+/g, encodeURIComponent);

/** A `ce-subject` as it was before it was percent-encoded. */
export function decodeSubject(header: string): string {
  try {
    return decodeURIComponent(header);
  } catch {
    return header;
  }
}
