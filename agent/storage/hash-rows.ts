import { hash } from 'node:crypto';

/** Making one part larger takes microseconds, however many rows there are. A power of two, to 256. */
const PARTS = 256;
const SMALLEST_ROWS = 8;
/** A part that is fuller than this is made again, with this many times the rows that are in use. */
const FULLEST = 0.8;
const ROOM = 1.6;

/**
 * Rows of 32-bit words by a key, which is a hash of some words. After the key comes the number of a segment of a log:
 * once that segment is gone, so is the row. All rows lie in a few typed arrays, without an object for any of them.
 * A key may have several rows.
 */
export class HashRows {
  readonly #keyWords: number;
  readonly #rowWords: number;
  readonly #isThere: (segment: number) => boolean;
  readonly #parts: (Part | undefined)[] = Array.from({ length: PARTS });

  /** `isThere`: whether this segment of the log still exists. */
  constructor(options: {
    keyWords: number;
    rowWords: number;
    isThere: (segment: number) => boolean;
  }) {
    this.#keyWords = options.keyWords;
    this.#rowWords = options.rowWords;
    this.#isThere = options.isThere;
  }

  /** The size of all arrays. */
  get bytes(): number {
    return this.#parts.reduce((sum, part) => sum + (part?.words.byteLength ?? 0), 0);
  }

  /** The rows with the key that begins at `from`. They may be changed in place, but for the key. */
  of(key: ArrayLike<number>, from = 0): Uint32Array[] {
    const found: Uint32Array[] = [];
    const words = this.#parts[partOf(key, from)]?.words;
    if (words === undefined) return found;
    for (let at = this.#home(words, key, from); words[at] !== 0; at = this.#after(words, at)) {
      if (this.#hasKey(words, at, key, from) && this.#isLive(words, at)) {
        found.push(words.subarray(at, at + this.#rowWords));
      }
    }
    return found;
  }

  /** Adds the row that begins at `from`. It takes the place of a row that is gone where there is one. */
  add(row: ArrayLike<number>, from = 0): void {
    const part = (this.#parts[partOf(row, from)] ??= {
      words: new Uint32Array(SMALLEST_ROWS * this.#rowWords),
      used: 0,
    });
    const { words } = part;
    let at = this.#home(words, row, from);
    while (words[at] !== 0 && this.#isLive(words, at)) at = this.#after(words, at);
    if (words[at] === 0) part.used += 1;
    this.#copy(row, from, words, at);
    if (part.used * this.#rowWords > FULLEST * words.length) this.#makeAgain(part);
  }

  #makeAgain(part: Part): void {
    const old = part.words;
    const live: number[] = [];
    for (let at = 0; at < old.length; at += this.#rowWords) {
      if (old[at] !== 0 && this.#isLive(old, at)) live.push(at);
    }
    const rows = Math.max(SMALLEST_ROWS, Math.ceil(live.length * ROOM));
    const words = new Uint32Array(rows * this.#rowWords);
    for (const from of live) {
      let at = this.#home(words, old, from);
      while (words[at] !== 0) at = this.#after(words, at);
      this.#copy(old, from, words, at);
    }
    part.words = words;
    part.used = live.length;
  }

  #home(words: Uint32Array, key: ArrayLike<number>, from: number): number {
    return ((key[from + 1] ?? 0) % (words.length / this.#rowWords)) * this.#rowWords;
  }

  #after(words: Uint32Array, at: number): number {
    const next = at + this.#rowWords;
    return next === words.length ? 0 : next;
  }

  #copy(source: ArrayLike<number>, from: number, words: Uint32Array, at: number): void {
    for (let n = 0; n < this.#rowWords; n += 1) words[at + n] = source[from + n] ?? 0;
  }

  #hasKey(words: Uint32Array, at: number, key: ArrayLike<number>, from: number): boolean {
    for (let n = 0; n < this.#keyWords; n += 1) {
      if (words[at + n] !== key[from + n]) return false;
    }
    return true;
  }

  #isLive(words: Uint32Array, at: number): boolean {
    return this.#isThere(words[at + this.#keyWords] ?? 0);
  }
}

interface Part {
  words: Uint32Array;
  /** Rows that are not free, those of segments that are gone among them. */
  used: number;
}

const partOf = (key: ArrayLike<number>, from: number): number => (key[from] ?? 0) >>> 24;

/** The first words of a SHA-256 of the text. The first is not 0, which is the mark of a free row. */
export function keyWordsOf(text: string, words: number): number[] {
  const hex = hash('sha256', text, 'hex');
  const key = Array.from({ length: words }, (_, n) =>
    Number.parseInt(hex.slice(8 * n, 8 * n + 8), 16),
  );
  if (key[0] === 0) key[0] = 1;
  return key;
}
