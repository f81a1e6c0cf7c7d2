import { setTimeout as sleep } from 'node:timers/promises';
import type { VoltEvent, VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import { Latency, type Minute, MINUTES } from './latency.ts';
import { type ToldEvent, toldEvent } from './told-event.ts';

const REMEMBERED_MS = MINUTES * 60_000;
const MOST_EVENTS = 20_000;
const RETRY_MS = 5_000;
/** What the stream refuses, it refuses before that. */
const WELL_AFTER_MS = 15_000;

interface Problem {
  readonly code: string;
  readonly message: string;
}

/** The events of the fleet: those of the last minutes, and those that come. */
export class Feed {
  readonly #client: VoltNetworkClient;
  readonly #latency = new Latency();
  readonly #listeners = new Set<(event: ToldEvent) => void>();
  #events: ToldEvent[] = [];
  #taken = new Set<string>();
  /** The place in the stream behind which it goes on. */
  #after: number | undefined;
  /** Greater than any of an earlier run, so that a page that comes back knows what is new. */
  #next = Date.now() * 1_000;
  #problem: Problem | null = null;

  constructor(client: VoltNetworkClient) {
    this.#client = client;
  }

  /** Why there are only events from now on: the stream cannot be read, as by a user without JetStream. */
  get problem(): Problem | null {
    return this.#problem;
  }

  /** Follows the stream until `signal` aborts. Throws AGENT_UNAVAILABLE once the connection is closed for good. */
  async follow(signal: AbortSignal): Promise<void> {
    const live = new AbortController();
    let isLive = false;
    while (!signal.aborted) {
      const well = setTimeout(() => {
        this.#problem = null;
      }, WELL_AFTER_MS);
      try {
        const place = this.#after === undefined ? { since: this.#begin() } : { after: this.#after };
        for await (const event of this.#client.watch({ ...place, signal })) {
          this.#problem = null;
          this.#after = event.sequence;
          this.#take(event);
        }
        break;
      } catch (error) {
        if (!(error instanceof VoltError)) throw error;
        const { code, message } = error;
        this.#problem = { code, message };
        // The stream has no longer what follows: it was made anew, or we were away for long.
        if (code === 'NOT_FOUND') this.#after = undefined;
      } finally {
        clearTimeout(well);
      }
      // From here on both: what both tell is taken once.
      if (!isLive) {
        isLive = true;
        this.#followLive(AbortSignal.any([signal, live.signal])).catch(() => {
          isLive = false;
        });
      }
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
    }
    live.abort();
    if (!signal.aborted) throw new VoltError('AGENT_UNAVAILABLE', 'the connection was closed');
  }

  async #followLive(signal: AbortSignal): Promise<void> {
    for await (const event of this.#client.watch({ signal })) this.#take(event);
  }

  /** The last `most` events of the last minutes behind a place, in their order. */
  recent({ after = 0, most = MOST_EVENTS }: { after?: number; most?: number } = {}): ToldEvent[] {
    const begin = this.#begin();
    return this.#events
      .filter(({ sequence, time }) => sequence > after && time >= begin)
      .slice(-most);
  }

  minutes(): Minute[] {
    return this.#latency.minutes();
  }

  /** Calls `listener` with each event that comes; returns what ends that. */
  listen(listener: (event: ToldEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #take(event: VoltEvent): void {
    const key = `${event.host} ${event.type} ${event.id} ${event.time}`;
    if (this.#taken.has(key)) return;
    this.#taken.add(key);
    const told = toldEvent(event, this.#next++);
    this.#events.push(told);
    // Not one at a time: that would move all of them at each event.
    if (this.#events.length > 2 * MOST_EVENTS) {
      this.#events = this.recent();
      this.#taken = new Set([...this.#taken].slice(-this.#events.length));
    }
    this.#latency.add(told);
    for (const listener of this.#listeners) listener(told);
  }

  #begin(): string {
    return new Date(Date.now() - REMEMBERED_MS).toISOString();
  }
}
