import { readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppendLog, type Place } from './append-log.ts';
import type { Log } from '../log.ts';
import {
  parseEvent,
  type PendingEvent,
  PublishError,
  type WhyNotPublished,
} from './pending-event.ts';
import { jittered } from '../schedule/rhythm.ts';
import { SetAside } from './set-aside.ts';

const RETRY_FIRST_MS = 100;
const RETRY_MOST_MS = 5_000;
/** So many subjects, one after the other, have failed: it is the stream, and not their events. */
const FAILING_IN_A_ROW = 8;
/** The subject of an event that is about nothing in particular: such events have no order. */
const NO_SUBJECT = '-';
/** Events on their way at once, each about another subject. */
const MAX_IN_FLIGHT = 64;
/** Events that are kept in memory too; the others are read when their turn comes. */
const MAX_IN_MEMORY = 1_024;
/** Types of which nobody waits. */
const HELD: ReadonlySet<string> = new Set(['repaired']);
/** Of events that wait on disk. Past it nothing new is begun that would make more. */
const MAX_WAITING_BYTES = 512 * 1024 * 1024;
/** A log that is emptied at each lull would be made anew for each event. */
const MIN_DROPPED_BYTES = 1024 * 1024;

interface Waiting {
  readonly number: number;
  /** Its place is in the queue of this name: its subject, where it has one. */
  readonly subject: string;
  /** Undefined where the disk refused it: then memory alone has it. */
  readonly place: Place | undefined;
  event: PendingEvent | undefined;
  tries: number;
  /** Why it was not taken when it was tried last. */
  reason?: string;
}

/**
 * Events on their way out: stored in the state folder before anybody relies on them, published in the order in which
 * they were made as far as they are about the same subject, and done with once the stream has acknowledged them. An
 * agent that was killed, or that finds NATS away, publishes them later; one whose acknowledgement was lost is
 * published again under the same id.
 */
export class Outbox {
  readonly #folder: string;
  readonly #entries: AppendLog;
  readonly #publish: (event: PendingEvent) => Promise<void>;
  readonly #log: Log;
  /** By subject, in order. The first of a subject that is under way stays here until it is done. */
  readonly #queues = new Map<string, Waiting[]>();
  /** Subjects of which nothing is under way. */
  readonly #ready = new Set<string>();
  /** Subjects whose first event failed, until it is tried again: those of others go on. */
  readonly #deferred = new Map<string, NodeJS.Timeout>();
  /** Subjects that have failed since the last event was published. */
  readonly #failing = new Set<string>();
  /** Subjects whose one event waits for the end of `hold`. */
  readonly #held = new Set<string>();
  #holding = false;
  /** How many events of a segment are still waiting; in order, and dropped in order. */
  readonly #segments = new Map<number, number>();
  /** All that wait, in the order in which they were made. */
  readonly #waiting = new Map<number, Waiting>();
  readonly #setAside: SetAside;
  /** Why an event was not taken, since the last that was. */
  #reason: string | undefined;
  #number = 0;
  #inMemory = 0;
  #inFlight = 0;
  #waitingBytes = 0;
  #retryMs = RETRY_FIRST_MS;
  #pause: NodeJS.Timeout | undefined;
  #stopped = false;

  constructor(options: {
    stateDir: string;
    publish: (event: PendingEvent) => Promise<void>;
    log: Log;
  }) {
    this.#folder = join(options.stateDir, 'outbox');
    this.#entries = new AppendLog({ folder: this.#folder, log: options.log });
    this.#publish = options.publish;
    this.#log = options.log;
    this.#setAside = new SetAside({
      folder: join(this.#folder, 'refused'),
      publish: (event) => this.#publish(event),
      log: options.log,
    });
  }

  get pending(): number {
    return this.#waiting.size;
  }

  /** The event that has waited longest: when it was made, and why it was not taken. */
  get oldest(): { readonly time: string; readonly reason: string | undefined } | undefined {
    const [first] = this.#waiting.values();
    if (first === undefined) return undefined;
    // It stays the oldest for as long as it cannot be published: it is read once.
    first.event ??= this.#keptInMemory(this.#read(first));
    const reason = first.reason ?? this.#reason;
    return first.event === undefined ? undefined : { time: first.event.time, reason };
  }

  /** Those that the stream refuses for what they are. */
  get setAside(): number {
    return this.#setAside.count;
  }

  /** So much waits that nothing should be begun that makes further events. */
  get full(): boolean {
    return this.#waitingBytes > MAX_WAITING_BYTES;
  }

  start(): void {
    const found = new Map<number, { subject: string; place: Place }>();
    this.#entries.load(({ event, subject, done }, place) => {
      this.#segments.set(place.segment, 0);
      if (typeof event === 'number' && typeof subject === 'string') {
        found.set(event, { subject, place });
        this.#number = Math.max(this.#number, event);
      }
      if (typeof done === 'number') found.delete(done);
    });
    for (const [number, { subject, place }] of found) {
      this.#queue({
        number,
        subject: queueName(subject, number),
        place,
        event: undefined,
        tries: 0,
      });
    }
    this.#dropFinished();
    this.#takeOverFiles();
    this.#setAside.start();
    this.#pump();
  }

  /** Events of an agent that kept a file for each. */
  #takeOverFiles(): void {
    for (const name of readdirSync(this.#folder).toSorted()) {
      if (!/^\d{16}\.json$/.test(name)) continue;
      const file = join(this.#folder, name);
      try {
        this.add(parseEvent(readFileSync(file, 'utf8')));
        rmSync(file);
      } catch (error) {
        renameSync(file, `${file}.corrupt`);
        this.#log.error({ file, error: String(error) }, 'event set aside: it cannot be read');
      }
    }
  }

  /** Keeps the event. When the disk refuses it, it is kept in memory and the refusal is logged. */
  add(event: PendingEvent): void {
    this.#number += 1;
    const number = this.#number;
    const { subject } = event;
    let place: Place | undefined;
    try {
      place = this.#entries.append({ event: number, subject }, JSON.stringify(event));
    } catch (error) {
      this.#log.error({ event: event.id, error: String(error) }, 'cannot store an event');
    }
    const keep = place === undefined || this.#inMemory < MAX_IN_MEMORY;
    const waiting = {
      number,
      subject: queueName(subject, number),
      place,
      event: keep ? event : undefined,
      tries: 0,
    };
    this.#queue(waiting, HELD.has(event.type));
    this.#pump();
  }

  /**
   * Until disposed, what tells of repairs is stored and not published, but where something else follows it: what has to
   * be repaired comes first, where it is much.
   */
  hold(): Disposable {
    this.#holding = true;
    return {
      [Symbol.dispose]: () => {
        this.#holding = false;
        for (const subject of this.#held) this.#ready.add(subject);
        this.#held.clear();
        this.#pump();
      },
    };
  }

  /** Resolves when all events that were added before outlive a power failure. */
  sync(): Promise<void> {
    return this.#entries.sync();
  }

  /** Tries again at once what waits for a retry: NATS is back. */
  nudge(): void {
    for (const [subject, timer] of this.#deferred) {
      clearTimeout(timer);
      this.#ready.add(subject);
    }
    this.#deferred.clear();
    this.#setAside.nudge();
    this.#resume();
  }

  #resume(): void {
    clearTimeout(this.#pause);
    this.#pause = undefined;
    this.#pump();
  }

  /** Waits until all is published, `timeoutMs` at most; what is left stays on disk. */
  async stop(timeoutMs: number): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (this.pending > 0 && Date.now() < end) await sleep(10);
    this.#stopped = true;
    this.#setAside.stop();
    clearTimeout(this.#pause);
    for (const timer of this.#deferred.values()) clearTimeout(timer);
    if (this.pending === 0) {
      for (const segment of this.#segments.keys()) this.#entries.drop(segment);
    } else {
      await this.#entries.sync().catch(() => {});
    }
    this.#entries.close();
  }

  #queue(waiting: Waiting, mayBeHeld = false): void {
    const { subject, place, event } = waiting;
    const queue = this.#queues.get(subject);
    if (queue === undefined) {
      this.#queues.set(subject, [waiting]);
      (this.#holding && mayBeHeld ? this.#held : this.#ready).add(subject);
    } else {
      queue.push(waiting);
      if (this.#held.delete(subject)) this.#ready.add(subject);
    }
    this.#waiting.set(waiting.number, waiting);
    if (event !== undefined) this.#inMemory += 1;
    if (place === undefined) return;
    this.#waitingBytes += place.bytes;
    this.#segments.set(place.segment, (this.#segments.get(place.segment) ?? 0) + 1);
  }

  #pump(): void {
    while (!this.#stopped && this.#pause === undefined && this.#inFlight < MAX_IN_FLIGHT) {
      const [subject] = this.#ready;
      if (subject === undefined) return;
      this.#ready.delete(subject);
      const first = this.#queues.get(subject)?.[0];
      if (first !== undefined) void this.#send(first);
    }
  }

  async #send(waiting: Waiting): Promise<void> {
    this.#inFlight += 1;
    let failure: { readonly why: WhyNotPublished; readonly reason: string } | undefined;
    try {
      const event = waiting.event ?? this.#read(waiting);
      if (event !== undefined) await this.#publish(event);
      this.#retryMs = RETRY_FIRST_MS;
      this.#failing.clear();
      this.#reason = undefined;
    } catch (error) {
      failure = {
        why: error instanceof PublishError ? error.why : 'later',
        reason: messageOf(error),
      };
      if (failure.why === 'never') {
        this.#setAside.put(
          String(waiting.number),
          waiting.event ?? this.#read(waiting),
          failure.reason,
        );
      }
    }
    this.#inFlight -= 1;
    // After `stop` the next agent publishes it, again if need be.
    if (this.#stopped) return;
    try {
      if (failure === undefined || failure.why === 'never') this.#done(waiting);
      else this.#wait(waiting, failure);
    } catch (error) {
      // Then it is published again, under the same id.
      this.#log.error({ error: String(error) }, 'an event that was published is still kept');
      this.#ready.add(waiting.subject);
    }
    this.#pump();
  }

  /** One that failed is tried again alone; where all fail, or nobody is there, all wait. */
  #wait(waiting: Waiting, failure: { why: WhyNotPublished; reason: string }): void {
    const { subject } = waiting;
    waiting.reason = failure.reason;
    this.#reason = failure.reason;
    this.#log.debug({ subject, ...failure }, 'event not published yet');
    this.#failing.add(subject);
    if (failure.why === 'away' || this.#failing.size >= FAILING_IN_A_ROW) {
      this.#ready.add(subject);
      this.#pause ??= setTimeout(() => this.#resume(), jittered(this.#retryMs));
      this.#retryMs = Math.min(this.#retryMs * 2, RETRY_MOST_MS);
      return;
    }
    const delayMs = Math.min(RETRY_FIRST_MS * 2 ** Math.min(waiting.tries, 16), RETRY_MOST_MS);
    waiting.tries += 1;
    const timer = setTimeout(() => {
      this.#deferred.delete(subject);
      this.#ready.add(subject);
      this.#pump();
    }, jittered(delayMs));
    this.#deferred.set(subject, timer);
  }

  #done({ number, subject, place, event }: Waiting): void {
    const queue = this.#queues.get(subject);
    queue?.shift();
    if (queue === undefined || queue.length === 0) this.#queues.delete(subject);
    else this.#ready.add(subject);
    this.#waiting.delete(number);
    if (event !== undefined) this.#inMemory -= 1;
    if (place === undefined) return;
    this.#waitingBytes -= place.bytes;
    this.#segments.set(place.segment, (this.#segments.get(place.segment) ?? 1) - 1);
    if (this.#dropFinished()) return;
    try {
      this.#entries.append({ done: number });
    } catch (error) {
      // Then it is published again one day, under the same id.
      this.#log.debug({ error: String(error) }, 'cannot note that an event was published');
    }
  }

  /**
   * Removes segments of which nothing waits, oldest first, since what later ones say of its events is needed for as
   * long as it is there. True when nothing is left at all.
   */
  #dropFinished(): boolean {
    for (const [segment, waiting] of this.#segments) {
      if (waiting > 0) return false;
      if (segment === this.#entries.current && this.#entries.currentBytes < MIN_DROPPED_BYTES) {
        return false;
      }
      this.#entries.drop(segment);
      this.#segments.delete(segment);
    }
    return true;
  }

  #read(waiting: Waiting): PendingEvent | undefined {
    try {
      if (waiting.place === undefined) return undefined;
      return parseEvent(this.#entries.read(waiting.place));
    } catch (error) {
      this.#log.error({ subject: waiting.subject, error: String(error) }, 'an event is lost');
      return undefined;
    }
  }

  #keptInMemory(event: PendingEvent | undefined): PendingEvent | undefined {
    if (event !== undefined) this.#inMemory += 1;
    return event;
  }
}

const queueName = (subject: string, number: number): string =>
  subject === NO_SUBJECT ? `${NO_SUBJECT} ${number}` : subject;

const messageOf = (error: unknown): string =>
  error instanceof Error ? error.message : String(error);
