import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { crc32 } from 'node:zlib';

/**
 * What a start has to know of a finished segment of a log, in a file beside it, so that the start need not read the
 * segment: some numbers, and tables of 32-bit words. The file may be lost or damaged at any time: then `decodeIndex`
 * returns undefined, and the segment is read.
 */
export interface SegmentIndex {
  readonly numbers: readonly number[];
  readonly tables: readonly Uint32Array[];
}

/** How a segment is known again: its size and the checksum of its end, where a power failure takes something away. */
export interface Fingerprint {
  readonly bytes: number;
  readonly endChecksum: number;
}

const FORMAT = 'volt segment index 1';
const END_BYTES = 4_096;
const CHECKSUM_BYTES = 4;

export const indexFileOf = (segmentFile: string): string => `${segmentFile}.index`;

/** Checksum, one line of JSON, and the tables. */
export function encodeIndex({ numbers, tables }: SegmentIndex, segment: Fingerprint): Buffer {
  const words = tables.map(({ length }) => length);
  const line = `${JSON.stringify({ format: FORMAT, ...segment, numbers, words })}\n`;
  const content = Buffer.concat([
    Buffer.from(line),
    ...tables.map(({ buffer, byteOffset, byteLength }) =>
      Buffer.from(buffer, byteOffset, byteLength),
    ),
  ]);
  const checksum = Buffer.alloc(CHECKSUM_BYTES);
  checksum.writeUInt32LE(crc32(content));
  return Buffer.concat([checksum, content]);
}

/** Undefined if the bytes are damaged, of another version, or of another segment. */
export function decodeIndex(bytes: Buffer, segment: Fingerprint): SegmentIndex | undefined {
  if (bytes.length < CHECKSUM_BYTES) return undefined;
  const content = bytes.subarray(CHECKSUM_BYTES);
  if (bytes.readUInt32LE() !== crc32(content)) return undefined;
  const lineEnd = content.indexOf('\n');
  const head = headOf(content.toString('utf8', 0, Math.max(0, lineEnd)));
  if (head?.bytes !== segment.bytes || head.endChecksum !== segment.endChecksum) return undefined;
  // A typed array has to begin at a multiple of its word: so the tables are copied out of the file.
  const tables: Uint32Array[] = [];
  let at = lineEnd + 1;
  for (const words of head.words) {
    const table = new Uint32Array(words);
    if (at + table.byteLength > content.length) return undefined;
    content.copy(Buffer.from(table.buffer), 0, at);
    tables.push(table);
    at += table.byteLength;
  }
  return at === content.length ? { numbers: head.numbers, tables } : undefined;
}

/** The index that lies beside the segment. */
export function readIndex(segmentFile: string): SegmentIndex | undefined {
  try {
    return decodeIndex(readFileSync(indexFileOf(segmentFile)), fingerprintOf(segmentFile));
  } catch {
    return undefined;
  }
}

/** Throws the error of the disk. */
export function fingerprintOf(segmentFile: string): Fingerprint {
  const fd = openSync(segmentFile, 'r');
  try {
    const bytes = fstatSync(fd).size;
    const end = Buffer.alloc(Math.min(bytes, END_BYTES));
    readSync(fd, end, 0, end.length, bytes - end.length);
    return { bytes, endChecksum: crc32(end) };
  } finally {
    closeSync(fd);
  }
}

type Head = Fingerprint & {
  readonly numbers: readonly number[];
  readonly words: readonly number[];
};

function headOf(line: string): Head | undefined {
  const value: unknown = JSON.parse(line);
  if (typeof value !== 'object' || value === null) return undefined;
  const field = (key: string): unknown => Object.getOwnPropertyDescriptor(value, key)?.value;
  const [bytes, endChecksum] = [field('bytes'), field('endChecksum')];
  const [numbers, words] = [field('numbers'), field('words')];
  if (field('format') !== FORMAT) return undefined;
  if (typeof bytes !== 'number' || typeof endChecksum !== 'number') return undefined;
  return areNumbers(numbers) && areNumbers(words)
    ? { bytes, endChecksum, numbers, words }
    : undefined;
}

const areNumbers = (value: unknown): value is readonly number[] =>
  Array.isArray(value) && value.every((one) => Number.isSafeInteger(one) && one >= 0);
