import type { Network, NetworkPath, NetworkType } from './network.ts';

/**
 * What becomes of a change while the network has leases. `ledger`: it concerns what is granted, and nothing that is
 * there. `applied`: each host gives it to what is there. `fixed`: NETWORK_IN_USE. A list: applied in networks of these
 * types, fixed in others.
 */
export type Edit = 'ledger' | 'applied' | 'fixed' | readonly NetworkType[];

/** Every key of a network: none reaches new attachments alone. */
export const NETWORK_EDITS: Readonly<Record<NetworkPath, Edit>> = {
  // Another name is another network.
  network: 'fixed',
  type: 'fixed',
  // What a workload has configured, or its guest has.
  subnet: 'fixed',
  gateway: 'fixed',
  gatewayMode: 'fixed',
  'ipv6.subnet': 'fixed',
  'ipv6.gateway': 'fixed',
  mtu: 'fixed',
  // Where its device is.
  bridge: 'fixed',
  uplink: 'fixed',
  parent: 'fixed',
  mode: 'fixed',
  // Set once, by the NIC's driver.
  vlan: 'fixed',
  spoofCheck: 'fixed',
  trust: 'fixed',
  rate: 'fixed',
  dhcp: ['bridged', 'host-only'],
  dns: 'applied',
  routes: 'applied',
  nat: 'applied',
  filter: 'applied',
  linkLocal: 'applied',
  portIsolation: ['bridged', 'host-only'],
  routed: 'applied',
  pool: 'ledger',
  reservations: 'ledger',
  'ipv6.pool': 'ledger',
  'ipv6.reservations': 'ledger',
  exclude: 'ledger',
  reuseDelaySeconds: 'ledger',
  reclaimAfterSeconds: 'ledger',
};

/** What of a network cannot change while it has leases, by path; null for what it does not say. */
export function fixedOf(network: Network): Readonly<Record<string, unknown>> {
  const { type } = network;
  const fixed = Object.entries(NETWORK_EDITS)
    .filter(([, edit]) => edit === 'fixed' || (Array.isArray(edit) && !edit.includes(type)))
    .map(([path]): [string, unknown] => [path, valueAt(network, path)]);
  return Object.fromEntries(fixed);
}

const valueAt = (network: Network, path: string): unknown =>
  path
    .split('.')
    .reduce<unknown>(
      (value, key) =>
        typeof value === 'object' && value !== null
          ? (Object.entries(value).find(([one]) => one === key)?.[1] ?? null)
          : null,
      network,
    );
