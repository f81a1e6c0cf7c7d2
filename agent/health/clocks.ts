import type { Found } from './conditions.ts';

/** More than this two clocks of a fleet with NTP do not differ. */
const WARN_MS = 500;
const STAMPS_KEPT_MS = 10 * 60_000;
const MAX_STAMPS = 64;
const NS_PER_MS = 1_000_000;

interface Stamp {
  readonly atMs: number;
  readonly offsetMs: number;
  readonly prompt: boolean;
}

/**
 * Compares the clocks of the ledger and of the job stream with this host's, by the times in the messages that they
 * send anyway. Offsets are relative to the start of this process (`performance.now()`), so that setting this host's
 * clock does not disturb them.
 */
export class Clocks {
  /** The offset of the ledger's clock, and how wrong it may be. */
  #ledger: { readonly offsetMs: number; readonly errorMs: number } | undefined;
  #stamps: readonly Stamp[] = [];

  /** The ledger answered with its time. `sentAtMs` and `receivedAtMs` are of `performance.now()`. */
  noteLedger(answer: { nowMs: number; sentAtMs: number; receivedAtMs: number }): void {
    const { nowMs, sentAtMs, receivedAtMs } = answer;
    const errorMs = (receivedAtMs - sentAtMs) / 2;
    this.#ledger = { offsetMs: nowMs - sentAtMs - errorMs, errorMs };
  }

  /**
   * A message came that the stream stored at `storedNs` of its clock. `prompt`: it came as soon as it was stored. No
   * message comes before it is stored, so each one shows that the stream's clock is at least so far ahead.
   */
  noteStored({ storedNs, prompt }: { storedNs: bigint; prompt: boolean }): void {
    const atMs = performance.now();
    const offsetMs = Number(storedNs / BigInt(NS_PER_MS)) - atMs;
    const kept = this.#stamps.filter((one) => atMs - one.atMs < STAMPS_KEPT_MS);
    // A burst of late messages must not drive out the few prompt ones.
    const others = prompt ? kept : kept.filter((one) => one.prompt);
    this.#stamps = [...others.slice(1 - MAX_STAMPS), { atMs, offsetMs, prompt }];
  }

  /**
   * The time of the stream's clock now, in nanoseconds since 1970. Before any message the ledger's clock stands for
   * it, and without that this host's.
   */
  streamNowNs(): bigint {
    const known = this.#streamOffsetMs ?? this.#ledger?.offsetMs ?? hostOffsetMs();
    const least = Math.max(known, ...this.#stamps.map(({ offsetMs }) => offsetMs));
    return BigInt(Math.round((performance.now() + least) * NS_PER_MS));
  }

  /** How far this host's clock is ahead, in ms; undefined if no message has shown it lately. */
  get aheadMs(): { readonly ledger: number | undefined; readonly stream: number | undefined } {
    return {
      ledger: aheadOf(this.#ledger?.offsetMs),
      stream: aheadOf(this.#isRecent ? this.#streamOffsetMs : undefined),
    };
  }

  /** Pairs of clocks that differ by more than half a second. */
  get problems(): readonly Found[] {
    const { ledger, stream } = this.aheadMs;
    const pairs: readonly [string, number | undefined, number][] = [
      ['this host and Redis', ledger, this.#ledger?.errorMs ?? 0],
      ['this host and NATS', stream, 0],
      [
        'Redis and NATS',
        ledger === undefined || stream === undefined ? undefined : stream - ledger,
        this.#ledger?.errorMs ?? 0,
      ],
    ];
    return pairs.flatMap(([pair, aheadMs, errorMs]) => {
      if (aheadMs === undefined || Math.abs(aheadMs) - errorMs <= WARN_MS) return [];
      const side = aheadMs > 0 ? 'ahead' : 'behind';
      const seconds = (Math.abs(aheadMs) / 1_000).toFixed(1);
      return [{ name: 'clock-skew', reason: `${pair}: the first is ${seconds} s ${side}` }];
    });
  }

  /** NATS's clock may have been set since the last message. */
  get #isRecent(): boolean {
    const now = performance.now();
    return this.#stamps.some(({ atMs, prompt }) => prompt && now - atMs < STAMPS_KEPT_MS);
  }

  /** The message with the least delay counts; undefined unless some message came promptly. */
  get #streamOffsetMs(): number | undefined {
    if (!this.#stamps.some(({ prompt }) => prompt)) return undefined;
    return Math.max(...this.#stamps.map(({ offsetMs }) => offsetMs));
  }
}

const hostOffsetMs = (): number => Date.now() - performance.now();

const aheadOf = (offsetMs: number | undefined): number | undefined =>
  offsetMs === undefined ? undefined : Math.round(hostOffsetMs() - offsetMs);
