import type { BridgeDifference } from './comparison.ts';
import type { BridgeDescription } from './description.ts';
import type { BridgeSnapshot } from './snapshot.ts';

/** `foreign`: it is somebody else's to change. `undecided`: nobody has said whose the gateway's address is. */
export interface BridgeProblem {
  readonly kind: 'foreign' | 'undecided';
  /** In words that name the bridge. */
  readonly reason: string;
  /** What an operator can run against it, if it is that simple. */
  readonly commands: readonly string[];
}

/** What of a network only an operator can change. Pure. */
export function problemsOf(
  { network, bridge, undecided }: BridgeDescription,
  { addresses = [] }: BridgeSnapshot,
  differences: readonly BridgeDifference[],
): BridgeProblem[] {
  const foreign = differences
    .filter(({ repairable }) => !repairable)
    .map((one) => ({ kind: 'foreign' as const, ...told(bridge, one) }));
  const old = undecided
    .filter((one) => addresses.includes(one))
    .map((one) => ({
      kind: 'undecided' as const,
      reason: `network ${network}: bridge ${bridge} has the gateway ${one}, as an earlier release gave it`,
      commands: [],
    }));
  return [...foreign, ...old];
}

function told(
  bridge: string,
  { what, expected, observed }: BridgeDifference,
): Omit<BridgeProblem, 'kind'> {
  switch (what) {
    case 'bridge':
      return {
        reason: `bridge ${bridge}, which was there before any agent, is gone`,
        commands: [],
      };
    case 'bridge.up':
      return { reason: `bridge ${bridge} is down`, commands: [`ip link set ${bridge} up`] };
    case 'bridge.address':
      return {
        reason: `bridge ${bridge} has not the gateway ${String(expected)}`,
        commands: [`ip address add ${String(expected)} dev ${bridge}`],
      };
    case 'bridge.forwardDelayMs':
      return {
        reason: `bridge ${bridge} has spanning tree: for ${Number(observed) * 2} ms it passes nothing for a new port`,
        commands: [`ip link set ${bridge} type bridge stp_state 0`],
      };
    case 'uplink':
      return {
        reason: `uplink ${String(expected)} of bridge ${bridge} is not there`,
        commands: [],
      };
    default:
      return {
        reason: `bridge ${bridge}: ${what} is ${String(observed)}, not ${String(expected)}`,
        commands: [],
      };
  }
}
