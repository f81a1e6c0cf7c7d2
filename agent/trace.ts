import { tracingChannel } from 'node:diagnostics_channel';

/** One unit of work that a caller asked for: a request, a job, the publication of an event. */
export interface RequestTrace {
  /** `attach`, `network.put`, `publish`. */
  readonly name: string;
  readonly role: 'server' | 'producer';
  readonly attributes: Readonly<Record<string, string | number>>;
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
