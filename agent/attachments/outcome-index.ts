import { readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Extent, extentOf, type Place } from '../storage/append-log.ts';
import { HashRows, keyWordsOf } from '../storage/hash-rows.ts';
import { encodeIndex, fingerprintOf, indexFileOf, readIndex } from '../storage/segment-index.ts';
import type { Log } from '../log.ts';
import type { OutcomeHeader } from './outcome-header.ts';
import type { Position, RememberedOperation } from './request-log.ts';

/** The numbers of one segment of the log. */
export interface SegmentSums {
  readonly beganMs: number;
  /** Of all bodies. */
  readonly bytes: number;
  readonly entries: number;
}

export interface OutcomeIndexOptions {
  readonly fileOf: (segment: number) => string;
  readonly log: Log;
  /** The key of an operation and request id: `KEY_WORDS` words, of which the first is not 0. */
  readonly hash?: (text: string) => readonly number[];
}

type Segment = { -readonly [Key in keyof SegmentSums]: SegmentSums[Key] } & {
  /** The rows of this segment, until they are on disk. */
  unsaved: { readonly places: Words; readonly positions: Words } | undefined;
};

/** Place: key (2), segment, start, size. Two requests may have one key: the entry itself tells whose it is. */
const KEY_WORDS = 2;
const PLACE_WORDS = KEY_WORDS + 3;
/** Position: key (4), segment, time (2), number (2). At 128 bits, no two attachments ever have one key. */
const POSITION_KEY_WORDS = 4;
const POSITION_WORDS = POSITION_KEY_WORDS + 5;
const WORD = 2 ** 32;

/**
 * Where in the log the outcome of a request is, and the last attach and detach of each attachment. It takes some 30
 * bytes for each outcome, and 50 for each last attach and each last detach, of those that were jobs. Each finished
 * segment has a file with its part of the index beside it, so that a start does not read the outcomes.
 */
export class OutcomeIndex {
  readonly #options: OutcomeIndexOptions;
  readonly #hash: (text: string) => readonly number[];
  /** Oldest first. What lies in no segment of these is forgotten. */
  readonly #segments = new Map<number, Segment>();
  readonly #places = new HashRows({
    keyWords: KEY_WORDS,
    rowWords: PLACE_WORDS,
    isThere: (segment) => this.#segments.has(segment),
  });
  readonly #positions = new HashRows({
    keyWords: POSITION_KEY_WORDS,
    rowWords: POSITION_WORDS,
    isThere: (segment) => this.#segments.has(segment),
  });

  constructor(options: OutcomeIndexOptions) {
    this.#options = options;
    this.#hash = options.hash ?? ((text) => keyWordsOf(text, KEY_WORDS));
  }

  /** Oldest first. */
  get segments(): ReadonlyMap<number, SegmentSums> {
    return this.#segments;
  }

  /** The size of all that grows with the number of outcomes. */
  get bytes(): number {
    return this.#places.bytes + this.#positions.bytes;
  }

  /** Where the outcome may be, latest first: the entry itself tells whether it is this request's. */
  placesOf(operation: RememberedOperation, requestId: string): Extent[] {
    return this.#places
      .of(this.#hash(`${operation} ${requestId}`))
      .map((row) => ({ segment: row[2] ?? 0, start: row[3] ?? 0, size: row[4] ?? 0 }))
      .toSorted((one, other) => other.segment - one.segment || other.start - one.start);
  }

  /** The place in the job stream of the last attach (or detach) of this attachment that ran. */
  lastOf(id: string, operation: 'attach' | 'detach'): Position | undefined {
    const [row] = this.#positions.of(keyWordsOf(`${operation} ${id}`, POSITION_KEY_WORDS));
    return row && positionIn(row);
  }

  note({ operation, id, requestId, atMs, position }: OutcomeHeader, place: Place): void {
    const { segment: number, start, size } = extentOf(place);
    const segment = this.#segments.get(number) ?? {
      beganMs: atMs,
      bytes: 0,
      entries: 0,
      unsaved: { places: new Words(), positions: new Words() },
    };
    this.#segments.set(number, segment);
    segment.bytes += place.bytes;
    segment.entries += 1;
    if (requestId !== undefined) {
      const row = [...this.#hash(`${operation} ${requestId}`), number, start, size];
      this.#places.add(row);
      segment.unsaved?.places.add(row);
    }
    if (position === undefined || operation === 'update') return;
    const key = keyWordsOf(`${operation} ${id}`, POSITION_KEY_WORDS);
    const row = [...key, number, ...wordsOf(position)];
    this.#notePosition(row);
    segment.unsaved?.positions.add(row);
  }

  /** Takes in what the file beside the segment says. False if there is no such file, or none that can be used. */
  take(number: number): boolean {
    const index = readIndex(this.#options.fileOf(number));
    if (index === undefined) return false;
    const [beganMs, bytes, entries] = index.numbers;
    const [places, positions] = index.tables;
    if (beganMs === undefined || bytes === undefined || entries === undefined) return false;
    if (places === undefined || !isTable(places, PLACE_WORDS, KEY_WORDS, number)) return false;
    if (positions === undefined) return false;
    if (!isTable(positions, POSITION_WORDS, POSITION_KEY_WORDS, number)) return false;
    this.#segments.set(number, { beganMs, bytes, entries, unsaved: undefined });
    for (let at = 0; at < places.length; at += PLACE_WORDS) this.#places.add(places, at);
    for (let at = 0; at < positions.length; at += POSITION_WORDS) this.#notePosition(positions, at);
    return true;
  }

  /** Forgets the segment, and removes the file beside it. */
  drop(number: number): void {
    this.#segments.delete(number);
    rmSync(indexFileOf(this.#options.fileOf(number)), { force: true });
  }

  /** At a start: writes the files that are missing, and removes those of segments that are gone. */
  tidy(folder: string): void {
    const { fileOf } = this.#options;
    const kept = new Set([...this.#segments.keys()].map((one) => indexFileOf(fileOf(one))));
    for (const name of readdirSync(folder)) {
      const file = join(folder, name);
      if (!INDEX_NAME.test(name) || kept.has(file)) continue;
      try {
        rmSync(file);
      } catch (error) {
        this.#options.log.warn({ file, error: String(error) }, 'old index of outcomes not removed');
      }
    }
    for (const [number, segment] of this.#segments) {
      if (segment.unsaved === undefined) continue;
      try {
        const file = indexFileOf(fileOf(number));
        writeFileSync(`${file}.tmp`, this.#content(number, segment), { mode: 0o600 });
        renameSync(`${file}.tmp`, file);
      } catch (error) {
        this.#notWritten(number, error);
      }
    }
  }

  /** Writes the files of all segments but the `current` one, which still grows. */
  async save(current: number): Promise<void> {
    for (const [number, segment] of this.#segments) {
      if (number === current || segment.unsaved === undefined) continue;
      try {
        const file = indexFileOf(this.#options.fileOf(number));
        await writeFile(`${file}.tmp`, this.#content(number, segment), { mode: 0o600 });
        await rename(`${file}.tmp`, file);
        // The segment may have been dropped meanwhile.
        if (!this.#segments.has(number)) rmSync(file, { force: true });
      } catch (error) {
        this.#notWritten(number, error);
      }
    }
  }

  #content(number: number, segment: Segment): Buffer {
    const { beganMs, bytes, entries, unsaved } = segment;
    segment.unsaved = undefined;
    const tables = unsaved === undefined ? [] : [unsaved.places.all, unsaved.positions.all];
    const fingerprint = fingerprintOf(this.#options.fileOf(number));
    return encodeIndex({ numbers: [beganMs, bytes, entries], tables }, fingerprint);
  }

  #notWritten(segment: number, error: unknown): void {
    this.#options.log.warn(
      { segment, error: String(error) },
      'index of outcomes not written to disk: the next start reads the outcomes themselves',
    );
  }

  /** Notes the position in the row that begins at `from`, unless a later one is there. */
  #notePosition(row: ArrayLike<number>, from = 0): void {
    const [known] = this.#positions.of(row, from);
    if (known === undefined) this.#positions.add(row, from);
    else if (isLater(row, from, known)) {
      for (let n = 0; n < POSITION_WORDS; n += 1) known[n] = row[from + n] ?? 0;
    }
  }
}

const INDEX_NAME = /\.index(\.tmp)?$/;

/** Words, one row after the other. */
class Words {
  #words = new Uint32Array(64);
  #length = 0;

  add(row: readonly number[]): void {
    if (this.#length + row.length > this.#words.length) {
      const longer = new Uint32Array(2 * this.#words.length);
      longer.set(this.#words);
      this.#words = longer;
    }
    this.#words.set(row, this.#length);
    this.#length += row.length;
  }

  get all(): Uint32Array {
    return this.#words.subarray(0, this.#length);
  }
}

/** Whether the table has whole rows, all of this segment. */
function isTable(table: Uint32Array, width: number, keyWords: number, segment: number): boolean {
  if (table.length % width !== 0) return false;
  for (let at = 0; at < table.length; at += width) {
    if (table[at] === 0 || table[at + keyWords] !== segment) return false;
  }
  return true;
}

/** Time and number, high words first: so the words compare as the positions do. */
const wordsOf = ({ storedNs, sequence }: Position): number[] => [
  Number(BigInt.asUintN(32, storedNs >> 32n)),
  Number(BigInt.asUintN(32, storedNs)),
  Math.floor(sequence / WORD),
  sequence % WORD,
];

const positionIn = (row: Uint32Array): Position => {
  const [high = 0, low = 0, ...sequence] = row.subarray(POSITION_KEY_WORDS + 1);
  return {
    storedNs: (BigInt(high) << 32n) | BigInt(low),
    sequence: (sequence[0] ?? 0) * WORD + (sequence[1] ?? 0),
  };
};

function isLater(row: ArrayLike<number>, from: number, known: Uint32Array): boolean {
  for (let n = POSITION_KEY_WORDS + 1; n < POSITION_WORDS; n += 1) {
    const [one = 0, other = 0] = [row[from + n], known[n]];
    if (one !== other) return one > other;
  }
  return false;
}
