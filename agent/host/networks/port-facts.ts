import { portMapFacts } from '../firewall/host-nat.ts';
import {
  bridgePortFacts,
  hairpinFacts,
  macvtapFacts,
  trustedFacts,
} from '../firewall/port-filter.ts';
import { type Fact, keyOf } from '../firewall/ruleset.ts';
import type { DescribedFilter, DescribedMaps } from '../description.ts';
import { mapsOwner } from './port-maps.ts';

// The facts that the firewall has to hold for an attachment.

/** The facts of a filter; none for a macvtap without a filter. */
export function filterFacts({ on, filter, ...port }: DescribedFilter): Fact[] {
  const filtered = filter === 'full';
  if (on === 'device') return filtered ? macvtapFacts(port) : [];
  return [
    ...(filtered ? bridgePortFacts(port) : trustedFacts(port.device)),
    ...(port.hairpin ? hairpinFacts(port.device) : []),
  ];
}

export const mapFacts = (
  id: string,
  maps: DescribedMaps,
): { readonly owner: string; readonly facts: readonly Fact[] } => ({
  owner: mapsOwner(id),
  facts: portMapFacts(maps),
});

export const factKeys = (facts: readonly Fact[]): ReadonlySet<string> => new Set(facts.map(keyOf));
