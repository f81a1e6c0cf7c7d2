import { createReadStream } from 'node:fs';
import type { Command } from 'commander';
import { VoltError } from '#protocol/errors.ts';
import { type Span, spansOf, waterfall } from '#protocol/waterfall.ts';
import { UsageError } from '../errors.ts';
import type { Page } from '../page.ts';
import type { Shell } from '../shell.ts';

/** `trace`: the spans of one request, as a waterfall. */
export function addTraceCommand(program: Command, shell: Shell): void {
  program
    .command('trace')
    .description('show where the time of a request went, from a file of spans')
    .argument('<id>', 'trace id, request id or attachment id')
    .requiredOption(
      '--file <file>',
      'OTLP as lines of JSON, as a Collector writes; - for standard input',
    )
    .option('--all', 'every trace with that id; without it the last one')
    .addHelpText(
      'after',
      `
Examples:
  $ voltnet trace web --file /var/lib/otelcol/volt-traces.jsonl
  $ voltnet trace 4bf92f3577b34da6a3ce929d0e0e4736 --file traces.jsonl
  $ zcat traces.jsonl.gz | voltnet trace web --all --file -

Each row is a span: its name below that of its parent, a bar where it lies in time, how long it
took. The Collector of deploy/observability writes such a file.`,
    )
    .action(async (id: string, flags: { file: string; all?: boolean }) => {
      const traces = tracesOf(await readSpans(flags.file), id);
      const shown = flags.all === true ? traces : traces.slice(-1);
      if (shown.length === 0) {
        throw new VoltError('NOT_FOUND', `${flags.file} has no span of ${id}`);
      }
      const output = shell.output();
      const width = Number(shell.env['COLUMNS'] ?? 0) || DEFAULT_WIDTH;
      output.result(
        { traces: shown.map((spans) => ({ traceId: spans[0]?.traceId, spans: spans.map(json) })) },
        (): Page => shown.flatMap((spans) => ['', ...page(spans, width)]).slice(1),
      );
    });
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
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`--file: cannot read ${file}: ${reason}`, { cause });
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
    traceId === id ||
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
