import { execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { bareAddresses, dhclient, dig, inside } from '../../support/asking.ts';
import { attachBox } from '../../support/boxes.ts';
import {
  BROADCAST,
  discovery,
  ethernet,
  ETHERTYPE,
  icmpv6,
  ipv4,
  options,
  PROTOCOL,
  routing,
  udp,
} from '../../support/frames.ts';
import { heardAfter, stationOf, whoHeard } from '../../support/hearing.ts';
import { addNamespace, ip, only } from '../../support/kernel.ts';
import { ALL_NODES, ALL_ROUTERS, cut, RA, token, v4, v6 } from '../../support/packets.ts';
import { openContainer, type RawPort } from '../../support/raw-port.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Who is not to be answered, and who is not to answer: workloads and machines of the segment behind an uplink that the host
// knows nothing of.

const NETWORK = {
  network: 'st0',
  subnet: '10.54.0.0/24',
  gateway: '10.54.0.1',
  ipv6: { subnet: 'fd54::/64', gateway: 'fd54::1' },
  uplink: { device: 'nic0' },
  gatewayMode: 'anycast',
  dhcp: true,
  dns: { names: true },
  reuseDelaySeconds: 0,
};
/** A network that a workload may say anything on. */
const OPEN = {
  network: 'st1',
  subnet: '10.55.0.0/24',
  gateway: '10.55.0.1',
  ipv6: { subnet: 'fd55::/64', gateway: 'fd55::1' },
  filter: false,
  dhcp: true,
  dns: { names: true },
};
/** Names alone: a workload may have DHCP of the segment. */
const NAMES = {
  network: 'st2',
  subnet: '10.56.0.0/24',
  gateway: '10.56.0.1',
  ipv6: { subnet: 'fd56::/64', gateway: 'fd56::1' },
  uplink: { device: 'nic2' },
  gatewayMode: 'anycast',
  dns: { names: true },
};
const WIRE = { mac: '02:00:00:00:54:99', ip4: '10.54.0.99', ip6: 'fd54::99' };

const open = new AsyncDisposableStack();
let stack: Stack;
let web: Attachment;
let wire: RawPort;
let workload: RawPort;

const run = (words: string): string =>
  execFileSync(requireTool('ip'), words.split(' '), { encoding: 'utf8' });

const attach = (id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> =>
  attachBox(stack, id, { network: 'st0', hostname: id, ...more });

beforeAll(async () => {
  addNamespace('segment');
  run(`link add nic0 type veth peer name wire0 address ${WIRE.mac} netns segment`);
  run('link add nic2 type veth peer name wire2 netns segment');
  for (const nic of ['nic0', 'nic2']) run(`link set ${nic} up`);
  for (const end of ['wire0', 'wire2']) run(`-n segment link set ${end} up`);
  for (const address of [`${WIRE.ip4}/24`, `${WIRE.ip6}/64`]) {
    run(`-n segment addr add ${address} dev wire0 ${address.includes(':') ? 'nodad' : ''}`.trim());
  }
  // With br_netfilter the bridge itself would drop what is no packet, and keep back fragments.
  for (const name of ['iptables', 'ip6tables']) {
    const file = `/proc/sys/net/bridge/bridge-nf-call-${name}`;
    if (existsSync(file)) writeFileSync(file, '0');
  }
  wire = open.use(openContainer('/run/netns/segment', 'wire0'));
  stack = open.use(await startStack({ networks: [NETWORK, OPEN, NAMES] }));
  web = await attach('web');
  workload = open.use(openContainer('/run/netns/web'));
  await until('named', () => dig('web', '10.54.0.1', 'web.st0.internal') !== '');
});
afterAll(() => open.disposeAsync());

const stranger = { ...WIRE, linkLocal: 'fe80::54:99' };

describe('the segment behind an uplink', () => {
  test('hears nothing of what a host serves, and gets no answer', async () => {
    wire.received();
    expect(await dhclient('segment', 4, 'wire0')).toBeUndefined();
    expect(await dhclient('segment', 6, 'wire0')).toBeUndefined();
    expect(inside('segment', ['ping', '-c', '1', '-W', '5', '10.54.0.1'])).toContain('1 received');
    for (const server of ['10.54.0.1', 'fd54::1']) {
      for (const how of ['+notcp', '+tcp']) {
        expect(dig('segment', server, how, 'web.st0.internal')).toBe('');
      }
    }
    // A router that is asked answers to all.
    const way = { from: stranger.linkLocal, to: ALL_ROUTERS };
    wire.send(
      v6(stranger.mac, way, PROTOCOL.icmpv6, icmpv6(way, 133, discovery.routerSolicitation())),
    );
    inside('web', ['sh', '-c', 'sysctl -qw net.ipv6.conf.eth0.accept_ra=2']);
    expect((await dhclient('web'))?.['fixed-address']).toBe(bareAddresses(web)[0]);
    expect((await dhclient('web', 6))?.['iaaddr']).toBe(bareAddresses(web)[1]);
    const own = new Set([stranger.mac.replaceAll(':', '')]);
    const heard = wire.received().filter((frame) => !own.has(frame.toString('hex', 6, 12)));
    expect(heard.map(serviceOf).filter((one) => one !== undefined)).toEqual([]);
  });

  const dhcpTo = (port: number, from: number, way: { from: string; to: string }): Buffer =>
    udp(way, from, port, Buffer.concat([Buffer.from('02010600', 'hex'), token()]));
  const way4 = { from: WIRE.ip4, to: '255.255.255.255' };
  const way6 = { from: stranger.linkLocal, to: ALL_NODES };
  const advert = (): Buffer =>
    icmpv6(
      way6,
      RA,
      discovery.routerAdvertisement([Buffer.concat([Buffer.of(200, 3), token(), Buffer.alloc(6)])]),
    );
  /** To all, whatever it says: ports, and the types of ICMPv6. */
  const answersOf = (mac: string): [string, Buffer][] => [
    ['DHCP', v4(mac, way4, PROTOCOL.udp, dhcpTo(68, 67, way4))],
    ['DHCP from another port', v4(mac, way4, PROTOCOL.udp, dhcpTo(68, 4711, way4))],
    [
      'a late fragment that looks like DHCP',
      ethernet(
        BROADCAST,
        mac,
        ETHERTYPE.ipv4,
        ipv4(way4, PROTOCOL.udp, dhcpTo(68, 67, way4), {
          fragment: { id: 7, offset: 8, more: false },
        }),
      ),
    ],
    [
      'a header that contradicts itself',
      contradicting(v4(mac, way4, PROTOCOL.udp, dhcpTo(68, 67, way4))),
    ],
    ['DHCPv6', v6(mac, way6, PROTOCOL.udp, dhcpTo(546, 547, way6))],
    [
      'DHCPv6 behind options',
      v6(mac, way6, PROTOCOL.destination, options(PROTOCOL.udp, dhcpTo(546, 547, way6))),
    ],
    ['a router advertisement', v6(mac, way6, PROTOCOL.icmpv6, advert())],
    [
      'a router advertisement behind options',
      v6(mac, way6, PROTOCOL.destination, options(PROTOCOL.icmpv6, advert(), 4)),
    ],
    [
      'a router advertisement behind a routing header',
      v6(mac, way6, PROTOCOL.routing, routing(PROTOCOL.icmpv6, advert())),
    ],
  ];

  test.each(answersOf(WIRE.mac))('answers with %s, and no workload hears it', async (_, frame) => {
    const pass = { from: WIRE.ip4, to: '255.255.255.255' };
    const other = v4(WIRE.mac, pass, PROTOCOL.udp, udp(pass, 67, 4711, token()));
    wire.send(frame);
    wire.send(other);
    const hearers = { workload };
    const heard = await heardAfter(hearers, { port: wire, station: stranger });
    expect(whoHeard([frame], heard)).toEqual([]);
    expect(whoHeard([other], heard)).toEqual(['workload: frame 0']);
  });

  test.each([['a router advertisement in two fragments', RA]])(
    'answers with %s, and no workload takes it',
    async () => {
      const routes = (): unknown[] => ip('-n', 'web', '-6', 'route', 'show', 'default');
      const before = routes();
      run('netns exec web sysctl -qw net.ipv6.conf.eth0.accept_ra=2');
      for (const frame of cut(11, PROTOCOL.icmpv6, advert(), 8)) {
        wire.send(v6(WIRE.mac, way6, PROTOCOL.fragment, frame));
      }
      await heardAfter({ workload }, { port: wire, station: stranger });
      const gateways = routes().map((route) => (route as { gateway?: string }).gateway);
      expect(gateways).not.toContain(stranger.linkLocal);
      expect(before.length).toBeGreaterThan(0);
    },
  );

  test('does not hear what a workload asks of its host', async () => {
    const { mac, ip4, linkLocal } = stationOf(web);
    const asks4 = { from: '0.0.0.0', to: '255.255.255.255' };
    const asks6 = { from: linkLocal, to: 'ff02::1:2' };
    const frames = [
      v4(mac, asks4, PROTOCOL.udp, dhcpTo(67, 68, asks4)),
      v6(mac, asks6, PROTOCOL.udp, dhcpTo(547, 546, asks6)),
    ];
    for (const frame of frames) workload.send(frame);
    const way = { from: ip4, to: '255.255.255.255' };
    const other = v4(mac, way, PROTOCOL.udp, udp(way, 4711, 4712, token()));
    workload.send(other);
    const heard = await heardAfter({ wire }, { port: workload, station: stationOf(web) });
    expect(whoHeard(frames, heard)).toEqual([]);
    expect(whoHeard([other], heard)).toEqual(['wire: frame 0']);
  });

  test('may serve DHCP where the host serves names alone, which it does not get', async () => {
    const { addresses } = await attach('named', { network: 'st2' });
    await until('named', () => dig('named', '10.56.0.1', 'named.st2.internal') !== '');
    run('-n segment addr add 10.56.0.99/24 dev wire2');
    expect(inside('segment', ['ping', '-c', '1', '-W', '5', '10.56.0.1'])).toContain('1 received');
    for (const how of ['+notcp', '+tcp']) {
      expect(dig('segment', '10.56.0.1', how, 'named.st2.internal')).toBe('');
    }
    const [address = ''] = bareAddresses({ addresses });
    using rogue = serveDhcp('segment', 'wire2', address);
    await until('it has an address of the segment', async () => {
      return (await dhclient('named'))?.['fixed-address'] === address;
    });
    expect(rogue.pid).toBeGreaterThan(0);
  });
});

describe('a workload', () => {
  test('under another MAC is no workload, and gets no answer', async () => {
    const { addresses } = await attach('turncoat', { network: 'st1' });
    expect((await dhclient('turncoat'))?.['fixed-address']).toBe(bareAddresses({ addresses })[0]);
    run('-n turncoat link set eth0 down');
    run('-n turncoat link set eth0 address 02:00:00:00:55:77');
    run('-n turncoat link set eth0 up');
    expect(await dhclient('turncoat')).toBeUndefined();
    expect(await dhclient('turncoat', 6)).toBeUndefined();
  });

  test('that serves DHCP is heard by nobody, and with the filter off by all', async () => {
    await attach('rogue');
    await attach('victim');
    using held = serveDhcp('rogue', 'eth0', '10.54.0.66');
    expect((await dhclient('victim'))?.['dhcp-server-identifier']).toBe('10.54.0.1');
    const { pid } = held;
    expect(pid).toBeGreaterThan(0);
    const heard = inside('victim', [
      ...['busybox', 'udhcpc', '-i', 'eth0', '-n', '-q', '-f', '-t', '3', '-T', '1'],
      ...['-s', '/bin/true', '-r', '10.54.0.66'],
    ]);
    expect(heard).not.toContain('10.54.0.66 obtained');
  });

  test('that is detached gets no answer under its MAC within a second, nor has it a name', async () => {
    const { mac, addresses } = await attach('leaver', { network: 'st1' });
    await attach('stayer', { network: 'st1' });
    const [own4 = '', own6 = ''] = bareAddresses({ addresses });
    expect((await dhclient('leaver'))?.['fixed-address']).toBe(own4);
    expect((await dhclient('leaver', 6))?.['iaaddr']).toBe(own6);
    await until('named', () => dig('stayer', '10.55.0.1', 'leaver.st1.internal') === own4);
    await stack.client.detach(stack.host, { id: 'leaver' });
    await until('the name is gone', () => dig('stayer', '10.55.0.1', 'leaver.st1.internal') === '');
    for (const address of [own4, own6]) {
      await until('it has no name', () => dig('stayer', '10.55.0.1', '-x', address) === '');
    }
    run('-n stayer link set eth0 down');
    run(`-n stayer link set eth0 address ${mac}`);
    run('-n stayer link set eth0 up');
    expect(await dhclient('stayer')).toBeUndefined();
    expect(await dhclient('stayer', 6)).toBeUndefined();
    expect(only(ip('-n', 'stayer', 'link', 'show', 'eth0'))).toMatchObject({ address: mac });
  });
});

/** A DHCP server that hands out one address. */
function serveDhcp(netns: string, device: string, address: string): Disposable & { pid: number } {
  const folder = mkdtempSync('/run/volt-test-dnsmasq-');
  const [program, args] = dyingWithParent([
    ...[requireTool('ip'), 'netns', 'exec', netns, requireTool('dnsmasq')],
    ...['--keep-in-foreground', '--conf-file=/dev/null', '--port=0', '--user=root'],
    ...[`--interface=${device}`, '--bind-interfaces', '--dhcp-authoritative', '--no-ping'],
    ...[`--dhcp-range=${address},${address},255.255.255.0`, `--pid-file=${folder}/pid`],
    `--dhcp-leasefile=${folder}/leases`,
  ]);
  const child = spawn(program, args, { stdio: 'ignore' });
  return {
    pid: child.pid ?? 0,
    [Symbol.dispose]: () => {
      child.kill('SIGKILL');
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** What a frame is of DHCP, DNS and router advertisements. */
function serviceOf(frame: Buffer): string | undefined {
  const type = frame.readUInt16BE(12);
  const inner = frame.subarray(14);
  if (type === ETHERTYPE.ipv4 && inner[9] === PROTOCOL.udp) {
    const ports = [inner.readUInt16BE(20), inner.readUInt16BE(22)];
    return ports.some((port) => [53, 67, 68].includes(port)) ? `v4 ${ports.join()}` : undefined;
  }
  if (type !== ETHERTYPE.ipv6) return undefined;
  if (inner[6] === PROTOCOL.icmpv6) return inner[40] === RA ? 'RA' : undefined;
  if (inner[6] !== PROTOCOL.udp) return undefined;
  const ports = [inner.readUInt16BE(40), inner.readUInt16BE(42)];
  return ports.some((port) => [53, 546, 547].includes(port)) ? `v6 ${ports.join()}` : undefined;
}

/** The header of IPv4 says a length that is longer than the packet. */
function contradicting(frame: Buffer): Buffer {
  const other = Buffer.from(frame);
  other.writeUInt16BE(1_400, 16);
  return other;
}
