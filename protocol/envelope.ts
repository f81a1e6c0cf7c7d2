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

/** An answer as bytes already. */
export class EncodedAnswer {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }
}

/** The bytes of the answer `{ [key]: elements, ...rest }`, whose elements were encoded one by one by `encodeAnswer`. */
export function encodePage(
  key: string,
  elements: readonly Uint8Array[],
  rest: Readonly<Record<string, unknown>>,
): EncodedAnswer {
  // Without the header of its map.
  const others = encoder.encode(rest).subarray(1);
  const count = Object.values(rest).filter((value) => value !== undefined).length;
  const array = Buffer.alloc(ARRAY_32_BYTES);
  array.writeUInt8(ARRAY_32);
  array.writeUInt32BE(elements.length, 1);
  const head = [Uint8Array.of(FIX_MAP | (count + 1)), encoder.encode(key), array];
  const bytes = Buffer.concat([...head, ...elements, others]);
  refuseLarger(bytes, MAX_ANSWER_BYTES);
  return new EncodedAnswer(bytes);
}

// https://github.com/msgpack/msgpack/blob/master/spec.md: a map of up to 15 keys, and an array of up to 2^32 elements.
const FIX_MAP = 0x80;
const ARRAY_32 = 0xdd;
const ARRAY_32_BYTES = 5;

function encodeWithin(value: unknown, maxBytes: number): Uint8Array {
  const bytes = encoder.encode(value);
  refuseLarger(bytes, maxBytes);
  return bytes;
}

/**
 * Decodes a request or a job. Maps come out without a prototype and without the keys whose value is nil (in
 * a request nil means absent). Throws TOO_LARGE past MAX_PAYLOAD_BYTES, and INVALID_REQUEST for what is not
 * MessagePack, is nested deeper than MAX_DEPTH, has map keys that are not text or are `__proto__`, bytes
 * after the value, text that is not UTF-8, or extension types.
 */
export const decode = (bytes: Uint8Array): unknown =>
  withoutNil(decodeAny(bytes, MAX_PAYLOAD_BYTES));

/** Decodes an answer or an event: as `decode`, within MAX_ANSWER_BYTES; nil stays, as null. */
export const decodeAnswer = (bytes: Uint8Array): unknown => decodeAny(bytes, MAX_ANSWER_BYTES);

/** Throws TOO_LARGE for more bytes than `decode` takes. */
export const refuseLargeRequest = (bytes: Uint8Array): void =>
  refuseLarger(bytes, MAX_PAYLOAD_BYTES);

function decodeAny(bytes: Uint8Array, maxBytes: number): unknown {
  refuseLarger(bytes, maxBytes);
  checkShape(bytes, MAX_DEPTH);
  try {
    return withoutPrototype(decoder.decode(bytes));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new VoltError('INVALID_REQUEST', `the payload is not acceptable: ${reason}`, { cause });
  }
}

function refuseLarger(bytes: Uint8Array, limit: number): void {
  if (bytes.byteLength <= limit) return;
  throw new VoltError('TOO_LARGE', `${bytes.byteLength} bytes are more than ${limit}`, {
    details: { bytes: bytes.byteLength, limit },
  });
}

// Both walk at most MAX_DEPTH calls deep: the shape has been checked.

function withoutPrototype(value: unknown): unknown {
  if (!isMapOrArray(value)) return value;
  if (Array.isArray(value)) return value.map(withoutPrototype);
  for (const [key, element] of Object.entries(value)) value[key] = withoutPrototype(element);
  return Object.setPrototypeOf(value, null);
}

function withoutNil(value: unknown): unknown {
  if (!isMapOrArray(value)) return value;
  if (Array.isArray(value)) return value.map(withoutNil);
  for (const [key, element] of Object.entries(value)) {
    if (element === null) delete value[key];
    else value[key] = withoutNil(element);
  }
  return value;
}

const isMapOrArray = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !(value instanceof Uint8Array);
