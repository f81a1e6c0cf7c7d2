import type { NftTable, Nftables } from '#native/nftables.ts';
import type { Ruleset } from './ruleset.ts';

/** `bridge set mac`, `inet chain forward`. */
export type ContentName = `${NftTable['family']} ${'chain' | 'set'} ${string}`;

/** One chain or set of our tables, as plain data. */
export interface NftContent {
  readonly what: ContentName;
  /** A chain: its hook, if it is a base chain, and its rules in order. A set: its elements in any order. */
  readonly has: readonly string[];
}

/** A chain or a set that differs, in counts: `3 entries`, `2 of them and 1 others`. Null: it is missing. */
export interface TableDifference {
  readonly what: ContentName;
  readonly expected: string;
  readonly observed: string | null;
}

/** Expected chains and sets that are missing or have other contents. */
export function tableDifferences(
  expected: readonly NftContent[],
  found: readonly NftContent[],
): TableDifference[] {
  const byWhat = new Map(found.map((content) => [content.what, content.has]));
  return expected.flatMap(({ what, has }): TableDifference[] => {
    const observed = byWhat.get(what);
    const isSet = what.includes(' set ');
    if (observed !== undefined && isSame(has, observed, isSet)) return [];
    const entries = `${has.length} ${isSet ? 'elements' : 'entries'}`;
    return [{ what, expected: entries, observed: observed ? compared(has, observed) : null }];
  });
}

function isSame(a: readonly string[], b: readonly string[], isSet: boolean): boolean {
  if (a.length !== b.length) return false;
  if (!isSet) return a.every((one, index) => one === b[index]);
  const all = new Set(b);
  return a.every((one) => all.has(one));
}

function compared(expected: readonly string[], observed: readonly string[]): string {
  const rest = [...observed];
  const all = new Map<string, number>();
  for (const one of observed) all.set(one, (all.get(one) ?? 0) + 1);
  const kept = expected.filter((one) => {
    const left = all.get(one) ?? 0;
    all.set(one, left - 1);
    return left > 0;
  }).length;
  if (kept === expected.length && kept === rest.length) return 'in another order';
  return `${kept} of them and ${rest.length - kept} others`;
}

/** The chains of a table as the kernel lists them; none if there is no table. Counters and handles are left out. */
export function chainsIn(nftables: Nftables, { family, name }: NftTable): NftContent[] {
  const chains = new Map<string, string[]>();
  for (const { chain, rule } of nftables.list(`list table ${family} ${name}`) ?? []) {
    if (isChain(chain)) chains.set(chain.name, hookOf(chain));
    if (isRule(rule)) chains.get(rule.chain)?.push(JSON.stringify(rule.expr.filter(isNoCounter)));
  }
  return [...chains].map(([chain, has]) => ({ what: `${family} chain ${chain}`, has }));
}

/** The sets of a table as the kernel lists them. */
export const setsIn = (nftables: Nftables, table: NftTable, { sets }: Ruleset): NftContent[] =>
  Object.keys(sets).flatMap((set): NftContent[] => {
    const has = nftables.elements(table, set);
    return has === null ? [] : [{ what: `${table.family} set ${set}`, has }];
  });

/** What `chainsIn` returns for a chain on one device, which passes every frame on to the chain `goto`. */
export const deviceChain = (hook: string, goto: string): string[] => [
  `filter ${hook} -300 accept`,
  JSON.stringify([{ goto: { target: goto } }]),
];

interface ListedChain {
  readonly name: string;
  readonly type?: unknown;
  readonly hook?: unknown;
  readonly prio?: unknown;
  readonly policy?: unknown;
}

const hookOf = ({ type, hook, prio, policy }: ListedChain): string[] =>
  hook === undefined ? [] : [[type, hook, prio, policy].map(String).join(' ')];

const isChain = (value: unknown): value is ListedChain =>
  typeof value === 'object' && value !== null && 'name' in value && typeof value.name === 'string';

const isRule = (
  value: unknown,
): value is { readonly chain: string; readonly expr: readonly unknown[] } =>
  typeof value === 'object' &&
  value !== null &&
  'chain' in value &&
  typeof value.chain === 'string' &&
  'expr' in value &&
  Array.isArray(value.expr);

const isNoCounter = (expression: unknown): boolean =>
  !(typeof expression === 'object' && expression !== null && 'counter' in expression);
