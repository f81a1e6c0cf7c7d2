import { setTimeout as sleep } from 'node:timers/promises';
import { VoltError } from './errors.ts';
import type { JetStream, StoredMessage, StreamPlace } from './jetstream.ts';
import { fromNatsError, isNoStream } from './nats-errors.ts';

const RETRY_MS = 500;

export interface ReplayOptions {
  readonly jetStream: JetStream;
  /** The name of the stream, and the one that it may have instead. */
  readonly streams: readonly [string, string];
  /** Subjects that are read. */
  readonly filter: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
  /** The connection is closed for good: nothing follows. */
  readonly isClosed: () => boolean;
}

/** The stream that is there, and its sequence numbers. */
export async function streamOf({
  jetStream,
  streams: [name, earlier],
  timeoutMs,
}: Pick<ReplayOptions, 'jetStream' | 'streams' | 'timeoutMs'>): Promise<{
  readonly stream: string;
  readonly first: number;
  readonly last: number;
}> {
  try {
    return { stream: name, ...(await jetStream.ends(name, timeoutMs)) };
  } catch (cause) {
    if (!isNoStream(cause) || earlier === name) throw fromNatsError(cause, { subject: name });
  }
  return streamOf({ jetStream, streams: [earlier, earlier], timeoutMs });
}

/**
 * The messages of a stream from a place on, in order, each once, and then those that come. A server that restarts, a lost
 * connection and lost messages do not end it: it goes on behind the last message that it gave. Ends by `signal`, or
 * when the connection is closed. Throws VoltError: what stands in the way at the start; NOT_FOUND when the stream has
 * no longer what follows `after`.
 */
export async function* replay(
  options: ReplayOptions & { readonly place: StreamPlace | Promise<StreamPlace> },
): AsyncGenerator<StoredMessage, void, undefined> {
  const { jetStream, filter, timeoutMs, signal } = options;
  let place = await options.place;
  yield* untilEnded(options, async function* () {
    const { stream, first, last } = await streamOf(options);
    refuseLost(place, { stream, first, last });
    const consumer = await jetStream.consumer({ stream, filter, place }, timeoutMs);
    yield 'alive';
    let delivery = 0;
    let seen: number | undefined;
    for await (const one of jetStream.read({ stream, consumer }, signal)) {
      if (one === 'drained') {
        // Nothing up to `seen` is left to be read. Without this, a watch that has been quiet for as long as the stream
        // keeps messages would believe that it has lost some.
        if (seen !== undefined)
          place = { after: Math.max(seen, 'after' in place ? place.after : 0) };
        seen = (await jetStream.ends(stream, timeoutMs)).last;
      }
      if (typeof one === 'string') continue;
      delivery += 1;
      if (one.delivery !== delivery) return;
      place = { after: one.sequence };
      yield one;
    }
  });
}

/**
 * What a durable consumer has not seen acknowledged. A message is acknowledged when the next one is asked for. So one that
 * was read and not acknowledged comes again.
 */
export function consumed(
  options: ReplayOptions & { readonly consumer: string },
): AsyncGenerator<StoredMessage, void, undefined> {
  const {
    jetStream,
    streams: [stream],
    consumer,
    signal,
  } = options;
  return untilEnded(options, async function* () {
    // One at a time: the server's time to acknowledge a message runs from its delivery.
    for await (const one of jetStream.read({ stream, consumer, batch: 1 }, signal)) {
      yield one;
      if (typeof one !== 'string') jetStream.acknowledge(one);
    }
  });
}

/** Reads again and again. What fails before anything has been heard is thrown, and what nobody mends by waiting. */
async function* untilEnded(
  { filter, signal, isClosed }: ReplayOptions,
  read: () => AsyncGenerator<StoredMessage | string, void, undefined>,
): AsyncGenerator<StoredMessage, void, undefined> {
  let heard = false;
  const isOver = (): boolean => signal?.aborted === true || isClosed();
  while (!isOver()) {
    try {
      for await (const one of read()) {
        heard = true;
        if (typeof one !== 'string') yield one;
      }
    } catch (cause) {
      if (isOver()) return;
      const error = fromNatsError(cause, { subject: filter });
      if (!heard || !error.retryable) throw error;
    }
    if (isOver()) return;
    if (!heard) {
      // nats-server says nothing where there is no such consumer.
      const message = `${filter}: no such consumer, or JetStream does not answer`;
      throw new VoltError('AGENT_UNAVAILABLE', message);
    }
    await sleep(RETRY_MS, undefined, { signal }).catch(() => {});
  }
}

function refuseLost(
  place: StreamPlace,
  { stream, first, last }: { stream: string; first: number; last: number },
): void {
  if (!('after' in place) || place.after === 0) return;
  if (place.after + 1 >= first && place.after <= last) return;
  const message = `${stream} has no longer what follows ${place.after}: it has ${first} to ${last}`;
  const details = { path: 'after', first, last };
  throw new VoltError('NOT_FOUND', message, { details });
}
