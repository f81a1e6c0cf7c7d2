import { Decoder, Encoder, ExtensionCodec } from '@msgpack/msgpack';
import { VoltError } from './errors.ts';
import { checkShape } from './shape.ts';

/** A request, job or event is one MessagePack map of at most this size. */
export const MAX_PAYLOAD_BYTES = 64 * 1024;
/** An answer may be larger: pages of lists. It stays below NATS's default payload limit of 1 MiB. */
export const MAX_ANSWER_BYTES = 512 * 1024;
/** Maps and arrays within each other, the outermost included. */
export const MAX_DEPTH = 8;

// Dates and other extensions would not survive other languages' libraries: times are RFC 3339 text.
const plainOnly = Object.assign(new ExtensionCodec(), {
  tryToEncode: (value: unknown) => {
    const plain = Array.isArray(value) || value instanceof Uint8Array || isPlainObject(value);
    if (!plain) throw new TypeError(`cannot encode ${Object.prototype.toString.call(value)}`);
    return null;
  },
});

function isPlainObject(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

// The encoder counts the values inside the innermost map as a level too.
const encoder = new Encoder({
  extensionCodec: plainOnly,
  ignoreUndefined: true,
  maxDepth: MAX_DEPTH + 1,
});
const decoder = new Decoder();

/**
 * Encodes a request, a job or an event. Keys whose value is undefined are left out. Throws TOO_LARGE past
 * MAX_PAYLOAD_BYTES, and a plain Error for what no receiver would take: a Date, a bigint, another class's
 * object, or more than MAX_DEPTH levels.
 */
export const encode = (value: unknown): Uint8Array => encodeWithin(value, MAX_PAYLOAD_BYTES);

/** Encodes an answer: as `encode`, within MAX_ANSWER_BYTES. */
export const encodeAnswer = (value: unknown): Uint8Array => encodeWithin(value, MAX_ANSWER_BYTES);

function encodeWithin(value: unknown, maxBytes: number): Uint8Array {
  const bytes = encoder.encode(value);
  refuseLarger(bytes, maxBytes);
  return bytes;
}

/**
 * Decodes one MessagePack value from outside. Maps come out without a prototype and without the keys whose
 * value is nil (nil means absent). Throws TOO_LARGE past `maxBytes`, and INVALID_REQUEST for what is not
 * MessagePack, is nested deeper than MAX_DEPTH, has map keys that are not text or are `__proto__`, bytes
 * after the value, text that is not UTF-8, or extension types.
 */
export function decode(bytes: Uint8Array, { maxBytes = MAX_PAYLOAD_BYTES } = {}): unknown {
  refuseLarger(bytes, maxBytes);
  checkShape(bytes, MAX_DEPTH);
  try {
    return withoutPrototypes(decoder.decode(bytes));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new VoltError('INVALID_REQUEST', `the payload is not acceptable: ${reason}`, { cause });
  }
}

/** Decodes an answer or an event: as `decode`, within MAX_ANSWER_BYTES. */
export const decodeAnswer = (bytes: Uint8Array): unknown =>
  decode(bytes, { maxBytes: MAX_ANSWER_BYTES });

function refuseLarger(bytes: Uint8Array, limit: number): void {
  if (bytes.byteLength <= limit) return;
  throw new VoltError('TOO_LARGE', `${bytes.byteLength} bytes are more than ${limit}`, {
    details: { bytes: bytes.byteLength, limit },
  });
}

// At most MAX_DEPTH calls deep: the shape has been checked.
function withoutPrototypes(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return value;
  if (Array.isArray(value)) return value.map(withoutPrototypes);
  const entries = Object.entries(value)
    .filter(([, element]) => element !== null)
    .map(([key, element]) => [key, withoutPrototypes(element)]);
  return Object.setPrototypeOf(Object.fromEntries(entries), null);
}
