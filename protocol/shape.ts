import { isUtf8 } from 'node:buffer';
import { VoltError } from './errors.ts';

/** What the first byte of a value says (MessagePack specification, "Formats"). */
interface Format {
  readonly kind: 'scalar' | 'text' | 'array' | 'map';
  /** Bytes after the first that hold a length, big-endian. */
  readonly lengthBytes: 0 | 1 | 2 | 4;
  /** Length where the first byte alone says it: of a scalar and a text in bytes, of the others in elements. */
  readonly length: number;
}

const fixed = (kind: Format['kind'], length: number): Format => ({ kind, lengthBytes: 0, length });
const sized = (kind: Format['kind'], lengthBytes: 1 | 2 | 4): Format => ({
  kind,
  lengthBytes,
  length: 0,
});

const SCALAR = fixed('scalar', 0);

// By first byte. 0xc1 begins nothing; the extension types, 0xc7 to 0xc9 and 0xd4 to 0xd8, are not for us.
const FORMATS: ReadonlyMap<number, Format> = new Map([
  [0xc0, SCALAR], // nil
  [0xc2, SCALAR], // false
  [0xc3, SCALAR], // true
  [0xc4, sized('scalar', 1)], // bin 8, 16, 32
  [0xc5, sized('scalar', 2)],
  [0xc6, sized('scalar', 4)],
  [0xca, fixed('scalar', 4)], // float 32, 64
  [0xcb, fixed('scalar', 8)],
  [0xcc, fixed('scalar', 1)], // uint 8, 16, 32, 64
  [0xcd, fixed('scalar', 2)],
  [0xce, fixed('scalar', 4)],
  [0xcf, fixed('scalar', 8)],
  [0xd0, fixed('scalar', 1)], // int 8, 16, 32, 64
  [0xd1, fixed('scalar', 2)],
  [0xd2, fixed('scalar', 4)],
  [0xd3, fixed('scalar', 8)],
  [0xd9, sized('text', 1)], // str 8, 16, 32
  [0xda, sized('text', 2)],
  [0xdb, sized('text', 4)],
  [0xdc, sized('array', 2)],
  [0xdd, sized('array', 4)],
  [0xde, sized('map', 2)],
  [0xdf, sized('map', 4)],
]);

function formatOf(first: number): Format {
  if (first <= 0x7f || first >= 0xe0) return SCALAR;
  if (first <= 0x8f) return fixed('map', first & 0x0f);
  if (first <= 0x9f) return fixed('array', first & 0x0f);
  if (first <= 0xbf) return fixed('text', first & 0x1f);
  const format = FORMATS.get(first);
  if (format !== undefined) return format;
  if (first === 0xc1) return refuse('byte 0xc1 begins no value');
  return refuse('extension types (timestamps too) are not allowed');
}

/**
 * Walks one MessagePack value without building it, and throws INVALID_REQUEST unless it is whole, nested
 * `maxDepth` deep at most, free of extension types, its text UTF-8, its map keys text, and followed by
 * nothing.
 *
 * A decoder believes the lengths that headers claim: 12 kB of nested array headers make it allocate 600 MB
 * before it finds the elements missing. After this walk every claimed element is known to be there.
 */
export function checkShape(bytes: Uint8Array, maxDepth: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  // Of each map or array that the walk is in: values still to come, a map's keys counted apart.
  const open: { left: number; readonly isMap: boolean }[] = [];
  let at = 0;
  do {
    if (at >= bytes.length) refuse('it ends within a value');
    const format = formatOf(view.getUint8(at));
    at += 1 + format.lengthBytes;
    if (at > bytes.length) refuse('it ends within a length');
    const length = format.lengthBytes === 0 ? format.length : lengthBefore(view, at, format);
    const within = open.at(-1);
    if (within !== undefined) {
      const isKey = within.isMap && within.left % 2 === 0;
      if (isKey && format.kind !== 'text') refuse('map keys must be text');
      within.left -= 1;
    }
    if (length > bytes.length - at) refuse('a length claims more than there is');
    if (format.kind === 'array' || format.kind === 'map') {
      if (open.length === maxDepth) refuse(`it is nested deeper than ${maxDepth} levels`);
      const isMap = format.kind === 'map';
      open.push({ left: isMap ? length * 2 : length, isMap });
    } else {
      if (format.kind === 'text' && !isUtf8(bytes.subarray(at, at + length))) {
        refuse('text is not UTF-8');
      }
      at += length;
    }
    while (open.at(-1)?.left === 0) open.pop();
  } while (open.length > 0);
  if (at < bytes.length) refuse(`${bytes.length - at} bytes follow the value`);
}

function lengthBefore(view: DataView, end: number, { lengthBytes }: Format): number {
  if (lengthBytes === 1) return view.getUint8(end - 1);
  return lengthBytes === 2 ? view.getUint16(end - 2) : view.getUint32(end - 4);
}

function refuse(reason: string): never {
  throw new VoltError('INVALID_REQUEST', `the payload is not acceptable MessagePack: ${reason}`);
}
