import { hash } from 'node:crypto';
import type { Fields } from './fields.ts';

/** The hosts that live, and the roster of the last change of them. */
export interface HostList {
  readonly roster: number;
  readonly hosts: readonly string[];
}

/** A host, and whether it lives now. */
export type HostChange = readonly [host: string, lives: boolean];

/** What an answer tells of the list: with these changes it is the one of that roster and digest. */
export interface ListNews {
  readonly roster: number;
  readonly digest: number;
  readonly changes: readonly HostChange[];
}

/** One answer of `volt1_roster`. */
export interface ListPage extends ListNews {
  /** All that live and no changes. */
  readonly whole: boolean;
  readonly more: boolean;
}

/** Hosts of one page that is told. */
const TELL_LENGTH = 250;
const DIGEST_UNIT = 2 ** 48;
/** How often a list is read anew while it changes so fast that the changes cannot be followed. */
const MAX_READS = 4;

const digests = new WeakMap<readonly string[], number>();

/** Of a list, the sum over its names (roster.lua): two that have the same are the same. */
export function digestOf(hosts: readonly string[]): number {
  let digest = digests.get(hosts);
  if (digest === undefined) {
    digest = hosts.reduce((sum, host) => (sum + hashOf(host)) % DIGEST_UNIT, 0);
    digests.set(hosts, digest);
  }
  return digest;
}

const hashOf = (host: string): number =>
  Number.parseInt(hash('sha1', host, 'hex').slice(0, 12), 16);

/** The list after what has been told of it; undefined where it is not the one that the ledger has. */
export function listAfter(list: HostList, news: ListNews): HostList | undefined {
  const hosts = changed(list.hosts, news.changes);
  return digestOf(hosts) === news.digest ? { roster: news.roster, hosts } : undefined;
}

/** What a host that has no list has of it until it reads it. Its roster is the lowest: any list of the ledger's is newer. */
export const someOf = (hosts: readonly string[]): HostList => ({ roster: 1, hosts });

function changed(hosts: readonly string[], changes: readonly HostChange[]): readonly string[] {
  const lives = new Map(changes);
  const known = new Set(hosts.filter((host) => lives.has(host)));
  const gone = new Set([...known].filter((host) => lives.get(host) === false));
  const come = [...lives].filter(([host, is]) => is && !known.has(host)).map(([host]) => host);
  if (gone.size + come.length === 0) return hosts;
  const after = [...(gone.size === 0 ? hosts : hosts.filter((host) => !gone.has(host))), ...come];
  // A change of a long list costs a few additions, not a digest of the whole list.
  const sum = (names: Iterable<string>): number =>
    Array.from(names, hashOf).reduce((all, one) => (all + one) % DIGEST_UNIT, 0);
  digests.set(after, (digestOf(hosts) + sum(come) - sum(gone) + DIGEST_UNIT) % DIGEST_UNIT);
  return after;
}

/**
 * Reads what a host does not know of the list of hosts. `read` asks for one page. Undefined where the ledger's own list
 * changes too fast, or contradicts itself.
 */
export async function readList(
  list: HostList,
  read: (ask: { since: number; after?: string }) => Promise<ListPage>,
): Promise<HostList | undefined> {
  let known = list;
  for (let reads = 1; reads <= MAX_READS; reads += 1) {
    const page = await read({ since: known.roster });
    if (page.whole) {
      known = { roster: page.roster, hosts: await wholeFrom(page, read) };
      continue;
    }
    known = { roster: page.roster, hosts: changed(known.hosts, page.changes) };
    if (digestOf(known.hosts) === page.digest) return known;
    // The host's list is not the one that the changes were made for: the whole list is read.
    known = { roster: -1, hosts: [] };
  }
  return undefined;
}

async function wholeFrom(
  first: ListPage,
  read: (ask: { since: number; after: string }) => Promise<ListPage>,
): Promise<readonly string[]> {
  const hosts: string[] = [];
  for (let page = first; ;) {
    for (const [host, lives] of page.changes) if (lives) hosts.push(host);
    const after = page.changes.at(-1)?.[0];
    if (!page.more || after === undefined) return hosts;
    page = await read({ since: first.roster, after });
  }
}

/** Pages of a list as `volt1_tell` takes them: by name, each from where the one before ended. */
export function* tellingPages(hosts: readonly string[]): Generator<{
  readonly hosts: readonly string[];
  readonly after?: string;
  readonly last: boolean;
}> {
  // Host ids are ASCII: the order of JavaScript is that of Redis.
  const names = hosts.toSorted();
  let from = 0;
  do {
    const page = names.slice(from, from + TELL_LENGTH);
    const after = names[from - 1];
    from += TELL_LENGTH;
    yield { hosts: page, ...(after !== undefined && { after }), last: from >= names.length };
  } while (from < names.length);
}

export const newsOf = (answer: Fields, list: string): ListNews => ({
  roster: answer.number('roster'),
  digest: answer.number('digest'),
  changes: answer.pairs(list),
});

export const listPageOf = (answer: Fields): ListPage => ({
  ...newsOf(answer, 'hosts'),
  whole: answer.flag('whole'),
  more: answer.flag('more'),
});
