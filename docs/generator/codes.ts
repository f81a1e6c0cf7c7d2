import type { EXIT } from '#agent/cli/exit-codes.ts';
import type { ConditionName } from '#protocol/conditions.ts';
import type { ErrorCode } from '#protocol/errors.ts';

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
  usage: 'wrong usage, or an invalid request',
  unreachable: 'no agent answered, or NATS (for `setup`, JetStream) is away',
  notFound: 'what the request names does not exist',
  conflict: 'somebody else has it, or it is there with other content',
  retry: 'the same request may succeed later',
  denied: 'not permitted, by the agent or by NATS: wrong user, password, token or key',
  differs:
    '`check` or `ledger check` found differences or could not compare all, `status` an agent that cannot serve now, `doctor` a problem, or `setup` a stream or consumer that is configured otherwise',
  cannotExecute: '`exec`: the command cannot be executed',
  commandNotFound: "`exec`: there is no such command; else the code is the command's own",
};
