import {
  type Msg,
  type MsgHdrs,
  MsgHdrsImpl,
  type NatsConnection,
  type SubscriptionOptions,
} from 'nats';
import { decode } from '#protocol/envelope.ts';
import { VoltError } from '#protocol/errors.ts';
import { parseTraceContext, type TraceContext } from '#protocol/trace-context.ts';
import type { About } from './admission.ts';

// Messages that anybody may have sent arrive here first. They may have malformed headers, or reply subjects on which
// the agent may speak and the sender may not. No exception while a message is handled reaches the reader of the
// connection, which would stop reading.

/** No honest client sends more: the library takes a minute to read a megabyte of short header lines. */
const MAX_HEADER_BYTES = 64 * 1024;
const MAX_HEADER_LINES = 64;
const STATUS = /^NATS\/1\.0[ \t]*(\d{3})?(.*)$/s;
/** Printable ASCII without the colon (RFC 5322, 2.2), as nats-server's clients agree. */
const NAME = /^[!-9;-~]+$/;

/** Why headers cannot be read, by the object that holds those that could be read. */
const flaws = new WeakMap<object, string>();
const text = new TextDecoder();

/**
 * Reads headers. The library reads them lazily, also the headers of its own protocol, and throws at the first
 * malformed one, wherever that happens to be. So the library is given this reader instead.
 */
MsgHdrsImpl.decode = (bytes: Uint8Array): MsgHdrsImpl => {
  if (bytes.byteLength > MAX_HEADER_BYTES) {
    return flawed(new MsgHdrsImpl(), `more than ${MAX_HEADER_BYTES} bytes of headers`);
  }
  const [first = '', ...lines] = text.decode(bytes).split('\r\n', MAX_HEADER_LINES + 2);
  const [, code = '0', description = ''] = STATUS.exec(first) ?? [];
  const headers = new MsgHdrsImpl(Number(code), description.trim());
  for (const [index, line] of lines.entries()) {
    if (line === '') continue;
    if (index >= MAX_HEADER_LINES) return flawed(headers, `more than ${MAX_HEADER_LINES} headers`);
    const colon = line.indexOf(':');
    const [name, value] = [line.slice(0, Math.max(colon, 0)), line.slice(colon + 1)];
    if (NAME.test(name) && !/[\r\n]/.test(value)) add(headers, name, value.trim());
    else flawed(headers, `header ${index + 1} is malformed`);
  }
  return headers;
};

/**
 * The library's own `append` checks the name letter by letter, and against all others: most of the cost of 64
 * headers.
 */
function add({ headers }: MsgHdrsImpl, name: string, value: string): void {
  const values = headers.get(name);
  if (values === undefined) headers.set(name, [value]);
  else values.push(value);
}

function flawed(headers: MsgHdrsImpl, reason: string): MsgHdrsImpl {
  flaws.set(headers, reason);
  return headers;
}

/** The headers of a request or job that matter. */
export interface Headers {
  readonly trace: TraceContext;
  /** How long the caller waits (`volt-timeout-ms`). */
  readonly timeoutMs?: number;
  /** Some header is malformed, or there are too many: the message has to be refused. */
  readonly flaw?: VoltError;
}

/** Throws nothing: headers that cannot be read get a flaw. */
export function headersOf(message: { readonly headers?: MsgHdrs | undefined }): Headers {
  try {
    const { headers } = message;
    return headers === undefined ? { trace: {} } : read(headers);
  } catch (cause) {
    return { trace: {}, flaw: flawOf(String(cause)) };
  }
}

function read(headers: MsgHdrs): Headers {
  const header = (name: string): string | undefined => {
    const value = headers.get(name);
    return value === '' ? undefined : value;
  };
  const [traceparent, tracestate] = [header('traceparent'), header('tracestate')];
  const timeoutMs = Number(header('volt-timeout-ms'));
  const reason = flaws.get(headers);
  return {
    trace: parseTraceContext({ traceparent, tracestate }),
    ...(Number.isFinite(timeoutMs) && timeoutMs > 0 && { timeoutMs }),
    ...(reason !== undefined && { flaw: flawOf(reason) }),
  };
}

const flawOf = (reason: string): VoltError =>
  new VoltError('INVALID_REQUEST', `the headers: ${reason}`, { details: { path: 'headers' } });

export interface InboundOptions {
  /** Replies go only to subjects that begin with one of these. */
  readonly replyPrefixes: readonly string[];
  /** The connection's own inbox, where replies and deliveries come, begins with this. */
  readonly inboxPrefix: string;
  /** A message was dropped. */
  readonly onDropped: (message: { subject: string; reason: string }) => void;
  /** What was to deal with a request threw. */
  readonly onThrown: (request: Msg, cause: unknown) => void;
}

/**
 * Puts a boundary around every callback that takes messages from this connection, including the library's own
 * services and consumers:
 * - A request whose reply subject is no inbox is dropped. A caller may name any reply subject, also one on which only
 *   the agent may speak: another host's jobs, or events.
 * - An exception of a callback ends there.
 */
export function guardInbound(connection: NatsConnection, options: InboundOptions): void {
  const { replyPrefixes, inboxPrefix, onDropped, onThrown } = options;
  const subscribe = connection.subscribe.bind(connection);
  connection.subscribe = (subject: string, given: SubscriptionOptions = {}) => {
    const { callback } = given;
    if (callback === undefined) return subscribe(subject, given);
    const isOwnInbox = subject.startsWith(`${inboxPrefix}.`);
    return subscribe(subject, {
      ...given,
      callback: (error, message) => {
        try {
          const reply = error === null && !isOwnInbox ? (message.reply ?? '') : '';
          if (reply === '' || replyPrefixes.some((prefix) => reply.startsWith(prefix))) {
            callback(error, message);
          } else {
            onDropped({ subject, reason: `its reply subject is no inbox: ${reply.slice(0, 128)}` });
          }
        } catch (cause) {
          if (isOwnInbox) onDropped({ subject, reason: String(cause) });
          else onThrown(message, cause);
        }
      },
    });
  };
}

/** The attachment that a change is about. Undefined for a payload that is refused when its turn comes. */
export function aboutOf(operation: string, payload: Uint8Array): About | undefined {
  try {
    const request = decode(payload);
    const id: unknown =
      typeof request === 'object' && request !== null && 'id' in request ? request.id : undefined;
    return typeof id === 'string' ? { operation, id } : undefined;
  } catch {
    return undefined;
  }
}
