import type { Difference } from './attachment.ts';

// Every `what` of a difference. Who finds one names it by this list: what is not here does not compile, and the reference
// has a meaning for each (docs/generator/codes.ts). `<…>` stands for a name that the kernel, or the table of nftables, has.

/** Of an attachment: `id` is its own. */
export const ATTACHMENT_DIFFERENCES = [
  'device',
  'device.name',
  'device.alias',
  'device.group',
  'device.mac',
  'device.mtu',
  'device.up',
  'device.bridge',
  'device.ipv4.<setting>',
  'device.ipv6.<setting>',
  'device.port.<attribute>',
  'device.forwarding',
  'device.driver',
  'bandwidth.ingress',
  'bandwidth.egress',
  'filter',
  'ports',
  'device.peer',
  'device.peer.name',
  'device.peer.mac',
  'device.peer.mtu',
  'device.peer.up',
  'address',
  'lo.up',
  'netns',
  'mac',
  'lease',
  'record',
  'network.revision',
  'boot',
] as const;

/** Of what a network has on a host: `id` is the network's name. */
export const NETWORK_DIFFERENCES = [
  'bridge',
  'bridge.alias',
  'bridge.group',
  'bridge.mac',
  'bridge.mtu',
  'bridge.up',
  'bridge.stp_state',
  'bridge.forwardDelayMs',
  'bridge.arp',
  'bridge.address',
  'bridge.ipv4.<setting>',
  'bridge.ipv6.<setting>',
  'bridge.route',
  'uplink',
  'uplink.bridge',
  'uplink.up',
  'sysctl <name>',
] as const;

/** Of the agent's tables: `id` is the host. */
export const FIREWALL_DIFFERENCES = [
  'nftables <family> chain <name>',
  'nftables <family> set <name>',
] as const;

/**
 * Of the ledger with itself, behind `ledger `, as ipam-store/functions has them: `id` is an attachment's, or `-`. A newer
 * library may have more.
 */
export const LEDGER_DIFFERENCES = [
  'by missing',
  'by stray',
  'changes missing',
  'count',
  'due missing',
  'due stray',
  'free missing',
  'free stray',
  'gone missing',
  'gone unreadable',
  'held and free',
  'held missing',
  'held stray',
  'held unreadable',
  'host missing',
  'host stray',
  'hosts missing',
  'last unreadable',
  'lease unreadable',
  'leaving missing',
  'lost',
  'mac missing',
  'mac stray',
  'meta missing',
  'network differs',
  'network missing',
  'network unfinished',
  'network unlisted',
  'networks missing',
  'pool differs',
  'revised differs',
  'revised missing',
  'roster missing',
  'session missing',
  'state missing',
  'subnet missing',
  'subnet stray',
  'subnets missing',
  'unreadable',
] as const;

/** A name of a list, `<…>` being any text. */
type Named<Name extends string> = Name extends `${infer Before}<${string}>${infer After}`
  ? `${Before}${string}${Named<After>}`
  : Name;

export type AttachmentDifference = (typeof ATTACHMENT_DIFFERENCES)[number];
export type NetworkDifference = (typeof NETWORK_DIFFERENCES)[number];
export type FirewallDifference = (typeof FIREWALL_DIFFERENCES)[number];
export type LedgerDifferenceName = (typeof LEDGER_DIFFERENCES)[number];

export type AttachmentPart = Named<AttachmentDifference>;
export type NetworkPart = Named<NetworkDifference>;
export type FirewallPart = Named<FirewallDifference>;

/** A difference as an agent of this release finds it; in an answer `what` may be that of a newer one. */
export type FoundDifference = Difference & {
  readonly what: AttachmentPart | NetworkPart | FirewallPart;
};
