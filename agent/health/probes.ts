import type { LedgerStatus } from '#ipam-store/ledger.ts';
import { type CordonState, wordsOf } from '../fleet/cordon.ts';
import type { BridgeProblem } from '../host/bridges/problems.ts';
import type { Probe } from './conditions.ts';
import type { SessionStatus } from '../fleet/session.ts';
import type { StandingState } from '../fleet/standing.ts';

// What each part of the agent reports, as conditions. A part answers in its own terms; only this file says which
// condition that is.

/** By whose it is to change. */
const NETWORK_CONDITIONS = { foreign: 'network-differs', undecided: 'gateway-undecided' } as const;

/** Events that wait for less are on their way. */
const EVENTS_LATE_MS = 5_000;

export interface Parts {
  readonly bus: { problems(): ReturnType<Probe> };
  readonly events: {
    readonly full: boolean;
    readonly setAside: number;
    /** The event that has waited longest, and why it was not published. */
    readonly oldest: { readonly time: string; readonly reason: string | undefined } | undefined;
  };
  readonly ledger: { readonly status: LedgerStatus };
  readonly session: { readonly status: SessionStatus };
  readonly standing: { readonly state: StandingState };
  readonly cordon: { readonly current: CordonState | undefined };
  readonly firewall: { readonly problem: string | undefined };
  readonly reconcile: { readonly unrepaired: ReadonlyMap<string, string> };
  readonly bridges: { readonly problems: readonly BridgeProblem[] };
  readonly guestServers: { readonly problems: readonly string[] };
  readonly clocks: { readonly problems: ReturnType<Probe> };
  readonly disk: { readonly problems: readonly string[] };
  readonly metrics: { readonly problem: () => string | undefined };
  /** The name of the machine, if the host is recorded under another name. */
  readonly otherName: () => { readonly host: string; readonly hostName: string } | undefined;
}

export const probesOf = (parts: Parts): readonly Probe[] => [
  () => parts.bus.problems(),
  () => eventConditions(parts.events),
  () => ledgerConditions(parts.ledger.status),
  () => sessionConditions(parts.session.status, parts.ledger.status),
  () => {
    const { current } = parts.cordon;
    return current === undefined ? [] : [{ name: 'host-cordoned', reason: wordsOf(current) }];
  },
  () => {
    const { problem } = parts.firewall;
    return problem === undefined ? [] : [{ name: 'firewall-unusable', reason: problem }];
  },
  () => unrepairedConditions(parts.reconcile.unrepaired),
  () =>
    parts.bridges.problems.map(({ kind, reason }) => ({ name: NETWORK_CONDITIONS[kind], reason })),
  () => parts.guestServers.problems.map((reason) => ({ name: 'guests-unserved', reason })),
  () => parts.clocks.problems,
  () => {
    const reason = parts.metrics.problem();
    return reason === undefined ? [] : [{ name: 'metrics-unserved', reason }];
  },
  () => parts.disk.problems.map((reason) => ({ name: 'disk-refuses', reason })),
  () => {
    const other = parts.otherName();
    if (other === undefined) return [];
    const { host, hostName } = other;
    const reason = `the host is recorded as ${host}, and its name is ${hostName} now`;
    return [{ name: 'host-renamed', reason }];
  },
];

function eventConditions({ full, setAside, oldest }: Parts['events']): ReturnType<Probe> {
  const waitedMs = oldest === undefined ? 0 : Date.now() - Date.parse(oldest.time);
  return [
    ...(full
      ? [{ name: 'events-full', reason: 'as many events wait as may be kept on disk' } as const]
      : []),
    ...(oldest !== undefined && waitedMs >= EVENTS_LATE_MS
      ? [
          {
            name: 'events-waiting',
            reason: `the oldest is of ${oldest.time}: ${oldest.reason ?? 'it was not tried yet'}`,
          } as const,
        ]
      : []),
    ...(setAside > 0
      ? [{ name: 'events-set-aside', reason: `${setAside} events are in outbox/refused` } as const]
      : []),
  ];
}

function ledgerConditions({ state, reason }: LedgerStatus): ReturnType<Probe> {
  if (state === 'incompatible') return [{ name: 'ledger-unfit', reason: reason ?? state }];
  if (state !== 'ready') return [{ name: 'ledger-away', reason: reason ?? 'not connected yet' }];
  return reason === undefined ? [] : [{ name: 'ledger-warning', reason }];
}

/** While the ledger is away, the session adds nothing to that. */
function sessionConditions(
  { state, open, awaiting, reason }: SessionStatus,
  ledger: LedgerStatus,
): ReturnType<Probe> {
  if (state === 'refused') return [{ name: 'session-refused', reason: reason ?? state }];
  if (open || ledger.state !== 'ready') return [];
  // A server may be connected and yet silent, or refuse commands.
  if (state === 'unknown') return [{ name: 'ledger-away', reason: reason ?? 'not asked yet' }];
  const waits = awaiting.length === 0 ? '' : `, and waits for ${awaiting.join(', ')}`;
  return [{ name: 'recovering', reason: `the ledger is ${state}${waits}` }];
}

function unrepairedConditions(unrepaired: ReadonlyMap<string, string>): ReturnType<Probe> {
  const [first] = unrepaired;
  if (first === undefined) return [];
  const [id, reason] = first;
  const others = unrepaired.size === 1 ? '' : `, and ${unrepaired.size - 1} others`;
  return [{ name: 'reconcile-differs', reason: `${id}: ${reason}${others}` }];
}
