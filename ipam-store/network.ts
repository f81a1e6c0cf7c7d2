import { createHash } from 'node:crypto';
import { VoltError } from '#protocol/errors.ts';
import { type Network, parseNetwork, withGatewayMode } from '#protocol/network.ts';
import { fixedOf } from '#protocol/network-edits.ts';
import { withAddress } from './errors.ts';
import type { Fields } from './fields.ts';
import { addressText, FAMILIES, familyPools, type FamilyRules } from './pool.ts';

/** Of the IPv4 subnet; of the IPv6 subnet where that is the only one. */
export interface NetworkUsage {
  /** Addresses that are given out unasked: pool and reservations. */
  readonly size: number;
  /** Held, also outside the pool. */
  readonly used: number;
  /** What the pool could give at once. */
  readonly free: number;
  /** Reserved, and not held. */
  readonly reserved: number;
  /** Of the pool, released less than `reuseDelaySeconds` ago. */
  readonly cooling: number;
  /** Leases of hosts that have fallen silent. */
  readonly suspect: number;
}

export interface NetworkRecord {
  readonly network: Network;
  /** Grows with every change; never used twice, also by networks of other names. */
  readonly revision: number;
}

/** Leaves room for a page of networks in one reply of 512 KiB. */
const MAX_NETWORK_BYTES = 262_144;

/** A network as the ledger's functions take it. */
export interface Definition {
  readonly name: string;
  readonly type: string;
  /** JSON. */
  readonly network: string;
  readonly digest: string;
  readonly fixed: string;
  readonly delayMs: number;
  readonly reclaimMs?: number;
  readonly families: Readonly<Record<string, FamilyRules>>;
}

/**
 * The definition that a put stores: it says the gateway mode also where the operator did not. `plainDigest` is then that
 * of the network as the operator gave it: an earlier version has stored it so, and the same content changes nothing.
 */
export function putDefinitionOf(given: Network): Definition & { readonly plainDigest?: string } {
  const plain = definitionOf(given);
  const network = parseNetwork(given);
  const stored = withGatewayMode(network);
  return stored.gatewayMode === network.gatewayMode
    ? plain
    : { ...definitionOf(stored), plainDigest: plain.digest };
}

/**
 * A network as `volt1_network_put` takes it. Throws TOO_LARGE, and INVALID_REQUEST as `parseNetwork` and
 * `FamilyPool.rules`.
 */
export function definitionOf(given: Network): Definition {
  refuseLarge(given);
  const network = parseNetwork(given);
  const json = JSON.stringify(network);
  const families = familyPools(network).map((pool) => [pool.family, pool.rules()] as const);
  return {
    name: network.network,
    type: network.type,
    network: json,
    digest: digestOf(network),
    fixed: JSON.stringify(fixedOf(network)),
    delayMs: network.reuseDelaySeconds * 1_000,
    ...(network.reclaimAfterSeconds !== undefined && {
      reclaimMs: network.reclaimAfterSeconds * 1_000,
    }),
    families: Object.fromEntries(families),
  };
}

/** Refuses a large definition before its addresses are parsed: 10 MB have half a million of them. */
function refuseLarge(given: Network): void {
  const json = JSON.stringify(given, (_, value: unknown) =>
    typeof value === 'bigint' ? String(value) : value,
  );
  const bytes = Buffer.byteLength(json);
  if (bytes <= MAX_NETWORK_BYTES) return;
  const message = `a network of ${bytes} bytes, more than ${MAX_NETWORK_BYTES}`;
  throw new VoltError('TOO_LARGE', message, { details: { bytes, most: MAX_NETWORK_BYTES } });
}

/** A digest that does not depend on the order of keys. */
function digestOf(network: Network): string {
  const canonical = JSON.stringify(network, (_, value: unknown) =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
  return createHash('sha256').update(canonical).digest('hex');
}

/** Throws UNSUPPORTED for a definition with keys that this version does not know: it must not ignore them. */
export function recordOf(stored: Fields): NetworkRecord {
  const json: unknown = JSON.parse(stored.text('network'));
  try {
    return { network: parseNetwork(json), revision: stored.number('revision') };
  } catch (error) {
    if (!(error instanceof VoltError)) throw error;
    throw new VoltError('UNSUPPORTED', `a network was put by a newer version: ${error.message}`, {
      details: error.details,
      cause: error,
    });
  }
}

export function usageOf(answer: Fields): NetworkUsage {
  const suspect = answer.number('suspect');
  const families = answer.object('usage');
  const family = FAMILIES.find((one) => families.has(one));
  if (family === undefined) {
    return { size: 0, used: 0, free: 0, reserved: 0, cooling: 0, suspect };
  }
  const usage = families.object(family);
  return {
    size: usage.number('size'),
    used: usage.number('used'),
    free: usage.number('free'),
    reserved: usage.number('reserved'),
    cooling: usage.number('cooling'),
    suspect,
  };
}

/** What became of a re-asserted network. `refused`: another network's subnet, or a lease, is in its way. */
export interface NetworkOutcome {
  readonly network: string;
  readonly outcome: 'kept' | 'restored' | 'refused';
  readonly reason?: string;
}

export function networkOutcomeOf(answer: Fields): NetworkOutcome {
  const outcome = NETWORK_OUTCOMES.find((one) => one === answer.text('outcome'));
  if (outcome === undefined) {
    throw new TypeError(`a network is said to be ${answer.text('outcome')}`);
  }
  const reason = answer.optionalText('reason');
  const address = answer.optionalText('address');
  return {
    network: answer.text('network'),
    outcome,
    ...(reason !== undefined && {
      reason: address === undefined ? reason : withAddress(reason, address),
    }),
  };
}

const NETWORK_OUTCOMES: readonly NetworkOutcome['outcome'][] = ['kept', 'restored', 'refused'];

/** An address that a network no longer keeps closed. */
export interface LetGo {
  readonly network: string;
  readonly address: string;
}

/** What has become of networks since a revision, in the order of their revisions. */
export interface NetworkChanges {
  readonly changed: readonly NetworkRecord[];
  /** Names of those that are gone. */
  readonly gone: readonly string[];
  /** Up to which revision this tells. */
  readonly revision: number;
  readonly more: boolean;
  /** Addresses that the asking host may have on bridges or in its port filter, until it says that it has let go of them. */
  readonly letGo: readonly LetGo[];
  /** The ledger no longer knows all changes since that revision: it tells none, and all networks have to be read. */
  readonly whole: boolean;
}

export function changesOf(answer: Fields): NetworkChanges {
  const networks = answer.list('networks');
  return {
    changed: networks.filter((one) => one.has('network')).map(recordOf),
    gone: networks.filter((one) => !one.has('network')).map((one) => one.text('name')),
    revision: answer.number('revision'),
    more: answer.flag('more'),
    whole: answer.flag('whole'),
    letGo: answer
      .list('letGo')
      .map((one) => ({ network: one.text('network'), address: addressText(one.text('address')) })),
  };
}
