import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';
import type { Feed } from './feed.ts';
import { jsonText } from './json-text.ts';
import type { ToldEvent } from './told-event.ts';

const MOST_STREAMS = 16;
/** Events that come together are sent together. */
const FLUSH_MS = 100;
const TICK_MS = 500;
const QUIET_MS = 15_000;
/** What a new page gets of the last minutes, and what is sent at once. */
const MOST_RECENT = 500;
/** A page that does not read is given up: it comes again by itself. */
const MOST_UNREAD_BYTES = 4 * 1024 * 1024;

/** Pages that follow what happens, by server-sent events: `state`, `latency` and `events`. */
export class Streams {
  readonly #feed: Feed;
  readonly #state: () => object;
  readonly #open = new Set<ServerResponse>();
  readonly #timers: readonly NodeJS.Timeout[];
  readonly #unlisten: () => void;
  #pending: ToldEvent[] = [];
  #lastState = '';
  #lastLatency = '';
  #lastSentAt = 0;

  constructor({ feed, isUp, about }: { feed: Feed; isUp: () => boolean; about: object }) {
    this.#feed = feed;
    this.#state = () => ({ ...about, isUp: isUp(), problem: feed.problem });
    this.#unlisten = feed.listen((event) => {
      if (this.#open.size === 0) return;
      this.#pending.push(event);
    });
    this.#timers = [
      setInterval(() => this.#flush(), FLUSH_MS),
      setInterval(() => this.#tick(), TICK_MS),
    ];
  }

  /** A page that comes back says what it has seen. */
  open(request: IncomingMessage, response: ServerResponse, headers: OutgoingHttpHeaders): void {
    if (this.#open.size >= MOST_STREAMS) {
      response
        .writeHead(503, { ...headers, 'content-type': 'text/plain', 'retry-after': '5' })
        .end('too many pages are open\n');
      return;
    }
    response.writeHead(200, { ...headers, 'content-type': 'text/event-stream' });
    this.#flush();
    const seen = Number(request.headers['last-event-id']);
    const after = Number.isSafeInteger(seen) && seen > 0 ? seen : 0;
    response.write(message('state', this.#state()));
    response.write(message('latency', this.#feed.minutes()));
    response.write(eventsMessage(this.#feed.recent({ after, most: MOST_RECENT })));
    this.#open.add(response);
    response.once('close', () => this.#open.delete(response));
  }

  close(): void {
    this.#unlisten();
    for (const timer of this.#timers) clearInterval(timer);
    for (const response of this.#open) response.end();
  }

  #flush(): void {
    const events = this.#pending.slice(-MOST_RECENT);
    this.#pending = [];
    if (events.length > 0) this.#send(eventsMessage(events));
  }

  #tick(): void {
    if (this.#open.size === 0) return;
    const state = message('state', this.#state());
    const isQuiet = performance.now() - this.#lastSentAt > QUIET_MS;
    if (state !== this.#lastState || isQuiet) this.#send(state);
    this.#lastState = state;
    const latency = message('latency', this.#feed.minutes());
    if (latency !== this.#lastLatency) this.#send(latency);
    this.#lastLatency = latency;
  }

  #send(text: string): void {
    this.#lastSentAt = performance.now();
    for (const response of this.#open) {
      if (response.writableLength > MOST_UNREAD_BYTES) response.destroy();
      else response.write(text);
    }
  }
}

const message = (event: string, value: unknown, id?: number): string =>
  `event: ${event}\n${id === undefined ? '' : `id: ${id}\n`}data: ${jsonText(value)}\n\n`;

const eventsMessage = (events: readonly ToldEvent[]): string =>
  message('events', events, events.at(-1)?.sequence);
