import type { Attachment } from '#protocol/attachment.ts';
import { UsageError } from './errors.ts';

/**
 * cloud-init: network-config, version 2. kernel: `ip=` of Linux's nfsroot.txt. networkd: systemd.network(5). interfaces:
 * interfaces(5) as Debian's ifupdown and busybox read it.
 */
export const GUEST_FORMATS = ['cloud-init', 'kernel', 'networkd', 'interfaces'] as const;
export type GuestFormat = (typeof GUEST_FORMATS)[number];

/**
 * How a guest without DHCP configures its NIC, as lines of a file, or of the kernel's command line. `ifname` is the NIC's name
 * in the guest, for formats that do not find it by its MAC. UsageError where a format cannot say what is needed.
 */
export function guestConfig(
  attachment: Attachment,
  { format, ifname }: { readonly format: GuestFormat; readonly ifname?: string },
): string[] {
  if (attachment.kind !== 'vm') {
    throw new UsageError(`${attachment.id} is a container: its interface is configured already`);
  }
  switch (format) {
    case 'cloud-init':
    case 'networkd':
      if (ifname !== undefined) {
        throw new UsageError(`--ifname: ${format} finds the NIC by its MAC`);
      }
      return format === 'networkd' ? networkd(attachment) : cloudInit(attachment);
    case 'kernel':
      return [kernel(attachment, ifname ?? DEFAULT_NAME)];
    case 'interfaces':
      return interfaces(attachment, ifname ?? DEFAULT_NAME);
  }
}

const DEFAULT_NAME = 'eth0';

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

/** Default routes first. */
const routesOf = ({ addresses, routes }: Attachment): { to: string; via: string }[] => [
  ...addresses.flatMap(({ gateway }) =>
    gateway === undefined ? [] : [{ to: isIPv6(gateway) ? '::/0' : '0.0.0.0/0', via: gateway }],
  ),
  ...routes.map(({ to, via }) => ({ to, via })),
];

const searchOf = ({ dns: { search = [], domain } }: Attachment): string[] => [
  ...new Set([...(domain === undefined ? [] : [domain]), ...search]),
];

// Values are JSON, which is YAML too.
function cloudInit(attachment: Attachment): string[] {
  const { mac, device, dns, addresses } = attachment;
  const routes = routesOf(attachment);
  const search = searchOf(attachment);
  const { servers = [] } = dns;
  const list = (name: string, values: readonly string[]): string[] =>
    values.length === 0 ? [] : [`${name}: ${JSON.stringify(values)}`];
  const indented = (lines: readonly string[]): string[] => lines.map((line) => `  ${line}`);
  const nameservers = [...list('addresses', servers), ...list('search', search)];
  return [
    'version: 2',
    'ethernets:',
    '  nic:',
    ...indented(
      indented([
        `match: {macaddress: ${JSON.stringify(mac)}}`,
        'dhcp4: false',
        'dhcp6: false',
        'accept-ra: false',
        ...(device === null ? [] : [`mtu: ${device.mtu}`]),
        ...list(
          'addresses',
          addresses.map(({ address }) => address),
        ),
        ...(routes.length === 0 ? [] : ['routes:']),
        ...routes.map(
          ({ to, via }) => `  - {to: ${JSON.stringify(to)}, via: ${JSON.stringify(via)}}`,
        ),
        ...(nameservers.length === 0 ? [] : ['nameservers:', ...indented(nameservers)]),
      ]),
    ),
  ];
}

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
  const search = searchOf(attachment);
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
    ...routesOf(attachment).flatMap(({ to, via }) => [
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
  const search = searchOf(attachment);
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
