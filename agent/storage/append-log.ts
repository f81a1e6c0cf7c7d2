import {
  closeSync,
  fdatasync,
  fsync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Log } from '../log.ts';

/** Where an entry lies: its header begins at `start`, its body at `offset`. `bytes` is the size of the body. */
export interface Place {
  readonly segment: number;
  readonly start: number;
  readonly offset: number;
  readonly bytes: number;
}

/** The bytes of an entry: header, body, and the ends of their lines. */
export interface Extent {
  readonly segment: number;
  readonly start: number;
  readonly size: number;
}

export const extentOf = ({ segment, start, offset, bytes }: Place): Extent => ({
  segment,
  start,
  size: offset + bytes + 1 - start,
});

/** The line before the body of an entry: small, since every start reads it. */
export type Header = Readonly<Record<string, unknown>>;

const VERSION = 1;
const NEWLINE = 0x0a;
const MAX_SEGMENT_BYTES = 8 * 1024 * 1024;
const SEGMENT_NAME = /^\d{12}\.log$/;
const dataSync = promisify(fdatasync);
const fileSync = promisify(fsync);

/**
 * A log on disk. Each entry has a header (one line of JSON) and a body, and is appended to a segment file in one
 * folder. Once `append` returns, the next process finds the entry; once `sync` has resolved, the entry survives a
 * power failure. A process never writes to a segment of another process: an entry that was cut short stays at the end
 * of its file and is skipped.
 */
export class AppendLog {
  readonly #folder: string;
  readonly #log: Log;
  #segment = 0;
  #fd: number | undefined;
  #length = 0;
  /** Segments that were written to since the last sync began, by their descriptors. */
  #unsynced = new Set<number>();
  /** Segments that are being synced, by their descriptors. */
  #inSync: ReadonlySet<number> = new Set();
  /** Descriptors of finished segments that are still to be synced. */
  readonly #retired = new Set<number>();
  /** The newest segment that the folder shows also after a power failure. */
  #syncedSegment = 0;
  #syncing: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor({ folder, log }: { folder: string; log: Log }) {
    this.#folder = folder;
    this.#log = log;
  }

  /**
   * Shows all entries in the order in which they were appended. Entries that cannot be read are reported and skipped.
   * A segment of which the caller says that it `knows` the entries is not read.
   */
  load(
    visit: (header: Header, place: Place, body: () => string) => void,
    knows: (segment: number) => boolean = () => false,
  ): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(this.#folder).toSorted()) {
      if (!SEGMENT_NAME.test(name)) continue;
      const segment = Number(name.slice(0, 12));
      this.#segment = Math.max(this.#segment, segment);
      if (knows(segment)) continue;
      const bytes = readFileSync(join(this.#folder, name));
      const end = eachEntry(bytes, ({ header, start, offset, length }) => {
        visit(header, { segment, start, offset, bytes: length }, () =>
          bytes.toString('utf8', offset, offset + length),
        );
      });
      if (end === bytes.length) continue;
      const rest = bytes.length - end;
      this.#log.warn(
        { file: name, at: end, bytes: rest },
        'the end of a log file cannot be read: set aside',
      );
      if (bytes.indexOf(NEWLINE, end) === -1) continue;
      // This is more than one line cut short: an operator may want to look at it.
      renameSync(join(this.#folder, name), join(this.#folder, `${name}.corrupt`));
      writeWhole(join(this.#folder, name), bytes.subarray(0, end));
    }
  }

  /** Throws the error of the disk; then the log does not have the entry. */
  append(header: Header, body = ''): Place {
    const bytes = Buffer.byteLength(body);
    const line = `${JSON.stringify({ v: VERSION, bytes, ...header })}\n`;
    const entry = Buffer.from(`${line}${body}\n`);
    if (this.#length + entry.length > MAX_SEGMENT_BYTES) this.#retire();
    const fd = this.#open();
    const start = this.#length;
    const written = writeSync(fd, entry, 0, entry.length, start);
    if (written < entry.length) {
      // A full disk takes a part of the entry; the next entry overwrites that part.
      throw new Error(`${written} of ${entry.length} bytes written`);
    }
    this.#length += entry.length;
    this.#unsynced.add(fd);
    return { segment: this.#segment, start, offset: start + Buffer.byteLength(line), bytes };
  }

  /** The body of an entry. Throws if its segment is gone. */
  read({ segment, offset, bytes }: Place): string {
    return this.#bytes(segment, offset, bytes).toString('utf8');
  }

  /** The entry with these bytes. Null if they are damaged. Throws if its segment is gone. */
  readEntry({ segment, start, size }: Extent): { header: Header; body: string } | null {
    const bytes = this.#bytes(segment, start, size);
    const entry = entryAt(bytes, 0);
    if (entry?.end !== size) return null;
    const { header, offset, length } = entry;
    return { header, body: bytes.toString('utf8', offset, offset + length) };
  }

  #bytes(segment: number, start: number, size: number): Buffer {
    const fd = openSync(this.fileOf(segment), 'r');
    try {
      const bytes = Buffer.alloc(size);
      const got = readSync(fd, bytes, 0, size, start);
      if (got < size) throw new Error(`${this.fileOf(segment)} ends early`);
      return bytes;
    } finally {
      closeSync(fd);
    }
  }

  /** Resolves when all entries that were appended before survive a power failure. Callers share the wait. */
  sync(): Promise<void> {
    if (this.#next !== undefined) return this.#next;
    if (this.#syncing === undefined) return this.#beginSync();
    // The sync that runs may have begun before the caller's entry was there.
    const begin = (): Promise<void> => this.#beginSync();
    this.#next = this.#syncing.then(begin, begin);
    return this.#next;
  }

  #beginSync(): Promise<void> {
    this.#next = undefined;
    const syncing = this.#sync();
    this.#syncing = syncing;
    const end = (): void => {
      if (this.#syncing === syncing) this.#syncing = undefined;
    };
    syncing.then(end, end);
    return syncing;
  }

  /** The segment that is written to; older segments take no more entries. */
  get current(): number {
    return this.#segment;
  }

  get currentBytes(): number {
    return this.#length;
  }

  /** Begins another segment, so that `drop` can take the one before. */
  rotate(): void {
    if (this.#fd !== undefined) this.#retire();
  }

  /** Removes a segment with all its entries. */
  drop(segment: number): void {
    if (segment === this.#segment) this.rotate();
    rmSync(this.fileOf(segment), { force: true });
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    for (const fd of this.#retired) closeSync(fd);
    this.#fd = undefined;
    this.#retired.clear();
    this.#unsynced.clear();
  }

  async #sync(): Promise<void> {
    const written = this.#unsynced;
    this.#unsynced = new Set();
    this.#inSync = written;
    try {
      for (const fd of written) await dataSync(fd);
    } catch (error) {
      for (const fd of written) this.#unsynced.add(fd);
      throw error;
    } finally {
      this.#inSync = new Set();
    }
    for (const fd of written) {
      // A segment that was written to meanwhile waits for the next sync.
      if (!this.#unsynced.has(fd) && this.#retired.delete(fd)) closeSync(fd);
    }
    // Each sync of a folder makes the disk write out its cache, also where nothing has changed.
    const newest = this.#segment;
    if (this.#syncedSegment === newest) return;
    await syncFolder(this.#folder);
    this.#syncedSegment = newest;
  }

  #open(): number {
    if (this.#fd !== undefined) return this.#fd;
    this.#segment += 1;
    this.#fd = openSync(this.fileOf(this.#segment), 'w', 0o600);
    this.#length = 0;
    return this.#fd;
  }

  #retire(): void {
    const fd = this.#fd;
    this.#fd = undefined;
    this.#length = 0;
    if (fd === undefined) return;
    if (this.#unsynced.has(fd) || this.#inSync.has(fd)) this.#retired.add(fd);
    else closeSync(fd);
  }

  fileOf(segment: number): string {
    return join(this.#folder, `${String(segment).padStart(12, '0')}.log`);
  }
}

/** Visits all whole entries and returns the offset at which the last of them ends. */
function eachEntry(bytes: Buffer, visit: (entry: Entry) => void): number {
  let at = 0;
  for (;;) {
    const entry = entryAt(bytes, at);
    if (entry === null) return at;
    visit(entry);
    at = entry.end;
  }
}

/** An entry in a buffer: where its header and its body begin, how long the body is, and where the entry ends. */
interface Entry {
  readonly header: Header;
  readonly start: number;
  readonly offset: number;
  readonly length: number;
  readonly end: number;
}

/** The whole entry that begins here. */
function entryAt(bytes: Buffer, start: number): Entry | null {
  const lineEnd = bytes.indexOf(NEWLINE, start);
  if (lineEnd === -1) return null;
  const header = headerOf(bytes.toString('utf8', start, lineEnd));
  if (header === null) return null;
  const [offset, length] = [lineEnd + 1, header.bytes];
  if (bytes[offset + length] !== NEWLINE) return null;
  return { header, start, offset, length, end: offset + length + 1 };
}

function headerOf(line: string): (Header & { readonly bytes: number }) | null {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value !== 'object' || value === null || !('v' in value && 'bytes' in value)) {
      return null;
    }
    const { v, bytes } = value;
    if (v !== VERSION || typeof bytes !== 'number' || bytes < 0) return null;
    return { ...value, bytes };
  } catch {
    return null;
  }
}

function writeWhole(path: string, bytes: Buffer): void {
  const fd = openSync(path, 'w', 0o600);
  try {
    writeSync(fd, bytes);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** After a power failure a new file is found only if its folder was synced. */
async function syncFolder(folder: string): Promise<void> {
  const fd = openSync(folder, 'r');
  try {
    await fileSync(fd);
  } finally {
    closeSync(fd);
  }
}
