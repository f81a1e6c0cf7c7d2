import { Decoder, Encoder, ExtensionCodec } from '@msgpack/msgpack';
import { VoltError } from './errors.ts';

/** A request, job or event is one MessagePack map of at most this size. */
export const MAX_PAYLOAD_BYTES = 64 * 1024;
/** An answer may be larger: pages of lists. It stays below NATS's default payload limit of 1 MiB. */
export const MAX_ANSWER_BYTES = 512 * 1024;
/** Maps and arrays within each other, the outermost included. */
export const MAX_DEPTH = 8;
// A length that a header claims is believed up to here, so that five bytes cannot claim a gigabyte.
const MAX_ELEMENTS = 16_384;

const refuseExtension = (): never => {
  throw new VoltError('INVALID_REQUEST', 'extension types (timestamps too) are not allowed');
};

// Dates and other extensions would not survive other languages' libraries: times are RFC 3339 text.
const noExtensions: ExtensionCodec<undefined> = Object.assign(new ExtensionCodec<undefined>(), {
  tryToEncode: (value: unknown) => {
    const plain = Array.isArray(value) || value instanceof Uint8Array || isPlainObject(value);
    if (!plain) throw new TypeError(`cannot encode ${Object.prototype.toString.call(value)}`);
    return null;
  },
  decode: refuseExtension,
});

function isPlainObject(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

const encoder = new Encoder({ extensionCodec: noExtensions, ignoreUndefined: true, maxDepth: 32 });

/** Encodes a request or an event. Keys whose value is undefined are left out. Throws TOO_LARGE. */
export const encode = (value: unknown): Uint8Array => encodeWithin(value, MAX_PAYLOAD_BYTES);

/** Encodes an answer. */
export const encodeAnswer = (value: unknown): Uint8Array => encodeWithin(value, MAX_ANSWER_BYTES);

function encodeWithin(value: unknown, maxBytes: number): Uint8Array {
  const bytes = encoder.encode(value);
  if (bytes.byteLength > maxBytes) {
    throw new VoltError('TOO_LARGE', `${bytes.byteLength} bytes are more than ${maxBytes}`, {
      details: { bytes: bytes.byteLength, limit: maxBytes },
    });
  }
  return bytes;
}

/**
 * Decodes one MessagePack value from outside. Maps come out without a prototype and without the keys whose
 * value is nil (nil means absent). Throws TOO_LARGE past `maxBytes`, and INVALID_REQUEST for what is not
 * MessagePack, is nested deeper than MAX_DEPTH, has keys that are not text, bytes after the value, or
 * extension types.
 */
export function decode(bytes: Uint8Array, { maxBytes = MAX_PAYLOAD_BYTES } = {}): unknown {
  if (bytes.byteLength > maxBytes) {
    throw new VoltError('TOO_LARGE', `${bytes.byteLength} bytes are more than ${maxBytes}`, {
      details: { bytes: bytes.byteLength, limit: maxBytes },
    });
  }
  return cleaned(decodeAny(bytes), 1);
}

export const decodeAnswer = (bytes: Uint8Array): unknown =>
  decode(bytes, { maxBytes: MAX_ANSWER_BYTES });

function decodeAny(bytes: Uint8Array): unknown {
  // A decoder that has thrown is in an unknown state, so each message has its own.
  const decoder = new Decoder({
    extensionCodec: noExtensions,
    keyDecoder: null,
    maxArrayLength: MAX_ELEMENTS,
    maxMapLength: MAX_ELEMENTS,
    mapKeyConverter: (key) => {
      if (typeof key === 'string') return key;
      throw new VoltError('INVALID_REQUEST', 'map keys must be strings');
    },
  });
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    if (cause instanceof VoltError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new VoltError('INVALID_REQUEST', `the payload is not MessagePack: ${reason}`, { cause });
  }
}

function cleaned(value: unknown, depth: number): unknown {
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return value;
  if (depth > MAX_DEPTH) {
    throw new VoltError('INVALID_REQUEST', `nested deeper than ${MAX_DEPTH} levels`);
  }
  if (Array.isArray(value)) return value.map((element: unknown) => cleaned(element, depth + 1));
  const map: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (const [key, element] of Object.entries(value)) {
    if (element !== null && element !== undefined) map[key] = cleaned(element, depth + 1);
  }
  return map;
}
