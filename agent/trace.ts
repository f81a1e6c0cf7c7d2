import { tracingChannel } from 'node:diagnostics_channel';

/** One unit of work: a request, a delivery of a job, the publication of an event, a repair. */
export interface RequestTrace {
  /** `attach`, `network.put`, `publish`, `repair mend`. */
  readonly name: string;
  /** `internal`: nobody asked for it. */
  readonly role: 'server' | 'consumer' | 'producer' | 'internal';
  /** What is added while the work is under way counts, too. */
  readonly attributes: Record<string, string | number>;
  /** Trace contexts (`traceparent`) of what led to it beside its parent: earlier deliveries of a job. */
  readonly links?: readonly string[];
  /**
   * W3C trace context: on entry the caller's. Whoever traces replaces it with that of its own span, so
   * what the work hands on (events) continues the trace; with nobody tracing it passes through.
   */
  traceparent?: string;
  tracestate?: string;
}

/** A part of a request worth a span: `ipam`, `kernel`, `journal`. */
export interface StepTrace {
  readonly name: string;
}

/** Notes whose request it is, as far as a body that nobody has checked yet tells. */
export function noteIds({ attributes }: RequestTrace, body: unknown): void {
  if (typeof body !== 'object' || body === null) return;
  const ids = { 'volt.attachment.id': 'id', 'volt.request.id': 'requestId' } as const;
  for (const [attribute, key] of Object.entries(ids)) {
    const value: unknown = Object.getOwnPropertyDescriptor(body, key)?.value;
    if (typeof value === 'string') attributes[attribute] = value.slice(0, MAX_ID_LENGTH);
  }
}

const MAX_ID_LENGTH = 128;

export const REQUEST_CHANNEL = 'volt:request';
export const STEP_CHANNEL = 'volt:step';

const requests = tracingChannel<RequestTrace>(REQUEST_CHANNEL);
const steps = tracingChannel<StepTrace>(STEP_CHANNEL);

export function tracedRequest<T>(trace: RequestTrace, work: () => Promise<T>): Promise<T> {
  return requests.hasSubscribers ? requests.tracePromise(work, trace) : work();
}

export function tracedStep<T>(name: string, work: () => Promise<T>): Promise<T> {
  return steps.hasSubscribers ? steps.tracePromise(work, { name }) : work();
}

export function tracedStepSync<T>(name: string, work: () => T): T {
  return steps.hasSubscribers ? steps.traceSync(work, { name }) : work();
}
