/** Size of an attribute's header: its length and its type, two bytes each. */
export const NLA_HEADER_BYTES = 4;
const MAX_ATTRIBUTE_BYTES = 0xffff;
const FIRST_CAPACITY = 4_096;

/** Where the next attribute or message starts after so many bytes. */
export const aligned = (bytes: number): number => (bytes + 3) & ~3;

/** Bytes that are no message of the declared form, or a value that does not fit into such a message. */
export class CodecError extends Error {
  readonly code = 'MALFORMED_MESSAGE';
}

/** Builds messages in one buffer that grows and is used again. */
export class Writer {
  #buffer = Buffer.alloc(FIRST_CAPACITY);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** The whole buffer, of which the first `length` bytes are written. Growing makes another buffer. */
  get buffer(): Buffer {
    return this.#buffer;
  }

  /** What was written; valid until the next write or reset. */
  get bytes(): Buffer {
    return this.#buffer.subarray(0, this.#length);
  }

  reset(): void {
    this.#length = 0;
  }

  /** Takes `count` zeroed bytes and gives their offset. */
  reserve(count: number): number {
    const offset = this.#take(count);
    // A reused buffer still holds the earlier bytes.
    for (let at = offset; at < this.#length; at += 1) this.#buffer[at] = 0;
    return offset;
  }

  u8(value: number): void {
    const offset = this.#take(1);
    this.#buffer.writeUInt8(value, offset);
  }

  u16(value: number): void {
    const offset = this.#take(2);
    this.#buffer.writeUInt16LE(value, offset);
  }

  be16(value: number): void {
    const offset = this.#take(2);
    this.#buffer.writeUInt16BE(value, offset);
  }

  u32(value: number): void {
    const offset = this.#take(4);
    this.#buffer.writeUInt32LE(value, offset);
  }

  /** Also of a negative number. */
  be32(value: number): void {
    const offset = this.#take(4);
    this.#buffer.writeUInt32BE(value >>> 0, offset);
  }

  i32(value: number): void {
    const offset = this.#take(4);
    this.#buffer.writeInt32LE(value, offset);
  }

  raw(bytes: Uint8Array): void {
    const offset = this.#take(bytes.length);
    this.#buffer.set(bytes, offset);
  }

  /** Without a terminating zero. CodecError for text with a zero in it: the kernel would see only a part. */
  utf8(value: string): void {
    if (value.includes('\0')) throw new CodecError('text with a zero byte');
    const bytes = Buffer.byteLength(value, 'utf8');
    const offset = this.#take(bytes);
    this.#buffer.write(value, offset, bytes, 'utf8');
  }

  patchU16(offset: number, value: number): void {
    this.#buffer.writeUInt16LE(value, offset);
  }

  patchU32(offset: number, value: number): void {
    this.#buffer.writeUInt32LE(value, offset);
  }

  /** Writes one attribute around what `body` writes, padded to four bytes. */
  attribute(type: number, body: () => void): void {
    const start = this.reserve(NLA_HEADER_BYTES);
    body();
    const length = this.#length - start;
    if (length > MAX_ATTRIBUTE_BYTES) throw new CodecError(`attribute ${type} has ${length} bytes`);
    this.patchU16(start, length);
    this.patchU16(start + 2, type);
    this.reserve(aligned(length) - length);
  }

  /** Takes `count` bytes, of any content. The buffer may move: take first, write then. */
  #take(count: number): number {
    const offset = this.#length;
    const end = offset + count;
    if (end > this.#buffer.length) {
      const grown = Buffer.alloc(Math.max(end, this.#buffer.length * 2));
      this.#buffer.copy(grown, 0, 0, offset);
      this.#buffer = grown;
    }
    this.#length = end;
    return offset;
  }
}
