import { type Condition, CONDITIONS } from '#protocol/conditions.ts';
import type { LedgerStatus, NetworkUsage } from '#ipam-store/ledger.ts';
import type { BusState } from '../bus/bus.ts';
import type { Heartbeat, SessionStatus } from '../fleet/session.ts';
import type { Seen } from '../health/unexpected.ts';
import type { Agreement } from '../host/reconcile/loop.ts';
import type { AttachmentRecord } from '../storage/journal.ts';
import type { LabelsOf, READ, ReadName } from './metrics-table.ts';

/** What the parts of an agent say of themselves, in their own terms; only this file says which metric that is. */
export interface Parts {
  readonly journal: { values(): readonly AttachmentRecord[] };
  readonly bus: {
    readonly state: BusState;
    readonly jobs: { readonly underWay: number; readonly waiting: number } | undefined;
  };
  readonly events: {
    readonly pending: number;
    readonly setAside: number;
    readonly oldest: { readonly time: string } | undefined;
  };
  readonly ledger: { readonly status: LedgerStatus };
  readonly session: { readonly status: SessionStatus; readonly heartbeat: Heartbeat | undefined };
  readonly reconcile: {
    readonly agreement: Agreement;
    readonly differing: number;
    readonly unrepaired: ReadonlyMap<string, string>;
  };
  readonly clocks: {
    readonly aheadMs: { readonly ledger: number | undefined; readonly stream: number | undefined };
  };
  readonly conditions: { look(): readonly Condition[] };
  readonly unexpected: { readonly seen: Seen };
  readonly version: string;
}

export interface Reading {
  readonly name: ReadName;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

// Each state of a kind is there all the time, so that a graph has no gaps: exhaustive, or it does not compile.
const AGREEMENTS: Readonly<Record<Agreement, true>> = {
  agrees: true,
  alone: true,
  differs: true,
  unknown: true,
};
const BUS_STATES: Readonly<Record<BusState, true>> = {
  closed: true,
  connected: true,
  connecting: true,
};
const LEDGER_STATES: Readonly<Record<LedgerStatus['state'], true>> = {
  connecting: true,
  incompatible: true,
  ready: true,
  unavailable: true,
};
const SESSION_STATES: Readonly<Record<SessionStatus['state'], true>> = {
  armed: true,
  arming: true,
  recovering: true,
  refused: true,
  unclaimed: true,
  unknown: true,
};

const STARTED_AT_MS = performance.timeOrigin;

/** The metrics of the agent's state, as it is now. What is no more, a network without attachments, has no reading. */
export function readingsOf(parts: Parts, pools: ReadonlyMap<string, NetworkUsage>): Reading[] {
  const readings: Reading[] = [];
  const read = <Name extends ReadName>(
    name: Name,
    value: number | undefined,
    ...[labels]: (typeof READ)[Name]['labels'] extends readonly [] ? [] : [LabelsOf<Name>]
  ): void => {
    if (value !== undefined) readings.push({ name, labels: labels ?? {}, value });
  };
  for (const { record, count } of counted(parts.journal.values())) {
    const { networkType: type, state, request } = record;
    read('volt_network_attachments', count, { network: request.network, type, state });
  }
  for (const [network, sinceMs] of oldestUnfinished(parts.journal.values())) {
    const ageMs = Math.max(0, Date.now() - sinceMs);
    read('volt_network_unfinished_oldest_age_seconds', ageMs / 1_000, { network });
  }
  for (const [network, usage] of pools) {
    read('volt_network_pool_addresses', usage.size, { network });
    read('volt_network_pool_used_addresses', usage.used, { network });
    read('volt_network_pool_free_addresses', usage.free, { network });
    read('volt_network_pool_cooling_addresses', usage.cooling, { network });
    read('volt_network_pool_suspect_leases', usage.suspect, { network });
  }
  const { bus, events, ledger, session, reconcile, clocks } = parts;
  read('volt_network_reconcile_differences', reconcile.differing);
  read('volt_network_reconcile_unrepaired', reconcile.unrepaired.size);
  for (const agreement of Object.keys(AGREEMENTS)) {
    const holds = agreement === reconcile.agreement;
    read('volt_network_reconcile_agreement', Number(holds), { agreement });
  }
  const { oldest } = events;
  const waitedMs = oldest === undefined ? 0 : Date.now() - Date.parse(oldest.time);
  read('volt_network_events_pending', events.pending);
  read('volt_network_events_oldest_age_seconds', Math.max(0, waitedMs) / 1_000);
  read('volt_network_events_set_aside', events.setAside);
  const { jobs } = bus;
  read('volt_network_jobs_pending', jobs?.waiting);
  read('volt_network_jobs_under_way', jobs?.underWay);
  for (const [name, states, now] of [
    ['volt_network_nats_state', BUS_STATES, bus.state],
    ['volt_network_ledger_state', LEDGER_STATES, ledger.status.state],
    ['volt_network_session_state', SESSION_STATES, session.status.state],
  ] as const) {
    for (const state of Object.keys(states)) read(name, Number(state === now), { state });
  }
  const { heartbeat } = session;
  const sinceMs = performance.now() - (heartbeat?.answeredAtMs ?? 0);
  read('volt_network_heartbeat_age_seconds', sinceMs / 1_000);
  read('volt_network_heartbeat_round_trip_seconds', seconds(heartbeat?.roundTripMs));
  const { aheadMs } = clocks;
  read('volt_network_clock_ahead_seconds', seconds(aheadMs.ledger), { clock: 'ledger' });
  read('volt_network_clock_ahead_seconds', seconds(aheadMs.stream), { clock: 'stream' });
  const now = new Set<string>(parts.conditions.look().map(({ name }) => name));
  for (const [condition, { blocks }] of Object.entries(CONDITIONS)) {
    const labels = { condition, blocks: blocks ? 'yes' : 'no' };
    read('volt_network_condition', Number(now.has(condition)), labels);
  }
  read('volt_network_unexpected_errors_total', parts.unexpected.seen.count);
  const { active } = performance.eventLoopUtilization();
  read('volt_network_event_loop_busy_seconds_total', active / 1_000);
  const { user, system } = process.cpuUsage();
  read('volt_network_cpu_seconds_total', (user + system) / 1e6);
  read('volt_network_resident_memory_bytes', process.memoryUsage.rss());
  read('volt_network_heap_used_bytes', process.memoryUsage().heapUsed);
  read('volt_network_start_time_seconds', STARTED_AT_MS / 1_000);
  read('volt_network_build_info', 1, { version: parts.version, node: process.versions.node });
  return readings;
}

const seconds = (ms: number | undefined): number | undefined =>
  ms === undefined ? undefined : ms / 1_000;

/** By network, when the oldest attach or detach began that is under way. */
function oldestUnfinished(records: readonly AttachmentRecord[]): ReadonlyMap<string, number> {
  const oldest = new Map<string, number>();
  for (const { state, request, createdAt, detach } of records) {
    if (state === 'attached' || state === 'fenced') continue;
    const began = Date.parse(detach?.startedAt ?? createdAt);
    oldest.set(request.network, Math.min(began, oldest.get(request.network) ?? Infinity));
  }
  return oldest;
}

/** One of the records of each network, type and state, and how many there are. */
function counted(
  records: readonly AttachmentRecord[],
): Iterable<{ readonly record: AttachmentRecord; count: number }> {
  const counts = new Map<string, { readonly record: AttachmentRecord; count: number }>();
  for (const record of records) {
    const key = `${record.request.network} ${record.networkType} ${record.state}`;
    const known = counts.get(key);
    if (known === undefined) counts.set(key, { record, count: 1 });
    else known.count += 1;
  }
  return counts.values();
}
