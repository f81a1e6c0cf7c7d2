import { createReadStream } from 'node:fs';
import type { Command } from 'commander';
import { VoltError } from '#protocol/errors.ts';
import { fileProblem } from '#protocol/file-problem.ts';
import { type Span, spansOf, waterfall } from '#protocol/waterfall.ts';
import { UsageError } from '../errors.ts';
import type { Page } from '../page.ts';
import type { Shell } from '../shell.ts';
import { storedSpans, type StoreName } from '../trace-stores.ts';
import { timeOf } from '../units.ts';

interface TraceFlags {
  readonly file?: string;
  readonly tempo?: string;
  readonly jaeger?: string;
  readonly headers?: string;
  readonly since: string;
  readonly all?: boolean;
}

/** `trace`: the spans of one request, as a waterfall. */
export function addTraceCommand(program: Command, shell: Shell): void {
  program
    .command('trace')
    .description('show where the time of a request went, from a file or a store of spans')
    .argument('<id>', 'trace id, request id or attachment id')
    .option('--file <file>', 'OTLP as lines of JSON, as a Collector writes; - for standard input')
    .option('--tempo <url>', 'ask Grafana Tempo, as http://tempo:3200')
    .option('--jaeger <url>', 'ask Jaeger, as http://jaeger:16686')
    .option('--headers <file>', 'lines of "name: value" for the store, as Authorization')
    .option('--since <time>', 'how far back a store looks for an attachment or request', '24h')
    .option('--all', 'every trace with that id; without it the last one')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet trace web --file /var/lib/otelcol/volt-traces.jsonl
  $ voltnet trace 4bf92f3577b34da6a3ce929d0e0e4736 --file traces.jsonl
  $ zcat traces.jsonl.gz | voltnet trace web --all --file -

  From a store
  $ voltnet trace web --tempo http://tempo:3200 --since 2h
  $ voltnet trace web --jaeger https://jaeger.example/ui --headers token.txt

Each row is a span: its name below that of its parent, a bar where it lies in time, how long it
took. The Collector of deploy/observability writes such a file.`,
    )
    .action(async (id: string, flags: TraceFlags) => {
      const [origin, spans] = await spansFrom(shell, id, flags);
      const traces = tracesOf(spans, id);
      const shown = flags.all === true ? traces : traces.slice(-1);
      if (shown.length === 0) throw new VoltError('NOT_FOUND', `${origin} has no span of ${id}`);
      const output = shell.output();
      const width = Number(shell.env['COLUMNS'] ?? 0) || DEFAULT_WIDTH;
      output.result(
        { traces: shown.map((one) => ({ traceId: one[0]?.traceId, spans: one.map(json) })) },
        (): Page => shown.flatMap((one) => ['', ...page(one, width)]).slice(1),
      );
    });
}

/** Where they are from, and the spans. */
async function spansFrom(
  shell: Shell,
  id: string,
  { file, tempo, jaeger, ...flags }: TraceFlags,
): Promise<[origin: string, spans: Span[]]> {
  if ([file, tempo, jaeger].filter((one) => one !== undefined).length !== 1) {
    throw new UsageError('give one of --file, --tempo and --jaeger');
  }
  if (file !== undefined) return [file, await readSpans(file)];
  const [name, url]: [StoreName, string] =
    tempo === undefined ? ['jaeger', jaeger ?? ''] : ['tempo', tempo];
  const { timeoutMs } = shell.settings();
  const since = timeOf(flags.since);
  return [url, await storedSpans(name, id, { url, headersFile: flags.headers, since, timeoutMs })];
}

const DEFAULT_WIDTH = 120;

/** Lines that are no spans, logs and metrics of the same Collector for instance, are passed over. */
async function readSpans(file: string): Promise<Span[]> {
  const spans: Span[] = [];
  let rest = '';
  try {
    const input = createReadStream(file === '-' ? '' : file, {
      encoding: 'utf8',
      ...(file === '-' && { fd: 0 }),
    });
    for await (const chunk of input) {
      const lines = `${rest}${String(chunk)}`.split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) spans.push(...spansIn(line));
    }
  } catch (cause) {
    throw new UsageError(`--file: cannot read ${file}: ${fileProblem(cause)}`, { cause });
  }
  return [...spans, ...spansIn(rest)];
}

function spansIn(line: string): Span[] {
  try {
    return spansOf(JSON.parse(line));
  } catch {
    return [];
  }
}

/** The traces that have a span of this id, in the order of their time. */
function tracesOf(spans: readonly Span[], id: string): Span[][] {
  const isNamed = ({ traceId, attributes }: Span): boolean =>
    traceId === id.toLowerCase() ||
    attributes['volt.attachment.id'] === id ||
    attributes['volt.request.id'] === id;
  const wanted = new Set(spans.filter(isNamed).map(({ traceId }) => traceId));
  const byTrace = Map.groupBy(
    spans.filter(({ traceId }) => wanted.has(traceId)),
    ({ traceId }) => traceId,
  );
  return [...byTrace.values()].toSorted((one, other) => (startOf(one) < startOf(other) ? -1 : 1));
}

const startOf = (trace: readonly Span[]): bigint =>
  trace.reduce((first, { start }) => (start < first ? start : first), trace[0]?.start ?? 0n);

const page = (spans: readonly Span[], width: number): Page => [
  `trace ${spans[0]?.traceId ?? ''}`,
  ...waterfall(spans, { width }),
];

/** Times in nanoseconds are beyond what a number holds. */
const json = ({ start, end, ...span }: Span) => ({
  ...span,
  start: String(start),
  end: String(end),
});
