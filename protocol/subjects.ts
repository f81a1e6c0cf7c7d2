import { VoltError } from './errors.ts';
import { HOST_PATTERN, NETWORK_PATTERN } from './names.ts';

/** Operations on one host, the last token of its subjects. */
export const HOST_OPERATIONS = [
  'attach',
  'detach',
  'update',
  'check',
  'get',
  'list',
  'cordon',
] as const;
export const JOB_OPERATIONS = ['attach', 'detach', 'update'] as const;
export const NETWORK_OPERATIONS = ['put', 'get', 'list', 'delete'] as const;
export const LEDGER_OPERATIONS = ['leases', 'hosts', 'forget', 'check'] as const;

/** What has changed of a network. */
export const NETWORK_CHANGES = ['leases', 'definition'] as const;

export type HostOperation = (typeof HOST_OPERATIONS)[number];
export type JobOperation = (typeof JOB_OPERATIONS)[number];
export type NetworkOperation = (typeof NETWORK_OPERATIONS)[number];
export type LedgerOperation = (typeof LEDGER_OPERATIONS)[number];
export type NetworkChange = (typeof NETWORK_CHANGES)[number];

export const DEFAULT_PREFIX = 'volt.net.v1';
/** Names in JetStream, and of the service, of a fleet with the default prefix. */
export const EVENT_STREAM = 'VOLT_NET_EVENTS';
export const JOB_STREAM = 'VOLT_NET_JOBS';
export const SERVICE_NAME = 'volt-network-agent';
/** In a subject where no network applies. */
const NO_NETWORK = '-';

/**
 * A prefix as part of a name, which JetStream and `$SRV` want without dots: `acme.net` is `acme-net`. What of the prefix is
 * `-` or `_` has a `_` before it, so that no two prefixes have one name.
 */
const scopeOf = (prefix: string): string =>
  prefix.replace(/[_-]/g, (character) => `_${character}`).replaceAll('.', '-');

const scoped = (name: string, prefix: string): string =>
  prefix === DEFAULT_PREFIX ? name : `${name}-${scopeOf(prefix)}`;

/** The stream of the fleet's events: outcomes, kept by limits. */
export const eventStreamOf = (prefix: string): string => scoped(EVENT_STREAM, prefix);

/** The stream of the fleet's jobs, a work queue. */
export const jobStreamOf = (prefix: string): string => scoped(JOB_STREAM, prefix);

/** The NATS service that the fleet's agents are. */
export const serviceNameOf = (prefix: string): string => scoped(SERVICE_NAME, prefix);

/** The durable consumer of a host's jobs: `agent-h1`, or `agent-acme-net--h1` with the prefix `acme.net`. */
export const jobConsumer = (host: string, prefix: string = DEFAULT_PREFIX): string =>
  prefix === DEFAULT_PREFIX ? `agent-${host}` : `agent-${scopeOf(prefix)}--${host}`;

/** `Nats-Msg-Id` of a job. JetStream drops a repeat by this id within the stream, whatever the subject. */
export const jobMessageId = (job: {
  host: string;
  operation: JobOperation;
  requestId: string;
}): string => `${job.host}.${job.operation}.${job.requestId}`;

/** What a subject of ours says. */
export type Subject =
  | { readonly kind: 'host'; readonly host: string; readonly operation: HostOperation }
  | { readonly kind: 'job'; readonly host: string; readonly operation: JobOperation }
  | { readonly kind: 'network'; readonly operation: NetworkOperation }
  | { readonly kind: 'ledger'; readonly operation: LedgerOperation }
  | { readonly kind: 'changed'; readonly network: string; readonly change: NetworkChange }
  | {
      readonly kind: 'event';
      readonly host: string;
      readonly network: string;
      readonly type: string;
    };

/**
 * Builds and reads subjects. Builders throw INVALID_REQUEST for a name that is no host, network or event
 * type: a dot, a `*` or a `>` in it would address somebody else, or everybody.
 */
export interface Subjects {
  host(host: string, operation: HostOperation): string;
  job(host: string, operation: JobOperation): string;
  network(operation: NetworkOperation): string;
  ledger(operation: LedgerOperation): string;
  /** Where notices of changes of a network are published; `*` in place of its name: of all networks. */
  changed(network: string, change: NetworkChange): string;
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

const EVENT_TYPE_PATTERN = /^[a-z][a-z-]{0,31}$/;
const isHost = (name: string): boolean => HOST_PATTERN.test(name);
const isNetwork = (name: string): boolean => NETWORK_PATTERN.test(name) || name === NO_NETWORK;
const isEventType = (name: string): boolean => EVENT_TYPE_PATTERN.test(name);

const token = (kind: string, name: string, isOne: (name: string) => boolean): string => {
  if (isOne(name)) return name;
  throw new VoltError('INVALID_REQUEST', `${kind}: "${name.slice(0, 64)}" is no ${kind}`, {
    details: { path: kind },
  });
};
const hostToken = (host: string): string => token('host', host, isHost);
const networkToken = (network: string): string => token('network', network, isNetwork);
const typeToken = (type: string): string => token('type', type, isEventType);

/** The table of subjects below one prefix. */
export function subjects(prefix: string = DEFAULT_PREFIX): Subjects {
  const below = (...tokens: readonly string[]): string => [prefix, ...tokens].join('.');
  return {
    host: (host, operation) => below('host', hostToken(host), operation),
    job: (host, operation) => below('job', hostToken(host), operation),
    network: (operation) => below('network', operation),
    ledger: (operation) => below('ledger', operation),
    changed: (network, change) =>
      below('changed', network === '*' ? network : networkToken(network), change),
    event: (host, network, type) =>
      below('event', hostToken(host), networkToken(network), typeToken(type)),
    events: ({ host, network, type } = {}) =>
      below(
        'event',
        host === undefined ? '*' : hostToken(host),
        network === undefined ? '*' : networkToken(network),
        type === undefined ? '*' : typeToken(type),
      ),
    jobs: (host) => below('job', hostToken(host), '*'),
    allJobs: () => below('job', '*', '*'),
    match: (subject) =>
      subject.startsWith(`${prefix}.`) ? parse(subject.slice(prefix.length + 1).split('.')) : null,
  };
}

function parse(tokens: readonly string[]): Subject | null {
  const [kind, first = '', second = '', third = ''] = tokens;
  switch (kind) {
    case 'host': {
      const operation = HOST_OPERATIONS.find((one) => one === second);
      return tokens.length === 3 && operation && isHost(first)
        ? { kind, host: first, operation }
        : null;
    }
    case 'job': {
      const operation = JOB_OPERATIONS.find((one) => one === second);
      return tokens.length === 3 && operation && isHost(first)
        ? { kind, host: first, operation }
        : null;
    }
    case 'network': {
      const operation = NETWORK_OPERATIONS.find((one) => one === first);
      return tokens.length === 2 && operation ? { kind, operation } : null;
    }
    case 'ledger': {
      const operation = LEDGER_OPERATIONS.find((one) => one === first);
      return tokens.length === 2 && operation ? { kind, operation } : null;
    }
    case 'changed': {
      const change = NETWORK_CHANGES.find((one) => one === second);
      return tokens.length === 3 && change && isNetwork(first)
        ? { kind, network: first, change }
        : null;
    }
    case 'event':
      return tokens.length === 4 && isHost(first) && isNetwork(second) && isEventType(third)
        ? { kind, host: first, network: second, type: third }
        : null;
    default:
      return null;
  }
}
