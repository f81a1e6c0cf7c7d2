import { createServer, type Server } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Span, spansOf } from '#protocol/waterfall.ts';

const QUIET_MS = 400;

/** Takes spans as an OpenTelemetry collector does: OTLP over HTTP, JSON, on a free port of loopback. */
export class TraceReceiver implements AsyncDisposable {
  readonly #server: Server;
  readonly #spans: Span[] = [];
  #url = '';
  #lastAt = performance.now();

  private constructor() {
    this.#server = createServer((request, response) => {
      const chunks: Buffer[] = [];
      request.on('data', (chunk: Buffer) => chunks.push(chunk));
      request.on('end', () => {
        if (request.url === '/v1/traces') this.#take(Buffer.concat(chunks).toString('utf8'));
        response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
      });
    });
  }

  static async start(): Promise<TraceReceiver> {
    const receiver = new TraceReceiver();
    await new Promise<void>((resolve) => {
      receiver.#server.listen(0, '127.0.0.1', resolve);
    });
    const address = receiver.#server.address();
    if (address === null || typeof address === 'string') throw new Error('no port to listen on');
    receiver.#url = `http://127.0.0.1:${address.port}`;
    return receiver;
  }

  /** For OTEL_EXPORTER_OTLP_ENDPOINT. */
  get url(): string {
    return this.#url;
  }

  /**
   * The spans of a trace, once one of that name is among them and no more have come for a while. Throws
   * when the span does not come within `timeoutMs`.
   */
  async trace(traceId: string, lastSpan: string, timeoutMs: number): Promise<Span[]> {
    const end = performance.now() + timeoutMs;
    for (;;) {
      const spans = this.#spans.filter((span) => span.traceId === traceId);
      const complete = spans.some(({ name }) => name === lastSpan);
      if (complete && performance.now() - this.#lastAt > QUIET_MS) return spans;
      if (performance.now() > end) {
        throw new Error(`span "${lastSpan}" did not come within ${timeoutMs} ms`);
      }
      await sleep(50);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
  }

  #take(text: string): void {
    this.#spans.push(...spansOf(JSON.parse(text)));
    this.#lastAt = performance.now();
  }
}
