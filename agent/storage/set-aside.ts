import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Log } from '../log.ts';
import { parseEvent, type PendingEvent, PublishError } from './pending-event.ts';
import { jittered } from '../schedule/rhythm.ts';

export interface SetAsideOptions {
  readonly folder: string;
  /** Throws PublishError. */
  readonly publish: (event: PendingEvent) => Promise<void>;
  readonly log: Log;
}

const RETRY_EVERY_MS = 60_000;
/** The most events that are tried in one round, so that a full folder does not flood the server. */
const MAX_TRIES = 64;
/** Above this number, some 10 MB, the oldest are removed. */
const MAX_KEPT = 10_000;

/**
 * Events that the stream refuses, mostly because they are too large for it. Each is a file. The limit may be raised, so
 * they are tried again with each new connection to NATS, and once a minute.
 */
export class SetAside {
  readonly #options: SetAsideOptions;
  /** Names of files; the one that is to be tried next comes first. */
  #names: string[] = [];
  #trying = false;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(options: SetAsideOptions) {
    this.#options = options;
  }

  get count(): number {
    return this.#names.length;
  }

  start(): void {
    const { folder, log } = this.#options;
    try {
      this.#names = readdirSync(folder).filter((name) => name.endsWith('.json'));
    } catch (error) {
      if (!isMissing(error))
        log.error({ folder, error: String(error) }, 'folder of refused events cannot be listed');
    }
    this.#schedule();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  /** Keeps an event. `number` names one that cannot be read any more. If the disk refuses it, only the log has it. */
  put(number: string, event: PendingEvent | undefined, reason: string): void {
    const { folder, log } = this.#options;
    const name = `${event?.id ?? number}.json`;
    const file = join(folder, name);
    log.error({ file, reason }, 'the event stream refuses an event: set aside');
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 });
      writeFileSync(file, JSON.stringify({ reason, event }), { mode: 0o600 });
    } catch (error) {
      log.error(
        { file, event, error: String(error) },
        'refused event not written to disk: it is lost',
      );
      return;
    }
    if (!this.#names.includes(name)) this.#names.push(name);
    const surplus = this.#names.length > MAX_KEPT ? this.#names.shift() : undefined;
    if (surplus !== undefined) {
      log.error({ file: surplus }, `more than ${MAX_KEPT} events set aside: the oldest is removed`);
      this.#tidy(join(folder, surplus), (oldest) => rmSync(oldest, { force: true }));
    }
    this.#schedule();
  }

  /** The next server may have other limits. */
  nudge(): void {
    if (this.#trying) return;
    this.#trying = true;
    void this.#tryAgain().finally(() => {
      this.#trying = false;
      this.#schedule();
    });
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    if (this.#stopped || this.#names.length === 0) return;
    this.#timer = setTimeout(() => this.nudge(), jittered(RETRY_EVERY_MS)).unref();
  }

  async #tryAgain(): Promise<void> {
    const { folder, publish, log } = this.#options;
    for (const name of this.#names.slice(0, MAX_TRIES)) {
      if (this.#stopped) return;
      const file = join(folder, name);
      const event = this.#read(file);
      try {
        if (event !== undefined) {
          await publish(event);
          this.#tidy(file, () => rmSync(file, { force: true }));
          log.info({ event: event.id }, 'event published that had been set aside');
        }
        this.#names = this.#names.filter((one) => one !== name);
      } catch (error) {
        if (!(error instanceof PublishError) || error.why !== 'never') return;
        // Its turn comes again after all others'.
        this.#names = [...this.#names.filter((one) => one !== name), name];
      }
    }
  }

  /** Undefined for a file that is no event: it is renamed, so that it is not read again. */
  #read(file: string): PendingEvent | undefined {
    try {
      const kept: unknown = JSON.parse(readFileSync(file, 'utf8'));
      const event: unknown =
        typeof kept === 'object' && kept !== null && 'event' in kept ? kept.event : undefined;
      return parseEvent(JSON.stringify(event));
    } catch (error) {
      this.#options.log.warn(
        { file, error: String(error) },
        'refused event cannot be read: not tried again',
      );
      if (!isMissing(error)) this.#tidy(file, () => renameSync(file, `${file}.corrupt`));
      return undefined;
    }
  }

  /** A file that the disk does not let go of is looked at again by the next agent. */
  #tidy(file: string, work: (file: string) => void): void {
    try {
      work(file);
    } catch (error) {
      this.#options.log.error({ file, error: String(error) }, 'file of a refused event is left');
    }
  }
}

const isMissing = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && error.code === 'ENOENT';
