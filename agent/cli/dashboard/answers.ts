import type { VoltNetworkClient } from '#protocol/client.ts';
import { toErrorBody } from '#protocol/errors.ts';
import { HOST_PATTERN, ID_PATTERN, NETWORK_PATTERN } from '#protocol/names.ts';
import type { Feed } from './feed.ts';
import type { Fleet } from './fleet.ts';
import { lifeOf } from './life.ts';
import { TRACE_ID } from './told-event.ts';
import type { Traces } from './traces.ts';

export interface Answer {
  readonly status: number;
  readonly body: unknown;
}

const MOST_ROWS = 200;
const MOST_OFFSET = 10_000_000;
const MOST_TEXT = 128;
/** Longer than streams keep events. */
const LONG_AGO_MS = 400 * 86_400_000;

/** Answers to the questions of the page, by path; undefined where there is no such question. */
export function answers(parts: {
  readonly client: VoltNetworkClient;
  readonly fleet: Fleet;
  readonly feed: Feed;
  readonly traces: Traces | null;
}): (url: URL) => Promise<Answer> | undefined {
  const { client, fleet, feed, traces } = parts;

  async function attachments(query: URLSearchParams): Promise<Answer> {
    const word = (name: string): string => (query.get(name) ?? '').slice(0, MOST_TEXT);
    const filter = {
      text: word('text').trim(),
      network: word('network'),
      host: word('host'),
      kind: word('kind'),
    };
    const offset = wholeNumber(query.get('offset') ?? '0', MOST_OFFSET);
    const limit = wholeNumber(query.get('limit') ?? '50', MOST_ROWS);
    if (offset === null || limit === null) return invalid('offset and limit are whole numbers');
    return ok(await fleet.attachments(filter, { offset, limit }));
  }

  async function attachment(query: URLSearchParams): Promise<Answer> {
    const named = subjectOf(query);
    if (named === null) return invalid('host, network and id name an attachment');
    const { host, network, id } = named;
    const events = feed
      .recent()
      .filter((one) => one.subject === id && one.host === host && one.network === network);
    try {
      return ok({ attachment: await fleet.attachment(host, id), events, problem: null });
    } catch (error) {
      return ok({ attachment: null, events, problem: toErrorBody(error).error });
    }
  }

  async function life(query: URLSearchParams): Promise<Answer> {
    const named = subjectOf(query);
    const since = Date.parse(query.get('since') ?? '');
    if (named === null) return invalid('host, network and id name an attachment');
    const oldest = Date.now() - LONG_AGO_MS;
    const from = new Date(Number.isNaN(since) ? oldest : Math.max(since, oldest));
    try {
      return ok({ ...(await lifeOf(client, { ...named, since: from })), problem: null });
    } catch (error) {
      return ok({ events: [], complete: false, problem: toErrorBody(error).error });
    }
  }

  async function trace(query: URLSearchParams): Promise<Answer> {
    const id = query.get('id') ?? '';
    if (!TRACE_ID.test(id)) return invalid('id: 32 hex digits');
    if (traces === null) return ok({ spans: [], problem: null });
    try {
      return ok({ spans: await traces.trace(id), problem: null });
    } catch (error) {
      return ok({ spans: [], problem: toErrorBody(error).error });
    }
  }

  const questions = new Map<string, (query: URLSearchParams) => Promise<Answer>>([
    ['/api/hosts', async () => ok(await fleet.hosts())],
    ['/api/networks', async () => ok(await fleet.networks())],
    ['/api/attachments', attachments],
    ['/api/attachment', attachment],
    ['/api/life', life],
    ['/api/trace', trace],
  ]);
  return (url) => questions.get(url.pathname)?.(url.searchParams);
}

const ok = (body: unknown): Answer => ({ status: 200, body });

const invalid = (message: string): Answer => ({
  status: 400,
  body: { error: { code: 'INVALID_REQUEST', message, retryable: false } },
});

function subjectOf(query: URLSearchParams): { host: string; network: string; id: string } | null {
  const [host, network, id] = ['host', 'network', 'id'].map((name) => query.get(name) ?? '');
  if (host === undefined || network === undefined || id === undefined) return null;
  const fits = HOST_PATTERN.test(host) && NETWORK_PATTERN.test(network) && ID_PATTERN.test(id);
  return fits ? { host, network, id } : null;
}

const wholeNumber = (text: string, most: number): number | null =>
  /^\d{1,9}$/.test(text) && Number(text) <= most ? Number(text) : null;
