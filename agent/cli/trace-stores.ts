import { readFileSync } from 'node:fs';
import { VoltError } from '#protocol/errors.ts';
import { fileProblem } from '#protocol/file-problem.ts';
import { type Span, spansOf } from '#protocol/waterfall.ts';
import { UsageError } from './errors.ts';

/** How a store of traces is asked. */
export interface StoreOptions {
  /** Of its HTTP interface: `http://tempo:3200`. */
  readonly url: string;
  /** Lines of `name: value`, for an access token for instance. */
  readonly headersFile?: string | undefined;
  /** RFC 3339: how far back it looks for an id that is no trace id. */
  readonly since: string;
  readonly timeoutMs: number;
}

const MOST_TRACES = 20;
/** Attributes of our spans by which a trace is found. */
const ID_ATTRIBUTES = ['volt.attachment.id', 'volt.request.id'] as const;
const SERVICE = 'volt-network-agent';
const TRACE_ID = /^[0-9a-f]{32}$/i;

interface Store {
  /** Ids of the last traces that have a span with this id. */
  find(id: string): Promise<string[]>;
  /** No spans for a trace that is not there. */
  read(traceId: string): Promise<Span[]>;
}

/** The stores that can be asked, by the name of their option. */
export const STORES = {
  /** Grafana Tempo's HTTP API: TraceQL at `/api/search`, `/api/v2/traces` since 2.7, before that `/api/traces`. */
  tempo: (get, { since }): Store => ({
    find: async (id) => {
      const value = JSON.stringify(id);
      const query = ID_ATTRIBUTES.map((name) => `span.${name} = ${value}`).join(' || ');
      const found = await get('api/search', {
        q: `{ ${query} }`,
        limit: MOST_TRACES,
        start: Math.floor(Date.parse(since) / 1_000),
        end: Math.ceil(Date.now() / 1_000),
      });
      return texts(listOf(found, 'traces'), 'traceID');
    },
    read: async (traceId) => {
      const now = await get(`api/v2/traces/${traceId}`);
      if (now !== undefined) return spansOf(valueOf(now, 'trace'));
      const before = await get(`api/traces/${traceId}`);
      return spansOf({ resourceSpans: valueOf(before, 'batches') });
    },
  }),
  /** Jaeger's query service: `/api/traces` of its page finds, `/api/v3/traces` gives OTLP. */
  jaeger: (get, { since }): Store => ({
    find: async (id) => {
      const found = await Promise.all(
        ID_ATTRIBUTES.map((name) =>
          get('api/traces', {
            service: SERVICE,
            tags: JSON.stringify({ [name]: id }),
            limit: MOST_TRACES,
            start: Date.parse(since) * 1_000,
            end: Date.now() * 1_000,
          }),
        ),
      );
      return texts(
        found.flatMap((answer) => listOf(answer, 'data')),
        'traceID',
      );
    },
    read: async (traceId) => spansOf(valueOf(await get(`api/v3/traces/${traceId}`), 'result')),
  }),
} as const satisfies Record<string, (get: Get, options: StoreOptions) => Store>;

export type StoreName = keyof typeof STORES;

/** The spans of the traces that have this trace id, or a span of this attachment or request. */
export async function storedSpans(
  name: StoreName,
  id: string,
  options: StoreOptions,
): Promise<Span[]> {
  const store = STORES[name](getter(name, options), options);
  if (TRACE_ID.test(id)) {
    const spans = await store.read(id.toLowerCase());
    if (spans.length > 0) return spans;
  }
  const spans: Span[] = [];
  for (const traceId of new Set(await store.find(id))) {
    // It goes into the path of another request.
    if (/^[0-9a-f]{1,32}$/i.test(traceId)) spans.push(...(await store.read(traceId)));
  }
  return spans;
}

/** Undefined where the store says that there is nothing. */
type Get = (path: string, query?: Readonly<Record<string, string | number>>) => Promise<unknown>;

function getter(name: StoreName, { url, headersFile, timeoutMs }: StoreOptions): Get {
  const base = baseOf(name, url);
  const headers = headersFile === undefined ? new Headers() : headersIn(headersFile);
  headers.set('accept', 'application/json');
  return async (path, query = {}) => {
    const asked = new URL(path, base);
    for (const [key, value] of Object.entries(query)) asked.searchParams.set(key, String(value));
    let answer: Response;
    let text: string;
    try {
      answer = await fetch(asked, { headers, signal: AbortSignal.timeout(timeoutMs) });
      text = await answer.text();
    } catch (cause) {
      if (cause instanceof Error && cause.name === 'TimeoutError') {
        throw new VoltError('DEADLINE_EXCEEDED', `${url} did not answer within ${timeoutMs} ms`);
      }
      throw unavailable(url, reasonOf(cause), cause);
    }
    if (answer.status === 404) return undefined;
    if (answer.status === 401 || answer.status === 403) {
      throw new VoltError('UNAUTHORIZED', `${url} refuses: ${answer.status} (see --headers)`);
    }
    if (!answer.ok) throw unavailable(url, `${answer.status} ${text.slice(0, 200)}`.trim());
    try {
      return JSON.parse(text);
    } catch (cause) {
      throw unavailable(url, `its answer is no JSON; is it the address of ${name}?`, cause);
    }
  };
}

const unavailable = (url: string, reason: string, cause?: unknown): VoltError =>
  new VoltError('TRACES_UNAVAILABLE', `${url}: ${reason}`, { retryable: true, cause });

/** What `fetch` throws says nothing; the cause does. */
function reasonOf(thrown: unknown): string {
  const cause = thrown instanceof Error ? (thrown.cause ?? thrown) : thrown;
  return cause instanceof Error ? cause.message || String(cause) : String(cause);
}

/** With a slash at the end, so that a path of a proxy stays. */
function baseOf(name: StoreName, url: string): URL {
  if (!URL.canParse(url)) throw new UsageError(`--${name} "${url}": must be http://host:port`);
  const base = new URL(url.endsWith('/') ? url : `${url}/`);
  if (base.protocol !== 'http:' && base.protocol !== 'https:') {
    throw new UsageError(`--${name} "${url}": must be http://host:port`);
  }
  if (base.username !== '' || base.password !== '') {
    throw new UsageError(`--${name}: write the password into a file for --headers`);
  }
  return base;
}

/** A line of a file: what a field is (RFC 9110, 5.5 and 5.6.2), of printable ASCII. */
const HEADER = /^([!#$%&'*+.^`|~\w-]+):[ \t]*([\t -~]*)$/;

function headersIn(file: string): Headers {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new UsageError(`--headers: cannot read ${file}: ${fileProblem(cause)}`, { cause });
  }
  if (text.trim() === '') throw new UsageError(`--headers: ${file} is empty`);
  const lines = text.split(/\r?\n/).filter((line) => line.trim() !== '');
  return new Headers(
    lines.map((line): [string, string] => {
      const [, name = '', value = ''] = HEADER.exec(line) ?? [];
      // Nothing of the line: it may be a token.
      if (name === '') throw new UsageError(`--headers: a line of ${file} is not "name: value"`);
      return [name, value.trim()];
    }),
  );
}

const valueOf = (value: unknown, key: string): unknown =>
  typeof value === 'object' && value !== null
    ? Object.getOwnPropertyDescriptor(value, key)?.value
    : undefined;

function listOf(value: unknown, key: string): unknown[] {
  const elements = valueOf(value, key);
  return Array.isArray(elements) ? elements : [];
}

const texts = (elements: readonly unknown[], key: string): string[] =>
  elements.flatMap((element) => {
    const text = valueOf(element, key);
    return typeof text === 'string' ? [text] : [];
  });
