/** What part of an agent a condition is about. */
export type ConditionArea =
  | 'bus'
  | 'streams'
  | 'jobs'
  | 'events'
  | 'ledger'
  | 'session'
  | 'identity'
  | 'firewall'
  | 'reconcile'
  | 'disk'
  | 'clock'
  | 'metrics';

interface ConditionKind {
  readonly area: ConditionArea;
  /** While it lasts, attach requests over NATS fail or do not arrive. */
  readonly blocks: boolean;
  /** What an operator does about it. */
  readonly remedy: string;
}

/**
 * Everything that may be wrong with an agent while it runs, by its name. Names are stable: scripts, alerts and dashboards
 * go by them. docs/operating.md has the same table in words.
 */
export const CONDITIONS = {
  'bus-away': {
    area: 'bus',
    blocks: true,
    remedy: 'Start NATS, or correct nats.url. The agent connects again by itself.',
  },
  'credentials-refused': {
    area: 'bus',
    blocks: true,
    remedy:
      'Correct the file that nats.passwordFile, tokenFile, nkeyFile or credentialsFile names, or give the user its rights. The file is read anew with each try.',
  },
  'subscription-refused': {
    area: 'bus',
    blocks: true,
    remedy: 'Allow the agent to subscribe to these subjects (docs/security.md). It tries again.',
  },
  'fleet-unheard': {
    area: 'bus',
    blocks: false,
    remedy: 'Allow the agent to subscribe to these subjects (docs/security.md). It tries again.',
  },
  'publish-refused': {
    area: 'bus',
    blocks: false,
    remedy: 'Allow the agent to publish to these subjects (docs/security.md).',
  },
  'jetstream-away': {
    area: 'streams',
    blocks: false,
    remedy:
      'Switch JetStream on in the server and for the account of the agent. Requests are answered meanwhile; jobs and events wait.',
  },
  'stream-missing': {
    area: 'streams',
    blocks: false,
    remedy: 'Run voltnet setup, or allow the agent to make the stream (docs/security.md).',
  },
  'stream-unfit': {
    area: 'streams',
    blocks: false,
    remedy: 'Change the stream as the reason says, or remove it and run voltnet setup.',
  },
  'consumer-missing': {
    area: 'jobs',
    blocks: false,
    remedy: 'Run voltnet setup for this host, or allow the agent to make the consumer.',
  },
  'consumer-unfit': {
    area: 'jobs',
    blocks: false,
    remedy: 'Remove the consumer; the agent, or voltnet setup, makes it anew.',
  },
  'jobs-not-taken': {
    area: 'jobs',
    blocks: false,
    remedy: 'See the reason. Jobs wait in their stream meanwhile.',
  },
  'events-waiting': {
    area: 'events',
    blocks: false,
    remedy: 'See the reason. Events wait on disk, and are published in order.',
  },
  'events-set-aside': {
    area: 'events',
    blocks: false,
    remedy: 'Raise the limit that the reason names. The events are tried again.',
  },
  'events-full': {
    area: 'events',
    blocks: true,
    remedy: 'Let the event stream take events again: attaches are refused until some have gone.',
  },
  'ledger-away': {
    area: 'ledger',
    blocks: true,
    remedy:
      'Start Redis, or correct redis.url or what the reason names. The agent connects again by itself.',
  },
  'ledger-unfit': {
    area: 'ledger',
    blocks: true,
    remedy: 'Change Redis as the reason says (docs/ledger.md).',
  },
  'ledger-warning': {
    area: 'ledger',
    blocks: false,
    remedy: 'Change Redis, or the rights of its user, as the reason says (docs/ledger.md).',
  },
  recovering: {
    area: 'session',
    blocks: true,
    remedy: 'Start the hosts that are awaited, or forget them (voltnet host forget).',
  },
  'session-refused': {
    area: 'session',
    blocks: true,
    remedy: 'See "Two machines have one host id" in docs/operating.md.',
  },
  'host-cordoned': {
    area: 'session',
    blocks: true,
    remedy:
      'An operator wants it so. voltnet host uncordon opens the host to new attachments again.',
  },
  'host-renamed': {
    area: 'identity',
    blocks: false,
    remedy: 'Leave it so, or stop the agent and run voltnet host rename.',
  },
  'firewall-unusable': {
    area: 'firewall',
    blocks: true,
    remedy: 'Run voltnet doctor on the host.',
  },
  'reconcile-differs': {
    area: 'reconcile',
    blocks: false,
    remedy: 'Run voltnet check: it says what differs and what is done about it.',
  },
  'network-differs': {
    area: 'reconcile',
    blocks: false,
    remedy:
      'Change what the reason names: it belongs to the host, and the agent leaves it as it is. Workloads may have no traffic meanwhile.',
  },
  'gateway-undecided': {
    area: 'reconcile',
    blocks: false,
    remedy:
      'Put the network with "gatewayMode": "router", if the gateway is a machine on the segment, or "anycast", if each host is to have its address.',
  },
  'guests-unserved': {
    area: 'reconcile',
    blocks: false,
    remedy:
      'Change what the reason names: dnsmasq is started again by itself. Workloads that ask get no DHCP, or no names, meanwhile.',
  },
  'disk-refuses': {
    area: 'disk',
    blocks: true,
    remedy: 'Make room on the file system that the reason names, or mend it.',
  },
  'clock-skew': {
    area: 'clock',
    blocks: false,
    remedy: 'Let chrony or systemd-timesyncd set the clocks of hosts, NATS and Redis.',
  },
  'metrics-unserved': {
    area: 'metrics',
    blocks: false,
    remedy:
      'Free the address that metrics.listen names, or give another one. The agent tries again.',
  },
} as const satisfies Readonly<Record<string, ConditionKind>>;

export type ConditionName = keyof typeof CONDITIONS;

/** One thing that is wrong now, as `health` answers it. */
export interface Condition {
  readonly name: ConditionName;
  readonly area: ConditionArea;
  readonly blocks: boolean;
  /** In words, without secrets. */
  readonly reason: string;
  /** When it was seen first (RFC 3339). */
  readonly since: string;
  readonly remedy: string;
}
