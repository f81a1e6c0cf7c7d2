import { tracingChannel } from 'node:diagnostics_channel';
import {
  type Counter,
  type Histogram,
  type HrTime,
  type MetricOptions,
  ValueType,
} from '@opentelemetry/api';
import { defaultResource, detectResources, envDetector } from '@opentelemetry/resources';
import {
  AggregationTemporality,
  type CollectionResult,
  type DataPoint,
  DataPointType,
  MeterProvider,
  type MetricData,
  type MetricProducer,
  type MetricReader,
} from '@opentelemetry/sdk-metrics';
import { isKernelError } from '#native/errors.ts';
import { KERNEL_CHANNEL, type KernelOperation } from '#native/trace.ts';
import { answers, OPERATIONS, phases, repairs } from '../measure.ts';
import {
  instrumentName,
  type LabelsOf,
  type ReadName,
  READ,
  RECORDED,
  type RecordedName,
  unitOf,
} from './metrics-table.ts';
import { pulledReader, pushingReader } from './exporters.ts';
import { MetricsServer } from './metrics-server.ts';
import { Pools } from './pools.ts';
import type { Reading } from './readings.ts';
import type { MetricExporter, Source, TelemetryOptions } from './telemetry.ts';

const SCOPE = 'volt-network';
const LAG_SAMPLE_MS = 100;

export interface Metrics {
  readonly problem: string | undefined;
  observe(source: Source): void;
  shutdown(): Promise<void>;
}

/** Starts to record, and to push to `exporters`. Serves `config.listen` once there is an agent to observe. */
export async function startMetrics({
  env,
  config,
  exporters,
  log,
}: TelemetryOptions & { readonly exporters: readonly MetricExporter[] }): Promise<Metrics> {
  const producer = new StateProducer();
  const readers: MetricReader[] = [];
  for (const name of exporters) readers.push(await pushingReader(name, env, producer));
  let server: MetricsServer | undefined;
  if (config.listen !== null) {
    const { text, reader } = await pulledReader(producer);
    readers.push(reader);
    server = new MetricsServer({ listen: config.listen, text });
  }
  const provider = recordInto(readers);
  let pools: Pools | undefined;
  return {
    get problem() {
      return server?.problem;
    },
    observe: (source) => {
      const started = new Pools({ ...source, periodSeconds: config.poolSeconds, log });
      pools = started;
      producer.readings = () => source.readings(started.usage);
      started.start();
      server?.start();
    },
    shutdown: async () => {
      pools?.stop();
      server?.stop();
      await provider.shutdown();
    },
  };
}

/**
 * The state of the agent as metrics, made anew for each collection. It is no set of observable instruments: their SDK goes on
 * to report a point that is observed no more (a network without attachments), with its last value.
 */
class StateProducer implements MetricProducer {
  readonly #startTime = hrTime();
  /** Undefined until there is an agent. */
  readings: (() => readonly Reading[]) | undefined;

  collect(): Promise<CollectionResult> {
    const resource = defaultResource();
    try {
      const scopeMetrics = [{ scope: { name: SCOPE }, metrics: this.#metrics() }];
      return Promise.resolve({ resourceMetrics: { resource, scopeMetrics }, errors: [] });
    } catch (error) {
      return Promise.resolve({
        resourceMetrics: { resource, scopeMetrics: [] },
        errors: [error],
      });
    }
  }

  #metrics(): MetricData[] {
    const startTime = this.#startTime;
    const endTime = hrTime();
    const points = new Map<ReadName, DataPoint<number>[]>();
    for (const { name, labels, value } of this.readings?.() ?? []) {
      const point = { startTime, endTime, attributes: labels, value };
      const known = points.get(name);
      if (known === undefined) points.set(name, [point]);
      else known.push(point);
    }
    return [...points].map(([name, dataPoints]) => metricOf(name, dataPoints));
  }
}

function metricOf(name: ReadName, dataPoints: DataPoint<number>[]): MetricData {
  const { kind, help: description } = READ[name];
  const metric = {
    descriptor: {
      name: instrumentName(name),
      description,
      unit: unitOf(READ[name]),
      valueType: ValueType.DOUBLE,
    },
    aggregationTemporality: AggregationTemporality.CUMULATIVE,
    dataPoints,
  };
  return kind === 'counter'
    ? { ...metric, dataPointType: DataPointType.SUM, isMonotonic: true }
    : { ...metric, dataPointType: DataPointType.GAUGE };
}

/** Seconds and nanoseconds since 1970. */
function hrTime(): HrTime {
  const ms = Date.now();
  return [Math.floor(ms / 1_000), (ms % 1_000) * 1e6];
}

/** Counts and times what happens in the agent from now on. The caller shuts the provider down. */
function recordInto(readers: MetricReader[]): MeterProvider {
  const resource = defaultResource().merge(detectResources({ detectors: [envDetector] }));
  const provider = new MeterProvider({ resource, readers });
  const instruments = instrumentsOf(provider);
  const count = <Name extends CounterName>(name: Name, labels: LabelsOf<Name>): void =>
    instruments.counters[name].add(1, labels);
  const time = <Name extends HistogramName>(name: Name, ms: number, labels: LabelsOf<Name>): void =>
    instruments.histograms[name].record(ms / 1_000, labels);

  // A counter that begins with its first error has no increase that an alert could see.
  for (const operation of OPERATIONS) {
    instruments.counters.volt_network_requests_total.add(0, { operation, code: 'INTERNAL' });
  }
  answers.hear(({ operation, code, ms }) => {
    count('volt_network_requests_total', { operation, code });
    time('volt_network_request_duration_seconds', ms, { operation });
  });
  phases.hear(({ ms, ...labels }) => {
    time('volt_network_change_duration_seconds', ms, labels);
  });
  repairs.hear((labels) => count('volt_network_reconcile_actions_total', labels));
  // Of kernel operations only those that failed: an attach has up to thirty that do not.
  tracingChannel<unknown, KernelOperation>(KERNEL_CHANNEL).subscribe({
    ...{ start: nothing, end: nothing, asyncStart: nothing, asyncEnd: nothing },
    error: ({ operation, error }) => {
      // Of several operations in one the error says which it was.
      const labels = isKernelError(error)
        ? { operation: error.operation, errno: error.code }
        : { operation, errno: 'other' };
      count('volt_network_kernel_errors_total', labels);
    },
  });
  let due = performance.now() + LAG_SAMPLE_MS;
  setInterval(() => {
    const now = performance.now();
    time('volt_network_event_loop_lag_seconds', Math.max(0, now - due), {});
    due = now + LAG_SAMPLE_MS;
  }, LAG_SAMPLE_MS).unref();
  return provider;
}

const nothing = (): void => {};

type NameOf<Kind> = {
  [Name in RecordedName]: (typeof RECORDED)[Name]['kind'] extends Kind ? Name : never;
}[RecordedName];
type CounterName = NameOf<'counter'>;
type HistogramName = NameOf<'histogram'>;

interface Instruments {
  readonly counters: Readonly<Record<CounterName, Counter>>;
  readonly histograms: Readonly<Record<HistogramName, Histogram>>;
}

function instrumentsOf(provider: MeterProvider): Instruments {
  const meter = provider.getMeter(SCOPE);
  const counter = (name: CounterName): Counter =>
    meter.createCounter(instrumentName(name), describe(RECORDED[name]));
  const histogram = (name: HistogramName): Histogram => {
    const { buckets } = RECORDED[name];
    const advice = { explicitBucketBoundaries: [...buckets] };
    return meter.createHistogram(name, { ...describe(RECORDED[name]), advice });
  };
  return {
    counters: {
      volt_network_requests_total: counter('volt_network_requests_total'),
      volt_network_reconcile_actions_total: counter('volt_network_reconcile_actions_total'),
      volt_network_kernel_errors_total: counter('volt_network_kernel_errors_total'),
    },
    histograms: {
      volt_network_request_duration_seconds: histogram('volt_network_request_duration_seconds'),
      volt_network_change_duration_seconds: histogram('volt_network_change_duration_seconds'),
      volt_network_event_loop_lag_seconds: histogram('volt_network_event_loop_lag_seconds'),
    },
  };
}

const describe = (kind: (typeof RECORDED)[RecordedName]): MetricOptions => ({
  description: kind.help,
  unit: unitOf(kind),
});
