import { subjects } from '#protocol/subjects.ts';
import type { Pulse } from '#ipam-store/ledger.ts';
import { type Followed, Follower } from '#ipam-store/follower.ts';
import type { Difference } from '#ipam-store/replay.ts';

export interface FollowersOptions {
  readonly ledger: Followed;
  readonly subjectPrefix: string;
  /** Listens to the notices of a subject, and calls `nudge` for each, until the returned function is called. */
  readonly listen: (subject: string) => () => void;
}

/** A network that nobody has asked for during this time is followed no more. */
const IDLE_MS = 5 * 60_000;
/**
 * How many networks are followed at a time, and how many leases in them. Above that the network that was asked for
 * longest ago is dropped.
 */
const MAX_FOLLOWED = 32;
const MAX_LEASES = 100_000;
/** Of one heartbeat. */
const MAX_NAMED = 16;
/** Whoever watches a network reads its log that often at most: every host of a large fleet may watch the same one. */
const WATCHED_EVERY_MS = 300;

type Watcher = (difference: Difference) => void;

interface Entry {
  readonly follower: Follower;
  readonly unlisten: () => void;
  readonly watchers: Set<Watcher>;
  nudging: NodeJS.Timeout | undefined;
  nudgedAt: number;
  askedAt: number;
  namedAt: number;
}

/** The leases of a network, while somebody watches them. */
export interface Watched extends Disposable {
  readonly leases: Follower['leases'];
  /** False until all have been read once. */
  readonly isWhole: boolean;
}

/**
 * Followers of the networks that somebody has asked for in the last minutes. They hear notices of changes; heartbeats
 * tell of changes whose notice was lost.
 */
export class Followers {
  readonly #options: FollowersOptions;
  /** By network; the one that was asked for longest ago comes first. */
  readonly #entries = new Map<string, Entry>();
  /** What the heartbeat under way names. */
  #named: { readonly at: number; readonly positions: ReadonlyMap<string, string> } | undefined;

  constructor(options: FollowersOptions) {
    this.#options = options;
  }

  /** The follower of a network; it begins now if there was none. */
  of(network: string): Follower {
    const entry = this.#entries.get(network) ?? this.#begin(network);
    this.#entries.delete(network);
    this.#entries.set(network, entry);
    entry.askedAt = performance.now();
    this.#endSome();
    return entry.follower;
  }

  /** Follows a network until the result is disposed of; `onChange` is told of each change of its leases. */
  watch(network: string, onChange: Watcher): Watched {
    const follower = this.of(network);
    const watchers = this.#entries.get(network)?.watchers;
    watchers?.add(onChange);
    return {
      get leases() {
        return follower.leases;
      },
      get isWhole() {
        return follower.asOf !== undefined;
      },
      [Symbol.dispose]: () => watchers?.delete(onChange),
    };
  }

  #begin(network: string): Entry {
    const { ledger, subjectPrefix, listen } = this.#options;
    const watchers = new Set<Watcher>();
    const onChange = (difference: Difference): void => {
      for (const watcher of watchers) watcher(difference);
    };
    const follower = new Follower({ network, ledger, onChange });
    const unlisten = listen(subjects(subjectPrefix).changed(network, 'leases'));
    follower.start();
    const times = { nudgedAt: 0, askedAt: 0, namedAt: 0 };
    return { follower, unlisten, watchers, nudging: undefined, ...times };
  }

  /** Networks that somebody watches do not count: they are followed for as long as they are watched. */
  #endSome(): void {
    const unwatched = [...this.#entries].filter(([, { watchers }]) => watchers.size === 0);
    let size = unwatched.length;
    let leases = unwatched.reduce((sum, [, { follower }]) => sum + follower.leases.size, 0);
    for (const [network, { follower, askedAt }] of unwatched) {
      const isIdle = performance.now() - askedAt > IDLE_MS;
      if (!isIdle && size <= MAX_FOLLOWED && (leases <= MAX_LEASES || size === 1)) return;
      leases -= follower.leases.size;
      size -= 1;
      this.#end(network);
    }
  }

  #end(network: string): void {
    const entry = this.#entries.get(network);
    this.#entries.delete(network);
    clearTimeout(entry?.nudging);
    entry?.unlisten();
    entry?.follower.stop();
  }

  /** Something may have happened in these networks. */
  nudge(networks: Iterable<string>): void {
    for (const network of networks) {
      const entry = this.#entries.get(network);
      if (entry?.watchers.size === 0) entry.follower.nudge();
      else if (entry !== undefined) nudgeSometimes(entry);
    }
  }

  /** The networks that the next heartbeat names: those that were named longest ago. */
  follows(): { readonly follows?: Readonly<Record<string, string>> } {
    this.#endSome();
    const next = [...this.#entries.values()]
      .filter(({ follower }) => follower.asOf !== undefined)
      .toSorted((one, other) => one.namedAt - other.namedAt)
      .slice(0, MAX_NAMED);
    const at = performance.now();
    for (const entry of next) entry.namedAt = at;
    const positions = new Map(
      next.map(({ follower }) => [follower.network, follower.position] as const),
    );
    this.#named = { at, positions };
    return positions.size === 0 ? {} : { follows: Object.fromEntries(positions) };
  }

  /** Its answer. */
  note({ state, moved }: Pick<Pulse, 'state' | 'moved'>): void {
    const named = this.#named;
    this.#named = undefined;
    // Of what a server has lost it says nothing.
    if (named === undefined || state !== 'armed') return;
    // Nudged, they are behind, and not confirmed.
    this.nudge(moved);
    for (const [network, position] of named.positions) {
      this.#entries.get(network)?.follower.confirm({ position, at: named.at });
    }
  }

  stop(): void {
    for (const network of this.#entries.keys()) this.#end(network);
  }
}

function nudgeSometimes(entry: Entry): void {
  const waitMs = entry.nudgedAt + WATCHED_EVERY_MS - performance.now();
  entry.nudging ??= setTimeout(
    () => {
      entry.nudging = undefined;
      entry.nudgedAt = performance.now();
      entry.follower.nudge();
    },
    Math.max(waitMs, 0),
  ).unref();
}
