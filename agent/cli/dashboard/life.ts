import type { VoltNetworkClient } from '#protocol/client.ts';
import { type ToldEvent, toldEvent } from './told-event.ts';

/** Nothing more comes for so long: all has been read. */
const QUIET_MS = 400;
const MOST_MS = 4_000;
const MOST_READ = 50_000;
const MOST_EVENTS = 200;
/** Clocks of host and ledger differ. */
const BEFORE_MS = 60_000;

export interface Life {
  readonly events: readonly ToldEvent[];
  /** False where there was more in the stream than could be read in time. */
  readonly complete: boolean;
}

/**
 * The events of one attachment that the stream has, from a time on. The stream can be asked for those of a host and a
 * network only, so it is read for some seconds at most.
 */
export async function lifeOf(
  client: VoltNetworkClient,
  asked: { host: string; network: string; id: string; since: Date },
): Promise<Life> {
  const { host, network, id, since } = asked;
  const ending = new AbortController();
  const events: ToldEvent[] = [];
  const last = await client.lastSequence();
  const watched = client.watch({
    host,
    network,
    since: new Date(since.getTime() - BEFORE_MS),
    signal: ending.signal,
  });
  let complete = false;
  const isOver = setTimeout(() => ending.abort(), MOST_MS);
  // The first takes longer: a consumer is made for it.
  let quiet = setTimeout(() => {}, 0);
  const whenQuiet = (ms: number): void => {
    clearTimeout(quiet);
    quiet = setTimeout(() => {
      complete = true;
      ending.abort();
    }, ms);
  };
  try {
    whenQuiet(4 * QUIET_MS);
    let read = 0;
    for await (const event of watched) {
      whenQuiet(QUIET_MS);
      read += 1;
      if (event.subject === id) events.push(toldEvent(event, event.sequence));
      complete = event.sequence >= last;
      if (complete || read >= MOST_READ) break;
    }
  } finally {
    clearTimeout(isOver);
    clearTimeout(quiet);
    ending.abort();
  }
  return { events: events.slice(-MOST_EVENTS), complete };
}
