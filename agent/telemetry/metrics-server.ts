import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { parseListen } from './listen-address.ts';

export interface MetricsServerOptions {
  /** `127.0.0.1:9464`, `[::1]:9464` */
  readonly listen: string;
  /** The metrics now, in Prometheus's text format. */
  readonly text: () => Promise<string>;
}

const PATH = '/metrics';
const CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8';
/** Each scraper has one. More are closed as they come. */
const MAX_CONNECTIONS = 16;
const MAX_HEADER_BYTES = 8_192;
/** For a request to arrive, for an answer to be taken, and for a connection to be idle. */
const REQUEST_MS = 5_000;
const ANSWER_MS = 10_000;
const IDLE_MS = 75_000;
/** However many ask, the metrics are collected no more often. */
const FRESH_MS = 1_000;
const RETRY_MS = 5_000;

/**
 * Answers GET /metrics and nothing else. That its address cannot be had is a problem that is reported; it is tried again
 * for as long as the agent runs.
 */
export class MetricsServer {
  readonly #options: MetricsServerOptions;
  readonly #server: Server;
  #problem: string | undefined = 'not listening yet';
  #retry: NodeJS.Timeout | undefined;
  #text: { readonly made: Promise<string>; readonly atMs: number } | undefined;
  #isStopped = false;

  constructor(options: MetricsServerOptions) {
    this.#options = options;
    const limits = {
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: REQUEST_MS,
      requestTimeout: REQUEST_MS,
      keepAliveTimeout: IDLE_MS,
      connectionsCheckingInterval: 1_000,
    };
    this.#server = createServer(limits, (request, response) => this.#answer(request, response));
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('listening', () => (this.#problem = undefined));
    this.#server.on('error', (error) => this.#noteError(error));
    this.#server.unref();
  }

  /** Why nobody can ask for metrics; undefined if they can. */
  get problem(): string | undefined {
    return this.#problem;
  }

  start(): void {
    const { host, port } = parseListen(this.#options.listen);
    if (!this.#isStopped) this.#server.listen({ host, port });
  }

  stop(): void {
    this.#isStopped = true;
    clearTimeout(this.#retry);
    this.#server.close();
    this.#server.closeAllConnections();
  }

  #noteError(error: Error): void {
    this.#problem = `metrics.listen ${this.#options.listen}: ${error.message}`;
    this.#retry = setTimeout(() => this.start(), RETRY_MS).unref();
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    // Whoever takes longer keeps the answer in memory.
    const end = setTimeout(() => response.destroy(), ANSWER_MS);
    response.once('close', () => clearTimeout(end));
    const [path] = (request.url ?? '').split('?', 1);
    if (path !== PATH) return refuse(response, 404);
    if (request.method !== 'GET') return refuse(response, 405);
    this.#fresh().then(
      (text) => response.writeHead(200, { 'content-type': CONTENT_TYPE }).end(text),
      () => refuse(response, 500),
    );
  }

  #fresh(): Promise<string> {
    const now = performance.now();
    if (this.#text === undefined || now - this.#text.atMs >= FRESH_MS) {
      this.#text = { made: this.#options.text(), atMs: now };
    }
    return this.#text.made;
  }
}

/** Without reading what else comes on the connection. */
function refuse(response: ServerResponse, status: 404 | 405 | 500): void {
  const allow = status === 405 ? { allow: 'GET' } : {};
  response.writeHead(status, { ...allow, connection: 'close', 'content-length': 0 }).end();
}
