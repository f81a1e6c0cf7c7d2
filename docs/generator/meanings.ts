import { DETACHED_REASONS, REPAIR_ACTIONS } from '#protocol/events.ts';
import { PLAN_MEANINGS } from './codes.ts';

// What each key of a message and of agent.json means, in the words of the reference. Whoever adds a key adds its meaning:
// the generator refuses a key without one, and a meaning without a key.

/** A text, or a text and the part of MEANINGS that has the keys below. An empty text: the name says it. */
export type Meaning = string | { readonly text: string; readonly of: string };

/** By path: `tap.queues`; elements of arrays have the path of the array. */
export type Meanings = Readonly<Record<string, Meaning>>;

/** Values of a key that a newer agent may have more of. */
const known = (values: readonly string[]): string =>
  `one of ${values.map((value) => `\`${value}\``).join(', ')}; a newer agent may have more`;

const REQUEST_ID = 'names this request in its event';
const PAGE = {
  limit: 'how many on a page at most',
  cursor: 'of the answer before',
};

const PORTS = {
  'ports.protocol': '',
  'ports.hostPort': 'on the host',
  'ports.port': 'of the workload',
  'ports.hostAddress':
    'that address of the host alone; `0.0.0.0` or `::`: every address of that family; default: every address. One on which no socket of the host could listen is `INVALID_REQUEST`',
};

const BANDWIDTH = {
  'bandwidth.ingressBitsPerSecond': 'towards the workload',
  'bandwidth.egressBitsPerSecond': 'from the workload',
};

const ATTACH = {
  id: "the attachment's id, the caller's choice",
  workload: 'id of the VM or container; reservations go by it, and device names are made of it',
  kind: 'on a bridge a VM gets a TAP, a container a veth pair; [networks](networks.md) says what in other networks',
  network: 'where to',
  requestId: 'names this request in its events; without one the agent makes one up',
  netns:
    "container: absolute path of a network namespace file, `/run/netns/x` or `/proc/4711/ns/net`; not the host's own, nor one that was made for an `isolated` attachment, by whatever path. Without it the container's end stays in the host's namespace, down, for the caller to move and configure",
  ifname: 'container, with `netns`: name of the interface inside; default `eth0`',
  addresses:
    "ask for these, without prefix length, one per family. Otherwise the workload's reservation is taken, or the pool",
  mac: 'six pairs of hex digits with colons, unicast, not beginning with `fe`; unique in the network, and none that the bridge or parent, a port of the bridge or the gateway has (`MAC_IN_USE`). Default: derived from `id`',
  mtu: "default: the network's, or else that of its bridge or parent; at least 1280 where the network has IPv6",
  hostname: 'host name after RFC 1123, kept with the lease',
  tap: 'VM: see below',
  'tap.queues': 'default 1; more make a multi-queue TAP',
  'tap.vnetHdr': 'default true: frames carry a virtio-net header, as Firecracker and QEMU expect',
  'tap.ownerUid': 'user who besides root may claim it; default: root alone',
  'tap.ownerGid': 'group whose members besides root may claim it; default: root alone',
  ports: 'port maps: see below',
  ...PORTS,
  bandwidth:
    '`ingressBitsPerSecond` (towards the workload), `egressBitsPerSecond`; each 8000 to 10^12',
  ...BANDWIDTH,
  leaseTtlSeconds:
    'the agent detaches after so long (event `detached` with reason `expired`); repeating the attach begins the time anew',
  dryRun: 'answer what would be done, do nothing: see below. In a job it is `INVALID_REQUEST`',
  labels: 'at most 64, keys to 64 and values to 256 characters; kept and shown',
};

const { dryRun: _refused, ...ATTACH_JOB } = ATTACH;

const DETACH = {
  id: 'the attachment',
  generation: 'detach this one only: a newer one is `STALE_GENERATION`',
  requestId: REQUEST_ID,
};

const UPDATE = {
  id: 'the attachment',
  generation: 'this one only: another is `STALE_GENERATION`',
  requestId: REQUEST_ID,
  ports: 'as for attach; `[]` for none',
  ...PORTS,
  bandwidth: 'as for attach; `{}` for no limits',
  ...BANDWIDTH,
  labels: 'as for attach',
  filterAddresses:
    "at most 64: further addresses that the workload may send from. Only addresses that the network's `exclude` keeps from being given out (else `ADDRESS_OUT_OF_RANGE`): one that is shared by two routers, for instance. Never the gateway, the network or broadcast address, or one that the host has on the bridge or parent",
};

const DEVICE = {
  type: '',
  name: 'always read it from here: `tap-<rest>`, `veth-<rest>-h`, or with a hash where that is too long or taken',
  ifindex: '',
  mac: "of the host's end: of `tap` and `veth` it begins with `fe` and is not the workload's",
  mtu: '',
  bridge: 'the bridge that it is a port of',
  peer: "veth, the container's end: `name`, `ifindex`, `mac`, `netns`",
  'peer.name': '',
  'peer.ifindex': '',
  'peer.mac': '',
  'peer.netns': 'where it is, if that is known',
  queues: 'tap, macvtap: what whoever opens it must know',
  vnetHdr: 'tap, macvtap: what whoever opens it must know',
  vnetHdrSize: 'tap, macvtap: what whoever opens it must know',
  path: 'macvtap: its device file',
  pciAddress: 'vf',
  driver: 'vf',
  iommuGroup: 'vf, of a VM: `/dev/vfio/12`, which its VMM opens',
};

const ATTACHMENT = {
  id: 'as requested',
  generation:
    'fencing token: grows with every new attach in the fleet, so of two attachments with one id the higher is the newer. It is larger than 2^32',
  workload: 'as requested',
  kind: 'as requested',
  network: 'as requested',
  type: 'type of the network',
  host: 'where it is',
  state:
    '`attaching` or `detaching` while a change is under way; `fenced`: set down for good ([Ledger](#ledger))',
  mac: "the workload's own: that of the guest's NIC or the container's interface",
  device: {
    text: "the host's end: see below. nil for the container of an isolated network",
    of: 'device',
  },
  filter: 'what keeps the workload to its MAC and addresses',
  netns: 'as requested, or the one that was made',
  addresses: '`address` with prefix length (`10.42.0.5/24`), `gateway` where the network has one',
  'addresses.address': 'with prefix length',
  'addresses.gateway': 'where the network has one of this family',
  routes: "`to`, `via`: the network's",
  'routes.to': 'a prefix',
  'routes.via': 'an address',
  dns: "`servers`, `search`, `domain`: the network's. Where it has `names`, the gateways, `<network>.<domain>` and what the network has for `search`",
  'dns.servers': '',
  'dns.search': '',
  'dns.domain': '',
  ports: 'as requested',
  ...PORTS,
  'ports.hostAddress': 'as requested; absent: every address',
  bandwidth: 'as requested',
  ...BANDWIDTH,
  filterAddresses: 'what the port filter lets through beside `addresses`; absent when nothing',
  lease: '`generation`, `grantedAt`, `expiresAt` with `leaseTtlSeconds`',
  'lease.generation': "the attachment's",
  'lease.grantedAt': 'time',
  'lease.expiresAt': 'time; with `leaseTtlSeconds`',
  createdAt: 'time',
  labels: 'as requested',
};

const FAMILY = (path: '' | 'ipv6.'): Meanings => ({
  [`${path}pool.start`]: 'its first address',
  [`${path}pool.end`]: 'its last address',
});

const NETWORK: Meanings = {
  network: 'its name',
  type: 'what workloads get: [networks](networks.md)',
  subnet:
    'IPv4 prefix, host bits zero. May be missing where there is `ipv6`, and in an isolated network',
  gateway: "inside the subnet. Without `uplink` the host's bridge has it. Default: none",
  gatewayMode:
    "bridged, with `uplink` and a gateway: `router` (default), a machine on the segment has the gateway's address, and no host; `anycast`, every host's bridge has it, with one MAC. Refused elsewhere",
  pool: '`start` and `end`, inclusive; default: all usable addresses of the subnet',
  ...FAMILY(''),
  reservations: 'workload id → address. Never given to others; may lie outside the pool',
  ipv6: '`subnet`, required, and `gateway`, `pool`, `reservations`, of IPv6',
  'ipv6.subnet': 'IPv6 prefix, host bits zero',
  'ipv6.gateway': 'inside the subnet. Default: none',
  'ipv6.pool': '`start` and `end`, inclusive; default: all usable addresses of the subnet',
  ...FAMILY('ipv6.'),
  'ipv6.reservations': 'workload id → address',
  exclude: 'addresses and prefixes that are never given out',
  bridge:
    "device name; default: the network's name. One network's alone. Not one that systemd-networkd's own units claim (`ve-`, `vb-`, `vz-`, `vt-`, `ns-`, `host0`)",
  mtu: 'with `ipv6` at least 1280',
  uplink:
    'bridged and host-only: `device`, a NIC of the host, becomes a port of the bridge; one with the default route only with `allowDefaultRoute`',
  'uplink.device': 'a NIC of the host',
  'uplink.allowDefaultRoute': "take it although the host's default route goes through it",
  parent: 'macvtap: the NIC; sriov: the physical function',
  mode: 'macvtap',
  vlan: 'sriov',
  spoofCheck: 'sriov',
  trust: 'sriov',
  rate: 'sriov: `minMbps` and `maxMbps`',
  'rate.minMbps': '',
  'rate.maxMbps': '',
  dhcp: 'bridged and host-only: hosts tell their workloads addresses and options by DHCP and router advertisements ([networks.md](networks.md#dhcp-and-names)). `leaseSeconds` (default 3600, 60 at least), `ntp` (addresses)',
  'dhcp.leaseSeconds': 'default 3600',
  'dhcp.ntp': 'addresses of time servers',
  dns: '`servers`, `search`, `domain`; with `names: true` (bridged and host-only) the gateway answers DNS',
  'dns.servers': 'addresses',
  'dns.search': 'domains',
  'dns.domain':
    'what names of workloads end in, behind the name of the network; default `internal`',
  'dns.names':
    "the gateway answers DNS: the names of the network's workloads, and by way of `servers` all others",
  routes: '`to` (prefix) and `via` (address in a subnet of this network)',
  'routes.to': 'a prefix',
  'routes.via': 'an address in a subnet of this network',
  nat: 'host-only: masquerade, IPv4 by default; with `ipv6: true` IPv6 too',
  'nat.ipv6': 'IPv6 too',
  filter: 'ports are held to their own MAC and addresses',
  portIsolation: 'ports reach the gateway and the uplink alone',
  routed:
    'bridged networks: default false; true lets hosts forward packets between this network and their other devices: [networks.md](networks.md#forwarding)',
  linkLocal:
    "IPv6 link-local addresses that a port may use: that of its MAC, `eui64`, or `any` but the host's",
  reuseDelaySeconds: 'how long a released address rests before others get it',
  reclaimAfterSeconds:
    'after how long of silence the leases of a host end by themselves; default: never',
};

const NETWORK_RECORD = {
  text: 'with the defaults filled in, addresses in canonical form',
  of: 'network',
};
const REVISION = 'of the network; grows with each change';
const ATTACHMENT_RECORD = { text: 'see below', of: 'attachment' };

const DIFFERENCES = {
  differences: 'what is not as it should be; nil stands for what is not there',
  'differences.id': 'the attachment, or the network',
  'differences.what': 'one of [differences.md](differences.md)',
  'differences.expected': '',
  'differences.observed': '',
};

const OUTCOME = {
  requestId: 'of the request that it is the outcome of',
  durationMs: 'milliseconds by phase: `ipam`, `kernel`, `publish`',
};

const ERROR = {
  error: 'see [errors](#errors)',
  'error.code': '',
  'error.message': 'for people: it names the key, device or address and the reason',
  'error.retryable': 'true: the same request may succeed later without anybody changing it',
  'error.retryAfterMs': 'a repeat that comes earlier is in vain',
  'error.details': 'as the code says',
};

const TLS = (path: string): Meanings => ({
  [`${path}.tls`]: 'for a connection by TLS: files, in PEM',
  [`${path}.tls.caFile`]: 'authorities that are believed; null: those of the system',
  [`${path}.tls.certFile`]: 'the certificate of this client',
  [`${path}.tls.keyFile`]: 'the key of that certificate',
});

const CONFIGURATION: Meanings = {
  host: 'host id; default: the host name at the first start, other characters than letters, digits, `-` and `_` made `_`',
  nats: 'the bus',
  'nats.url':
    'one address or several, separated by commas, with user and password percent-encoded where they are given here',
  'nats.username': 'with `passwordFile`',
  'nats.passwordFile': 'a file with the password; files are read anew for each connection',
  'nats.tokenFile': 'a file with a token',
  'nats.nkeyFile': 'a file with the seed of an nkey',
  'nats.credentialsFile': 'a file with a JWT and a seed, as `nsc` writes it',
  'nats.inboxPrefix':
    "answers, jobs and confirmations come below it; default: `_INBOX.agent-<host>`, which is the host's own",
  'nats.replyPrefixes':
    'what reply subjects begin with that are answered; add the inbox prefix of a caller whose inboxes do not begin with `_`',
  ...TLS('nats'),
  'nats.streams':
    'how the streams are made where they are missing; one that is there is never changed by an agent',
  'nats.streams.replicas':
    'servers that keep each stream: 3 in a cluster, so that the loss of one is none',
  'nats.streams.storage': '`memory` is what a restart of NATS empties',
  'nats.streams.eventAgeSeconds': 'events that are older go',
  'nats.streams.eventBytes': 'beyond so many bytes the oldest events go',
  'nats.streams.jobAgeSeconds':
    'a job that nobody has done goes after so long, and no event tells of it',
  'nats.streams.jobBytes': 'beyond so many bytes new jobs are refused',
  redis: 'the ledger',
  'redis.url':
    'with `redis://`, `rediss://` (TLS) or `unix://`; user and password percent-encoded where they are given here',
  'redis.mode': '`sentinel` with `nodes` and `masterName`, `cluster` with `nodes`',
  'redis.nodes': 'the sentinels, or nodes of the cluster',
  'redis.nodes.host': '',
  'redis.nodes.port': '',
  'redis.masterName': 'as the sentinels call it',
  'redis.username': 'a user of Redis',
  'redis.passwordFile': 'a file with the password',
  'redis.sentinelUsername': 'the user of the sentinels',
  'redis.sentinelPasswordFile': 'a file with the password of the sentinels',
  ...TLS('redis'),
  'redis.keyPrefix': 'what every key of the ledger begins with; without braces',
  'redis.cell':
    'one of several ledgers in a Redis Cluster, by name; each has a `subjectPrefix` of its own',
  'redis.minReplicas': 'a change counts as done once so many replicas have it',
  runtimeDir: 'records, local socket and lock: emptied by a reboot',
  stateDir: 'what survives a reboot',
  networksDir: 'files of networks that are put where there is none of that name',
  subjectPrefix: 'what every subject of the fleet begins with',
  heartbeatSeconds: 'how often the host tells the ledger that it is there',
  suspectAfterSeconds:
    'a host that the ledger has not heard for so long is suspect; at least twice `heartbeatSeconds`',
  recoveryWindowSeconds:
    'how long the ledger waits for hosts after a restart or a loss of Redis; null: until they are there or forgotten',
  reconcileSeconds: 'how often the host is compared with the records',
  onReboot:
    "what becomes of a VM's lease when its host was rebooted: `recreate` keeps it and makes its device again, `release` ends it",
  nftablesTable:
    "name of the agent's nftables tables (`bridge`, `netdev` and `inet`); another name is for a host where somebody else has tables of this one",
  logLevel: 'the least that is logged',
  logFormat: 'lines of JSON, or text for people; `auto`: text on a terminal',
  metrics: 'see [Metrics](../operating.md#metrics)',
  'metrics.listen': 'address and port that Prometheus fetches metrics from: `127.0.0.1:9464`',
  'metrics.poolSeconds': "how often the use of each network's pool is read from the ledger",
};

export const MEANINGS: Readonly<Record<string, Meanings>> = {
  device: DEVICE,
  attachment: ATTACHMENT,
  network: NETWORK,
  configuration: CONFIGURATION,
  'attach-request': ATTACH,
  'attach-job': ATTACH_JOB,
  'detach-request': DETACH,
  'update-request': UPDATE,
  'get-request': { id: 'the attachment' },
  'check-request': { id: 'one attachment; default: all of the host' },
  'cordon-request': {
    cordoned: 'true: the host takes no new attachments; false: it takes them again',
    reason: 'shown by `voltnet status`, and with each refusal',
  },
  'list-request': {
    allHosts: 'default false: not what is on the host, but what is attached in the fleet',
    network: 'only these',
    workload: 'only these',
    kind: 'only these',
    state: 'only these',
    labels: 'only what has all of these, with these values; not with `allHosts`',
    limit: 'default 1000',
    cursor: 'of the answer before',
  },
  'network-put-request': {
    ...NETWORK,
    revision: 'that of the network which this one replaces; without it nothing is replaced',
  },
  'network-get-request': { network: 'its name' },
  'network-list-request': PAGE,
  'network-delete-request': { network: 'its name' },
  'ledger-leases-request': {
    network: 'only these',
    host: 'only these',
    state: 'only these',
    ...PAGE,
  },
  'ledger-hosts-request': PAGE,
  'ledger-forget-request': { host: 'the host that is gone' },
  'ledger-check-request': {
    repair: 'put right what is proven, and nothing else',
    cursor: 'of the answer before',
  },
  'attach-answer': {
    attachment: ATTACHMENT_RECORD,
    replayed: 'true: it was there already, and nothing was made',
    warnings:
      'why the workload may have no traffic: of an adopted bridge, as its owner has it. Absent without any',
  },
  'attach-dry-run-answer': {
    dryRun: '',
    replayed: 'true: it is attached already; nothing would be done',
    lease:
      '`mac` and `addresses` that it would get, as things are now: whoever asks next may get them first',
    'lease.mac': '',
    'lease.addresses': '',
    operations:
      'every change of the kernel in its order, each with `operation` (`RTM_NEWLINK`, `TUNSETIFF`, `sysctl`, `nft transaction`) and `subject` (`tap-web`), as in traces',
    'operations.operation': '',
    'operations.subject': '',
  },
  'detach-answer': {
    detached: 'false: there was nothing to detach, which is success too',
    releasing:
      'true: traffic has stopped and the name is free; deletion and release follow at once, and the event `detached` when both are done',
  },
  'update-answer': { attachment: { ...ATTACHMENT_RECORD, text: 'as it is now' } },
  'get-answer': { attachment: ATTACHMENT_RECORD },
  'list-answer': {
    attachments: { text: '', of: 'attachment' },
    cursor: 'more follows; the same request with it gets the next page',
  },
  'list-all-hosts-answer': {
    attachments: 'by network and id, as the ledger knows them',
    'attachments.id': '',
    'attachments.generation': '',
    'attachments.host': '',
    'attachments.network': '',
    'attachments.workload': '',
    'attachments.kind': '',
    'attachments.mac': '',
    'attachments.addresses': 'with prefix length',
    'attachments.hostname': 'where it has one',
    'attachments.grantedAt': 'time',
    'attachments.expiresAt': 'time, where it has one',
    behind: 'networks of which the ledger gives no news now',
    'behind.network': '',
    'behind.asOf': 'the time for which `attachments` is true',
    'behind.code': "the ledger's",
    'behind.message': "the ledger's",
    cursor: 'more follows; the next page may be empty',
  },
  'cordon-answer': { host: '', cordoned: '', reason: 'as given', since: 'when it was cordoned' },
  'check-answer': {
    inSync: '',
    ...DIFFERENCES,
    plan: 'what the agent would do now',
    'plan.id': '',
    'plan.action': known(Object.keys(PLAN_MEANINGS)),
    'plan.reason': '',
    notCompared: 'what could not be compared; `inSync` is false then. Absent where everything was',
    'notCompared.what': '`ledger`',
    'notCompared.code': '',
    'notCompared.message': '',
    truncated: 'true where there is more than an answer holds',
  },
  'network-put-answer': {
    network: NETWORK_RECORD,
    revision: REVISION,
    created: 'false: it was there already, with this content or another',
  },
  'network-get-answer': {
    network: NETWORK_RECORD,
    revision: REVISION,
    usage: 'in addresses; floats where an IPv6 network has more than 2^53',
    'usage.size': '',
    'usage.used': '',
    'usage.free': '',
    'usage.reserved': '',
    'usage.cooling': '',
    'usage.suspect': '',
  },
  'network-list-answer': {
    networks: '',
    'networks.network': NETWORK_RECORD,
    'networks.revision': REVISION,
    cursor: 'more follows',
  },
  'network-delete-answer': { deleted: 'false: there was none' },
  'ledger-leases-answer': {
    leases: '',
    'leases.id': '',
    'leases.generation': '',
    'leases.network': '',
    'leases.workload': '',
    'leases.kind': '',
    'leases.host': '',
    'leases.mac': '',
    'leases.addresses': 'with prefix length',
    'leases.grantedAt': 'time',
    'leases.expiresAt': 'time, where it has one',
    'leases.state':
      '`suspect`: its host has fallen silent; `expired`: its host has yet to end it; both are held all the same',
    cursor: 'more follows; the next page may be empty',
  },
  'ledger-hosts-answer': {
    hosts: '',
    'hosts.host': '',
    'hosts.state':
      '`joining`: new, it may acquire as soon as another host has seen it; `suspect`: silent, its leases stay; `awaited`: the ledger waits for it',
    'hosts.machineId': '',
    'hosts.agentId': 'of its state folder',
    'hosts.bootId': '',
    'hosts.clones':
      'boots of machines that are copies of one another and call themselves this host: all are refused until an operator decides',
    'hosts.seenAt': 'its last heartbeat',
    'hosts.leases': 'how many',
    state: 'leases are granted while it is `armed`',
    cursor: 'more follows',
  },
  'ledger-forget-answer': {
    host: '',
    forgotten: 'false for one that was not known',
    released: 'how many leases ended',
  },
  'ledger-check-answer': {
    inSync: 'true when no difference is left',
    ...DIFFERENCES,
    'differences.id': 'the attachment',
    'differences.host': 'where it was found; absent for what is wrong in Redis itself',
    'differences.repaired': '',
    checked: 'hosts that were compared',
    silent: 'hosts that did not answer',
    truncated: 'true where there are more differences than an answer holds',
    cursor: 'the rest is not checked yet: the same request with it goes on',
    progress: 'with `cursor`: how far it is, in words',
  },
  'error-answer': ERROR,
  'local-claim-packet': {
    op: '',
    id: 'the attachment',
    generation: 'this one only: another is `STALE_GENERATION`',
  },
  'local-clean-packet': { op: '' },
  'local-health-packet': { op: '' },
  'local-request-packet': {
    op: '',
    operation: '`attach`, `detach`, `update`, `get`, `list` or `check`',
    host: 'another host id than the agent has is `WRONG_HOST`',
    body: 'the request of that operation; may be missing where it would be empty. nil is `null`',
    timeoutMs: 'default 10000, at most 120000: how long the caller waits',
    traceparent: "W3C trace context of the caller: the agent's spans continue it",
    tracestate: 'with `traceparent`',
  },
  'local-settle-packet': { op: '' },
  'local-claim-answer': {
    attachment: { ...ATTACHMENT_RECORD, text: 'as the answer of `attach` has it' },
  },
  'local-clean-answer': { host: '', networks: 'names of those that were taken off the host' },
  'local-settle-answer': { host: '', settled: 'false where the ledger does not know the host' },
  'local-health-answer': {
    health: '',
    'health.version': '',
    'health.host': '',
    'health.hostName':
      'where the host id, made of the host name at the first start, is another by now',
    'health.pid': '',
    'health.startedAt': 'time',
    'health.nats': 'how the agent stands with NATS',
    'health.requests': '`ready`, or why none are taken',
    'health.jobs': '`ready`, or why none are taken',
    'health.redis': 'how the agent stands with Redis',
    'health.redis.state': '',
    'health.redis.reason': 'where it is not `ready`, or lacks something all the same',
    'health.session': "the host's heartbeats",
    'health.session.state':
      'of the ledger; `refused` where the host is another machine, `unknown` where the ledger did not answer',
    'health.session.open': 'leases can be granted',
    'health.session.awaiting': 'hosts that the ledger waits for',
    'health.session.reason': 'why the last heartbeat was refused',
    'health.firewall': '`ready`, or why nftables cannot be used',
    'health.reconcile':
      'the host compared with records and ledger; `alone`: with records, the ledger being away',
    'health.attachments': 'how many',
    'health.unfinished': 'attachments that are being made or taken away, or are fenced',
    'health.eventsPending': 'events that wait for NATS',
    'health.eventsSetAside': 'events that the stream refuses for their size',
    'health.clockAheadMs': "by how much the host's clock is ahead of others, where they are known",
    'health.clockAheadMs.ledger': "of Redis's",
    'health.clockAheadMs.stream': "of NATS's",
    'health.unexpectedErrors':
      'errors since the start that nobody had foreseen: they are in the log, and worth a report',
    'health.unexpectedErrors.count': '',
    'health.unexpectedErrors.at': 'of the last: time',
    'health.unexpectedErrors.message': 'of the last',
    'health.conditions': 'what is wrong now: [conditions.md](conditions.md)',
    'health.conditions.name': 'stable',
    'health.conditions.area': '',
    'health.conditions.blocks': 'attaches that are asked for over NATS fail',
    'health.conditions.reason': '',
    'health.conditions.since': 'time',
    'health.conditions.remedy': 'what to do about it',
  },
  'event-attached': { ...ATTACHMENT, ...OUTCOME },
  'event-updated': { ...ATTACHMENT, ...OUTCOME },
  'event-detached': {
    ...ATTACHMENT,
    ...OUTCOME,
    state: '',
    reason: known(DETACHED_REASONS),
  },
  'event-failed': {
    ...ERROR,
    operation: '',
    request: 'as it came',
    ...OUTCOME,
  },
  'event-network-changed': {
    network: {
      text: 'as `network.put` answered it; of one that was deleted its name',
      of: 'network',
    },
    revision: REVISION,
    created: '',
    deleted: '',
    ...OUTCOME,
  },
  'event-repaired': {
    ...OUTCOME,
    id: 'the attachment; absent where it was a network or the firewall',
    generation: '',
    workload: '',
    network: '',
    host: '',
    device: { text: 'as it is now', of: 'device' },
    action: known(REPAIR_ACTIONS),
    ...DIFFERENCES,
  },
  'event-suspect': { host: 'it has fallen silent', ...OUTCOME },
  'event-recovering': {
    epoch: 'of the ledger',
    awaiting: 'hosts that the ledger waits for, sixty-four at most',
    ...OUTCOME,
  },
  'event-recovered': {
    epoch: 'of the ledger',
    missed: 'hosts that were not waited for any longer',
    ...OUTCOME,
  },
  'event-host-up': {
    host: '',
    bootId: '',
    before: '`live`, `suspect` or `unknown`',
    rebooted: '',
    kept: 'ids of leases of before a reboot that stay, a hundred at most',
    released: 'ids of leases that have ended or are being ended, a hundred at most',
    ...OUTCOME,
  },
  'event-host-down': {
    host: '',
    reason: '`forgotten`',
    released: 'how many leases ended',
    ...OUTCOME,
  },
};
