import type { Attachment, Difference } from '#protocol/attachment.ts';
import type { LinkSettings } from '#native/link.ts';
import type { AttachmentRecord } from '../../storage/journal.ts';
import { ifbName, rateOf } from '../networks/bandwidth.ts';
import { portDifferences } from '../networks/bridge-port.ts';
import { CLOSED_TO_HOST } from '../networks/macvtap.ts';
import { CLOSED_TO_IPV6 } from '../networks/tap.ts';
import { forwardingKey, type Observed, type SeenLink } from './observe.ts';
import { DEVICE_GROUP, deviceTag, isDeviceOf, isMadeByAgent, isTagged } from '../ownership.ts';

// What is there beside what a record says: pure comparisons.

export type OnHost = Attachment & { readonly device: NonNullable<Attachment['device']> };

/** True for an attachment whose device lies in the host's own namespace, and is no function of a NIC. */
export const isOnHost = (attachment: Attachment): attachment is OnHost =>
  attachment.type !== 'isolated' &&
  ['tap', 'veth', 'macvtap'].includes(attachment.device?.type ?? '');

/** The device of an attachment, where it is there. */
export function linkOf(attachment: Attachment, observed: Observed): SeenLink | undefined {
  const { device } = attachment;
  const link = observed.links.get(device?.ifindex ?? 0);
  if (link === undefined || device === null) return undefined;
  return isDeviceOf({ ...attachment, device }, link) ? link : undefined;
}

/** True when a device alone, without its place on a bridge, is as its attachment says, or nobody's business. */
export function agrees({ attachment, state }: AttachmentRecord, link: SeenLink): boolean {
  if (attachment === undefined || !isOnHost(attachment)) return true;
  if (state === 'fenced') return isClosed(attachment, link);
  if (state !== 'attached' || link.index !== attachment.device.ifindex) return true;
  const { device } = attachment;
  return (
    link.name === device.name &&
    link.up &&
    link.mac === device.mac &&
    link.mtu === device.mtu &&
    isMadeByAgent(link) &&
    (device.bridge === undefined || link.master !== undefined)
  );
}

/** True for a fenced device that is down and, where it was one, no port any more. */
export const isClosed = ({ device }: OnHost, { up, master }: SeenLink): boolean =>
  !up && (device.bridge === undefined || master === undefined);

export function linkDifferences(
  { network }: AttachmentRecord,
  attachment: OnHost,
  link: SeenLink,
  observed: Observed,
): Difference[] {
  const { id, device, mac, ports } = attachment;
  const wanted = { ...CLOSED_TO_IPV6, ...(device.type === 'macvtap' && CLOSED_TO_HOST) };
  const bridge = link.master === undefined ? undefined : observed.links.get(link.master);
  const compared: [what: string, expected: unknown, observed: unknown][] = [
    ['device.alias', deviceTag(attachment), link.alias ?? null],
    ['device.name', device.name, link.name],
    ['device.mac', device.mac, link.mac ?? null],
    ['device.mtu', device.mtu, link.mtu],
    ['device.up', true, link.up],
    ['device.group', DEVICE_GROUP, link.group],
    // A macvtap's master is nobody's business but its parent's.
    ...(device.bridge === undefined
      ? []
      : [['device.bridge', device.bridge, bridge?.name ?? null] as [string, unknown, unknown]]),
  ];
  const port =
    network === undefined || device.bridge === undefined || link.bridgePort === undefined
      ? []
      : portDifferences(link.bridgePort, { network, hairpin: ports.length > 0 });
  const ifindex = link.index;
  const led =
    network?.filter !== true ||
    device.bridge === undefined ||
    observed.forwarding.has(forwardingKey({ ifindex, mac }));
  return [
    ...compared
      .filter(([, expected, found]) => expected !== found)
      .map(([what, expected, found]) => ({ id, what, expected, observed: found })),
    ...port.map(({ key, ...values }) => ({ id, what: `device.port.${key}`, ...values })),
    ...(led ? [] : [{ id, what: 'device.forwarding', expected: mac, observed: null }]),
    ...settingDifferences(id, 'device', wanted, link),
    ...limitDifferences(attachment, observed),
  ];
}

/** Settings below /proc/sys; a device that has none of a family, without IPv6 for one, lacks nothing. */
const settingDifferences = (
  id: string,
  what: string,
  wanted: LinkSettings,
  { settings = {} }: SeenLink,
): Difference[] =>
  Object.entries(wanted).flatMap(([name, expected]) => {
    const observed = Object.entries(settings).find(([one]) => one === name)?.[1];
    if (observed === undefined || observed === expected) return [];
    return [{ id, what: `${what}.${name}`, expected, observed }];
  });

function limitDifferences(attachment: OnHost, observed: Observed): Difference[] {
  const { id, device, bandwidth } = attachment;
  const { ingressBitsPerSecond: ingress, egressBitsPerSecond: egress } = bandwidth;
  const { ifindex } = device;
  const ifb = observed.names.get(ifbName(ifindex));
  const serves =
    ifb !== undefined &&
    isTagged(ifb, attachment) &&
    ifb.up &&
    observed.redirects.get(ifindex) === ifb.index;
  const compared = [
    { what: 'bandwidth.ingress', limit: ingress, found: observed.limits.get(ifindex) },
    {
      what: 'bandwidth.egress',
      limit: egress,
      found: serves ? observed.limits.get(ifb.index) : undefined,
    },
  ];
  return compared.flatMap(({ what, limit, found }) => {
    if (limit === undefined || found === rateOf(limit)) return [];
    return [{ id, what, expected: rateOf(limit), observed: found ?? null }];
  });
}
