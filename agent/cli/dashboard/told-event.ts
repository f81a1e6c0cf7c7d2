import type { VoltEvent } from '#protocol/client.ts';
import { isRecord } from '../settings.ts';

/** Of an event what the page shows, as text and numbers. */
export interface ToldEvent {
  /** Grows with each event that the dashboard hears; of an event of a life, its place in the stream. */
  readonly sequence: number;
  readonly type: string;
  readonly host: string;
  readonly network: string;
  readonly subject: string;
  readonly time: string;
  /** 32 hex digits; '' without a trace. */
  readonly traceId: string;
  readonly requestId: string;
  /** Phases in the order in which they were gone through, `publish` last. */
  readonly phases: readonly { readonly phase: string; readonly ms: number }[];
  readonly operation: string;
  /** Code and message of an error; reason of a detach; action of a repair. */
  readonly code: string;
  readonly message: string;
  readonly reason: string;
  readonly device: string;
  readonly addresses: readonly string[];
  readonly generation: number | null;
}

const MOST_CHARACTERS = 512;
const MOST_PHASES = 16;
const MOST_ADDRESSES = 8;

export const TRACE_ID = /^[0-9a-f]{32}$/;

/** Bodies are as their agents made them: nothing of them is believed, and what is long is cut. */
export function toldEvent(event: VoltEvent, sequence: number): ToldEvent {
  const { type, host, network, subject, time, traceparent } = event;
  const body: Readonly<Record<string, unknown>> = event.body;
  const error = isRecord(body['error']) ? body['error'] : {};
  const device = isRecord(body['device']) ? body['device'] : {};
  const traceId = traceparent?.split('-')[1] ?? '';
  const { generation } = body;
  return {
    sequence,
    type: text(type),
    host: text(host),
    network: text(network),
    subject: text(subject),
    time: text(time),
    traceId: TRACE_ID.test(traceId) ? traceId : '',
    requestId: text(body['requestId']),
    phases: phasesOf(body['durationMs']),
    operation: text(body['operation']),
    code: text(error['code']),
    message: text(error['message']),
    reason: text(body['reason']) || text(body['action']),
    device: text(device['name']),
    addresses: addressesOf(body['addresses']),
    generation: typeof generation === 'number' ? generation : null,
  };
}

const text = (value: unknown): string =>
  typeof value === 'string' ? value.slice(0, MOST_CHARACTERS) : '';

function phasesOf(durations: unknown): ToldEvent['phases'] {
  if (!isRecord(durations)) return [];
  return Object.entries(durations)
    .slice(0, MOST_PHASES)
    .flatMap(([phase, ms]) => (isDuration(ms) ? [{ phase: text(phase), ms }] : []))
    .toSorted((a, b) => rank(a) - rank(b));
}

const rank = ({ phase }: { phase: string }): number => (phase === 'publish' ? 1 : 0);

const isDuration = (ms: unknown): ms is number =>
  typeof ms === 'number' && Number.isFinite(ms) && ms >= 0;

const addressesOf = (addresses: unknown): string[] =>
  Array.isArray(addresses)
    ? addresses
        .slice(0, MOST_ADDRESSES)
        .map((one) => text(isRecord(one) ? one['address'] : one))
        .filter((one) => one !== '')
    : [];
