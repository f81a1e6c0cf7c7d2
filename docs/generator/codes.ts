import type { AGENT_EXIT, EXIT } from '#agent/cli/exit-codes.ts';
import type { Action } from '#agent/host/reconcile/plan.ts';
import type { ConditionName } from '#protocol/conditions.ts';
import type {
  AttachmentDifference,
  FirewallDifference,
  LedgerDifferenceName,
  NetworkDifference,
} from '#protocol/differences.ts';
import type { ErrorCode } from '#protocol/errors.ts';
import type { LocalOp } from '#protocol/local-socket.ts';
import type { DetachedReason, EventType, RepairAction } from '#protocol/events.ts';

// What codes and names mean, in the words of the reference.

export const ERROR_MEANINGS: Readonly<Record<ErrorCode, string>> = {
  INVALID_REQUEST:
    'a key is wrong, missing or unknown (`details.path`), or the payload is not acceptable MessagePack',
  TOO_LARGE:
    'the payload, or the answer, is too large (`details.bytes`, `details.limit`; `details.done` where a change was made all the same)',
  UNAUTHORIZED: 'the caller may not',
  NOT_FOUND: 'no such attachment on this host',
  UNKNOWN_NETWORK: 'there is no network of this name',
  NETWORK_CONFLICT:
    'the network is there with other content; or another network, named in `details.network`, has its subnet or its bridge (`details.path`); or, at attach, the host itself has something in its subnet, on `details.device`',
  NETWORK_IN_USE:
    'leases exist, and what is asked for cannot be while they do; retryable where all are being released',
  ALREADY_ATTACHED: 'this id, with other content',
  WRONG_HOST:
    'another host has this id (`details.host`); over the local socket: the request is for another host',
  HOST_CONFLICT:
    'two machines under one host id (`details.machineId`: the one that the ledger knows; `details.clones`: boots of copies of it, none of which is believed); nothing was changed',
  HOST_CORDONED:
    'an operator has closed this host to new attachments (`details.since`, `details.reason`): attach on another one',
  HOST_ALIVE:
    '`ledger.forget`, or `voltnet host settle` or `rename`, of a host that sends heartbeats',
  POOL_EXHAUSTED: 'no address is free',
  ADDRESS_IN_USE:
    'held or cooling; and, not retryable then, reserved for another workload (`details.workload`)',
  ADDRESS_OUT_OF_RANGE:
    "outside the subnet, the gateway, network or broadcast address, excluded, or the host's own",
  MAC_IN_USE: 'in this network, or on this host (`details.holder`)',
  STALE_GENERATION: 'the attachment is a newer one by now; in an event: it is fenced',
  SUPERSEDED: 'an attach that is older than the detach that ran',
  STORE_UNAVAILABLE: 'Redis is away or does not answer',
  STORE_VERSION: 'Redis has a newer library than this agent can use',
  RECOVERING:
    'Redis has restarted or lost data: nothing is granted until every host was heard. Or keys of one network have vanished, which the message names: `voltnet ledger check --repair`. An agent tries for up to three seconds before it answers this',
  NAMESPACE_NOT_FOUND:
    '`netns` leads nowhere, for the reason that the kernel gives, or to something that is no network namespace, which is not opened',
  INTERFACE_EXISTS: 'a device of this name is there and is not ours',
  DEVICE_BUSY: 'somebody holds its queues',
  BRIDGE_FULL: 'the kernel takes 1,023 ports a bridge',
  PORT_IN_USE: 'this host port is mapped or bound',
  PARENT_NOT_FOUND: 'the parent or uplink of the network is not on this host',
  NO_FREE_VF: 'every virtual function of the parent is in use',
  UNSUPPORTED: 'this network type, kernel or release cannot (`details.path`)',
  OVERLOADED:
    "too many requests of this kind are here already, of this caller or of all, or too many wait for this id (sixty-four), or too many events wait for NATS, or the disk of the agent's folders is full",
  DEADLINE_EXCEEDED:
    "the caller's time is over; nobody says whether it was done: repeat it. With `details.path` `netns`, nothing was done: a file system on that path has not answered within two seconds",
  SHUTTING_DOWN: 'the agent is stopping',
  KERNEL_ERROR: "`details` has `errno`, `operation` and the kernel's own text",
  INTERNAL: 'a mistake of ours',
  AGENT_UNAVAILABLE: 'made by clients, never sent: nobody serves the subject, or NATS is away',
};

/** What whoever gets it, or the operator, does about it. */
export const ERROR_REMEDIES: Readonly<Record<ErrorCode, string>> = {
  INVALID_REQUEST: 'mend what the message and `details.path` name ([schemas](README.md))',
  TOO_LARGE:
    'ask for less at once (`limit`), or raise `max_payload` of NATS as far as [protocol.md](../protocol.md#messages) has use for it. With `details.done` read what was done by `get`',
  UNAUTHORIZED:
    'give the user its rights or the right credentials ([security.md](../security.md)); over the local socket, be root',
  NOT_FOUND:
    'for a detach nothing: it is gone. Else `voltnet list --all-hosts`: it may be on another host',
  UNKNOWN_NETWORK: '`voltnet network list`, then `voltnet network put`',
  NETWORK_CONFLICT:
    '`voltnet network diff` shows how a definition differs; another subnet for the second network; or take off the host what `details.device` has there',
  NETWORK_IN_USE:
    'detach what `voltnet lease list --network` shows, or change what may be changed in use ([networks.md](../networks.md))',
  ALREADY_ATTACHED: 'detach it before, `voltnet update` what may be changed, or take another id',
  WRONG_HOST: 'ask the host of `details.host`; `voltnet lease list` says who has what',
  HOST_CONFLICT:
    'see "Two machines have one host id" in [operating.md](../operating.md#the-fleets-ledger)',
  HOST_CORDONED: 'place it on another host, or `voltnet host uncordon`',
  HOST_ALIVE: 'stop the agent of that host, and wait until it is silent',
  POOL_EXHAUSTED:
    '`voltnet network show`: widen the pool, shorten `reuseDelaySeconds`, or detach what is not used; `voltnet lease list --state suspect` shows what lost hosts hold',
  ADDRESS_IN_USE:
    '`voltnet lease list` says who has it; wait until it has cooled down, or ask for another one',
  ADDRESS_OUT_OF_RANGE: 'ask for an address of the network: `voltnet network show`',
  MAC_IN_USE: 'leave `mac` out, or give another one',
  STALE_GENERATION:
    'somebody else has this id or address now. Read it by `get`; a fenced one is detached, or attached anew: [runbook](../runbook.md#voltfenced)',
  SUPERSEDED: 'nothing: a later request counts',
  STORE_UNAVAILABLE:
    'repeat it. If it stays so: `voltnet status` on the host, [runbook](../runbook.md#voltattachesblocked)',
  STORE_VERSION: 'update this agent: another one of the fleet is newer',
  RECOVERING:
    'repeat it. If it stays so, `voltnet host list` names the hosts that are awaited: start their agents, or forget them',
  NAMESPACE_NOT_FOUND: 'make the namespace before the attach, and give its path on the host',
  INTERFACE_EXISTS:
    'look whose the device of the message is, and take it away or give another `ifname`',
  DEVICE_BUSY: 'end the process that holds the device, or wait for it; then repeat it',
  BRIDGE_FULL: 'place it on another host, or in another network',
  PORT_IN_USE: 'another `hostPort`; `ss -ltnup` and `voltnet list` say who has this one',
  PARENT_NOT_FOUND:
    'name the device as this host calls it, or place the workload where there is one: `ip link`',
  NO_FREE_VF: 'place it on another host, or give the parent more (`sriov_numvfs`)',
  UNSUPPORTED: '`voltnet doctor` on the host says what its kernel lacks; else leave the key out',
  OVERLOADED:
    'repeat it after `retryAfterMs`. If it stays so: `voltnet status` names a full disk or events that wait',
  DEADLINE_EXCEEDED:
    'repeat it, which is harmless, with more time (`volt-timeout-ms`, `--timeout`); for `netns` mend the file system',
  SHUTTING_DOWN: 'repeat it when the agent is there again',
  KERNEL_ERROR:
    '`voltnet doctor` on the host, [runbook](../runbook.md#voltkernelerrors); what was begun was undone',
  INTERNAL:
    "the agent's log has the cause and its stack: report it with the version (`voltnet version`)",
  AGENT_UNAVAILABLE:
    'look at the agent of that host and at NATS: [runbook](../runbook.md#voltagentdown); is the host id right (`voltnet host list`)?',
};

/** What an operator does is the `remedy` of protocol/conditions.ts. */
export const CONDITION_MEANINGS: Readonly<Record<ConditionName, string>> = {
  'bus-away': 'NATS cannot be reached, or does not answer',
  'credentials-refused': 'NATS does not let the agent in',
  'subscription-refused':
    "NATS does not let the agent hear some of its host's subjects, which the reason names",
  'fleet-unheard':
    "the same of other subjects: `changed.*` (what others have changed is seen a heartbeat later), what any agent answers (`network`, `ledger`, `$SRV`), the agent's own inbox",
  'publish-refused': 'NATS does not let the agent publish on the subjects that the reason names',
  'jetstream-away':
    "the server or the agent's account has no JetStream; jobs and events wait, requests are answered",
  'stream-missing': 'the stream that the reason names is not there, and the agent may not make it',
  'stream-unfit': 'a stream is there whose settings jobs or events cannot be trusted to',
  'consumer-missing': "the host's consumer of jobs is not there, and the agent may not make it",
  'consumer-unfit':
    "the host's consumer of jobs has settings by which jobs cannot be trusted to come",
  'jobs-not-taken': 'no jobs are taken for another reason',
  'events-waiting':
    "an event waits for more than five seconds; the reason has the oldest one's time and why it was not taken",
  'events-set-aside':
    'the event stream refuses some events for their size; they are tried again once a minute',
  'events-full': '512 MiB of events wait: attaches are `OVERLOADED`',
  'ledger-away': 'Redis cannot be reached, does not answer, or refuses what the ledger asks',
  'ledger-unfit': 'Redis has another version, policy or library than the ledger needs',
  'ledger-warning': 'the ledger works, but the Redis user lacks a right',
  recovering: 'the ledger waits for hosts after a restart or a loss of Redis',
  'session-refused': "the ledger knows this host id as another machine's",
  'host-renamed': 'the host is recorded under another id than its name',
  'firewall-unusable': 'nftables cannot be used: attachments that need it are refused',
  'reconcile-differs': 'something differs from its record and could not be put right',
  'network-differs':
    'something that a network needs on this host is as its owner has it: an adopted bridge that is down, has not the gateway, or delays new ports by spanning tree; an uplink that is not there',
  'gateway-undecided':
    "a bridge with uplink still has the gateway's address, as an earlier release gave it",
  'host-cordoned':
    'an operator has closed the host to new attachments (`voltnet host cordon`, `drain`); all else is answered',
  'guests-unserved':
    'dnsmasq of a network does not run: somebody else has its port, or it ended; workloads that ask get no DHCP or no names',
  'metrics-unserved':
    'the agent cannot listen on `metrics.listen`: another process does, or the host has no such address; it is tried again every five seconds',
  'disk-refuses': 'nothing can be written to the runtime or state folder',
  'clock-skew': 'two of the clocks of host, Redis and NATS differ by more than half a second',
};

export const EXIT_MEANINGS: Readonly<Record<keyof typeof EXIT, string>> = {
  ok: 'done',
  failed: 'the agent answered an error that has no code of its own here',
  usage: 'wrong usage, a file that cannot be used, or an invalid request',
  unreachable: 'no agent answered, or NATS (for `setup`, JetStream) is away',
  notFound: 'what the request names does not exist',
  conflict: 'somebody else has it, or it is there with other content',
  retry: 'the same request may succeed later',
  denied: 'not permitted, by the agent or by NATS: wrong user, password, token or key',
  differs:
    '`check` or `ledger check` found differences or could not compare all, `status` an agent that cannot serve now, `doctor` a problem, or `setup` a stream or consumer that is configured otherwise or that the server refuses',
  cannotExecute: '`exec`: the command cannot be executed',
  commandNotFound: "`exec`: there is no such command; else the code is the command's own",
};

export const AGENT_EXIT_MEANINGS: Readonly<Record<keyof typeof AGENT_EXIT, string>> = {
  ok: 'ended on `SIGTERM` or `SIGINT`, `--help`, `--version`, `--check-config`',
  failed: 'an error in its command line, or one that it did not expect',
  noNode: 'Node 24 is not there: `npm ci` did not run in this checkout',
  locked: 'another agent holds the runtime folder',
  configuration:
    "the configuration is wrong (with `--check-config` also a file that it names), the folders are not the agent's alone, or the state folder is another machine's or host's",
};

export const EVENT_MEANINGS: Readonly<Record<EventType, string>> = {
  attached: 'an attach is done, also where the id was attached already',
  detached:
    'an attachment has ended. The body is the attachment as it was. Where a job found nothing (`absent`) there are only `id`, `host`, `state` and `reason`; where the host had no record of it any more (`reclaimed`, and some of `reboot`) only what its lease says: `id`, `generation`, `workload`, `kind`, `network`, `host`, `mac`, `addresses`',
  updated: 'an update is done, or a changed network was given to what is attached',
  failed: 'a request or a job has ended in an error, or an attachment is fenced',
  repaired: 'something on the host was not as recorded, and was put right',
  suspect: 'a host has fallen silent',
  recovering:
    'Redis has lost something: nothing is granted until the hosts have said what they hold',
  recovered: 'the ledger grants again after it was recovering',
  'host-up': 'a host is there again, or for the first time',
  'host-down': 'a host was declared gone: its leases have ended',
  'network-changed': 'a network was put or deleted',
};

export const DETACHED_MEANINGS: Readonly<Record<DetachedReason, string>> = {
  requested: 'somebody has asked for it',
  absent: 'a job to detach found nothing',
  expired: 'the time of `leaseTtlSeconds` is over',
  failed: 'an attach of the same id was to make it again, and failed',
  fenced: 'it was fenced, and an attach of the same id took its place',
  interrupted: 'an agent died in the middle of its attach or detach',
  'namespace-gone': "its container's namespace is gone",
  reboot: 'it was made before the host was rebooted',
  reclaimed: "its host has been silent for the network's `reclaimAfterSeconds`",
};

export const REPAIR_MEANINGS: Readonly<Record<RepairAction, string>> = {
  mend: 'a device was set back in its place',
  remake: 'a device was made again',
  close:
    'a device was set down for good, since its holder changed its MAC again and again; its `state` is `fenced` from then on',
  network: 'what a network has on the host; there are only `host`, `network` and `differences`',
  firewall: "the agent's nftables; there are only `host` and `differences`",
};

/** Of the plan in the answer of `check`. What needs the ledger is not planned there. */
export const PLAN_MEANINGS: Readonly<
  Record<Exclude<Action['kind'], 'release' | 'reassert'>, string>
> = {
  mend: 'set a device back in its place',
  remake: 'make a device again',
  close: 'set a fenced device down and out of its bridge again',
  detach: 'end an attachment whose workload is gone',
  remove: 'delete a device of ours that nobody has',
  network: 'put right what a network has on the host',
};

const SETTING = (family: string): string => `a setting below \`/proc/sys/net/${family}\``;
const INSIDE = 'in its namespace: it is told, and left to the workload';

export const ATTACHMENT_DIFFERENCE_MEANINGS: Readonly<Record<AttachmentDifference, string>> = {
  device: 'the device is not there',
  'device.name': 'name of the device',
  'device.alias': 'its alias, which says whose it is',
  'device.group': 'its link group',
  'device.mac': 'its MAC; of the closed one, the MAC that its holder gave it',
  'device.mtu': 'its MTU',
  'device.up': 'whether it is up',
  'device.bridge': 'the bridge that it is a port of',
  'device.ipv4.<setting>': SETTING('ipv4'),
  'device.ipv6.<setting>': `${SETTING('ipv6')}: \`device.ipv6.disable_ipv6\``,
  'device.port.<attribute>':
    "a setting of it as a port of its bridge, by the kernel's name: `device.port.IFLA_BRPORT_ISOLATED`",
  'device.forwarding': "the bridge's entry for the workload's MAC",
  'device.driver': "the driver of a VM's virtual function",
  'bandwidth.ingress': 'bits a second towards the workload',
  'bandwidth.egress': 'bits a second from the workload',
  filter: 'what the firewall holds to keep the workload to its MAC and addresses',
  ports: 'what the firewall holds for its port maps',
  'device.peer': `the container's end ${INSIDE}`,
  'device.peer.name': `its name ${INSIDE}`,
  'device.peer.mac': `its MAC ${INSIDE}`,
  'device.peer.mtu': `its MTU ${INSIDE}`,
  'device.peer.up': `whether it is up ${INSIDE}`,
  address: `an address ${INSIDE}`,
  'lo.up': `whether \`lo\` is up ${INSIDE}`,
  netns: 'the namespace is gone, is another than the one that was named, or does not answer',
  mac: "the MAC that the parent holds a VM's virtual function to",
  lease: 'the lease in the ledger: generation, host, MAC, addresses',
  record: 'a lease or a device is there of which the host has no record',
  'network.revision': 'the revision of the network that the attachment has',
  boot: 'the boot of the host in which it was made',
};

export const NETWORK_DIFFERENCE_MEANINGS: Readonly<Record<NetworkDifference, string>> = {
  bridge: 'the bridge is not there',
  'bridge.alias': 'its alias, which says whose it is',
  'bridge.group': 'its link group',
  'bridge.mac': 'its MAC',
  'bridge.mtu': 'its MTU',
  'bridge.up': 'whether it is up',
  'bridge.stp_state': 'a bridge that the agent made has spanning tree',
  'bridge.forwardDelayMs': 'an adopted bridge has spanning tree, and delays new ports by so much',
  'bridge.arp': 'a bridge that the agent made answers no ARP (`arp off`)',
  'bridge.address': 'an address is missing, or is there and is no gateway of the network any more',
  'bridge.ipv4.<setting>': SETTING('ipv4'),
  'bridge.ipv6.<setting>': SETTING('ipv6'),
  'bridge.route': '`::1` leads nowhere when it comes in by the bridge',
  uplink: 'the uplink is not there',
  'uplink.bridge': 'the uplink is no port of the bridge',
  'uplink.up': 'whether the uplink is up',
  'sysctl <name>':
    'the host does not forward: `sysctl net.ipv4.ip_forward`, `sysctl net.ipv6.conf.all.forwarding`',
};

export const FIREWALL_DIFFERENCE_MEANINGS: Readonly<Record<FirewallDifference, string>> = {
  'nftables <family> chain <name>': 'the rules of a chain, in numbers of them',
  'nftables <family> set <name>': 'the elements of a set, in numbers of them',
};

export const LEDGER_DIFFERENCE_MEANINGS: Readonly<Record<LedgerDifferenceName, string>> = {
  'by missing': 'a released address is not found by the workload that had it',
  'by stray': 'a workload is said to have had an address that another had, or nobody',
  'changes missing': 'the log of changed networks is incomplete',
  count: 'the number of held addresses that a network counts is not that of its leases',
  'due missing': 'a lease that ends by itself is not among those of its host that do',
  'due stray': 'a lease that does not end by itself, or is not there, is among those that do',
  'free missing': 'a released address that the pool has is not free',
  'free stray': 'an address is free that was neither released nor held',
  'gone missing': 'addresses of a deleted network that still rest are not there',
  'gone unreadable': 'an entry of these is none',
  'held and free': 'an address is held and could be granted all the same',
  'held missing': "a lease's address is not held",
  'held stray': 'an address is held for an id that has no lease of it',
  'held unreadable': 'an entry of the held addresses is none',
  'host missing': 'a lease is not in the list of its host',
  'host stray': 'the list of a host has an id that has no lease there',
  'hosts missing': 'a host of a lease is not among those of its network',
  'last unreadable': 'an entry of the released addresses is none',
  'lease unreadable': 'a lease is none',
  'leaving missing':
    'an address that a network keeps closed no longer is not among those that wait for its hosts',
  lost: 'an address of the pool is neither free, held nor unused: it would never be granted',
  'mac missing': 'a lease is not found by its MAC',
  'mac stray': 'a MAC leads to an id that has no lease with it',
  'meta missing': 'counters of the ledger are missing or behind',
  'network differs': 'what is kept of a network is not what its definition says',
  'network missing': 'a network has a name or a subnet, and no definition',
  'network unfinished': 'a change of a network that takes several calls is not finished',
  'network unlisted': 'a network is not in the list of networks',
  'networks missing': 'the list of networks is incomplete',
  'pool differs': "the ranges of a pool are not those of the network's definition",
  'revised differs': 'a network is listed under another revision than its own',
  'revised missing': 'the list of revisions is incomplete',
  'roster missing': 'a host is not in the list of hosts',
  'session missing': 'a host in the list has no session',
  'state missing': 'a host in the list is neither live nor suspect',
  'subnet missing': 'the subnet of a network is not among those that are taken',
  'subnet stray': 'a subnet is taken by no network that has it',
  'subnets missing': 'the list of taken subnets is incomplete',
  unreadable: 'a key of the ledger has another type or content than a function writes',
};

export const LOCAL_OP_MEANINGS: Readonly<Record<LocalOp, string>> = {
  claim:
    'Asks for the descriptors of a TAP. They come with the answer, in the same packet, as `SCM_RIGHTS`: one for each queue.',
  clean: 'From root: takes off the host what networks have there that nobody is attached to.',
  health: 'From anybody: how the agent is.',
  request: 'From root: asks what `host.<host>.<operation>` is asked on the bus.',
  settle:
    'From root: decides that this machine is the host where copies of it are refused with it.',
};
