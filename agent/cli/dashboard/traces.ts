import { open } from 'node:fs/promises';
import { fileProblem } from '#protocol/file-problem.ts';
import { UsageError } from '../errors.ts';
import { isRecord } from '../settings.ts';

export interface Span {
  readonly spanId: string;
  readonly parentId: string;
  readonly name: string;
  readonly service: string;
  /** From the beginning of the trace. */
  readonly startMs: number;
  readonly durationMs: number;
  /** What went wrong; '' where nothing did. */
  readonly error: string;
}

/** What of the end of a file is looked through, and how much is shown. */
const MOST_BYTES = 256 * 1024 * 1024;
const MOST_SPANS = 1_000;
const MOST_CHARACTERS = 512;
const ERROR_STATUS = new Set<unknown>([2, 'STATUS_CODE_ERROR']);

/**
 * Spans in a file of OTLP as JSON, a line for each export, as the OpenTelemetry Collector's file exporter writes it
 * (opentelemetry-proto, "JSON Protobuf Encoding": ids in hex, times in nanoseconds as text).
 */
export class Traces {
  readonly #file: string;
  #reading: Promise<unknown> = Promise.resolve();

  private constructor(file: string) {
    this.#file = file;
  }

  /** Throws UsageError for a file that cannot be read now. */
  static async of(file: string): Promise<Traces> {
    try {
      await using opened = await open(file);
      const found = await opened.stat();
      // A folder is opened all the same, and only reading it fails.
      if (found.isDirectory()) await opened.readFile();
      if (!found.isFile()) throw new Error('it is no file');
    } catch (cause) {
      throw new UsageError(`--traces ${file}: ${fileProblem(cause)}`, { cause });
    }
    return new Traces(file);
  }

  /** The spans of a trace, by their beginnings. One file is read at a time, whoever asks. */
  async trace(traceId: string): Promise<Span[]> {
    const reading = this.#reading.then(() => this.#read(traceId));
    this.#reading = reading.catch(() => {});
    return reading;
  }

  async #read(traceId: string): Promise<Span[]> {
    await using file = await open(this.#file);
    const { size } = await file.stat();
    const found: RawSpan[] = [];
    // The first line may begin in the middle: it is no JSON then, and passed over.
    const lines = file.readLines({ start: Math.max(0, size - MOST_BYTES), autoClose: false });
    for await (const line of lines) {
      if (line.includes(traceId)) found.push(...spansIn(line, traceId));
      if (found.length >= MOST_SPANS) break;
    }
    const begin = found.reduce((least, { start }) => (start < least ? start : least), LATEST);
    return found
      .map(({ start, end, ...span }) => ({
        ...span,
        startMs: Number(start - begin) / 1e6,
        durationMs: Math.max(0, Number(end - start) / 1e6),
      }))
      .toSorted((a, b) => a.startMs - b.startMs || b.durationMs - a.durationMs)
      .slice(0, MOST_SPANS);
  }
}

/** Nanoseconds since 1970 have more digits than a number holds. */
const LATEST = 2n ** 64n;

interface RawSpan extends Omit<Span, 'startMs' | 'durationMs'> {
  readonly start: bigint;
  readonly end: bigint;
}

function spansIn(line: string, traceId: string): RawSpan[] {
  let exported: unknown;
  try {
    exported = JSON.parse(line);
  } catch {
    return [];
  }
  return list(exported, 'resourceSpans').flatMap((resourceSpans) => {
    const service = serviceOf(resourceSpans['resource']);
    return list(resourceSpans, 'scopeSpans')
      .flatMap((scopeSpans) => list(scopeSpans, 'spans'))
      .filter((span) => text(span['traceId']).toLowerCase() === traceId)
      .map((span) => spanOf(span, service));
  });
}

function spanOf(span: Readonly<Record<string, unknown>>, service: string): RawSpan {
  const status = isRecord(span['status']) ? span['status'] : {};
  const isError = ERROR_STATUS.has(status['code']);
  return {
    spanId: text(span['spanId']),
    parentId: text(span['parentSpanId']),
    name: text(span['name']),
    service,
    start: nanoseconds(span['startTimeUnixNano']),
    end: nanoseconds(span['endTimeUnixNano']),
    error: isError ? text(status['message']) || 'error' : '',
  };
}

function serviceOf(resource: unknown): string {
  const attributes = list(resource, 'attributes');
  const valueOf = (key: string): string => {
    const value = attributes.find((one) => one['key'] === key)?.['value'];
    return isRecord(value) ? text(value['stringValue']) : '';
  };
  return [valueOf('service.name'), valueOf('host.name')].filter((one) => one !== '').join(' on ');
}

const list = (parent: unknown, key: string): Record<string, unknown>[] => {
  const value = isRecord(parent) ? parent[key] : undefined;
  return Array.isArray(value) ? value.filter(isRecord) : [];
};

const text = (value: unknown): string =>
  typeof value === 'string' ? value.slice(0, MOST_CHARACTERS) : '';

const nanoseconds = (value: unknown): bigint =>
  (typeof value === 'string' || typeof value === 'number') && /^\d{1,20}$/.test(String(value))
    ? BigInt(value)
    : 0n;
