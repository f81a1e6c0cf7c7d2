import { readdirSync, readFileSync } from 'node:fs';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { extname } from 'node:path';
import { toErrorBody } from '#protocol/errors.ts';
import packageJson from '../../../package.json' with { type: 'json' };
import type { Connected } from '../connect.ts';
import { UsageError } from '../errors.ts';
import { type Answer, answers } from './answers.ts';
import { Feed } from './feed.ts';
import { Fleet } from './fleet.ts';
import { Gate } from './gate.ts';
import { jsonText } from './json-text.ts';
import { type Listen, urlOf } from './listen.ts';
import { Streams } from './streams.ts';
import type { Traces } from './traces.ts';

export interface Dashboard {
  /** Where the page is, with the token where one is needed. */
  readonly url: string;
  /** Rejects when it cannot go on: the connection to NATS was closed for good. */
  readonly ended: Promise<void>;
  close(): Promise<void>;
}

const MOST_CONNECTIONS = 64;
const MOST_HEADER_BYTES = 8_192;
const REQUEST_MS = 10_000;

/**
 * With all answers. The page has no script, style or image but its own, asks nobody else, and makes no markup of text
 * (Trusted Types); no other page may hold it in a frame.
 */
const HEADERS = {
  'content-security-policy':
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'cache-control': 'no-store',
} as const;

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/** Serves the page, and what it asks for. Throws UsageError where nothing can listen. */
export async function serveDashboard(options: {
  readonly connected: Pick<Connected, 'client' | 'settings' | 'isUp'>;
  readonly place: Listen;
  readonly traces: Traces | null;
}): Promise<Dashboard> {
  const { connected, place, traces } = options;
  const { client, settings, isUp } = connected;
  const feed = new Feed(client);
  const fleet = new Fleet({ client, host: settings.host, isUp });
  const about = { version: packageJson.version, traces: traces !== null };
  const streams = new Streams({ feed, isUp, about });
  const ask = answers({ client, fleet, feed, traces });
  const files = pageFiles();
  feed.listen(() => fleet.outdate());

  const server = createServer({
    maxHeaderSize: MOST_HEADER_BYTES,
    requestTimeout: REQUEST_MS,
    // How often Node looks for requests that take too long; by default twice a minute.
    connectionsCheckingInterval: 1_000,
  });
  server.maxConnections = MOST_CONNECTIONS;
  server.listen(place.port, place.address);
  try {
    await once(server, 'listening');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`--listen: ${reason}`, { cause });
  }
  const bound = server.address();
  const port = typeof bound === 'object' && bound !== null ? bound.port : place.port;
  const gate = new Gate({ isLoopback: place.isLoopback, port });

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = URL.parse(request.url ?? '', 'http://dashboard');
    if (url === null) return sendText(response, 400, 'no such address');
    const admission = gate.admit(request, url);
    if (!admission.admitted) {
      return sendText(response, admission.status, admission.reason, admission.headers);
    }
    const file = files.get(url.pathname);
    if (file !== undefined) {
      response.writeHead(200, { ...HEADERS, 'content-type': file.type }).end(file.bytes);
      return;
    }
    if (url.pathname === '/api/events') {
      return streams.open(request, response, HEADERS);
    }
    const answer = ask(url);
    if (answer === undefined) return sendText(response, 404, 'not found');
    sendJson(response, await answer);
  }

  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    handle(request, response).catch((error: unknown) => {
      if (response.headersSent) response.destroy();
      else sendJson(response, { status: 500, body: toErrorBody(error) });
    });
  });

  const ending = new AbortController();
  const ended = feed.follow(ending.signal);
  ended.catch(() => {});
  return {
    url: urlOf({ address: place.address, port }) + gate.query,
    ended,
    close: async () => {
      ending.abort();
      streams.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** By path. All that can be served is read at the start; a path leads to no other file. */
function pageFiles(): Map<string, { readonly type: string; readonly bytes: Buffer }> {
  const folder = new URL('page/', import.meta.url);
  const files = new Map<string, { type: string; bytes: Buffer }>();
  for (const name of readdirSync(folder)) {
    const type = TYPES[extname(name)];
    if (type === undefined) continue;
    const path = name === 'index.html' ? '/' : `/${name}`;
    files.set(path, { type, bytes: readFileSync(new URL(name, folder)) });
  }
  return files;
}

function sendText(
  response: ServerResponse,
  status: number,
  text: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  response
    .writeHead(status, { ...HEADERS, ...headers, 'content-type': 'text/plain; charset=utf-8' })
    .end(`${text}\n`);
}

function sendJson(response: ServerResponse, { status, body }: Answer): void {
  response
    .writeHead(status, { ...HEADERS, 'content-type': 'application/json' })
    .end(jsonText(body));
}
