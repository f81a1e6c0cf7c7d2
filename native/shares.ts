// Who may have a connection to a socket that anybody may connect to: no account keeps another one out.

/** Connections in all, not counting root's. Above this, one is admitted only in place of another. */
export const MAX_CONNECTIONS = 512;
export const MAX_CONNECTIONS_PER_UID = 64;
const ROOT = 0;

export interface Held {
  readonly peer: { readonly uid: number };
  /** It is being closed: it still counts, and to close it helps nobody. */
  readonly closed: boolean;
  readonly heardAt: number;
}

/**
 * Whether a newcomer is admitted. If the server is full, a connection has to be closed for it: of the account that
 * has most, the one that was silent for longest, and only if the newcomer's account has fewer.
 */
export function placeFor<T extends Held>(
  uid: number,
  connections: Iterable<T>,
): { readonly admitted: boolean; readonly instead?: T } {
  if (uid === ROOT) return { admitted: true };
  const byUid = Map.groupBy(connections, ({ peer }) => peer.uid);
  byUid.delete(ROOT);
  const own = byUid.get(uid)?.length ?? 0;
  if (own >= MAX_CONNECTIONS_PER_UID) return { admitted: false };
  const all = [...byUid.values()].reduce((sum, { length }) => sum + length, 0);
  if (all < MAX_CONNECTIONS) return { admitted: true };
  // Connections in whose place others were admitted, and that are not closed yet.
  if (all >= 2 * MAX_CONNECTIONS) return { admitted: false };
  const instead = [...byUid.values()]
    .filter(({ length }) => length > own)
    .toSorted((a, b) => b.length - a.length)
    .map((held) => longestSilent(held))
    .find((one) => one !== undefined);
  return instead === undefined ? { admitted: false } : { admitted: true, instead };
}

const longestSilent = <T extends Held>(held: readonly T[]): T | undefined =>
  held.filter(({ closed }) => !closed).toSorted((a, b) => a.heardAt - b.heardAt)[0];
