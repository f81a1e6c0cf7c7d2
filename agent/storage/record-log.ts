import { AppendLog, type Header, type Place } from './append-log.ts';
import type { Log } from '../log.ts';

/** A log below this size is not rewritten: it is read in milliseconds. */
const SMALL_BYTES = 4 * 1024 * 1024;
/** A larger log has at most so many times the bytes of its current texts. */
const MAX_RATIO = 4;
/** Texts that are moved at once. */
const MOVED_AT_ONCE = 32;
/** Entries that were written within this time share one sync. */
const SYNC_AFTER_MS = 100;

interface Segment {
  /** Ids whose current text is in this segment. */
  readonly ids: Set<string>;
  bytes: number;
}

/**
 * The current text of each id, in a log on disk. A change appends one entry, and neither creates, renames nor removes a
 * file; it survives the process at once, and a power failure after a tenth of a second. Old segments go when their last
 * text has been replaced or moved.
 */
export class RecordLog {
  readonly #entries: AppendLog;
  readonly #log: Log;
  readonly #places = new Map<string, Place>();
  /** Oldest first: a segment says which texts of the segments before it are gone, so it is dropped after those. */
  readonly #segments = new Map<number, Segment>();
  /** Ids that were removed while the disk refused to take note of it. */
  readonly #unnoted = new Set<string>();
  #textBytes = 0;
  #logBytes = 0;
  #moving: NodeJS.Immediate | undefined;
  #syncTimer: NodeJS.Timeout | undefined;

  constructor({ folder, log }: { folder: string; log: Log }) {
    this.#entries = new AppendLog({ folder, log });
    this.#log = log;
  }

  /** The current texts. */
  load(): Map<string, string> {
    const texts = new Map<string, () => string>();
    this.#entries.load((header, place, body) => {
      const { id, removed } = header;
      if (typeof id !== 'string') return;
      this.#forget(id);
      texts.delete(id);
      this.#count(place, header);
      if (removed === true) return;
      this.#note(id, place);
      texts.set(id, body);
    });
    this.#tidy();
    return new Map([...texts].map(([id, text]) => [id, text()]));
  }

  /** Throws the error of the disk; then the text of before stays. */
  put(id: string, text: string): void {
    const header = { id };
    const place = this.#entries.append(header, text);
    this.#unnoted.delete(id);
    this.#forget(id);
    this.#count(place, header);
    this.#note(id, place);
    this.#changed();
  }

  /** A removal that the disk refuses is noted with the next change. */
  remove(id: string): void {
    if (!this.#forget(id)) return;
    this.#unnoted.add(id);
    this.#changed();
  }

  /** Resolves when every change that the disk has taken survives a power failure. */
  async sync(): Promise<void> {
    clearTimeout(this.#syncTimer);
    this.#syncTimer = undefined;
    await this.#entries.sync();
  }

  close(): void {
    clearTimeout(this.#syncTimer);
    clearImmediate(this.#moving);
    this.#entries.close();
  }

  #changed(): void {
    for (const id of this.#unnoted) {
      const header = { id, removed: true };
      try {
        this.#count(this.#entries.append(header), header);
        this.#unnoted.delete(id);
      } catch (error) {
        this.#log.error({ id, error: String(error) }, 'end of a record not written to disk yet');
        break;
      }
    }
    this.#tidy();
    this.#syncTimer ??= setTimeout(() => {
      this.sync().catch((error: unknown) => {
        this.#log.error({ error: String(error) }, 'records are not safe from a power failure');
      });
    }, SYNC_AFTER_MS).unref();
  }

  #count({ segment: number, bytes }: Place, header: Header): void {
    const segment = this.#segments.get(number) ?? { ids: new Set(), bytes: 0 };
    this.#segments.set(number, segment);
    const size = bytes + JSON.stringify(header).length;
    segment.bytes += size;
    this.#logBytes += size;
  }

  #note(id: string, place: Place): void {
    this.#places.set(id, place);
    this.#segments.get(place.segment)?.ids.add(id);
    this.#textBytes += place.bytes;
  }

  #forget(id: string): boolean {
    const place = this.#places.get(id);
    if (place === undefined) return false;
    this.#places.delete(id);
    this.#segments.get(place.segment)?.ids.delete(id);
    this.#textBytes -= place.bytes;
    return true;
  }

  /** Drops what is old, and begins to move texts out of the oldest segment where too much of the log is old. */
  #tidy(): void {
    for (const [number, segment] of this.#segments) {
      const isInUse = segment.ids.size > 0 || this.#unnoted.size > 0;
      if (isInUse || number === this.#entries.current) break;
      this.#entries.drop(number);
      this.#segments.delete(number);
      this.#logBytes -= segment.bytes;
    }
    const isLarge = this.#logBytes > SMALL_BYTES && this.#logBytes > MAX_RATIO * this.#textBytes;
    if (isLarge) this.#moving ??= setImmediate(() => this.#moveSome());
  }

  #moveSome(): void {
    this.#moving = undefined;
    const [oldest] = this.#segments;
    if (oldest === undefined) return;
    const [number, { ids }] = oldest;
    if (number === this.#entries.current) this.#entries.rotate();
    try {
      for (const id of [...ids].slice(0, MOVED_AT_ONCE)) {
        const place = this.#places.get(id);
        if (place !== undefined) this.put(id, this.#entries.read(place));
      }
    } catch (error) {
      this.#log.warn({ error: String(error) }, 'log of records not made smaller: the disk refuses');
      return;
    }
    this.#tidy();
  }
}
