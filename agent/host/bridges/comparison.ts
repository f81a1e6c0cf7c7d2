import type { NetworkPart } from '#protocol/differences.ts';
import { type Link, type LinkSettings, settingEntries } from '#native/link.ts';
import { SWITCHES } from '../networks/forwarding.ts';
import type { BridgeDescription } from './description.ts';
import type { BridgeSnapshot } from './snapshot.ts';
import { DEVICE_GROUP, bridgeTagOf, isBridgeOf, isMadeByAgent } from '../ownership.ts';

/** One difference between the host and a network's description. `what` names it; null stands for a missing object. */
export interface BridgeDifference {
  readonly what: NetworkPart;
  readonly expected: string | number | boolean | null;
  readonly observed: string | number | boolean | null;
  /** False if the object belongs to somebody else, or cannot be repaired from here: the difference is only reported. */
  readonly repairable: boolean;
}

/** The differences between a description and the host. Pure. */
export function compareBridge(
  description: BridgeDescription,
  snapshot: BridgeSnapshot,
): BridgeDifference[] {
  const { link } = snapshot;
  const beside = compareForwarding(description, snapshot);
  if (link === null) {
    const { bridge, adopted } = description;
    return [{ ...difference('bridge', bridge, null), repairable: adopted !== true }, ...beside];
  }
  const own = isBridgeOf(link, description)
    ? compareOwn(description, snapshot, link)
    : compareAdopted(description, snapshot, link);
  return [
    ...own,
    ...compareSettings(description.bridgeSettings, link),
    ...missing('bridge.route', description.localRoutes, snapshot.localRoutes).map((one) => ({
      ...one,
      // A route needs its device up, and only the owner of an adopted bridge sets it up.
      repairable: link.up || isBridgeOf(link, description),
    })),
    ...compareUplink(description, snapshot, link),
    ...beside,
  ];
}

/** Compares a bridge that an agent made. */
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
    ...(link.forwardDelayMs === undefined ? [] : [difference('bridge.stp_state', 0, 1)]),
    ...(link.noArp === true ? [difference('bridge.arp', true, false)] : []),
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

/** Compares an adopted bridge. Reports what keeps traffic from passing; only the owner of the bridge may change it. */
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
  return settingEntries(expected).flatMap(([name, value]) => {
    const observed = settings[name];
    // A bridge may lack the settings of a family, for example without IPv6. That is not a difference.
    if (observed === undefined || observed === value) return [];
    return [difference(`bridge.${name}`, value, observed)];
  });
}

function compareUplink(
  { uplink, bridge }: BridgeDescription,
  { uplink: found, uplinkMaster }: BridgeSnapshot,
  link: Link,
): BridgeDifference[] {
  if (uplink === undefined || found === undefined) return [];
  if (found === null) {
    return [{ ...difference('uplink', uplink.device, null), repairable: false }];
  }
  return [
    ...(found.master === link.index
      ? []
      : [difference('uplink.bridge', bridge, uplinkMaster ?? found.master ?? null)]),
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
  what: NetworkPart,
  expected: readonly string[],
  found: readonly string[] | undefined,
): BridgeDifference[] =>
  found === undefined
    ? []
    : expected.filter((one) => !found.includes(one)).map((one) => difference(what, one, null));

const difference = (
  what: NetworkPart,
  expected: BridgeDifference['expected'],
  observed: BridgeDifference['observed'],
): BridgeDifference => ({ what, expected, observed, repairable: true });
