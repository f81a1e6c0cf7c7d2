/** An event as it is kept on disk until the event stream has it. */
export interface PendingEvent {
  /** Made from host, operation and request id: an event that is added twice has the same id. */
  readonly id: string;
  readonly type: string;
  readonly network: string;
  /** The attachment, network or host that the event is about. */
  readonly subject: string;
  readonly time: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly durationMs: Readonly<Record<string, number>>;
  readonly traceparent?: string;
  readonly tracestate?: string;
}

/**
 * Why an event is not in the event stream:
 * - `never`: because of the event itself. It is malformed, or larger than the server or the stream takes.
 * - `later`: it was sent, and not stored. A later try may succeed.
 * - `away`: there is no connection.
 */
export type WhyNotPublished = 'never' | 'later' | 'away';

export class PublishError extends Error {
  override readonly name = 'PublishError';
  readonly why: WhyNotPublished;

  constructor(why: WhyNotPublished, message: string, options?: ErrorOptions) {
    super(message, options);
    this.why = why;
  }
}

/** Parses an event as `add` wrote it. Throws for an entry that was cut short or is no event. */
export function parseEvent(text: string): PendingEvent {
  const event: unknown = JSON.parse(text);
  if (isEvent(event)) return event;
  throw new Error('is no event');
}

const isEvent = (value: unknown): value is PendingEvent =>
  typeof value === 'object' &&
  value !== null &&
  ['id', 'type', 'network', 'subject', 'time'].every(
    (key) => typeof Object.getOwnPropertyDescriptor(value, key)?.value === 'string',
  ) &&
  'body' in value &&
  typeof value.body === 'object' &&
  'durationMs' in value &&
  typeof value.durationMs === 'object';
