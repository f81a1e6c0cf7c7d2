import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { GUEST_FORMATS, type GuestFormat, guestConfig } from '#agent/cli/guest-config.ts';
import type { Attachment } from '#protocol/attachment.ts';
import { requireTool } from '../../support/tools.ts';

const web: Attachment = {
  id: 'web',
  generation: 1,
  workload: 'vm-web',
  kind: 'vm',
  network: 'volt0',
  type: 'bridged',
  host: 'h1',
  state: 'attached',
  mac: '0a:58:0a:2a:00:0a',
  device: { type: 'tap', name: 'tap-web', ifindex: 7, mac: 'fe:58:0a:2a:00:0a', mtu: 1400 },
  filter: 'full',
  addresses: [
    { address: '10.42.0.10/23', gateway: '10.42.0.1' },
    { address: 'fd42::10/64', gateway: 'fd42::1' },
  ],
  routes: [{ to: '10.99.0.0/16', via: '10.42.0.9' }],
  dns: { servers: ['10.42.0.1', 'fd42::1'], domain: 'volt0.internal', search: ['example.org'] },
  ports: [],
  bandwidth: {},
  lease: { generation: 1, grantedAt: '2026-01-02T03:04:05.000Z' },
  createdAt: '2026-01-02T03:04:05.000Z',
  labels: {},
};
const bare: Attachment = { ...web, addresses: [], routes: [], dns: {} };
const [four = { address: '' }, six = { address: '' }] = web.addresses;

const config = (attachment: Attachment, format: GuestFormat): string =>
  guestConfig(attachment, { format }).join('\n');

test('cloud-init: the NIC by its MAC, with everything that the attachment has', () => {
  expect(config(web, 'cloud-init')).toBe(`version: 2
ethernets:
  "eth0":
    match: {macaddress: "0a:58:0a:2a:00:0a"}
    set-name: "eth0"
    dhcp4: false
    dhcp6: false
    accept-ra: false
    mtu: 1400
    addresses: ["10.42.0.10/23","fd42::10/64"]
    gateway4: "10.42.0.1"
    gateway6: "fd42::1"
    routes:
      - {to: "10.99.0.0/16", via: "10.42.0.9"}
    nameservers:
      addresses: ["10.42.0.1","fd42::1"]
      search: ["volt0.internal","example.org"]`);
});

test('networkd: the same', () => {
  expect(config(web, 'networkd')).toBe(`[Match]
MACAddress=0a:58:0a:2a:00:0a

[Link]
MTUBytes=1400

[Network]
Address=10.42.0.10/23
Address=fd42::10/64
DNS=10.42.0.1
DNS=fd42::1
Domains=volt0.internal example.org
IPv6AcceptRA=no
IPv6LinkLocalAddressGenerationMode=eui64

[Route]
Gateway=10.42.0.1

[Route]
Gateway=fd42::1

[Route]
Destination=10.99.0.0/16
Gateway=10.42.0.9`);
});

test('kernel: one word, the IPv4 part of it', () => {
  const line = 'ip=10.42.0.10::10.42.0.1:255.255.254.0::eth0:off:10.42.0.1';
  expect(config(web, 'kernel')).toBe(line);
  expect(guestConfig(web, { format: 'kernel', ifname: 'ens3' })).toEqual([
    line.replace('eth0', 'ens3'),
  ]);
  const [{ address } = four] = web.addresses;
  expect(config({ ...bare, addresses: [{ address }] }, 'kernel')).toBe(
    'ip=10.42.0.10:::255.255.254.0::eth0:off',
  );
});

test.each([
  [0, '0.0.0.0'],
  [8, '255.0.0.0'],
  [20, '255.255.240.0'],
  [31, '255.255.255.254'],
  [32, '255.255.255.255'],
])('a prefix of %i bits is the netmask %s', (prefix, mask) => {
  const attachment = { ...bare, addresses: [{ address: `10.0.0.1/${prefix}` }] };
  expect(config(attachment, 'kernel').split(':')[3]).toBe(mask);
});

describe('interfaces, as the ifup of busybox reads it', () => {
  /** The commands that it would run. */
  const ifup = (attachment: Attachment): string[] => {
    const folder = mkdtempSync(join(tmpdir(), 'volt-interfaces-'));
    try {
      const file = join(folder, 'interfaces');
      writeFileSync(file, `${config(attachment, 'interfaces')}\n`);
      const words = ['ifup', '-n', '-f', '-i', file, 'eth0'];
      return execFileSync(requireTool('busybox'), words, { encoding: 'utf8' })
        .split('\n')
        .map((line) => line.trim())
        .filter((line) => line.startsWith('ip '));
    } finally {
      rmSync(folder, { recursive: true });
    }
  };

  test('addresses of both families, MTU, default routes and routes', () => {
    const commands = ifup(web).join('\n');
    expect(commands).toMatch(/^ip addr add 10\.42\.0\.10\/23 .*dev eth0/m);
    expect(commands).toMatch(/^ip link set .*mtu 1400/m);
    expect(commands).toMatch(/^ip route add default via 10\.42\.0\.1 dev eth0/m);
    expect(commands).toMatch(/^ip addr add fd42::10\/64 dev eth0/m);
    expect(commands).toMatch(/^ip route add ::\/0 via fd42::1 dev eth0/m);
    expect(commands).toContain('ip route add 10.99.0.0/16 via 10.42.0.9 dev eth0');
  });

  test('without addresses the NIC is up and no more', () => {
    expect(config(bare, 'interfaces')).toBe(`auto eth0
iface eth0 inet manual
    mtu 1400`);
  });
});

test.each(GUEST_FORMATS.filter((format) => format !== 'kernel'))(
  '%s: nothing is there of what the attachment has not',
  (format) => {
    const text = config(bare, format);
    expect(text).not.toMatch(/undefined|gateway|route|dns|nameservers|(?<!mac)address(es)?[:=]/i);
    expect(config({ ...bare, device: null }, format)).not.toMatch(/mtu/i);
  },
);

describe('is refused', () => {
  test('for a container', () => {
    expect(() => config({ ...web, kind: 'container' }, 'networkd')).toThrow(/is a container/);
  });
  test('as ip= where there is no IPv4 address', () => {
    expect(() => config({ ...bare, addresses: [six] }, 'kernel')).toThrow(/no IPv4 address/);
  });
  test('with a name that no NIC can have', () => {
    expect(() => guestConfig(web, { format: 'kernel', ifname: 'eth0 init=x' })).toThrow(/--ifname/);
  });
  test('with a name for networkd, which leaves names alone', () => {
    expect(() => guestConfig(web, { format: 'networkd', ifname: 'eth0' })).toThrow(/--ifname/);
  });
});
