// All metrics of an agent. Instruments, docs/metrics.md and the tests of rules and dashboards are made from this table.

interface MetricKind {
  readonly kind: 'counter' | 'gauge' | 'histogram';
  /** As in the name: `seconds`, `bytes`; empty for a number of things, which the name says. */
  readonly unit: '' | 'seconds' | 'bytes';
  readonly labels: readonly string[];
  readonly help: string;
  /** Upper bounds; of histograms alone. */
  readonly buckets?: readonly number[];
}

/** From a kernel operation to a caller's patience. */
const DURATIONS = [
  ...[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
  ...[1, 2, 5, 10, 30],
] as const;
const LAGS = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5] as const;

/** Counted or timed when it happens. */
export const RECORDED = {
  volt_network_requests_total: {
    kind: 'counter',
    unit: '',
    labels: ['operation', 'code'],
    help: 'Requests and jobs by operation (attach, network.put, job.attach) and code (OK, or the error).',
  },
  volt_network_request_duration_seconds: {
    kind: 'histogram',
    unit: 'seconds',
    labels: ['operation'],
    help: 'Time from the arrival of a request or job to its answer.',
    buckets: DURATIONS,
  },
  volt_network_change_duration_seconds: {
    kind: 'histogram',
    unit: 'seconds',
    labels: ['operation', 'phase', 'type', 'result'],
    help: 'Time of attach, detach and update by phase, type of network and result.',
    buckets: DURATIONS,
  },
  volt_network_reconcile_actions_total: {
    kind: 'counter',
    unit: '',
    labels: ['action', 'result'],
    help: 'Repairs of the host by action (mend, remake, network, detach, ...) and result (done, failed).',
  },
  volt_network_kernel_errors_total: {
    kind: 'counter',
    unit: '',
    labels: ['operation', 'errno'],
    help: 'Kernel operations that failed, by operation (RTM_NEWLINK, TUNSETIFF, nft) and errno.',
  },
  volt_network_event_loop_lag_seconds: {
    kind: 'histogram',
    unit: 'seconds',
    labels: [],
    help: 'How late a timer of the main thread was; ten samples a second.',
    buckets: LAGS,
  },
} as const satisfies Readonly<Record<string, MetricKind>>;

/** Read from the state of the agent whenever metrics are asked for. */
export const READ = {
  volt_network_attachments: {
    kind: 'gauge',
    unit: '',
    labels: ['network', 'type', 'state'],
    help: 'Attachments of this host by network, type of network and state.',
  },
  volt_network_unfinished_oldest_age_seconds: {
    kind: 'gauge',
    unit: 'seconds',
    labels: ['network'],
    help: 'Age of the oldest attach or detach of the network that has not ended; absent if all have.',
  },
  volt_network_pool_addresses: {
    kind: 'gauge',
    unit: '',
    labels: ['network'],
    help: 'Addresses that the network can give out, as the ledger has it: the same on every host.',
  },
  volt_network_pool_used_addresses: {
    kind: 'gauge',
    unit: '',
    labels: ['network'],
    help: 'Addresses of the network that are leased, on all hosts.',
  },
  volt_network_pool_free_addresses: {
    kind: 'gauge',
    unit: '',
    labels: ['network'],
    help: 'Addresses of the network that can be given out now.',
  },
  volt_network_pool_cooling_addresses: {
    kind: 'gauge',
    unit: '',
    labels: ['network'],
    help: 'Addresses of the network that were released lately and wait for reuseDelaySeconds.',
  },
  volt_network_pool_suspect_leases: {
    kind: 'gauge',
    unit: '',
    labels: ['network'],
    help: 'Leases of the network that are held by hosts which have fallen silent.',
  },
  volt_network_reconcile_differences: {
    kind: 'gauge',
    unit: '',
    labels: [],
    help: 'Attachments, devices, leases and networks that differed in the last comparison of the host.',
  },
  volt_network_reconcile_unrepaired: {
    kind: 'gauge',
    unit: '',
    labels: [],
    help: 'Attachments and networks whose last repair failed, or did not last.',
  },
  volt_network_reconcile_agreement: {
    kind: 'gauge',
    unit: '',
    labels: ['agreement'],
    help: 'Result of the last comparison of the host with its records and the ledger: 1 for the one that holds.',
  },
  volt_network_events_pending: {
    kind: 'gauge',
    unit: '',
    labels: [],
    help: 'Events that wait for the event stream.',
  },
  volt_network_events_oldest_age_seconds: {
    kind: 'gauge',
    unit: 'seconds',
    labels: [],
    help: 'Age of the event that has waited longest; 0 if none waits.',
  },
  volt_network_events_set_aside: {
    kind: 'gauge',
    unit: '',
    labels: [],
    help: 'Events that the stream refuses for their size or form.',
  },
  volt_network_jobs_pending: {
    kind: 'gauge',
    unit: '',
    labels: [],
    help: 'Jobs that wait in the stream, new ones and those that are tried again; absent while no jobs are taken.',
  },
  volt_network_jobs_under_way: {
    kind: 'gauge',
    unit: '',
    labels: [],
    help: 'Jobs that this agent has begun; absent while no jobs are taken.',
  },
  volt_network_nats_state: {
    kind: 'gauge',
    unit: '',
    labels: ['state'],
    help: 'Connection to NATS: 1 for the state that holds.',
  },
  volt_network_ledger_state: {
    kind: 'gauge',
    unit: '',
    labels: ['state'],
    help: 'Connection to Redis: 1 for the state that holds.',
  },
  volt_network_session_state: {
    kind: 'gauge',
    unit: '',
    labels: ['state'],
    help: 'Session of this host in the ledger: 1 for the state that holds; armed is well.',
  },
  volt_network_heartbeat_age_seconds: {
    kind: 'gauge',
    unit: 'seconds',
    labels: [],
    help: 'Time since the ledger took a heartbeat of this host, or since the start if it took none.',
  },
  volt_network_heartbeat_round_trip_seconds: {
    kind: 'gauge',
    unit: 'seconds',
    labels: [],
    help: 'How long the ledger took to answer the last heartbeat; absent before the first.',
  },
  volt_network_clock_ahead_seconds: {
    kind: 'gauge',
    unit: 'seconds',
    labels: ['clock'],
    help: 'How far the clock of this host is ahead of that of the ledger or the job stream.',
  },
  volt_network_condition: {
    kind: 'gauge',
    unit: '',
    labels: ['condition', 'blocks'],
    help: 'Conditions of voltnet status, each 1 while it lasts, else 0; blocks: whether it stops attaches.',
  },
  volt_network_unexpected_errors_total: {
    kind: 'counter',
    unit: '',
    labels: [],
    help: 'Errors that nobody caught.',
  },
  volt_network_event_loop_busy_seconds_total: {
    kind: 'counter',
    unit: 'seconds',
    labels: [],
    help: 'Time in which the main thread had work.',
  },
  volt_network_cpu_seconds_total: {
    kind: 'counter',
    unit: 'seconds',
    labels: [],
    help: 'Processor time of the agent, all threads.',
  },
  volt_network_resident_memory_bytes: {
    kind: 'gauge',
    unit: 'bytes',
    labels: [],
    help: 'Memory of the agent that is resident.',
  },
  volt_network_heap_used_bytes: {
    kind: 'gauge',
    unit: 'bytes',
    labels: [],
    help: "Memory in use in V8's heap.",
  },
  volt_network_start_time_seconds: {
    kind: 'gauge',
    unit: 'seconds',
    labels: [],
    help: 'When the agent was started, in seconds since 1970.',
  },
  volt_network_build_info: {
    kind: 'gauge',
    unit: '',
    labels: ['version', 'node'],
    help: 'Always 1: the version of the agent and of its Node.',
  },
} as const satisfies Readonly<Record<string, MetricKind>>;

export const METRICS: Readonly<Record<string, MetricKind>> = { ...RECORDED, ...READ };

export type RecordedName = keyof typeof RECORDED;
export type ReadName = keyof typeof READ;

export type LabelsOf<Name extends RecordedName | ReadName> = Readonly<
  Record<(typeof RECORDED & typeof READ)[Name]['labels'][number], string>
>;

/** OpenTelemetry's name: its exporters put `_total` behind the names of counters themselves. */
export const instrumentName = (name: string): string => name.replace(/_total$/, '');
/** OpenTelemetry's unit (UCUM), so that collectors put nothing behind a name that has it already. */
export const unitOf = ({ unit }: MetricKind): string =>
  ({ '': '', seconds: 's', bytes: 'By' })[unit];
