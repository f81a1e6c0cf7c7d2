import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Log } from './log.ts';

/** An event that has to reach the event stream, as it is kept on disk until it did. */
export interface PendingEvent {
  /** Function of what it reports: the same outcome is the same event. */
  readonly id: string;
  readonly type: string;
  readonly network: string;
  /** The attachment, network or host that it is about. */
  readonly subject: string;
  readonly time: string;
  readonly body: Readonly<Record<string, unknown>>;
  readonly durationMs: Readonly<Record<string, number>>;
  readonly traceparent?: string;
  readonly tracestate?: string;
}

const RETRY_FIRST_MS = 100;
const RETRY_MOST_MS = 5_000;

/**
 * Events on their way out: written to the state folder before the request is answered, published one
 * after the other in the order they were made, deleted once the stream has acknowledged them. An agent
 * that was killed or that finds NATS away publishes them later.
 */
export class Outbox {
  readonly #folder: string;
  readonly #publish: (event: PendingEvent) => Promise<void>;
  readonly #log: Log;
  /** File names in order; those made by this process with their event, so that it need not be read. */
  readonly #queue: { readonly file: string; readonly event?: PendingEvent }[] = [];
  #next = 1;
  #stopped = false;
  #wake = Promise.withResolvers<void>();
  #running: Promise<void> | undefined;

  constructor(options: {
    stateDir: string;
    publish: (event: PendingEvent) => Promise<void>;
    log: Log;
  }) {
    this.#folder = join(options.stateDir, 'outbox');
    this.#publish = options.publish;
    this.#log = options.log;
  }

  get pending(): number {
    return this.#queue.length;
  }

  start(): void {
    mkdirSync(this.#folder, { recursive: true, mode: 0o700 });
    for (const file of readdirSync(this.#folder).toSorted()) {
      if (!/^\d{16}\.json$/.test(file)) continue;
      this.#queue.push({ file });
      this.#next = Number(file.slice(0, 16)) + 1;
    }
    this.#running = this.#run();
  }

  /** Keeps the event. When the disk refuses it, it is kept in memory and the refusal is logged. */
  add(event: PendingEvent): void {
    const file = `${String(this.#next).padStart(16, '0')}.json`;
    this.#next += 1;
    const path = join(this.#folder, file);
    try {
      // One write of a few hundred bytes: an agent that dies within it has answered nobody yet.
      writeFileSync(path, JSON.stringify(event), { mode: 0o600 });
    } catch (error) {
      this.#log.error({ event: event.id, error: String(error) }, 'cannot store an event');
    }
    this.#queue.push({ file, event });
    this.#wake.resolve();
  }

  /** Tries again at once what waits for a retry: NATS is back. */
  nudge(): void {
    this.#wake.resolve();
  }

  /** Waits until all is published, `timeoutMs` at most; what is left stays on disk. */
  async stop(timeoutMs: number): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (this.#queue.length > 0 && Date.now() < end) await sleep(10);
    this.#stopped = true;
    this.#wake.resolve();
    if (this.#queue.length === 0) await this.#running;
  }

  async #run(): Promise<void> {
    let retryMs = RETRY_FIRST_MS;
    while (!this.#stopped) {
      const first = this.#queue[0];
      if (first === undefined) {
        await this.#sleepUntilWoken();
        continue;
      }
      const event = first.event ?? this.#read(first.file);
      try {
        if (event !== undefined) await this.#publish(event);
        rmSync(join(this.#folder, first.file), { force: true });
        this.#queue.shift();
        retryMs = RETRY_FIRST_MS;
      } catch (error) {
        this.#log.debug({ event: event?.id, error: String(error) }, 'event not published yet');
        await this.#sleepUntilWoken(retryMs);
        retryMs = Math.min(retryMs * 2, RETRY_MOST_MS);
      }
    }
  }

  async #sleepUntilWoken(timeoutMs?: number): Promise<void> {
    if (timeoutMs === undefined) {
      await this.#wake.promise;
    } else {
      const timer = new AbortController();
      const { signal } = timer;
      await Promise.race([
        this.#wake.promise,
        sleep(timeoutMs, undefined, { signal }).catch(() => {}),
      ]);
      timer.abort();
    }
    this.#wake = Promise.withResolvers<void>();
  }

  #read(file: string): PendingEvent | undefined {
    try {
      return parseEvent(readFileSync(join(this.#folder, file), 'utf8'));
    } catch (error) {
      const aside = `${file}.corrupt`;
      renameSync(join(this.#folder, file), join(this.#folder, aside));
      this.#log.error({ file: aside, error: String(error) }, 'event set aside: it cannot be read');
      return undefined;
    }
  }
}

/** An event as `add` wrote it. What was cut short, or is another's, is refused. */
function parseEvent(text: string): PendingEvent {
  const event: unknown = JSON.parse(text);
  if (isEvent(event)) return event;
  throw new Error('is no event');
}

const isEvent = (value: unknown): value is PendingEvent =>
  typeof value === 'object' &&
  value !== null &&
  ['id', 'type', 'network', 'subject', 'time'].every(
    (key) => typeof Object.getOwnPropertyDescriptor(value, key)?.value === 'string',
  ) &&
  'body' in value &&
  typeof value.body === 'object' &&
  'durationMs' in value &&
  typeof value.durationMs === 'object';
