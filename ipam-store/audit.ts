import { VoltError } from '#protocol/errors.ts';
import type { Fields } from './fields.ts';
import { definitionOf, recordOf } from './network.ts';
import { addressText, FAMILIES } from './pool.ts';

/** A way to an address, MAC or id that does not lead to its lease, or a lease that is not found by it. */
export interface LedgerDifference {
  readonly id: string;
  /**
   * The key or part of it that is `missing`, `stray` (leads to nothing), `unreadable`, or `differs` from the definition
   * of its network; `held and free`; `lost` (nobody has it, and it is not free either); `count`. Where no lease is
   * concerned, `id` is `-`.
   */
  readonly what: string;
  readonly network?: string;
  readonly host?: string;
  /** `first-last` where a whole range is lost. */
  readonly address?: string;
  readonly mac?: string;
  /** For `repair`. */
  readonly found: Readonly<Record<string, unknown>>;
}

/** A piece of a check, and where it goes on after it. */
export interface AuditPage {
  readonly differences: readonly LedgerDifference[];
  readonly next: AuditPosition;
}

/**
 * How far a check is: the stage; the last host or network of it that is done, and the next one, with the part of it that
 * is to come; what the page before ended with. Whoever has it may go on from there.
 */
export interface AuditPosition {
  readonly stage: number;
  readonly after?: string | undefined;
  readonly name?: string | undefined;
  readonly part?: number | undefined;
  readonly cursor?: string | undefined;
}

type Pages = AsyncGenerator<AuditPage, void, undefined>;
/** Sends one `volt1_audit`. */
type Send = (ask: object) => Promise<Fields>;

interface Whole {
  readonly what: string;
  readonly ask: object;
}
interface Each {
  readonly what: string;
  readonly each: 'roster' | 'names';
}

const WHOLES = (list: readonly object[], what: string): Whole[] =>
  list.map((ask) => ({ what, ask }));

/**
 * What proves others comes first: leases, then the hosts, the networks, and what is counted of them; so that whoever
 * repairs as it goes finds least.
 */
const STAGES: readonly (Whole | Each)[] = [
  { what: 'leases', ask: { part: 'leases' } },
  ...WHOLES(
    ['hosts', 'suspects', 'joining'].map((list) => ({ part: 'members', list })),
    'hosts',
  ),
  { what: 'hosts', each: 'roster' },
  ...WHOLES(
    FAMILIES.flatMap((family) => ['subnets', 'gone'].map((part) => ({ part, family }))),
    'networks',
  ),
  { what: 'networks', each: 'names' },
  { what: 'counts', ask: { part: 'meta' } },
];

const HOST_PARTS: readonly object[] = ['session', 'host', 'due'].map((part) => ({ part }));
const NETWORK_PARTS: readonly object[] = [
  { part: 'macs' },
  ...FAMILIES.flatMap((family) => ['held', 'last', 'by', 'free'].map((part) => ({ part, family }))),
  { part: 'definition' },
  ...FAMILIES.map((family) => ({ part: 'pool', family })),
  { part: 'count' },
];

/** What a check looks at there, as people call it, and how far through it is: `leases, 37 %`, `networks up to lan`. */
export function auditProgress({ stage, after, cursor }: AuditPosition): string {
  const one = STAGES[stage];
  if (one === undefined) return 'all';
  if (after !== undefined) return `${one.what} up to ${after}`;
  const isScan = 'ask' in one && one.what === 'leases' && cursor !== undefined;
  return isScan ? `${one.what}, ${Math.floor(100 * scanned(cursor))} %` : one.what;
}

/** How much of a hash is behind a cursor of HSCAN, which counts from the highest bit down (Redis, dict.c: dictScan). */
function scanned(cursor: string): number {
  const bits = BigInt(cursor).toString(2).padStart(64, '0');
  const highest = Array.from({ length: 32 }, (_, n) => bits.at(-1 - n)).join('');
  return Number.parseInt(highest, 2) / 2 ** 32;
}

/** Every part of the ledger, from a position on, page by page. */
export async function* auditOf(send: Send, from: AuditPosition = { stage: 0 }): Pages {
  let at = from;
  for (const [stage, one] of STAGES.entries()) {
    if (stage < from.stage) continue;
    const start = at.stage === stage ? at : { stage };
    const next = { stage: stage + 1 };
    if ('ask' in one) yield* partOf(send, { ask: one.ask, proof: {}, from: start, next });
    else yield* eachOf(send, one.each, start);
    at = next;
  }
}

/** One of a list: what is asked of it, nothing where what is `found` with the list says all. */
interface Named {
  readonly name: string;
  readonly asks: readonly object[];
  readonly proof: object;
  readonly found: readonly LedgerDifference[];
}

/** Each host, or each network, by name. */
async function* eachOf(send: Send, list: 'roster' | 'names', from: AuditPosition): Pages {
  const { stage } = from;
  const unnamed: LedgerDifference[] = [];
  let at = from;
  let cursor = from.after;
  do {
    const page = await send({ part: list, ...(cursor !== undefined && { cursor }) });
    const found = page.list('differences').map((one) => differenceOf(one, {}));
    unnamed.push(...found.filter(({ network }) => network === undefined));
    for (const { name, asks, proof, found: known } of namedIn(page, list, found)) {
      const { after } = at;
      const isResumed = at.name === name;
      for (const [part, ask] of asks.entries()) {
        if (isResumed && part < (at.part ?? 0)) continue;
        const resumed = isResumed && part === at.part ? at.cursor : undefined;
        yield* partOf(send, {
          ask,
          proof,
          from: { stage, after, name, part, cursor: resumed },
          next: { stage, after, name, part: part + 1 },
        });
      }
      at = { stage, after: name };
      yield { differences: known, next: at };
    }
    cursor = page.optionalText('cursor');
  } while (cursor !== undefined);
  yield { differences: unnamed, next: { stage: stage + 1 } };
}

/** Those of a page, by name, and those of which only what is wrong is known. */
function namedIn(page: Fields, list: 'roster' | 'names', found: LedgerDifference[]): Named[] {
  if (list === 'roster') {
    return page.texts('hosts').map((host) => {
      const asks = HOST_PARTS.map((part) => ({ ...part, host }));
      return { name: host, asks, proof: {}, found: [] };
    });
  }
  const known = page.list('networks').map((named) => {
    const network = named.text('name');
    const proof = proofOf(named);
    const asks = NETWORK_PARTS.map((part) => ({
      ...{ ...part, network },
      ...('part' in part && part.part === 'definition' && proof),
    }));
    // A definition of a newer version proves nothing.
    const provable = 'definition' in proof;
    const asked = asks.filter((ask) => provable || !('part' in ask && ask.part === 'definition'));
    return { name: network, asks: asked, proof, found: [] };
  });
  const wrong = found.flatMap((one) =>
    one.network === undefined ? [] : [{ name: one.network, asks: [], proof: {}, found: [one] }],
  );
  return [...known, ...wrong].toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

/** What the definition of a network proves; nothing where a newer version has put it. */
function proofOf(named: Fields): object {
  try {
    const { network, revision } = recordOf(named);
    return { definition: definitionOf(network), revision };
  } catch (error) {
    if (error instanceof VoltError) return {};
    throw error;
  }
}

interface Part {
  readonly ask: object;
  /** What goes with its differences, for `repair`. */
  readonly proof: object;
  readonly from: AuditPosition;
  /** Where a check goes on after it. */
  readonly next: AuditPosition;
}

async function* partOf(send: Send, { ask, proof, from, next }: Part): Pages {
  let { cursor } = from;
  do {
    const answer = await send({ ...ask, ...(cursor !== undefined && { cursor }) });
    const differences = answer.list('differences').map((found) => differenceOf(found, proof));
    cursor = answer.optionalText('cursor');
    yield { differences, next: cursor === undefined ? next : { ...from, cursor } };
  } while (cursor !== undefined);
}

function differenceOf(found: Fields, more: object): LedgerDifference {
  const address = found.optionalText('address');
  const last = found.optionalText('last') ?? address;
  const mac = found.optionalText('mac');
  const network = found.optionalText('network');
  const host = found.optionalText('host');
  return {
    id: found.text('id'),
    what: found.text('what'),
    ...(address !== undefined && {
      address: [...new Set([address, last ?? address])].map(shown).join('-'),
    }),
    ...(mac !== undefined && { mac }),
    ...(network !== undefined && { network }),
    ...(host !== undefined && { host }),
    found: { ...found.all(), ...more },
  };
}

const HEX = /^(?:[0-9a-f]{8}|[0-9a-f]{32})$/;

/** An address as people write it; what somebody else has put in its place, as it is. */
const shown = (text: string): string => (HEX.test(text) ? addressText(text) : text);
