/** Operations on one host, the last token of its subjects. */
export const HOST_OPERATIONS = ['attach', 'detach', 'update', 'check', 'get', 'list'] as const;
export const JOB_OPERATIONS = ['attach', 'detach', 'update'] as const;
export const NETWORK_OPERATIONS = ['put', 'get', 'list', 'delete'] as const;
export const LEDGER_OPERATIONS = ['leases', 'hosts', 'forget', 'check'] as const;

export type HostOperation = (typeof HOST_OPERATIONS)[number];
export type JobOperation = (typeof JOB_OPERATIONS)[number];
export type NetworkOperation = (typeof NETWORK_OPERATIONS)[number];
export type LedgerOperation = (typeof LEDGER_OPERATIONS)[number];

export const DEFAULT_PREFIX = 'volt.net.v1';
/** JetStream streams: outcomes by limits, jobs as a work queue. */
export const EVENT_STREAM = 'VOLT_NET_EVENTS';
export const JOB_STREAM = 'VOLT_NET_JOBS';

export const jobConsumer = (host: string): string => `agent-${host}`;

/** What a subject of ours says. */
export type Subject =
  | { readonly kind: 'host'; readonly host: string; readonly operation: HostOperation }
  | { readonly kind: 'job'; readonly host: string; readonly operation: JobOperation }
  | { readonly kind: 'network'; readonly operation: NetworkOperation }
  | { readonly kind: 'ledger'; readonly operation: LedgerOperation }
  | { readonly kind: 'event'; readonly host: string; readonly network: string; readonly type: string };

export interface Subjects {
  host(host: string, operation: HostOperation): string;
  job(host: string, operation: JobOperation): string;
  network(operation: NetworkOperation): string;
  ledger(operation: LedgerOperation): string;
  event(host: string, network: string, type: string): string;
  /** A filter on events; what is left out matches all. */
  events(filter?: { host?: string; network?: string; type?: string }): string;
  /** All jobs of one host. */
  jobs(host: string): string;
  /** All that the job stream holds. */
  allJobs(): string;
  /** What a subject says; null when it is none of ours. */
  match(subject: string): Subject | null;
}

/** The table of subjects below one prefix. Host ids and networks hold no dots, so each is one token. */
export function subjects(prefix: string = DEFAULT_PREFIX): Subjects {
  return {
    host: (host, operation) => `${prefix}.host.${host}.${operation}`,
    job: (host, operation) => `${prefix}.job.${host}.${operation}`,
    network: (operation) => `${prefix}.network.${operation}`,
    ledger: (operation) => `${prefix}.ledger.${operation}`,
    event: (host, network, type) => `${prefix}.event.${host}.${network}.${type}`,
    events: ({ host = '*', network = '*', type = '*' } = {}) =>
      `${prefix}.event.${host}.${network}.${type}`,
    jobs: (host) => `${prefix}.job.${host}.*`,
    allJobs: () => `${prefix}.job.*.*`,
    match: (subject) =>
      subject.startsWith(`${prefix}.`) ? parse(subject.slice(prefix.length + 1).split('.')) : null,
  };
}

function parse(tokens: readonly string[]): Subject | null {
  const [kind, first = '', second = '', third = ''] = tokens;
  if (tokens.some((token) => token === '')) return null;
  switch (kind) {
    case 'host': {
      const operation = HOST_OPERATIONS.find((one) => one === second);
      return tokens.length === 3 && operation ? { kind, host: first, operation } : null;
    }
    case 'job': {
      const operation = JOB_OPERATIONS.find((one) => one === second);
      return tokens.length === 3 && operation ? { kind, host: first, operation } : null;
    }
    case 'network': {
      const operation = NETWORK_OPERATIONS.find((one) => one === first);
      return tokens.length === 2 && operation ? { kind, operation } : null;
    }
    case 'ledger': {
      const operation = LEDGER_OPERATIONS.find((one) => one === first);
      return tokens.length === 2 && operation ? { kind, operation } : null;
    }
    case 'event':
      return tokens.length === 4 ? { kind, host: first, network: second, type: third } : null;
    default:
      return null;
  }
}
