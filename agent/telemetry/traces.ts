import { AsyncLocalStorage } from 'node:async_hooks';
import { type TracingChannel, tracingChannel } from 'node:diagnostics_channel';
import {
  type HrTime,
  type Link,
  propagation,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  type SpanOptions,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api';
import { KERNEL_CHANNEL, type KernelOperation } from '#native/trace.ts';
import { redacted } from '#protocol/secrets.ts';
import { startTracer, type Tracing } from './tracer.ts';
import { REQUEST_CHANNEL, type RequestTrace, STEP_CHANNEL, type StepTrace } from '../trace.ts';

// The other files publish what they do on diagnostics channels; this one makes spans of it. The parent of
// a span is the innermost channel event under way, carried by an AsyncLocalStorage of our own that the
// channels bind, so no context manager is needed.
const current = new AsyncLocalStorage<Span>();

/** Starts to export traces as the environment says. */
export async function startTraces(env: NodeJS.ProcessEnv): Promise<Tracing> {
  // The batch processor drops spans beyond its queue without a word; 2,048 is 150 attaches.
  env['OTEL_BSP_MAX_QUEUE_SIZE'] ||= '65536';
  // Without this the SDK may start an exporter of logs.
  env['OTEL_LOGS_EXPORTER'] ||= 'none';
  const tracing = await startTracer(env);
  subscribe();
  return tracing;
}

function subscribe(): void {
  spansOf(tracingChannel<Span, RequestTrace>(REQUEST_CHANNEL), (request) => ({
    name: request.name,
    options: {
      kind: KINDS[request.role],
      attributes: request.attributes,
      links: linksOf(request.links),
    },
    late: request.attributes,
    remote: request,
  }));
  spansOf(tracingChannel<Span, StepTrace>(STEP_CHANNEL), (step) => ({
    name: step.name,
    options: {},
  }));
  spansOf(tracingChannel<Span, KernelOperation>(KERNEL_CHANNEL), ({ operation, subject }) => ({
    name: `${operation} ${subject}`,
    options: { attributes: { 'volt.kernel.operation': operation, 'volt.kernel.subject': subject } },
  }));
  spansOf(tracingChannel<Span, RedisCommand>('ioredis:command'), (command) => ({
    name: `redis ${command.command}`,
    options: {
      kind: SpanKind.CLIENT,
      attributes: { 'db.system.name': 'redis', 'server.address': command.serverAddress },
    },
    // The client's own pings and handshakes belong to no request: they would be traces of one span.
    onlyInside: true,
  }));
}

const KINDS: Readonly<Record<RequestTrace['role'], SpanKind>> = {
  server: SpanKind.SERVER,
  consumer: SpanKind.CONSUMER,
  producer: SpanKind.PRODUCER,
  internal: SpanKind.INTERNAL,
};

const linksOf = (traceparents: readonly string[] = []): Link[] =>
  traceparents.flatMap((traceparent) => {
    const context = trace.getSpanContext(propagation.extract(ROOT_CONTEXT, { traceparent }));
    return context === undefined ? [] : [{ context }];
  });

/** What ioredis says of a command; the arguments are left out on purpose. */
interface RedisCommand {
  readonly command: string;
  readonly serverAddress: string;
}

interface SpanShape {
  readonly name: string;
  readonly options: SpanOptions;
  /** Attributes that may have come while the span lasted. */
  readonly late?: RequestTrace['attributes'];
  /** Trace context from outside, taken as the parent and replaced by the new span's. */
  readonly remote?: RequestTrace;
  readonly onlyInside?: boolean;
}

function spansOf<Message extends object>(
  channel: TracingChannel<Span, Message>,
  shapeOf: (message: Message) => SpanShape,
): void {
  const tracer = trace.getTracer('volt-network');
  const spans = new WeakMap<object, Span>();
  const finish = (message: Message): void => {
    const span = spans.get(message);
    const { late } = shapeOf(message);
    if (late !== undefined) span?.setAttributes(late);
    span?.end(clock.now());
    spans.delete(message);
  };

  channel.start.bindStore(current, (message): Span => {
    const { name, options, remote, onlyInside } = shapeOf(message);
    const outer = current.getStore();
    if (onlyInside === true && outer === undefined) return trace.wrapSpanContext(NO_SPAN);
    let parent = ROOT_CONTEXT;
    if (remote?.traceparent !== undefined) parent = propagation.extract(ROOT_CONTEXT, remote);
    else if (outer !== undefined) parent = trace.setSpan(ROOT_CONTEXT, outer);
    const span = tracer.startSpan(name, { ...options, startTime: clock.now() }, parent);
    if (remote !== undefined) propagation.inject(trace.setSpan(ROOT_CONTEXT, span), remote);
    spans.set(message, span);
    return span;
  });
  channel.subscribe({
    start: () => {},
    // `end` closes a synchronous operation; of an asynchronous one it is the end of the first stretch
    // only, which a message without `result` or `error` tells apart.
    end: (message) => {
      if ('result' in message || 'error' in message) finish(message);
    },
    asyncStart: () => {},
    asyncEnd: (message) => finish(message),
    error: (message) => {
      const error = message.error;
      const span = spans.get(message);
      const text = redacted(error instanceof Error ? error.message : String(error));
      span?.setStatus({ code: SpanStatusCode.ERROR, message: text });
      if (!(error instanceof Error)) return;
      const { name, stack } = error;
      span?.recordException({ name, message: text, ...(stack && { stack: redacted(stack) }) });
    },
  });
}

/**
 * One clock for all spans. By itself the SDK rounds each start to a millisecond, and parts would begin before the whole or
 * end after it.
 */
const clock = {
  /** Between the clock of the system and one that never jumps, in milliseconds. */
  offset: Date.now() - performance.now(),
  now(): HrTime {
    const steady = performance.now();
    // Somebody has set the system's clock, or it has drifted.
    if (Math.abs(Date.now() - (steady + this.offset)) > MOST_DRIFT_MS) {
      this.offset = Date.now() - steady;
    }
    const ms = steady + this.offset;
    return [Math.floor(ms / 1_000), Math.floor((ms % 1_000) * 1e6)];
  },
};
const MOST_DRIFT_MS = 20;

const NO_SPAN = { traceId: '0'.repeat(32), spanId: '0'.repeat(16), traceFlags: 0 };
