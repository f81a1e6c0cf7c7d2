import type { NetworkUsage } from '#ipam-store/ledger.ts';
import type { Config } from '../config.ts';
import type { Log } from '../log.ts';
import { withDeadline } from '../schedule/id-lock.ts';
import type { PoolsOptions } from './pools.ts';
import type { Reading } from './readings.ts';

export interface Telemetry {
  /** Why nobody can ask for metrics on `metrics.listen`; undefined if they can, or need not. */
  readonly problem: string | undefined;
  /** There is an agent: its state is told from now on. */
  observe(source: Source): void;
  /** Exports what is buffered; rejects if that fails, or takes more than three seconds. */
  shutdown(): Promise<void>;
}

/** What metrics of the agent's state are made of. */
export interface Source extends Pick<PoolsOptions, 'ledger' | 'networks'> {
  readonly readings: (pools: ReadonlyMap<string, NetworkUsage>) => readonly Reading[];
}

export interface TelemetryOptions {
  /** The process's own environment: the SDK reads its settings there, so defaults are put there. */
  readonly env: NodeJS.ProcessEnv;
  readonly config: Config['metrics'];
  readonly host: string;
  readonly version: string;
  readonly log: Log;
}

const LAST_EXPORT_MS = 3_000;
const OFF: Telemetry = { problem: undefined, observe: () => {}, shutdown: async () => {} };

/**
 * Starts to export traces and metrics when the standard OpenTelemetry variables name an exporter, and to serve metrics when
 * `metrics.listen` is given; `OTEL_SDK_DISABLED` forbids all of it. Only the libraries that are needed are loaded, and without
 * any of it none: traces over OTLP and HTTP cost 0.2 s and 13 MiB, metrics for Prometheus 0.3 s and 28 MiB.
 */
export async function startTelemetry(options: TelemetryOptions): Promise<Telemetry> {
  const { env, config, log } = options;
  if (env['OTEL_SDK_DISABLED']?.trim().toLowerCase() === 'true') return OFF;
  const exporters = metricExporters(env, log);
  const wantsMetrics = exporters.length > 0 || config.listen !== null;
  const wantsTraces = exportsTraces(env);
  if (!wantsMetrics && !wantsTraces) return OFF;
  const { reportTo } = await import('./diagnostics.ts');
  reportTo(log, env);
  const { describeAgent } = await import('./resource.ts');
  describeAgent(options);
  const traces = wantsTraces ? await (await import('./traces.ts')).startTraces(env) : undefined;
  const metrics = wantsMetrics
    ? await (await import('./metrics.ts')).startMetrics({ ...options, exporters })
    : undefined;
  return {
    get problem() {
      return metrics?.problem;
    },
    observe: (source) => metrics?.observe(source),
    shutdown: async () => {
      const exported = Promise.all([traces?.shutdown(), metrics?.shutdown()]);
      // The next agent waits for the end of this one; exporters try for eight seconds.
      await withDeadline(exported, performance.now() + LAST_EXPORT_MS, () => {
        return new Error(`no collector took them within ${LAST_EXPORT_MS} ms`);
      });
    },
  };
}

const isGiven = (env: NodeJS.ProcessEnv, ...names: readonly string[]): boolean =>
  names.some((name) => (env[name] ?? '').trim() !== '');

function exportsTraces(env: NodeJS.ProcessEnv): boolean {
  if (namesIn(env['OTEL_TRACES_EXPORTER']).includes('none')) return false;
  return isGiven(
    env,
    'OTEL_EXPORTER_OTLP_ENDPOINT',
    'OTEL_EXPORTER_OTLP_TRACES_ENDPOINT',
    'OTEL_TRACES_EXPORTER',
  );
}

const METRIC_EXPORTERS = ['otlp', 'console'] as const;
export type MetricExporter = (typeof METRIC_EXPORTERS)[number];

/** Those that push. The configuration has made an address to listen on of `prometheus` (`config.ts`). */
function metricExporters(env: NodeJS.ProcessEnv, log: Log): readonly MetricExporter[] {
  const named = namesIn(env['OTEL_METRICS_EXPORTER']);
  if (named.includes('none')) return [];
  if (named.length === 0) {
    const endpoints = ['OTEL_EXPORTER_OTLP_ENDPOINT', 'OTEL_EXPORTER_OTLP_METRICS_ENDPOINT'];
    return isGiven(env, ...endpoints) ? ['otlp'] : [];
  }
  for (const name of named) {
    if (name === 'prometheus' || METRIC_EXPORTERS.some((one) => one === name)) continue;
    log.warn({ exporter: name }, 'OTEL_METRICS_EXPORTER: there is no such exporter of metrics');
  }
  return METRIC_EXPORTERS.filter((name) => named.includes(name));
}

/** The names in a variable of OpenTelemetry that holds a list, each once. */
export const namesIn = (list: string | undefined): readonly string[] => [
  ...new Set((list ?? '').split(',').flatMap((name) => name.trim() || [])),
];

/** Node makes one millisecond of what a timer cannot hold. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** The number in a variable; undefined, for the default, where there is none above zero. */
export function positive(text: string | undefined): number | undefined {
  const number = Number(text);
  return number > 0 ? Math.min(number, LONGEST_TIMER_MS) : undefined;
}
