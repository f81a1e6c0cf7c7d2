import type { Attachment } from '#protocol/attachment.ts';
import { isDeviceName } from '#protocol/names.ts';
import { UsageError } from './errors.ts';

/**
 * cloud-init: network-config, version 2. kernel: `ip=` of Linux's nfsroot.txt. networkd: systemd.network(5). interfaces:
 * interfaces(5) as Debian's ifupdown and busybox read it.
 */
export const GUEST_FORMATS = ['cloud-init', 'kernel', 'networkd', 'interfaces'] as const;
export type GuestFormat = (typeof GUEST_FORMATS)[number];

/**
 * How a guest without DHCP configures its NIC, as lines of a file, or of the kernel's command line. `ifname` is the NIC's name
 * in the guest, `eth0` by default: cloud-init gives it this name, networkd takes the name that it has. UsageError where a
 * format cannot say what is needed.
 */
export function guestConfig(
  attachment: Attachment,
  { format, ifname }: { readonly format: GuestFormat; readonly ifname?: string },
): string[] {
  if (attachment.kind !== 'vm') {
    throw new UsageError(`${attachment.id} is a container: its interface is configured already`);
  }
  if (format === 'networkd') {
    if (ifname === undefined) return networkd(attachment);
    throw new UsageError('--ifname: networkd finds the NIC by its MAC, and leaves its name alone');
  }
  const name = ifname ?? 'eth0';
  if (!isDeviceName(name)) throw new UsageError(`--ifname "${name}": is no name of a device`);
  return MADE_WITH_NAME[format](attachment, name);
}

const MADE_WITH_NAME = {
  'cloud-init': cloudInit,
  kernel: (attachment: Attachment, ifname: string) => [kernel(attachment, ifname)],
  interfaces,
} as const;

interface Address {
  readonly address: string;
  readonly prefix: number;
  readonly gateway: string | undefined;
}

const addressesOf = ({ addresses }: Attachment): Address[] =>
  addresses.map(({ address, gateway }) => {
    const [bare = '', prefix = ''] = address.split('/');
    return { address: bare, prefix: Number(prefix), gateway };
  });

const isIPv6 = (address: string): boolean => address.includes(':');

const searchOf = ({ search = [], domain }: Attachment['dns']): string[] => [
  ...new Set([...(domain === undefined ? [] : [domain]), ...search]),
];

// cloud-init 22.4, Debian 12's, makes ::/64 of a route to ::/0 and does not know
// `default`, so that default routes are gateway4 and gateway6. Without set-name it looks for a NIC of the name `ethernets` has.
function cloudInit({ mac, device, dns, ...attachment }: Attachment, ifname: string): string[] {
  const nameservers = [...list('addresses', dns.servers ?? []), ...list('search', searchOf(dns))];
  const nic = [
    `match: {${value('macaddress', mac)}}`,
    value('set-name', ifname),
    'dhcp4: false',
    'dhcp6: false',
    'accept-ra: false',
    ...(device === null ? [] : [value('mtu', device.mtu)]),
    ...list(
      'addresses',
      attachment.addresses.map(({ address }) => address),
    ),
    ...attachment.addresses.flatMap(({ gateway }) =>
      gateway === undefined ? [] : [value(isIPv6(gateway) ? 'gateway6' : 'gateway4', gateway)],
    ),
    ...(attachment.routes.length === 0 ? [] : ['routes:']),
    ...attachment.routes.map(({ to, via }) => `  - {${value('to', to)}, ${value('via', via)}}`),
    ...(nameservers.length === 0 ? [] : ['nameservers:', ...indented(nameservers)]),
  ];
  return ['version: 2', 'ethernets:', `  ${JSON.stringify(ifname)}:`, ...indented(indented(nic))];
}

/** A line of YAML; JSON is YAML, too. */
const value = (name: string, of: string | number | readonly string[]): string =>
  `${name}: ${JSON.stringify(of)}`;

const list = (name: string, of: readonly string[]): string[] =>
  of.length === 0 ? [] : [value(name, of)];

const indented = (lines: readonly string[]): string[] => lines.map((line) => `  ${line}`);

function kernel(attachment: Attachment, ifname: string): string {
  const address = addressesOf(attachment).find((one) => !isIPv6(one.address));
  if (address === undefined) {
    throw new UsageError(`${attachment.id} has no IPv4 address, and ip= knows no other`);
  }
  const { servers = [] } = attachment.dns;
  const dns = servers.filter((server) => !isIPv6(server)).slice(0, 2);
  const { gateway = '' } = address;
  return `ip=${[address.address, '', gateway, netmask(address.prefix), '', ifname, 'off', ...dns].join(':')}`;
}

function networkd(attachment: Attachment): string[] {
  const { mac, device, dns, addresses } = attachment;
  const { servers = [] } = dns;
  const search = searchOf(dns);
  return [
    '[Match]',
    `MACAddress=${mac}`,
    '',
    ...(device === null ? [] : ['[Link]', `MTUBytes=${device.mtu}`, '']),
    '[Network]',
    ...addresses.map(({ address }) => `Address=${address}`),
    ...servers.map((server) => `DNS=${server}`),
    ...(search.length === 0 ? [] : [`Domains=${search.join(' ')}`]),
    'IPv6AcceptRA=no',
    // The port filter knows this link-local address and no other.
    'IPv6LinkLocalAddressGenerationMode=eui64',
    ...addresses.flatMap(({ gateway }) =>
      gateway === undefined ? [] : ['', '[Route]', `Gateway=${gateway}`],
    ),
    ...attachment.routes.flatMap(({ to, via }) => [
      '',
      '[Route]',
      `Destination=${to}`,
      `Gateway=${via}`,
    ]),
  ];
}

function interfaces(attachment: Attachment, ifname: string): string[] {
  const { device, dns, routes } = attachment;
  const { servers = [] } = dns;
  const search = searchOf(dns);
  const mtu = device === null ? [] : [`mtu ${device.mtu}`];
  const resolver = [
    ...(servers.length === 0 ? [] : [`dns-nameservers ${servers.join(' ')}`]),
    ...(search.length === 0 ? [] : [`dns-search ${search.join(' ')}`]),
  ];
  const stanzas = addressesOf(attachment).map(({ address, prefix, gateway }, index) => {
    const six = isIPv6(address);
    const own = routes.filter(({ to }) => isIPv6(to) === six);
    return [
      `iface ${ifname} ${six ? 'inet6' : 'inet'} static`,
      `address ${address}`,
      `netmask ${six ? prefix : netmask(prefix)}`,
      ...(gateway === undefined ? [] : [`gateway ${gateway}`]),
      ...(index === 0 ? [...mtu, ...resolver] : []),
      ...(six ? ['accept_ra 0'] : []),
      ...own.map(({ to, via }) => `up ip route add ${to} via ${via} dev ${ifname}`),
    ];
  });
  if (stanzas.length === 0) stanzas.push([`iface ${ifname} inet manual`, ...mtu]);
  return [
    `auto ${ifname}`,
    ...stanzas.flatMap(([head = '', ...body]) => [head, ...body.map((line) => `    ${line}`)]),
  ];
}

/** 24: 255.255.255.0. */
const netmask = (prefix: number): string =>
  [0, 1, 2, 3]
    .map((byte) => 256 - 2 ** (8 - Math.min(8, Math.max(0, prefix - 8 * byte))))
    .join('.');
