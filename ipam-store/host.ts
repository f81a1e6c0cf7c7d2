import type { Fields } from './fields.ts';
import { type HostList, type ListNews, newsOf } from './host-list.ts';
import { type Lease, leaseOf } from './lease.ts';

/**
 * The newest that a host has had from the ledger in any answer. It keeps this where a reboot leaves it, before it
 * says so: by it a server that came back empty or older is found out.
 */
export interface Seen extends HostList {
  /** Highest generation. */
  readonly generation: number;
  /** Of the last change of any network. */
  readonly revision: number;
}

/** Nothing: what a host knows that has never had an answer. */
export const NOTHING_SEEN: Seen = { generation: 0, revision: 0, roster: 0, hosts: [] };

/** What a host says of itself once a period. */
export interface Beat {
  readonly host: string;
  /** /etc/machine-id: two machines under one name are found out by it. */
  readonly machineId: string;
  /** Of its state folder: two machines of one image are found out by it. */
  readonly agentId?: string | undefined;
  /** `details.yieldsTo` of the last HOST_CONFLICT: that is the host where a server has lost who was. */
  readonly yieldsTo?: string | undefined;
  /** /proc/sys/kernel/random/boot_id. */
  readonly bootId: string;
  /** The longest time between two heartbeats. A boot that was not heard for twice as long has ended. */
  readonly heartbeatSeconds?: number | undefined;
  /** After this long without a heartbeat the host is suspect. */
  readonly suspectAfterSeconds: number;
  /** How long the ledger waits for hosts after a loss; null: until all are there. */
  readonly recoveryWindowSeconds: number | null;
  readonly seen: Seen;
  /** Networks whose logs the host follows, sixteen at most, and up to where it has read them. */
  readonly follows?: Readonly<Record<string, string>>;
  /** The revision up to which it has applied changes of networks; undefined while it does not know. */
  readonly applied?: number | undefined;
  /** An empty ledger is that of a new fleet: no other host has seen anything of it. */
  readonly newFleet: boolean;
  /** How many heartbeats were sent since the last that was answered. */
  readonly late?: number;
}

/** What the ledger is doing. `unclaimed`: it is empty, and nobody has said that it is a new fleet's. */
export type LedgerState = 'armed' | 'arming' | 'recovering' | 'unclaimed';

/** The answer to a heartbeat. */
export interface Pulse {
  readonly state: LedgerState;
  /** Of an unclaimed ledger: this host is the one that asks the others whether the fleet is new. */
  readonly asks?: boolean;
  /** Time of the server. */
  readonly nowMs: number;
  /** Why the server may grant nothing, whatever the ledger does. */
  readonly unfit?: string;
  readonly mayAcquire: boolean;
  /** The host has to say what it holds: `Ledger.reassert`, for this epoch. */
  readonly reassert: boolean;
  readonly epoch: string;
  /** What the host was before; null for one that the ledger did not know. */
  readonly before: 'live' | 'suspect' | null;
  /** The boot id is another than before. */
  readonly rebooted: boolean;
  /** This call has begun a recovery, or ended one, without waiting any longer for the hosts `missed`. */
  readonly began: boolean;
  readonly ended: boolean;
  readonly missed: readonly string[];
  /** For whom the ledger waits before it grants; sixty-four at most. */
  readonly awaiting: readonly string[];
  /** Those of `follows` in which something has happened since. */
  readonly moved: readonly string[];
  /** Hosts that this call has found silent for too long. */
  readonly fallen: readonly string[];
  /** Leases of such hosts that this call has given back, in networks with `reclaimAfterSeconds`. */
  readonly reclaimed: readonly Lease[];
  /** Leases of this host that have expired, 500 at most. */
  readonly due: readonly { readonly id: string; readonly generation: number }[];
  /** The ledger has lost the list of hosts: the host has to tell the one it has seen, `Ledger.tellHosts`. */
  readonly tell: boolean;
  /** A newcomer waits for the next heartbeat of this host, which says that it has seen the list. */
  readonly vouch: boolean;
  /** There are more silent hosts, or leases of theirs, than one answer has dealt with: the next heartbeat is welcome soon. */
  readonly sweep: boolean;
  readonly seen: Pick<Seen, 'generation' | 'revision'>;
  /** What the host does not know of the list of hosts; absent where that is nothing. */
  readonly list?: ListNews;
  /** For a host without a list: some hosts that know the others. */
  readonly some: readonly string[];
  /** The list has changed more than an answer can tell, and this host may read it now: `Ledger.readHosts`. */
  readonly behind: boolean;
}

export function pulseOf(answer: Fields): Pulse {
  const state = stateOf(answer);
  const nowMs = answer.digits('nowMs');
  if (state === 'unclaimed') return { ...UNCLAIMED, nowMs, asks: answer.flag('asks') };
  const seen = answer.object('seen');
  const before = answer.optionalText('before');
  const unfit = answer.optionalText('unfit');
  return {
    state,
    nowMs,
    ...(unfit !== undefined && { unfit }),
    mayAcquire: answer.optionalFlag('mayAcquire'),
    reassert: answer.optionalFlag('reassert'),
    epoch: answer.text('epoch'),
    before: before === 'live' || before === 'suspect' ? before : null,
    rebooted: answer.optionalFlag('rebooted'),
    began: answer.optionalFlag('began'),
    ended: answer.optionalFlag('ended'),
    missed: textsOf(answer, 'missed'),
    awaiting: textsOf(answer, 'awaiting'),
    moved: textsOf(answer, 'moved'),
    fallen: textsOf(answer, 'fallen'),
    reclaimed: answer.has('reclaimed') ? answer.list('reclaimed').map(leaseOf) : [],
    due: (answer.has('due') ? answer.list('due') : []).map((lease) => ({
      id: lease.text('id'),
      generation: lease.digits('generation'),
    })),
    seen: {
      generation: seen.digits('generation'),
      revision: seen.number('revision'),
    },
    tell: answer.optionalFlag('tell'),
    vouch: answer.optionalFlag('vouch'),
    sweep: answer.optionalFlag('sweep'),
    ...(seen.has('changes') && { list: newsOf(seen, 'changes') }),
    some: textsOf(seen, 'some'),
    behind: seen.optionalFlag('behind'),
  };
}

/** What is empty is left out. */
const textsOf = (answer: Fields, name: string): string[] =>
  answer.has(name) ? answer.texts(name) : [];

const UNCLAIMED: Omit<Pulse, 'nowMs'> = {
  state: 'unclaimed',
  mayAcquire: false,
  reassert: false,
  epoch: '0',
  before: null,
  rebooted: false,
  began: false,
  ended: false,
  missed: [],
  awaiting: [],
  moved: [],
  fallen: [],
  reclaimed: [],
  due: [],
  tell: false,
  vouch: false,
  sweep: false,
  some: [],
  behind: false,
  seen: { generation: 0, revision: 0 },
};

const STATES: readonly LedgerState[] = ['armed', 'arming', 'recovering', 'unclaimed'];

export function stateOf(answer: Fields): LedgerState {
  const text = answer.text('state');
  const state = STATES.find((one) => one === text);
  if (state !== undefined) return state;
  throw new TypeError(`the ledger is said to be ${text}`);
}

/** A host as the ledger knows it. `awaited`: not armed, the ledger waits for it. */
export interface HostRecord {
  readonly host: string;
  readonly state: 'live' | 'joining' | 'suspect' | 'awaited';
  readonly machineId?: string;
  readonly agentId?: string;
  readonly bootId?: string;
  /** Boots of the machines, of one machine id, that call themselves this host: all are refused until an operator decides. */
  readonly clones?: readonly string[];
  /** RFC 3339, of the last heartbeat. */
  readonly seenAt?: string;
  readonly leases: number;
}

export function hostOf(stored: Fields): HostRecord {
  const machineId = stored.optionalText('machineId');
  const agentId = stored.optionalText('agentId');
  const bootId = stored.optionalText('bootId');
  const state = HOST_STATES.find((one) => one === stored.text('state'));
  if (state === undefined) throw new TypeError(`a host is said to be ${stored.text('state')}`);
  return {
    host: stored.text('host'),
    state,
    ...(machineId !== undefined && { machineId }),
    ...(agentId !== undefined && { agentId }),
    ...(bootId !== undefined && { bootId }),
    ...(stored.has('clones') && { clones: stored.texts('clones') }),
    ...(stored.has('seenMs') && { seenAt: new Date(stored.digits('seenMs')).toISOString() }),
    leases: stored.number('leases'),
  };
}

const HOST_STATES: readonly HostRecord['state'][] = ['live', 'joining', 'suspect', 'awaited'];

/** Another lease, of a higher or lower generation. */
export interface Holder {
  readonly id: string;
  readonly host: string;
  readonly generation: number;
}

/** What became of a lease that a host says it has. */
export interface LeaseOutcome {
  readonly id: string;
  readonly generation: number;
  /**
   * `kept`: the ledger has it. `restored`: it has it now; `displaced` is an older lease that was in its way.
   * `fenced`: `holder` is later, and this one has ended. `misplaced`: its network is not there
   * (`reason` UNKNOWN_NETWORK), does not give out its address (ADDRESS_OUT_OF_RANGE: outside, the gateway, excluded),
   * or has reserved that for another workload (ADDRESS_IN_USE).
   */
  readonly outcome: 'kept' | 'restored' | 'fenced' | 'misplaced';
  readonly holder?: Holder;
  readonly displaced?: Holder;
  readonly reason?: string;
}

const LEASE_OUTCOMES: readonly LeaseOutcome['outcome'][] = [
  'kept',
  'restored',
  'fenced',
  'misplaced',
];

export function leaseOutcomeOf(answer: Fields): LeaseOutcome {
  const outcome = LEASE_OUTCOMES.find((one) => one === answer.text('outcome'));
  if (outcome === undefined) throw new TypeError(`a lease is said to be ${answer.text('outcome')}`);
  const reason = answer.optionalText('reason');
  return {
    id: answer.text('id'),
    generation: answer.digits('generation'),
    outcome,
    ...(answer.has('holder') && { holder: holderOf(answer.object('holder')) }),
    ...(answer.has('displaced') && { displaced: holderOf(answer.object('displaced')) }),
    ...(reason !== undefined && { reason }),
  };
}

const holderOf = (other: Fields): Holder => ({
  id: other.text('id'),
  host: other.text('host'),
  generation: other.digits('generation'),
});
