import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from '#protocol/errors.ts';
import type { Lease } from './lease.ts';
import type { Ledger } from './ledger.ts';
import type { LogPage } from './log.ts';
import { type Difference, Replay } from './replay.ts';

/** What a follower asks of the ledger. */
export type Followed = Pick<Ledger, 'snapshot' | 'readLog'>;

export interface FollowerOptions {
  readonly network: string;
  readonly ledger: Followed;
  /** Told after each change of what `leases` has. */
  readonly onChange?: (difference: Difference) => void;
}

const FIRST_RETRY_MS = 100;
const LAST_RETRY_MS = 5_000;

/**
 * The leases of a network, as they are now and from now on. It begins with a snapshot and goes on with the network's log.
 * `nudge` says that something may have happened, as a notice does, or a heartbeat that names the network as moved; as
 * often as it likes: a lost one leaves the follower behind and never wrong, and the next makes up for it. While the ledger
 * cannot be asked, or has lost something, the leases stay as they were, and `problem` says why.
 */
export class Follower implements Disposable {
  readonly network: string;
  readonly #ledger: Followed;
  readonly #onChange: (difference: Difference) => void;
  readonly #replay = new Replay();
  readonly #stopped = new AbortController();
  #isReading = false;
  /** Why the last question was not answered. */
  #problem: Error | undefined;
  #asOf: number | undefined;
  readonly #waiting = new Set<Waiting>();

  constructor({ network, ledger, onChange = () => {} }: FollowerOptions) {
    this.network = network;
    this.#ledger = ledger;
    this.#onChange = onChange;
  }

  start(): void {
    this.nudge();
  }

  stop(): void {
    this.#stopped.abort();
    this.#refuse(
      new VoltError('SHUTTING_DOWN', `network ${this.network} is not followed any more`),
    );
  }

  [Symbol.dispose](): void {
    this.stop();
  }

  /** By attachment id. */
  get leases(): ReadonlyMap<string, Lease> {
    return this.#replay.leases;
  }

  /** Of the definition of the network; undefined where the network is not there. */
  get revision(): number | undefined {
    return this.#replay.revision;
  }

  /** For `follows` of a heartbeat: up to where the log has been read. */
  get position(): string {
    return this.#replay.position ?? '';
  }

  /** Why `leases` may be behind; undefined where nothing is known to have happened since. */
  get problem(): string | undefined {
    return this.#replay.isBehind ? (this.#problem?.message ?? 'changes are being read') : undefined;
  }

  /** All that had happened by then is in `leases` (`performance.now()` time); undefined before the first snapshot. */
  get asOf(): number | undefined {
    return this.#asOf;
  }

  /** The answer to a heartbeat that was sent `at` a time has said that nothing follows `position`. */
  confirm({ position, at }: { readonly position: string; readonly at: number }): void {
    if (this.#replay.isBehind || position !== this.position) return;
    this.#asOf = Math.max(this.#asOf ?? at, at);
  }

  /**
   * Resolves when all that has happened so far is shown. Rejects with what the ledger refuses, also where it has refused
   * the last question and is asked again in a moment.
   */
  caughtUp(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const waiting = { since: performance.now(), resolve, reject };
    this.#waiting.add(waiting);
    this.nudge();
    if (this.#problem !== undefined && !(this.#problem instanceof LogTrimmed)) {
      this.#refuse(this.#problem);
    }
    return promise;
  }

  #refuse(reason: Error): void {
    for (const { reject } of this.#waiting) reject(reason);
    this.#waiting.clear();
  }

  #noteWhole(at: number): void {
    this.#asOf = at;
    for (const waiting of this.#waiting) {
      if (waiting.since > at) continue;
      waiting.resolve();
      this.#waiting.delete(waiting);
    }
  }

  /** Something may have happened in the network. */
  nudge(): void {
    this.#replay.nudge();
    if (!this.#isReading) void this.#read();
  }

  async #read(): Promise<void> {
    const { signal } = this.#stopped;
    this.#isReading = true;
    for (let retryMs = FIRST_RETRY_MS; !signal.aborted;) {
      try {
        if (!(await this.#step())) break;
      } catch (error) {
        this.#problem = error instanceof Error ? error : new Error(String(error));
        if (!(error instanceof LogTrimmed)) this.#refuse(this.#problem);
        // Differs from follower to follower: a server that comes back is not met by all at once.
        await sleep(retryMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
        retryMs = Math.min(2 * retryMs, LAST_RETRY_MS);
      }
    }
    this.#isReading = false;
    // Something happened after the last page was read.
    if (this.#replay.isBehind && !signal.aborted) this.nudge();
  }

  /** One page. False when there is nothing more to read. */
  async #step(): Promise<boolean> {
    const wanted = this.#replay.next();
    if (wanted === undefined) return false;
    const at = performance.now();
    const difference =
      wanted.ask === 'snapshot'
        ? this.#replay.takeSnapshot(await this.#ledger.snapshot(this.network, wanted.cursor))
        : this.#takeLog(await this.#ledger.readLog(this.network, wanted.after));
    this.#problem = undefined;
    if (this.#replay.isWhole) this.#noteWhole(at);
    if (difference !== undefined && !this.#stopped.signal.aborted) this.#onChange(difference);
    return true;
  }

  #takeLog(page: LogPage): Difference | undefined {
    const difference = this.#replay.takeLog(page);
    // Not at once: where somebody deletes the log again and again, snapshots must not follow each other without end.
    if (page.gap) throw new LogTrimmed('the log was trimmed or deleted: the leases are read anew');
    return difference;
  }
}

interface Waiting {
  readonly since: number;
  readonly resolve: () => void;
  readonly reject: (reason: Error) => void;
}

class LogTrimmed extends Error {}
