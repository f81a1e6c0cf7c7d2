import { propagation, trace } from '@opentelemetry/api';
import { positive } from './telemetry.ts';

export interface Tracing {
  shutdown(): Promise<void>;
}

/**
 * Starts the tracing SDK as OpenTelemetry's variables say. `sdk-node` knows all of these, and loads for that every
 * exporter there is, gRPC and the SDK of logs: 15 MiB and 0.2 s of CPU more than OTLP over HTTP needs, which nearly every
 * agent is given. That is put together here, of the parts and with the defaults that `sdk-node` has for it. Whatever
 * else a variable asks for is left to `sdk-node`.
 */
export async function startTracer(env: NodeJS.ProcessEnv): Promise<Tracing> {
  const exporter = asksForMore(env) ? undefined : await httpExporter(env);
  return exporter === undefined ? startWhole() : startParts(env, exporter);
}

async function startWhole(): Promise<Tracing> {
  const { NodeSDK } = await import('@opentelemetry/sdk-node');
  // Metrics are made by metrics.ts.
  const sdk = new NodeSDK({ instrumentations: [], metricReaders: [] });
  sdk.start();
  return sdk;
}

/** Variables whose meaning the parts have, or that are not about traces. */
const KNOWN =
  /^OTEL_(?:BSP_|EXPORTER_OTLP_|EXPORTER_PROMETHEUS_|METRIC|LOG|SDK_DISABLED$|SERVICE_NAME$|RESOURCE_ATTRIBUTES$)/;

/** Another exporter, a sampler, propagators, limits, detectors, a file of configuration. */
const asksForMore = (env: NodeJS.ProcessEnv): boolean =>
  Object.entries(env).some(([name, value = '']) => {
    if (!name.startsWith('OTEL_') || KNOWN.test(name) || value.trim() === '') return false;
    return name !== 'OTEL_TRACES_EXPORTER' || value.trim() !== 'otlp';
  });

/** It reads address, headers, TLS and compression in the environment itself. */
async function httpExporter(env: NodeJS.ProcessEnv) {
  const given = env['OTEL_EXPORTER_OTLP_TRACES_PROTOCOL'] ?? env['OTEL_EXPORTER_OTLP_PROTOCOL'];
  switch (given?.trim() || 'http/protobuf') {
    case 'http/protobuf': {
      const { OTLPTraceExporter } = await import('@opentelemetry/exporter-trace-otlp-proto');
      return new OTLPTraceExporter();
    }
    case 'http/json': {
      const { OTLPTraceExporter } = await import('@opentelemetry/exporter-trace-otlp-http');
      return new OTLPTraceExporter();
    }
    default:
      return undefined;
  }
}

async function startParts(
  env: NodeJS.ProcessEnv,
  exporter: NonNullable<Awaited<ReturnType<typeof httpExporter>>>,
): Promise<Tracing> {
  const { BatchSpanProcessor, TracerProvider } = await import('@opentelemetry/sdk-trace');
  const { W3CTraceContextPropagator } = await import('@opentelemetry/core');
  const resources = await import('@opentelemetry/resources');
  const found = resources.detectResources({
    detectors: [
      resources.serviceInstanceIdDetector,
      resources.processDetector,
      resources.hostDetector,
      resources.osDetector,
      resources.envDetector,
    ],
  });
  const provider = new TracerProvider({
    resource: resources.defaultResource().merge(found),
    spanProcessors: [new BatchSpanProcessor({ exporter, ...batchOptions(env) })],
  });
  trace.setGlobalTracerProvider(provider);
  propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  return provider;
}

const BATCH_VARIABLES = {
  maxQueueSize: 'OTEL_BSP_MAX_QUEUE_SIZE',
  scheduledDelayMillis: 'OTEL_BSP_SCHEDULE_DELAY',
  exportTimeoutMillis: 'OTEL_BSP_EXPORT_TIMEOUT',
  maxExportBatchSize: 'OTEL_BSP_MAX_EXPORT_BATCH_SIZE',
} as const;

const batchOptions = (
  env: NodeJS.ProcessEnv,
): Partial<Record<keyof typeof BATCH_VARIABLES, number>> =>
  Object.fromEntries(
    Object.entries(BATCH_VARIABLES).flatMap(([key, name]) => {
      const value = positive(env[name]);
      return value === undefined ? [] : [[key, value]];
    }),
  );
