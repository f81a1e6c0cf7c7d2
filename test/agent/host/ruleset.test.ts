import { expect, test } from 'vitest';
import { HOST_NAT } from '#agent/host/firewall/host-nat.ts';
import { BRIDGE_FILTER, DEVICE_FILTER } from '#agent/host/firewall/port-filter.ts';
import type { Ruleset } from '#agent/host/firewall/ruleset.ts';

const RULESETS: readonly Ruleset[] = [BRIDGE_FILTER, DEVICE_FILTER, HOST_NAT];

// A set in braces is anonymous: loading the rules again makes another, and empties the first under the frames that
// are on their way through the old rules. Seen as single frames lost while an agent takes over.
test.each(RULESETS)('no rule of $family has a set of its own', ({ chains }) => {
  const rules = Object.values(chains).flatMap((chain) => chain.rules);
  expect(rules.filter((rule) => rule.includes('{'))).toEqual([]);
});
