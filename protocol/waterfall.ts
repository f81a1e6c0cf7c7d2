/** One span as it came over OTLP. Times in nanoseconds since 1970. */
export interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly start: bigint;
  readonly end: bigint;
  readonly failed: boolean;
  readonly attributes: Readonly<Record<string, string>>;
}

const BAR = '━';
const NAME_WIDTH = 46;
const DURATION_WIDTH = 10;

/**
 * A trace as rows: the tree of names, a bar where each span lies in time, and how long it took. The axis is
 * that of the first span named `within`, or of the first one, and all below it; a span that lies around it fills its row.
 */
export function waterfall(
  spans: readonly Span[],
  options: { readonly within?: string; readonly width: number },
): string[] {
  const rows = inTreeOrder(spans);
  const axis = extent(rows, options.within);
  const barWidth = Math.max(10, options.width - NAME_WIDTH - DURATION_WIDTH - 4);
  const scale = (time: bigint): number => {
    const share = Number(time - axis.start) / Math.max(1, Number(axis.end - axis.start));
    return Math.min(1, Math.max(0, share)) * barWidth;
  };
  return rows.map(({ span, depth }) => {
    const from = Math.min(barWidth - 1, Math.floor(scale(span.start)));
    const to = Math.max(from + 1, Math.ceil(scale(span.end)));
    const bar = ' '.repeat(from) + BAR.repeat(to - from);
    const name = fitted(`${'  '.repeat(depth)}${span.name}${span.failed ? ' (failed)' : ''}`);
    return `${name}  ${bar.padEnd(barWidth)}  ${milliseconds(span).padStart(DURATION_WIDTH)}`;
  });
}

interface Row {
  readonly span: Span;
  readonly depth: number;
}

/** Parents before their children, children by start; a span whose parent is missing stands at the top. */
function inTreeOrder(spans: readonly Span[]): Row[] {
  const known = new Set(spans.map(({ spanId }) => spanId));
  const byStart = spans.toSorted((a, b) => (a.start < b.start ? -1 : a.start > b.start ? 1 : 0));
  const childrenOf = (parent: string | undefined): Span[] =>
    byStart.filter(({ parentSpanId }) =>
      parent === undefined
        ? parentSpanId === undefined || !known.has(parentSpanId)
        : parentSpanId === parent,
    );
  const rows: Row[] = [];
  const add = (parent: string | undefined, depth: number): void => {
    for (const span of childrenOf(parent)) {
      rows.push({ span, depth });
      add(span.spanId, depth + 1);
    }
  };
  add(undefined, 0);
  return rows;
}

/** From the start of the named span to the end of the last one at or below it. */
function extent(rows: readonly Row[], name: string | undefined): { start: bigint; end: bigint } {
  const first = rows.findIndex(({ span }) => span.name === name);
  const top = rows[first] ?? rows[0];
  if (top === undefined) return { start: 0n, end: 1n };
  let { start, end } = top.span;
  for (const { span, depth } of rows.slice(first + 1)) {
    if (depth <= top.depth) break;
    if (span.start < start) start = span.start;
    if (span.end > end) end = span.end;
  }
  return { start, end };
}

const fitted = (name: string): string =>
  name.length > NAME_WIDTH ? `${name.slice(0, NAME_WIDTH - 1)}…` : name.padEnd(NAME_WIDTH);

const milliseconds = ({ start, end }: Span): string =>
  `${(Number(end - start) / 1e6).toFixed(3)} ms`;

/** opentelemetry/proto/trace/v1/trace.proto; protobuf's own JSON has the names of an enum. */
const STATUS_CODE_ERROR: ReadonlySet<unknown> = new Set([2, 'STATUS_CODE_ERROR']);

/** The spans of an ExportTraceServiceRequest (opentelemetry-proto, JSON form). */
export function spansOf(message: unknown): Span[] {
  return list(message, 'resourceSpans')
    .flatMap((resource) => list(resource, 'scopeSpans'))
    .flatMap((scope) => list(scope, 'spans'))
    .map((span) => {
      const parentSpanId = idOf(span, 'parentSpanId');
      return {
        traceId: idOf(span, 'traceId'),
        spanId: idOf(span, 'spanId'),
        ...(parentSpanId !== '' && { parentSpanId }),
        name: textOf(span, 'name'),
        start: BigInt(textOf(span, 'startTimeUnixNano')),
        end: BigInt(textOf(span, 'endTimeUnixNano')),
        failed: STATUS_CODE_ERROR.has(property(property(span, 'status'), 'code')),
        attributes: attributesOf(span),
      };
    });
}

/** 8 or 16 bytes as hexadecimal digits, which is OTLP's form, or in base64, which is that of protobuf's own JSON. */
function idOf(span: unknown, key: string): string {
  const text = textOf(span, key);
  if (/^[\w+/-]{11}=$|^[\w+/-]{22}==$/.test(text))
    return Buffer.from(text, 'base64').toString('hex');
  return text.toLowerCase();
}

/** Of numbers and texts; others are left out. */
function attributesOf(span: unknown): Record<string, string> {
  const pairs = list(span, 'attributes').map((one): [string, string] => {
    const value = property(one, 'value');
    const text = ['stringValue', 'intValue', 'doubleValue'].map((key) => textOf(value, key));
    return [textOf(one, 'key'), text.join('')];
  });
  return Object.fromEntries(pairs);
}

function property(value: unknown, key: string): unknown {
  if (typeof value !== 'object' || value === null) return undefined;
  return Object.getOwnPropertyDescriptor(value, key)?.value;
}

function list(value: unknown, key: string): unknown[] {
  const elements = property(value, key);
  return Array.isArray(elements) ? elements : [];
}

function textOf(value: unknown, key: string): string {
  const found = property(value, key);
  return typeof found === 'string' || typeof found === 'number' ? String(found) : '';
}
