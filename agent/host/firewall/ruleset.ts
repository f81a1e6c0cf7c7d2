import type { NftTable } from '#native/nftables.ts';
import { type SetDeclaration, type SetElement, setText } from '#native/nftset.ts';

/** One of the agent's tables, one for each family. Its rules never change; elements of its sets come and go. */
export interface Ruleset {
  readonly family: NftTable['family'];
  readonly sets: Readonly<Record<string, SetDeclaration>>;
  /** True if its rules are for frames that leave by a device. */
  readonly egress?: boolean;
  /** By name. A chain with `hook` is a base chain: `type filter hook forward priority 0; policy accept;`. */
  readonly chains: Readonly<
    Record<string, { readonly hook?: string; readonly rules: readonly string[] }>
  >;
}

/** Something that our tables hold for an owner: an element of a set, or a chain on one device. */
export type Fact = ElementFact | ChainFact;

export interface ElementFact {
  readonly kind: 'element';
  readonly ruleset: Ruleset;
  readonly set: string;
  readonly element: SetElement;
}

/** A chain on one device, which passes its frames on to a chain of the ruleset. */
export interface ChainFact {
  readonly kind: 'chain';
  readonly ruleset: Ruleset;
  readonly chain: string;
  readonly hook: 'ingress' | 'egress';
  readonly device: string;
  readonly goto: string;
}

/** Returns a function that makes a fact of this ruleset from a set's name and an element. */
export const elementsOf =
  <Sets extends string>(
    ruleset: Ruleset & { readonly sets: Readonly<Record<Sets, SetDeclaration>> },
  ) =>
  (set: Sets, element: SetElement): ElementFact => ({ kind: 'element', ruleset, set, element });

/** Two facts are the same when their keys are equal. */
export function keyOf(fact: Fact): string {
  const { family } = fact.ruleset;
  if (fact.kind === 'chain')
    return `${family} ${fact.hook} ${fact.chain} ${fact.device} ${fact.goto}`;
  const { key, end = [], data = [] } = fact.element;
  const values = [key, end, data].map((part) => part.map(String).join(' . '));
  // Joined, since V8 keeps the parts of a text that was made by `+` or in a template.
  return [family, fact.set, values.join(' : ')].join(' ');
}

/**
 * Commands that replace the rules of a table that exists, whatever rules it has. The elements of its sets stay.
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
    // Not `flush table`: chains on single devices keep their rules.
    ...Object.keys(chains).map((name) => `flush chain ${place} ${name}`),
    ...Object.entries(chains).flatMap(([name, { rules }]) =>
      rules.map((rule) => `add rule ${place} ${name} ${rule}`),
    ),
  ].join('\n');
}
