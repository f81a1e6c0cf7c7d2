import type { NftTable } from '#native/nftables.ts';
import { type SetDeclaration, type SetElement, setText } from '#native/nftset.ts';

/** A table of ours, one a family: its rules never change, its sets carry what differs between hosts and moments. */
export interface Ruleset {
  readonly family: NftTable['family'];
  readonly sets: Readonly<Record<string, SetDeclaration>>;
  /** Its rules are for frames that leave by a device. */
  readonly egress?: boolean;
  /** By name; `hook` is what makes one a base chain: `type filter hook forward priority 0; policy accept;`. */
  readonly chains: Readonly<
    Record<string, { readonly hook?: string; readonly rules: readonly string[] }>
  >;
}

/** Something that holds in the kernel for somebody: an element of a set, or a chain on one device. */
export type Fact = ElementFact | ChainFact;

export interface ElementFact {
  readonly kind: 'element';
  readonly ruleset: Ruleset;
  readonly set: string;
  readonly element: SetElement;
}

/** Frames of a single device that go through one of the ruleset's chains. */
export interface ChainFact {
  readonly kind: 'chain';
  readonly ruleset: Ruleset;
  readonly chain: string;
  readonly hook: 'ingress' | 'egress';
  readonly device: string;
  readonly goto: string;
}

/** Facts of one ruleset, by the name of a set. */
export const elementsOf =
  <Sets extends string>(
    ruleset: Ruleset & { readonly sets: Readonly<Record<Sets, SetDeclaration>> },
  ) =>
  (set: Sets, element: SetElement): ElementFact => ({ kind: 'element', ruleset, set, element });

/** Equal for facts that are the same. */
export function keyOf(fact: Fact): string {
  const { family } = fact.ruleset;
  if (fact.kind === 'chain')
    return `${family} ${fact.hook} ${fact.chain} ${fact.device} ${fact.goto}`;
  const { key, end = [], data = [] } = fact.element;
  const values = [key, end, data].map((part) => part.map(String).join(' . '));
  return `${family} ${fact.set} ${values.join(' : ')}`;
}

/**
 * Commands that bring a table, which is there, to these rules, whatever rules it has. Elements of its sets are
 * left as they are.
 */
export function rulesText(ruleset: Ruleset, table: string): string {
  const { family, sets, chains, egress = false } = ruleset;
  const place = `${family} ${table}`;
  return [
    ...Object.entries(sets).map(
      ([name, set]) =>
        `add ${set.data === undefined ? 'set' : 'map'} ${place} ${name} ${setText(set, { egress })}`,
    ),
    // All chains before the first rule: rules jump to them.
    ...Object.entries(chains).map(
      ([name, { hook }]) => `add chain ${place} ${name}${hook === undefined ? '' : ` { ${hook} }`}`,
    ),
    // Chains on single devices, which are no part of this, keep theirs.
    ...Object.keys(chains).map((name) => `flush chain ${place} ${name}`),
    ...Object.entries(chains).flatMap(([name, { rules }]) =>
      rules.map((rule) => `add rule ${place} ${name} ${rule}`),
    ),
  ].join('\n');
}
