import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { canonical } from '#protocol/attachment.ts';
import { fromErrorBody, toErrorBody, VoltError } from '#protocol/errors.ts';
import { AppendLog, type Header, type Place } from '../storage/append-log.ts';
import type { Log } from '../log.ts';

/** Operations whose outcome is remembered: those that change an attachment. */
export type RememberedOperation = 'attach' | 'detach' | 'update';

/** The place of a request in the job stream: the server's time in nanoseconds, then the sequence number. */
export interface Position {
  readonly storedNs: bigint;
  readonly sequence: number;
}

/** A `Position` in JSON, which has no bigint. */
export interface StoredPosition {
  readonly storedNs: string;
  readonly sequence: number;
}

export const storedPosition = (
  position: Position | undefined,
): { readonly position?: StoredPosition } =>
  position === undefined
    ? {}
    : { position: { storedNs: String(position.storedNs), sequence: position.sequence } };

export const positionOf = (stored: StoredPosition | undefined): Position | undefined =>
  stored && { storedNs: BigInt(stored.storedNs), sequence: stored.sequence };

export const isBefore = (one: Position, other: Position): boolean =>
  one.storedNs === other.storedNs ? one.sequence < other.sequence : one.storedNs < other.storedNs;

/** The parts of a request that decide whether another request is the same. */
export interface Asked {
  readonly operation: RememberedOperation;
  /** The id of the attachment. */
  readonly id: string;
  readonly requestId: string | undefined;
  /** The request without its request id. */
  readonly content: object;
  readonly position: Position | undefined;
}

export type Remembered = { readonly answer: object } | { readonly error: VoltError };

interface Entry {
  readonly place: Place;
  readonly content: string;
}

/** Longer than any request waits in the job stream, and longer than callers repeat a request. */
const KEEP_MS = 24 * 3_600_000;
const SEGMENT_MS = 3_600_000;
/** Above these limits, on disk and in memory, the oldest outcomes are forgotten early, and that is logged. */
const MAX_BYTES = 1 << 30;
const MAX_ENTRIES = 1_000_000;
const SYNC_AFTER_MS = 100;

/**
 * The outcomes of requests, for 24 hours, across restarts and reboots: a repeated request gets the first answer.
 * Answers stay on disk; memory holds their places. For each attachment it also keeps the place in the job stream of the
 * last attach and the last detach that ran, so that an older job can be refused.
 */
export class RequestLog {
  readonly #entries: AppendLog;
  readonly #log: Log;
  /** By operation and request id. */
  readonly #places = new Map<string, Entry>();
  readonly #order = new Map<string, { attach?: Position; detach?: Position }>();
  /** Segments, oldest first, each with the keys that are forgotten when it is dropped. */
  readonly #segments = new Map<number, Segment>();
  readonly #maxEntries: number;
  #syncTimer: NodeJS.Timeout | undefined;

  constructor(options: { stateDir: string; log: Log; maxEntries?: number }) {
    const { stateDir, log, maxEntries = MAX_ENTRIES } = options;
    this.#entries = new AppendLog({ folder: join(stateDir, 'outcomes'), log });
    this.#log = log;
    this.#maxEntries = maxEntries;
  }

  load(): void {
    this.#entries.load((header, place) => {
      const read = entryOf(header);
      if (read === null) return;
      this.#note(read, place);
    });
    this.#forgetOld();
  }

  /**
   * The outcome of this request when it came before; undefined if it did not. INVALID_REQUEST if another request had
   * its request id.
   */
  find({ operation, requestId, content }: Asked): Remembered | undefined {
    if (requestId === undefined) return undefined;
    const entry = this.#places.get(keyOf(operation, requestId));
    if (entry === undefined) return undefined;
    if (entry.content !== hashOf(content)) {
      const message = `requestId: ${requestId} was the id of another ${operation} within 24 hours`;
      throw new VoltError('INVALID_REQUEST', message, { details: { path: 'requestId' } });
    }
    const body: unknown = JSON.parse(this.#entries.read(entry.place));
    const error = fromErrorBody(body);
    if (error !== null) return { error };
    return typeof body === 'object' && body !== null ? { answer: body } : undefined;
  }

  knows(operation: RememberedOperation, requestId: string | undefined): boolean {
    return requestId !== undefined && this.#places.has(keyOf(operation, requestId));
  }

  /** Remembers the outcome of a request. An outcome that the disk refuses is logged, and not remembered. */
  keep(asked: Asked, outcome: Remembered): void {
    const { operation, id, requestId, content, position } = asked;
    // Without a request id it cannot be repeated. Without a position no job can be older.
    if (requestId === undefined && position === undefined) return;
    const failed = 'error' in outcome;
    const atMs = Date.now();
    const read = {
      operation,
      id,
      requestId,
      atMs,
      content: hashOf(content),
      position: failed ? undefined : position,
    };
    try {
      const body = failed ? toErrorBody(outcome.error) : outcome.answer;
      this.#beginSegment(atMs);
      const place = this.#entries.append(headerOf(read), JSON.stringify(body));
      const isNew = !this.#segments.has(place.segment);
      this.#note(read, place);
      if (isNew) this.#forgetOld();
      this.#syncTimer ??= setTimeout(() => void this.sync().catch(() => {}), SYNC_AFTER_MS).unref();
    } catch (error) {
      this.#log.error(
        { operation, id, error: String(error) },
        'outcome of a request not written to disk',
      );
    }
  }

  /** The place in the job stream of the last attach (or detach) of this attachment that ran. */
  lastOf(id: string, operation: 'attach' | 'detach'): Position | undefined {
    return this.#order.get(id)?.[operation];
  }

  /** Resolves when all outcomes that were kept survive a power failure. */
  async sync(): Promise<void> {
    clearTimeout(this.#syncTimer);
    this.#syncTimer = undefined;
    try {
      await this.#entries.sync();
    } catch (error) {
      this.#log.error(
        { error: String(error) },
        'outcomes not synced to disk: a power failure may lose them',
      );
      throw error;
    }
  }

  close(): void {
    clearTimeout(this.#syncTimer);
    this.#entries.close();
  }

  #note({ operation, id, requestId, atMs, content, position }: Read, place: Place): void {
    const { bytes, segment: number } = place;
    const segment = this.#segments.get(number) ?? { beganMs: atMs, bytes: 0, entries: 0, keys: [] };
    this.#segments.set(number, segment);
    segment.bytes += bytes;
    segment.entries += 1;
    if (requestId !== undefined) {
      const key = keyOf(operation, requestId);
      this.#places.set(key, { place, content });
      segment.keys.push(key);
    }
    if (position === undefined || operation === 'update') return;
    const known = this.#order.get(id) ?? {};
    const last = known[operation];
    if (last === undefined || isBefore(last, position)) {
      this.#order.set(id, { ...known, [operation]: position });
    }
  }

  #beginSegment(nowMs: number): void {
    const current = this.#segments.get(this.#entries.current);
    if (current !== undefined && nowMs - current.beganMs >= SEGMENT_MS) this.#entries.rotate();
  }

  #forgetOld(): void {
    const nowMs = Date.now();
    const all = [...this.#segments];
    let bytes = all.reduce((sum, [, one]) => sum + one.bytes, 0);
    let entries = all.reduce((sum, [, one]) => sum + one.entries, 0);
    let oldestMs = nowMs - KEEP_MS;
    for (const [index, [number, segment]] of all.entries()) {
      const isOld = nowMs - segment.beganMs > KEEP_MS + SEGMENT_MS;
      const next = all[index + 1]?.[1];
      // The current segment stays.
      if (next === undefined || !(isOld || bytes > MAX_BYTES || entries > this.#maxEntries)) break;
      if (!isOld) {
        this.#log.warn(
          { requestLog: segment.entries },
          'too many outcomes: the oldest forgotten early',
        );
        oldestMs = Math.max(oldestMs, next.beganMs);
      }
      this.#drop(number, segment);
      bytes -= segment.bytes;
      entries -= segment.entries;
    }
    const oldest = BigInt(oldestMs) * 1_000_000n;
    for (const [id, { attach, detach }] of this.#order) {
      if ((attach?.storedNs ?? 0n) < oldest && (detach?.storedNs ?? 0n) < oldest) {
        this.#order.delete(id);
      }
    }
  }

  #drop(number: number, { keys }: Segment): void {
    this.#entries.drop(number);
    this.#segments.delete(number);
    for (const key of keys) {
      if (this.#places.get(key)?.place.segment === number) this.#places.delete(key);
    }
  }
}

interface Segment {
  readonly beganMs: number;
  bytes: number;
  entries: number;
  readonly keys: string[];
}

interface Read {
  readonly operation: RememberedOperation;
  readonly id: string;
  readonly requestId: string | undefined;
  readonly atMs: number;
  readonly content: string;
  readonly position: Position | undefined;
}

const keyOf = (operation: string, requestId: string): string => `${operation} ${requestId}`;

const headerOf = ({ operation, id, requestId, atMs, content, position }: Read): Header => ({
  operation,
  id,
  atMs,
  content,
  ...(requestId !== undefined && { requestId }),
  ...(position !== undefined && {
    storedNs: String(position.storedNs),
    sequence: position.sequence,
  }),
});

function entryOf(header: Header): Read | null {
  const { operation, id, requestId, atMs, content, storedNs, sequence } = header;
  if (operation !== 'attach' && operation !== 'detach' && operation !== 'update') return null;
  if (typeof id !== 'string' || typeof atMs !== 'number' || typeof content !== 'string')
    return null;
  const placed = typeof storedNs === 'string' && /^\d+$/.test(storedNs);
  return {
    operation,
    id,
    requestId: typeof requestId === 'string' ? requestId : undefined,
    atMs,
    content,
    position:
      placed && typeof sequence === 'number' ? { storedNs: BigInt(storedNs), sequence } : undefined,
  };
}

const hashOf = (content: object): string =>
  createHash('sha256').update(canonical(content)).digest('base64url').slice(0, 22);
