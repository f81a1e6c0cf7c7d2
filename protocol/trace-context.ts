/** The trace that a request belongs to, as its caller says: W3C Trace Context, level 2. */
export interface TraceContext {
  readonly traceparent?: string;
  readonly tracestate?: string;
}

/** `version-traceid-parentid-flags`. Version ff is none, and neither id is all zeros. */
const TRACEPARENT = /^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/;
/** A list of `key=value`, in printable ASCII; 512 characters are the most that everybody has to carry on. */
const TRACESTATE = /^[\x20-\x7e]{1,512}$/;

/**
 * The trace context in two headers. What is not of its form is left out: it would be carried on to spans, records and
 * events. A `tracestate` means nothing without its `traceparent`.
 */
export function parseTraceContext(headers: {
  readonly traceparent?: string | undefined;
  readonly tracestate?: string | undefined;
}): TraceContext {
  const { traceparent = '', tracestate = '' } = headers;
  if (!TRACEPARENT.test(traceparent)) return {};
  return { traceparent, ...(TRACESTATE.test(tracestate) && { tracestate }) };
}
