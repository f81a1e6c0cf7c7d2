import type { AttachmentPart, FoundDifference } from '#protocol/differences.ts';
import { type LinkSettings, settingEntries } from '#native/link.ts';
import { portDifferences } from './networks/bridge-port.ts';
import { ifbName, rateOf } from './networks/bandwidth.ts';
import { factKeys, filterFacts, mapFacts } from './networks/port-facts.ts';
import { isDeviceOf, isTagged } from './ownership.ts';
import type { DescribedDevice, DescribedInside, Description } from './description.ts';
import { forwardingKey, type Observed, type SeenLink } from './reconcile/observe.ts';

// Compares what should be there with what is there. The only comparison of an attachment with the kernel, and pure: a
// repeated attach, a dry run, a check, reconcile and kernel events all use it.

/** What was observed. What was not observed is not compared. */
export type Snapshot = Pick<Observed, 'links'> & Partial<Observed>;

export interface Finding {
  /**
   * `none`: nothing has to be done. `mend`: the device is repaired in place. `remake`: the device is gone, and has to
   * be made again. `close`: a fenced device is open.
   */
  readonly remedy: 'none' | 'mend' | 'remake' | 'close';
  /** The differences that the remedy repairs. */
  readonly differences: readonly FoundDifference[];
  /** Differences inside the workload's namespace: they are only reported. */
  readonly reported: readonly FoundDifference[];
}

type Compared = readonly [what: AttachmentPart, expected: unknown, observed: unknown];

const NONE: Finding = { remedy: 'none', differences: [], reported: [] };

export function compare(description: Description, seen: Snapshot): Finding {
  const { id, device } = description;
  const named = (compared: readonly Compared[]): FoundDifference[] =>
    compared.map(([what, expected, observed]) => ({ id, what, expected, observed }));
  if (description.closed === true) {
    const open = openings(description, seen);
    return open.length === 0 ? NONE : { ...NONE, remedy: 'close', differences: named(open) };
  }
  const link = device === undefined ? undefined : deviceIn(description, seen);
  if (device !== undefined && link === undefined) {
    const missing = named([['device', device.name, null]]);
    return { ...NONE, remedy: 'remake', differences: missing };
  }
  const differing: Compared[] = [...factsDiffering(description, seen)];
  if (device !== undefined && link !== undefined) {
    differing.unshift(
      ...linkDiffering(device, link, seen),
      ...placeDiffering(device, link, seen),
      ...limitsDiffering(description, device, seen),
    );
  }
  const away = insideDiffering(description, seen);
  const gone = [...away.gone, ...functionDiffering(description, seen)];
  if (gone.length > 0) {
    return { remedy: 'remake', differences: named(gone), reported: named(away.told) };
  }
  const remedy = differing.length > 0 ? 'mend' : 'none';
  return { remedy, differences: named(differing), reported: named(away.told) };
}

/** True if a report of the kernel about one device agrees with the description, or is about another device. */
export const agrees = (description: Description, link: SeenLink): boolean =>
  description.device?.ifindex !== link.index ||
  compare(description, { links: new Map([[link.index, link]]) }).remedy === 'none';

/** The device of a description; undefined if it is missing. */
export function deviceIn(
  { id, generation, device }: Description,
  { links }: Pick<Snapshot, 'links'>,
): SeenLink | undefined {
  const link = links.get(device?.ifindex ?? 0);
  if (device === undefined || link === undefined) return undefined;
  return isDeviceOf({ id, generation, device }, link) ? link : undefined;
}

/** What is open on a fenced device. */
function openings({ device, ...owner }: Description, seen: Snapshot): Compared[] {
  const link = device === undefined ? undefined : deviceIn({ ...owner, device }, seen);
  if (device === undefined || link === undefined) return [];
  if (link.up) return [['device.up', false, true]];
  if (device.port === undefined || link.master === undefined) return [];
  return [['device.bridge', null, device.port.bridge]];
}

/** The differences of a device, without its port settings and forwarding entry. */
export const linkDiffering = (
  device: DescribedDevice,
  link: SeenLink,
  seen: Snapshot,
): Compared[] => [
  ...unequal([
    ['device.alias', device.alias, link.alias ?? null],
    ['device.name', device.name, link.name],
    ['device.mac', device.mac, link.mac ?? null],
    ['device.mtu', device.mtu, link.mtu],
    ['device.up', true, link.up],
    ['device.group', device.group, link.group],
  ]),
  ...bridgeDiffering(device, link, seen),
  ...settingDiffering(device.settings, link),
];

/**
 * Compares the bridge only of a device that should be a bridge port. Another device may be made a port of anything by
 * its owner.
 */
function bridgeDiffering(
  { port }: DescribedDevice,
  { master }: SeenLink,
  { links, names }: Snapshot,
): Compared[] {
  if (port === undefined) return [];
  // A report about a single device does not contain the name of its bridge.
  if (names === undefined && master !== undefined) return [];
  const bridge = master === undefined ? undefined : links.get(master);
  return unequal([['device.bridge', port.bridge, bridge?.name ?? null]]);
}

/** A device may lack the settings of a family, for example without IPv6. That is not a difference. */
function settingDiffering(wanted: LinkSettings, { settings = {} }: SeenLink): Compared[] {
  return settingEntries(wanted).flatMap(([name, expected]) => {
    const observed = settings[name];
    return observed === undefined ? [] : unequal([[`device.${name}`, expected, observed]]);
  });
}

function placeDiffering(
  { port, ifindex }: DescribedDevice,
  { bridgePort }: SeenLink,
  { forwarding }: Snapshot,
): Compared[] {
  if (port === undefined) return [];
  const { settings, fixed = false, mac } = port;
  const differing =
    settings === undefined || bridgePort === undefined ? [] : portDifferences(bridgePort, settings);
  const led = !fixed || forwarding?.has(forwardingKey({ ifindex, mac })) !== false;
  return [
    ...differing.map(({ key, expected, observed }): Compared => {
      return [`device.port.${key}`, expected, observed];
    }),
    ...(led ? [] : [['device.forwarding', mac, null] as const]),
  ];
}

function limitsDiffering(
  owner: Pick<Description, 'id' | 'generation'>,
  { ifindex, limits: wanted }: DescribedDevice,
  { limits, names, redirects }: Snapshot,
): Compared[] {
  if (limits === undefined || names === undefined || redirects === undefined) return [];
  const { ingressBitsPerSecond: ingress, egressBitsPerSecond: egress } = wanted;
  const ifb = names.get(ifbName(ifindex));
  const serves =
    ifb !== undefined && isTagged(ifb, owner) && ifb.up && redirects.get(ifindex) === ifb.index;
  const held = serves ? limits.get(ifb.index) : undefined;
  return [
    ...limitDiffering('bandwidth.ingress', ingress, limits.get(ifindex)),
    ...limitDiffering('bandwidth.egress', egress, held),
  ];
}

const limitDiffering = (
  what: AttachmentPart,
  limit: number | undefined,
  found: number | undefined,
): Compared[] => (limit === undefined ? [] : unequal([[what, rateOf(limit), found ?? null]]));

function factsDiffering({ filter, maps, id }: Description, { facts }: Snapshot): Compared[] {
  if (facts === undefined) return [];
  const holds = (owner: string, wanted: ReadonlySet<string>): boolean => {
    const held = facts.get(owner) ?? [];
    return held.length === wanted.size && held.every((key) => wanted.has(key));
  };
  const filtered = filter === undefined || holds(filter.owner, factKeys(filterFacts(filter)));
  const own = maps === undefined ? undefined : mapFacts(id, maps);
  const mapped = own === undefined || holds(own.owner, factKeys(own.facts));
  return [
    ...(filtered ? [] : [['filter', filter.filter, null] as const]),
    ...(mapped ? [] : [['ports', maps?.ports ?? [], null] as const]),
  ];
}

/**
 * `gone`: the workload's device, or its namespace, is missing and has to be made again. `told`: differences that are
 * only reported.
 */
function insideDiffering(
  { id, inside }: Description,
  seen: Snapshot,
): { readonly gone: readonly Compared[]; readonly told: readonly Compared[] } {
  const nothing = { gone: [], told: [] };
  const found = seen.inside?.get(id);
  if (inside === undefined || found === undefined) return nothing;
  const { netns, madeAgain, link } = inside;
  if (found.kind === 'unanswered') return { gone: [], told: [['netns', netns, found.reason]] };
  if (found.kind === 'absent') {
    const away: Compared = ['netns', netns, null];
    return madeAgain ? { gone: [away], told: [] } : { gone: [], told: [away] };
  }
  // The path leads to another namespace than the one that was named.
  if (inside.identity !== undefined && found.identity !== inside.identity) {
    return { gone: [], told: [['netns', inside.identity, found.identity]] };
  }
  if (link !== undefined && found.link === null) {
    const missing: Compared = [link.what, link.name, null];
    return link.what === 'device' ? { gone: [missing], told: [] } : { gone: [], told: [missing] };
  }
  return { gone: [], told: interfaceDiffering(inside, found) };
}

function interfaceDiffering(
  { link, loopback, addresses }: DescribedInside,
  found: Extract<SeenInside, { kind: 'seen' }>,
): Compared[] {
  const { link: there } = found;
  const own = link === undefined || there === null ? [] : endDiffering(link, there);
  return [
    ...(loopback ? unequal([['lo.up', true, found.loopback]]) : []),
    ...own,
    ...unequal(addresses.map((one) => ['address', one, found.addresses.has(one) ? one : null])),
  ];
}

const endDiffering = (
  { what, ifindex, name, mac, mtu }: NonNullable<DescribedInside['link']>,
  there: SeenLink,
): Compared[] =>
  unequal([
    // An end that was found by its name has that name.
    [`${what}.name`, ifindex === undefined ? there.name : name, there.name],
    [`${what}.mac`, mac, there.mac ?? null],
    [`${what}.mtu`, mtu, there.mtu],
    [`${what}.up`, true, there.up],
  ]);

function functionDiffering(
  { id, virtualFunction: wanted }: Description,
  { functions }: Snapshot,
): Compared[] {
  const found = functions?.get(id);
  if (wanted === undefined || found === undefined) return [];
  if (found.driver !== wanted.driver) return [['device.driver', wanted.driver, found.driver]];
  const { parent } = wanted;
  return parent === undefined ? [] : unequal([['mac', parent.mac, found.mac]]);
}

const unequal = (compared: readonly Compared[]): Compared[] =>
  compared.filter(([, expected, observed]) => expected !== observed);

type SeenInside = NonNullable<ReturnType<Observed['inside']['get']>>;
