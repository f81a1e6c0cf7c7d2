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

type Differences = AsyncGenerator<LedgerDifference, void, undefined>;
/** Sends one `volt1_audit`. */
type Send = (ask: object) => Promise<Fields>;

const LISTS = ['hosts', 'suspects', 'joining'] as const;
const FAMILY_PARTS = ['held', 'last', 'by', 'free'] as const;

/**
 * Every part of the ledger. What proves others comes first: leases, then the hosts, the networks, and what is counted of
 * them; so that whoever repairs as it goes finds least.
 */
export async function* auditOf(send: Send): Differences {
  yield* partOf(send, { part: 'leases' });
  for (const list of LISTS) yield* partOf(send, { part: 'members', list });
  const hosts = new Set<string>();
  for await (const host of hostsOf(send)) hosts.add(host);
  for (const host of hosts) {
    for (const part of ['session', 'host', 'due']) yield* partOf(send, { part, host });
  }
  for (const family of FAMILIES) {
    for (const part of ['subnets', 'gone']) yield* partOf(send, { part, family });
  }
  let cursor: string | undefined;
  do {
    const page = await send({ part: 'names', ...(cursor !== undefined && { cursor }) });
    for (const found of page.list('differences')) yield differenceOf(found, {});
    for (const named of page.list('networks')) yield* networkOf(send, named);
    cursor = page.optionalText('cursor');
  } while (cursor !== undefined);
  yield* partOf(send, { part: 'meta' });
}

async function* hostsOf(send: Send): AsyncGenerator<string, void, undefined> {
  let cursor: string | undefined;
  do {
    const page = await send({ part: 'roster', ...(cursor !== undefined && { cursor }) });
    yield* page.texts('hosts');
    cursor = page.optionalText('cursor');
  } while (cursor !== undefined);
}

async function* networkOf(send: Send, named: Fields): Differences {
  const network = named.text('name');
  const proof = proofOf(named);
  yield* partOf(send, { part: 'macs', network }, proof);
  for (const family of FAMILIES) {
    for (const part of FAMILY_PARTS) yield* partOf(send, { part, network, family }, proof);
  }
  if (proof !== undefined) yield* partOf(send, { part: 'definition', network, ...proof }, proof);
  for (const family of FAMILIES) yield* partOf(send, { part: 'pool', network, family }, proof);
  yield* partOf(send, { part: 'count', network });
}

/** What the definition of a network proves; nothing where a newer version has put it. */
function proofOf(named: Fields): { definition: object; revision: number } | undefined {
  try {
    const { network, revision } = recordOf(named);
    return { definition: definitionOf(network), revision };
  } catch (error) {
    if (error instanceof VoltError) return undefined;
    throw error;
  }
}

async function* partOf(send: Send, part: object, proof: object = {}): Differences {
  let cursor: string | undefined;
  do {
    const answer = await send({ ...part, ...(cursor !== undefined && { cursor }) });
    for (const found of answer.list('differences')) yield differenceOf(found, proof);
    cursor = answer.optionalText('cursor');
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
