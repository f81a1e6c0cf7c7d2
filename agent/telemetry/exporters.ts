import { diag } from '@opentelemetry/api';
import {
  ConsoleMetricExporter,
  type MetricProducer,
  type MetricReader,
  PeriodicExportingMetricReader,
  type PushMetricExporter,
} from '@opentelemetry/sdk-metrics';
import { type MetricExporter, positive } from './telemetry.ts';

// Defaults of the OpenTelemetry specification.
const INTERVAL_MS = 60_000;
const TIMEOUT_MS = 30_000;

/** Sends metrics on its own, every OTEL_METRIC_EXPORT_INTERVAL ms. */
export async function pushingReader(
  name: MetricExporter,
  env: NodeJS.ProcessEnv,
  producer: MetricProducer,
): Promise<MetricReader> {
  const exportIntervalMillis = positive(env['OTEL_METRIC_EXPORT_INTERVAL']) ?? INTERVAL_MS;
  const timeoutMs = positive(env['OTEL_METRIC_EXPORT_TIMEOUT']) ?? TIMEOUT_MS;
  return new PeriodicExportingMetricReader({
    exporter: name === 'otlp' ? await otlpExporter(env) : new ConsoleMetricExporter(),
    exportIntervalMillis,
    exportTimeoutMillis: Math.min(timeoutMs, exportIntervalMillis),
    metricProducers: [producer],
  });
}

/** The exporters read their other settings (address, headers, TLS, compression) in the environment themselves. */
async function otlpExporter(env: NodeJS.ProcessEnv): Promise<PushMetricExporter> {
  const given = env['OTEL_EXPORTER_OTLP_METRICS_PROTOCOL'] ?? env['OTEL_EXPORTER_OTLP_PROTOCOL'];
  const protocol = given?.trim();
  const { OTLPMetricExporter } =
    protocol === 'grpc'
      ? await import('@opentelemetry/exporter-metrics-otlp-grpc')
      : protocol === 'http/json'
        ? await import('@opentelemetry/exporter-metrics-otlp-http')
        : await import('@opentelemetry/exporter-metrics-otlp-proto');
  return new OTLPMetricExporter();
}

/** Metrics for whoever asks: `text` collects them, in Prometheus's text format. Each has the host's name as a label. */
export async function pulledReader(
  producer: MetricProducer,
): Promise<{ readonly reader: MetricReader; readonly text: () => Promise<string> }> {
  const { PrometheusExporter, PrometheusSerializer } =
    await import('@opentelemetry/exporter-prometheus');
  // Its own server would answer whatever it is asked, to as many as ask.
  const reader = new PrometheusExporter({ preventServerStart: true, metricProducers: [producer] });
  const serializer = new PrometheusSerializer('', false, /^host\.name$/, false, true);
  return {
    reader,
    text: async () => {
      const { resourceMetrics, errors } = await reader.collect();
      if (errors.length > 0) diag.error('some metrics could not be collected:', ...errors);
      return serializer.serialize(resourceMetrics);
    },
  };
}
