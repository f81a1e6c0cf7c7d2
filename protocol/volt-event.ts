import { decodeAnswer } from './envelope.ts';
import type { EventBodies } from './event-bodies.ts';
import { decodeSubject, eventSource, type EventType } from './events.ts';
import type { NatsMessage } from './nats.ts';
import type { Subjects } from './subjects.ts';

/**
 * The body of an event. Keys that are not named here are those of a newer agent. Where an event would have been too
 * large, `truncated` names the keys whose values were shortened, and those may lack what their type says.
 */
export type EventBody<Type extends EventType> = EventBodies[Type] & {
  readonly truncated?: readonly string[];
  readonly [key: string]: unknown;
};

/** An event of one type. */
export interface EventOf<Type extends EventType> {
  readonly id: string;
  readonly type: Type;
  /** The host whose agent published the event. */
  readonly host: string;
  readonly network: string;
  /** The attachment, network or host that the event is about. */
  readonly subject: string;
  readonly time: string;
  readonly traceparent?: string;
  readonly body: EventBody<Type>;
}

/**
 * An event; `type` tells what is in `body`. A newer agent may have types that are not named here: skip an event whose type
 * you do not know.
 */
export type VoltEvent<Type extends EventType = EventType> = { [One in Type]: EventOf<One> }[Type];

/** An event of the stream. `sequence` is its place there: who has handled it goes on with `watch({ after: sequence })`. */
export type StoredEvent<Type extends EventType = EventType> = VoltEvent<Type> & {
  readonly sequence: number;
};

/** The event in a message; null for a message that is no event of the protocol. */
export function eventOf(message: NatsMessage, subjects: Subjects): VoltEvent | null {
  const subject = subjects.match(message.subject);
  if (subject?.kind !== 'event') return null;
  const body = bodyOf(message.data);
  const header = headersOf(message);
  if (body === null || header === null) return null;
  // Permission to publish under one host's name does not allow events in the name of another.
  if (header('ce-source') !== eventSource(subject.host)) return null;
  const traceparent = header('traceparent');
  const event = {
    id: header('ce-id'),
    type: subject.type,
    host: subject.host,
    network: subject.network,
    subject: decodeSubject(header('ce-subject')),
    time: header('ce-time'),
    ...(traceparent !== '' && { traceparent }),
    body,
  };
  return isBelieved(event) ? event : null;
}

// What is in a body is as the protocol says, or the agent is broken, or newer: no schema is loaded here.
const isBelieved = (event: { readonly body: object }): event is VoltEvent =>
  !Array.isArray(event.body);

/** Reads headers by name, '' for a missing one. Null if the library cannot parse the headers and throws. */
function headersOf(message: NatsMessage): ((name: string) => string) | null {
  try {
    const { headers } = message;
    return (name) => headers?.get(name) ?? '';
  } catch {
    return null;
  }
}

function bodyOf(payload: Uint8Array): Record<string, unknown> | null {
  try {
    const body = decodeAnswer(payload);
    return typeof body === 'object' && body !== null && !Array.isArray(body) ? { ...body } : null;
  } catch {
    return null;
  }
}
