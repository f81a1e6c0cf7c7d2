import {
  type Msg,
  type MsgHdrs,
  MsgHdrsImpl,
  type NatsConnection,
  type SubscriptionOptions,
} from 'nats';
import { VoltError } from '#protocol/errors.ts';
import { parseTraceContext, type TraceContext } from '#protocol/trace-context.ts';

// What anybody may send arrives here first: headers that are none, and reply subjects that would make the agent speak
// where its sender may not. Nothing that is thrown while a message is looked at reaches the reader of the connection,
// which would stop reading.

/** More is no header of anybody's: the library's way to read them takes a minute for a megabyte of short lines. */
const MAX_HEADER_BYTES = 64 * 1024;
const MAX_HEADER_LINES = 64;
const STATUS = /^NATS\/1\.0[ \t]*(\d{3})?(.*)$/s;
/** Printable ASCII without the colon (RFC 5322, 2.2), as nats-server's clients agree. */
const NAME = /^[!-9;-~]+$/;

/** Why headers cannot be read, by the object that holds those that could be. */
const flaws = new WeakMap<object, string>();
const text = new TextDecoder();

/**
 * Reads headers. The library reads them lazily, also those of its own protocol, and throws at the first that is
 * malformed, wherever that happens to be; so it is given this instead.
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

/** The library's own `append` looks at the name letter by letter and at all others: most of what 64 headers cost. */
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
  /** Some header is malformed, or there are too many: the message is to be refused. */
  readonly flaw?: VoltError;
}

/** Throws nothing: headers that cannot be read have a flaw. */
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
  /** Replies go to subjects that begin with one of these. */
  readonly replyPrefixes: readonly string[];
  /** What begins so is the connection's own inbox, where replies and deliveries come. */
  readonly inboxPrefix: string;
  /** A message was dropped. */
  readonly onDropped: (message: { subject: string; reason: string }) => void;
  /** What was to deal with a request threw. */
  readonly onThrown: (request: Msg, cause: unknown) => void;
}

/**
 * Puts a boundary around whatever takes messages from this connection, the library's own services and consumers too:
 * - A request whose reply subject is no inbox is dropped. Whoever may ask an agent may name any subject as that of the
 *   reply, one on which only the agent may speak, too: another host's jobs, or events.
 * - What a callback throws ends there.
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
