import type { Link, LinkSettings } from '#native/link.ts';
import { SWITCHES } from '../networks/forwarding.ts';
import type { BridgeDescription } from './description.ts';
import type { BridgeSnapshot } from './snapshot.ts';
import { DEVICE_GROUP, bridgeTagOf, isBridgeOf, isMadeByAgent } from '../ownership.ts';

/** One thing that is not as described: `what` names it, null stands for what is not there. */
export interface BridgeDifference {
  readonly what: string;
  readonly expected: string | number | boolean | null;
  readonly observed: string | number | boolean | null;
  /** False for what belongs to somebody else, or cannot be put right from here: it is told, and left. */
  readonly repairable: boolean;
}

/** How what is there differs from what is described. Pure. */
export function compareBridge(
  description: BridgeDescription,
  snapshot: BridgeSnapshot,
): BridgeDifference[] {
  const { link } = snapshot;
  const beside = compareForwarding(description, snapshot);
  if (link === null) {
    return [difference('bridge', description.bridge, null), ...beside];
  }
  const own = isBridgeOf(link, description)
    ? compareOwn(description, snapshot, link)
    : compareAdopted(description, snapshot, link);
  return [
    ...own,
    ...compareSettings(description.bridgeSettings, link),
    ...missing('bridge.route', description.localRoutes, snapshot.localRoutes).map((one) => ({
      ...one,
      // A route needs its device up, and an adopted bridge is its owner's to set up.
      repairable: link.up || isBridgeOf(link, description),
    })),
    ...compareUplink(description, snapshot, link),
    ...beside,
  ];
}

/** Of a bridge that an agent made. */
function compareOwn(
  { network, mac, mtu, gateways, undecided, linkLocal, ownSettings }: BridgeDescription,
  { addresses }: BridgeSnapshot,
  link: Link,
): BridgeDifference[] {
  const tag = bridgeTagOf(link);
  const found = link.mac?.toString() ?? null;
  const unsaid = gateways.filter((one) => tag?.gateways.includes(one) !== true);
  return [
    ...(tag === undefined || unsaid.length > 0
      ? [difference('bridge.alias', [network, ...gateways].join(' '), link.alias ?? null)]
      : []),
    ...(isMadeByAgent(link) ? [] : [difference('bridge.group', DEVICE_GROUP, link.group)]),
    ...(found === mac ? [] : [difference('bridge.mac', mac, found)]),
    ...(mtu === undefined || mtu === link.mtu ? [] : [difference('bridge.mtu', mtu, link.mtu)]),
    ...compareSettings(ownSettings, link),
    ...missing('bridge.address', linkLocal === undefined ? [] : [linkLocal], addresses),
    ...missing('bridge.address', gateways, addresses),
    ...(tag?.gateways ?? [])
      .filter((one) => !gateways.includes(one) && !undecided.includes(one))
      .filter((one) => addresses?.includes(one) === true)
      .map((one) => difference('bridge.address', null, one)),
    ...(link.up ? [] : [difference('bridge.up', true, false)]),
  ];
}

/** Of a bridge that is somebody else's: what keeps traffic from passing is told, and its owner's to change. */
function compareAdopted(
  { gateways }: BridgeDescription,
  { addresses }: BridgeSnapshot,
  link: Link,
): BridgeDifference[] {
  const told: BridgeDifference[] = [
    ...(link.up ? [] : [difference('bridge.up', true, false)]),
    ...missing('bridge.address', gateways, addresses),
    ...(link.forwardDelayMs === undefined || link.forwardDelayMs === 0
      ? []
      : [difference('bridge.forwardDelayMs', 0, link.forwardDelayMs)]),
  ];
  return told.map((one) => ({ ...one, repairable: false }));
}

function compareSettings(expected: LinkSettings, { settings = {} }: Link): BridgeDifference[] {
  const found: Readonly<Record<string, number | undefined>> = settings;
  return Object.entries(expected).flatMap(([name, value]) => {
    const observed = found[name];
    // A bridge that has none of a family, without IPv6 for one, lacks nothing.
    if (observed === undefined || observed === value) return [];
    return [difference(`bridge.${name}`, value, observed)];
  });
}

function compareUplink(
  { uplink, bridge }: BridgeDescription,
  { uplink: found }: BridgeSnapshot,
  link: Link,
): BridgeDifference[] {
  if (uplink === undefined || found === undefined) return [];
  if (found === null) {
    return [{ ...difference('uplink', uplink.device, null), repairable: false }];
  }
  return [
    ...(found.master === link.index
      ? []
      : [difference('uplink.bridge', bridge, found.master ?? null)]),
    ...(found.up ? [] : [difference('uplink.up', true, false)]),
  ];
}

const compareForwarding = (
  { forwards }: BridgeDescription,
  { forwarding }: BridgeSnapshot,
): BridgeDifference[] =>
  forwards
    .filter((family) => forwarding?.get(family) === 'nobody')
    .map((family) => difference(`sysctl ${SWITCHES[family].join('.')}`, '1', '0'));

const missing = (
  what: string,
  expected: readonly string[],
  found: readonly string[] | undefined,
): BridgeDifference[] =>
  found === undefined
    ? []
    : expected.filter((one) => !found.includes(one)).map((one) => difference(what, one, null));

const difference = (
  what: string,
  expected: BridgeDifference['expected'],
  observed: BridgeDifference['observed'],
): BridgeDifference => ({ what, expected, observed, repairable: true });
