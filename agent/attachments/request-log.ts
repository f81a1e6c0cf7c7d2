import { join } from 'node:path';
import { fromErrorBody, toErrorBody, VoltError } from '#protocol/errors.ts';
import { AppendLog } from '../storage/append-log.ts';
import type { Log } from '../log.ts';
import { encodeHeader, hashOf, type OutcomeHeader, parseHeader } from './outcome-header.ts';
import { OutcomeIndex, type OutcomeIndexOptions } from './outcome-index.ts';

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

/** Longer than any request waits in the job stream, and longer than callers repeat a request. */
const KEEP_MS = 24 * 3_600_000;
const SEGMENT_MS = 3_600_000;
/** Above these limits, on disk and in memory, the oldest outcomes are forgotten early, and that is logged. */
const MAX_BYTES = 1 << 30;
const MAX_ENTRIES = 1_000_000;
const SYNC_AFTER_MS = 100;

/**
 * The outcomes of requests, for 24 hours, across restarts and reboots: a repeated request gets the first answer.
 * Answers stay on disk; memory holds their places, some 30 bytes for each. For each attachment it also keeps the place
 * in the job stream of the last attach and the last detach that ran, so that an older job can be refused.
 */
export class RequestLog {
  readonly #folder: string;
  readonly #entries: AppendLog;
  readonly #index: OutcomeIndex;
  readonly #log: Log;
  readonly #maxEntries: number;
  #syncTimer: NodeJS.Timeout | undefined;

  constructor(
    options: { stateDir: string; log: Log; maxEntries?: number } & Pick<
      OutcomeIndexOptions,
      'hash'
    >,
  ) {
    const { stateDir, log, hash, maxEntries = MAX_ENTRIES } = options;
    this.#folder = join(stateDir, 'outcomes');
    this.#entries = new AppendLog({ folder: this.#folder, log });
    this.#index = new OutcomeIndex({
      fileOf: (segment) => this.#entries.fileOf(segment),
      log,
      ...(hash !== undefined && { hash }),
    });
    this.#log = log;
    this.#maxEntries = maxEntries;
  }

  load(): void {
    this.#entries.load(
      (header, place) => {
        const outcome = parseHeader(header);
        if (outcome !== null) this.#index.note(outcome, place);
      },
      (segment) => this.#index.take(segment),
    );
    this.#forgetOld();
    this.#index.tidy(this.#folder);
  }

  /** The size of the index in memory. */
  get indexBytes(): number {
    return this.#index.bytes;
  }

  /**
   * The outcome of this request when it came before; undefined if it did not. INVALID_REQUEST if another request had
   * its request id.
   */
  find({ operation, requestId, content }: Asked): Remembered | undefined {
    const entry = this.#entryOf(operation, requestId);
    if (entry === undefined) return undefined;
    if (entry.header.content !== hashOf(content)) {
      const message = `requestId: ${requestId} was the id of another ${operation} within 24 hours`;
      throw new VoltError('INVALID_REQUEST', message, { details: { path: 'requestId' } });
    }
    const body: unknown = JSON.parse(entry.body);
    const error = fromErrorBody(body);
    if (error !== null) return { error };
    return typeof body === 'object' && body !== null ? { answer: body } : undefined;
  }

  knows(operation: RememberedOperation, requestId: string | undefined): boolean {
    return this.#entryOf(operation, requestId) !== undefined;
  }

  /** Remembers the outcome of a request. An outcome that the disk refuses is logged, and not remembered. */
  keep(asked: Asked, outcome: Remembered): void {
    const { operation, id, requestId, content, position } = asked;
    // Without a request id it cannot be repeated. Without a position no job can be older.
    if (requestId === undefined && position === undefined) return;
    const failed = 'error' in outcome;
    const atMs = Date.now();
    const header = {
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
      const place = this.#entries.append(encodeHeader(header), JSON.stringify(body));
      const isNew = !this.#index.segments.has(place.segment);
      this.#index.note(header, place);
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
    return this.#index.lastOf(id, operation);
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
    await this.#index.save(this.#entries.current);
  }

  close(): void {
    clearTimeout(this.#syncTimer);
    this.#entries.close();
  }

  /** What the log has of this request. Throws the error of the disk. */
  #entryOf(
    operation: RememberedOperation,
    requestId: string | undefined,
  ): { readonly header: OutcomeHeader; readonly body: string } | undefined {
    if (requestId === undefined) return undefined;
    for (const extent of this.#index.placesOf(operation, requestId)) {
      const entry = this.#entries.readEntry(extent);
      const header = entry && parseHeader(entry.header);
      if (!header) {
        this.#log.warn({ operation, requestId, ...extent }, 'outcome forgotten: it is damaged');
      } else if (header.operation === operation && header.requestId === requestId) {
        return { header, body: entry.body };
      }
    }
    return undefined;
  }

  #beginSegment(nowMs: number): void {
    const current = this.#index.segments.get(this.#entries.current);
    if (current !== undefined && nowMs - current.beganMs >= SEGMENT_MS) this.#entries.rotate();
  }

  #forgetOld(): void {
    const nowMs = Date.now();
    const all = [...this.#index.segments];
    let bytes = all.reduce((sum, [, one]) => sum + one.bytes, 0);
    let entries = all.reduce((sum, [, one]) => sum + one.entries, 0);
    for (const [index, [number, segment]] of all.entries()) {
      const isOld = nowMs - segment.beganMs > KEEP_MS + SEGMENT_MS;
      // The current segment stays.
      const isLast = index === all.length - 1;
      if (isLast || !(isOld || bytes > MAX_BYTES || entries > this.#maxEntries)) break;
      if (!isOld) {
        this.#log.warn(
          { requestLog: segment.entries },
          'too many outcomes: the oldest forgotten early',
        );
      }
      this.#entries.drop(number);
      this.#index.drop(number);
      bytes -= segment.bytes;
      entries -= segment.entries;
    }
  }
}
