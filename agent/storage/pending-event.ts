/** An event that has to reach the event stream, as it is kept on disk until it did. */
export interface PendingEvent {
  /** Function of what it reports: the same outcome is the same event. */
  readonly id: string;
  readonly type: string;
  readonly network: string;
  /** The attachment, network or host that it is about. */
  readonly subject: string;
  readonly time: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly durationMs: Readonly<Record<string, number>>;
  readonly traceparent?: string;
  readonly tracestate?: string;
}

/**
 * What keeps an event from the event stream:
 * - `never`: the event itself. It is malformed, or larger than server or stream take.
 * - `later`: it was sent, and not stored; it may be another time.
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

/** An event as `add` wrote it. What was cut short, or is another's, is refused. */
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
