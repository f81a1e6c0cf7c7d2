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
/** When so many subjects in a row have failed, the cause is the stream, and not their events. */
const FAILING_IN_A_ROW = 8;
/** The subject of events about nothing in particular: such events have no order. */
const NO_SUBJECT = '-';
/** Events that are being published at once, each about another subject. */
const MAX_IN_FLIGHT = 64;
/** Events that are also kept in memory; the others are read from disk when their turn comes. */
const MAX_IN_MEMORY = 1_024;
/** Types of events that nobody waits for: `hold` holds them back. */
const HELD: ReadonlySet<string> = new Set(['repaired']);
/** The limit for events that wait on disk. Above it nothing is begun that would make more of them. */
const MAX_WAITING_BYTES = 512 * 1024 * 1024;
/** Smaller logs are kept: one that is emptied at each lull would be made again for each event. */
const MIN_DROPPED_BYTES = 1024 * 1024;

interface Waiting {
  readonly number: number;
  /** The name of its queue: its subject, if it has one. */
  readonly subject: string;
  /** Undefined if the disk refused it: then only memory has it. */
  readonly place: Place | undefined;
  event: PendingEvent | undefined;
  tries: number;
  /** Why it was not taken when it was tried last. */
  reason?: string;
}

/**
 * Events on their way to the event stream. An event is stored in the state folder before anybody relies on it. Events
 * about the same subject are published in the order in which they were made. An event is removed once the stream has
 * acknowledged it. An agent that was killed, or finds NATS away, publishes its events later; an event whose
 * acknowledgement was lost is published again under the same id.
 */
export class Outbox {
  readonly #folder: string;
  readonly #entries: AppendLog;
  readonly #publish: (event: PendingEvent) => Promise<void>;
  readonly #log: Log;
  /** By subject, in order. The first event of a subject stays here while it is being published. */
  readonly #queues = new Map<string, Waiting[]>();
  /** Subjects whose first event can be published now. */
  readonly #ready = new Set<string>();
  /** Subjects whose first event failed and waits for its next try. Events of other subjects go on. */
  readonly #deferred = new Map<string, NodeJS.Timeout>();
  /** Subjects that have failed since the last event was published. */
  readonly #failing = new Set<string>();
  /** Subjects whose one event waits for the end of `hold`. */
  readonly #held = new Set<string>();
  #holding = false;
  /** How many events of each segment still wait. Segments are in order, and dropped in order. */
  readonly #segments = new Map<number, number>();
  /** All events that wait, in the order in which they were made. */
  readonly #waiting = new Map<number, Waiting>();
  readonly #setAside: SetAside;
  /** Why the last event was not published; undefined since one was. */
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

  /** The event that has waited longest: when it was made, and why it was not published. */
  get oldest(): { readonly time: string; readonly reason: string | undefined } | undefined {
    const [first] = this.#waiting.values();
    if (first === undefined) return undefined;
    // It stays the oldest for as long as it cannot be published, so it is read only once.
    first.event ??= this.#keptInMemory(this.#read(first));
    const reason = first.reason ?? this.#reason;
    return first.event === undefined ? undefined : { time: first.event.time, reason };
  }

  /** The number of events that the stream refuses for their size or form. */
  get setAside(): number {
    return this.#setAside.count;
  }

  /** True while so much waits that nothing should be begun that makes further events. */
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

  /** Earlier releases kept a file for each event. */
  #takeOverFiles(): void {
    for (const name of readdirSync(this.#folder).toSorted()) {
      if (!/^\d{16}\.json$/.test(name)) continue;
      const file = join(this.#folder, name);
      try {
        this.add(parseEvent(readFileSync(file, 'utf8')));
        rmSync(file);
      } catch (error) {
        renameSync(file, `${file}.corrupt`);
        this.#log.error({ file, error: String(error) }, 'event file set aside: it cannot be read');
      }
    }
  }

  /** Keeps the event. If the disk refuses it, the event is kept in memory and the refusal is logged. */
  add(event: PendingEvent): void {
    this.#number += 1;
    const number = this.#number;
    const { subject } = event;
    let place: Place | undefined;
    try {
      place = this.#entries.append({ event: number, subject }, JSON.stringify(event));
    } catch (error) {
      this.#log.error(
        { event: event.id, error: String(error) },
        'event not written to disk: kept in memory',
      );
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
   * Until disposed, `repaired` events are stored and not published, unless another event of their subject follows.
   * When there are very many repairs, the repairs come before their events.
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

  /** Resolves when all events that were added before survive a power failure. */
  sync(): Promise<void> {
    return this.#entries.sync();
  }

  /** NATS is back: events that wait for their next try are tried now. */
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

  /** Waits until all events are published, `timeoutMs` at most; the others stay on disk. */
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
    // After `stop` the next agent publishes the event, a second time if need be.
    if (this.#stopped) return;
    try {
      if (failure === undefined || failure.why === 'never') this.#done(waiting);
      else this.#wait(waiting, failure);
    } catch (error) {
      // The event is published again then, under the same id.
      this.#log.error(
        { error: String(error) },
        'published event not removed: it is published again under the same id',
      );
      this.#ready.add(waiting.subject);
    }
    this.#pump();
  }

  /** An event that failed is tried again by itself. If all fail, or there is no connection, all wait. */
  #wait(waiting: Waiting, failure: { why: WhyNotPublished; reason: string }): void {
    const { subject } = waiting;
    waiting.reason = failure.reason;
    this.#reason = failure.reason;
    this.#log.debug({ subject, ...failure }, 'event not published: trying again');
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
      // The next start publishes the event again then, under the same id.
      this.#log.debug(
        { error: String(error) },
        'end of an event not written to disk: the next start publishes it again',
      );
    }
  }

  /**
   * Removes segments whose events have all been published, oldest first: a later segment says which events of an
   * earlier one are done, so it has to stay as long as the earlier one. True when nothing is left at all.
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
      this.#log.error(
        { subject: waiting.subject, error: String(error) },
        'event lost: it cannot be read from disk',
      );
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
