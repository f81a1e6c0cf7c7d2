import { spawnSync } from 'node:child_process';
import { beforeAll, describe, expect, test } from 'vitest';
import { IpAddress, MacAddress } from '#protocol/address.ts';
import { Writer } from '#native/codec.ts';
import {
  AF_BRIDGE,
  AF_INET,
  AF_INET6,
  addressMessage,
  IFA_F_NODAD,
  IFF_UP,
  linkMessage,
  neighbourMessage,
  NTF_MASTER,
  NTF_SELF,
  NUD_PERMANENT,
  NUD_REACHABLE,
  RTM_NEWADDR,
  RTM_NEWLINK,
  RTM_NEWNEIGH,
  RTM_NEWROUTE,
  RTM_SETLINK,
  RTN_UNICAST,
  routeMessage,
  RTPROT_STATIC,
} from '#native/rtnetlink.ts';
import { ip, only } from '../support/kernel.ts';
import { requireTool } from '../support/tools.ts';

// The encoder against the bytes that `ip` and `bridge` really send, captured here and now by strace.

const HEADER_BYTES = 16;

/** Runs a command under strace; the bodies of the messages of one type that it sent. */
function sent(command: string, type: number): Buffer[] {
  const [tool = '', ...args] = command.split(' ');
  const trace = ['-f', '-qq', '-e', 'trace=sendmsg', '-e', 'write=all', '-s', '0'];
  const run = spawnSync(requireTool('strace'), [...trace, requireTool(tool), ...args], {
    encoding: 'utf8',
  });
  const messages: Buffer[] = [];
  let hex = '';
  const flush = (): void => {
    const message = Buffer.from(hex, 'hex');
    hex = '';
    if (message.length >= HEADER_BYTES && message.readUInt16LE(4) === type) {
      messages.push(message.subarray(HEADER_BYTES));
    }
  };
  for (const line of run.stderr.split('\n')) {
    const bytes = /^ \| [0-9a-f]{5} {2}([0-9a-f ]{49})/.exec(line)?.[1];
    if (bytes === undefined) flush();
    else hex += bytes.replaceAll(' ', '');
  }
  flush();
  if (messages.length === 0) throw new Error(`${command} sent no ${type}: ${run.stderr}`);
  return messages;
}

const written = (write: (writer: Writer) => void): string => {
  const writer = new Writer();
  write(writer);
  return writer.bytes.toString('hex');
};

const mac = MacAddress.parse;
const address = IpAddress.parse;

beforeAll(() => {
  for (const command of [
    'link add br0 type bridge',
    'link add port0 type veth peer name port1',
    'link set port0 master br0 up',
    'link set br0 up',
    'addr add 10.9.0.1/24 dev br0',
  ]) {
    spawnSync(requireTool('ip'), command.split(' '));
  }
});

const indexOf = (name: string): number => Number(only(ip('link', 'show', name))['ifindex']);

describe('links', () => {
  type Link = Parameters<typeof linkMessage.write>;
  const cases: [command: string, type: number, header: Link[1], attributes: Link[2]][] = [
    [
      'ip link add name b1 address 02:00:00:00:00:01 mtu 1400 group 7 type bridge',
      RTM_NEWLINK,
      {},
      {
        IFLA_ADDRESS: mac('02:00:00:00:00:01'),
        IFLA_MTU: 1400,
        IFLA_GROUP: 7,
        IFLA_IFNAME: 'b1',
        IFLA_LINKINFO: { kind: 'bridge' },
      },
    ],
    [
      'ip link add name b2 type bridge forward_delay 200 stp_state 0 mcast_snooping 0',
      RTM_NEWLINK,
      {},
      {
        IFLA_IFNAME: 'b2',
        IFLA_LINKINFO: {
          kind: 'bridge',
          data: {
            IFLA_BR_FORWARD_DELAY: 200,
            IFLA_BR_STP_STATE: 0,
            IFLA_BR_MCAST_SNOOPING: 0,
          },
        },
      },
    ],
    [
      'ip link add name v1 address fe:00:00:00:00:01 mtu 1400 type veth peer name v2 address 02:00:00:00:00:02 mtu 1300',
      RTM_NEWLINK,
      {},
      {
        IFLA_ADDRESS: mac('fe:00:00:00:00:01'),
        IFLA_MTU: 1400,
        IFLA_IFNAME: 'v1',
        IFLA_LINKINFO: {
          kind: 'veth',
          data: {
            VETH_INFO_PEER: {
              IFLA_ADDRESS: mac('02:00:00:00:00:02'),
              IFLA_MTU: 1300,
              IFLA_IFNAME: 'v2',
            },
          },
        },
      },
    ],
  ];
  test.each(cases)('%s', (command, type, header, attributes) => {
    const ours = written((writer) => linkMessage.write(writer, header, attributes));
    expect(sent(command, type).map((body) => body.toString('hex'))).toContain(ours);
  });

  test.each([
    ['macvlan', 'bridge', 4],
    ['macvtap', 'private', 1],
  ] as const)('ip link add link port1 name m1 type %s mode %s', (kind, mode, number) => {
    const command = `ip link add link port1 name m1 type ${kind} mode ${mode}`;
    // In another order than ours: compared by what they say.
    const theirs = sent(command, RTM_NEWLINK).map((body) => linkMessage.read(body).attributes);
    expect(theirs).toContainEqual({
      IFLA_IFNAME: 'm1',
      IFLA_LINK: indexOf('port1'),
      IFLA_LINKINFO: { kind, data: { IFLA_MACVLAN_MODE: number } },
    });
    spawnSync(requireTool('ip'), ['link', 'delete', 'm1']);
  });

  test('ip link add name x1 type vxlan id 42 local 10.9.0.1 remote 10.9.0.2 ttl 5 dstport 4789', () => {
    const command =
      'ip link add name x1 type vxlan id 42 local 10.9.0.1 remote 10.9.0.2 ttl 5 dstport 4789';
    const [theirs] = sent(command, RTM_NEWLINK).map((body) => linkMessage.read(body).attributes);
    expect(theirs).toMatchObject({
      IFLA_IFNAME: 'x1',
      IFLA_LINKINFO: {
        kind: 'vxlan',
        data: {
          IFLA_VXLAN_ID: 42,
          IFLA_VXLAN_GROUP: address('10.9.0.2'),
          IFLA_VXLAN_LOCAL: address('10.9.0.1'),
          IFLA_VXLAN_TTL: 5,
          IFLA_VXLAN_PORT: 4789,
        },
      },
    });
  });

  const changes: [what: string, header: Link[1], attributes: Link[2]][] = [
    ['up', { ifi_flags: IFF_UP, ifi_change: IFF_UP }, {}],
    ['down', { ifi_change: IFF_UP }, {}],
    ['mtu 1300', {}, { IFLA_MTU: 1300 }],
    ['address 02:00:00:00:00:09', {}, { IFLA_ADDRESS: mac('02:00:00:00:00:09') }],
    ['nomaster', {}, { IFLA_MASTER: 0 }],
    ['group 9', {}, { IFLA_GROUP: 9 }],
    ['alias volt:x#1', {}, { IFLA_IFALIAS: 'volt:x#1' }],
    ['name port2', {}, { IFLA_IFNAME: 'port2' }],
  ];
  test.each(changes)('ip link set dev port1 %s', (what, header, attributes) => {
    const index = indexOf('port1');
    const bodies = sent(`ip link set dev port1 ${what}`, RTM_NEWLINK);
    // `ip` sends changes as RTM_NEWLINK without NLM_F_CREATE, and adds the alias without its zero.
    const ours = written((writer) =>
      linkMessage.write(writer, { ...header, ifi_index: index }, attributes),
    );
    const theirs = bodies.map((body) => linkMessage.read(body));
    expect(theirs).toContainEqual(linkMessage.read(Buffer.from(ours, 'hex')));
    spawnSync(requireTool('ip'), ['link', 'set', 'dev', 'port2', 'name', 'port1']);
  });

  test.each([
    ['isolated on', { IFLA_BRPORT_ISOLATED: 1 }],
    ['hairpin on', { IFLA_BRPORT_MODE: 1 }],
    ['learning off', { IFLA_BRPORT_LEARNING: 0 }],
    ['neigh_suppress on', { IFLA_BRPORT_NEIGH_SUPPRESS: 1 }],
    ['flood off', { IFLA_BRPORT_UNICAST_FLOOD: 0 }],
  ])('bridge link set dev port0 %s', (what, port) => {
    const header = { ifi_family: AF_BRIDGE, ifi_index: indexOf('port0') };
    const ours = written((writer) => linkMessage.write(writer, header, { IFLA_PROTINFO: port }));
    const bodies = sent(`bridge link set dev port0 ${what}`, RTM_SETLINK);
    expect(bodies.map((body) => body.toString('hex'))).toContain(ours);
  });

  test.each([
    ['mac 02:00:00:00:00:05', { IFLA_VF_MAC: { vf: 2, mac: mac('02:00:00:00:00:05') } }],
    ['vlan 7 qos 3', { IFLA_VF_VLAN: { vf: 2, vlan: 7, qos: 3 } }],
    ['spoofchk on', { IFLA_VF_SPOOFCHK: { vf: 2, setting: 1 } }],
    ['trust on', { IFLA_VF_TRUST: { vf: 2, setting: 1 } }],
    ['state enable', { IFLA_VF_LINK_STATE: { vf: 2, link_state: 1 } }],
    [
      'max_tx_rate 100 min_tx_rate 10',
      { IFLA_VF_RATE: { vf: 2, min_tx_rate: 10, max_tx_rate: 100 } },
    ],
  ])('ip link set dev port1 vf 2 %s', (what, settings) => {
    // A veth has no VFs: the kernel refuses, and the bytes were sent all the same.
    const header = { ifi_index: indexOf('port1') };
    const ours = written((writer) =>
      linkMessage.write(writer, header, { IFLA_VFINFO_LIST: [settings] }),
    );
    const bodies = sent(`ip link set dev port1 vf 2 ${what}`, RTM_NEWLINK);
    const [theirs] = bodies.map((body) => linkMessage.read(body).attributes.IFLA_VFINFO_LIST);
    expect(theirs).toEqual([settings]);
    expect(bodies.map((body) => body.toString('hex'))).toContain(ours);
  });
});

describe('addresses, routes, neighbours', () => {
  test('ip addr add 10.9.1.1/24 dev br0', () => {
    const own = address('10.9.1.1');
    const header = { ifa_family: AF_INET, ifa_prefixlen: 24, ifa_index: indexOf('br0') };
    const ours = written((writer) =>
      addressMessage.write(writer, header, { IFA_LOCAL: own, IFA_ADDRESS: own }),
    );
    const bodies = sent('ip addr add 10.9.1.1/24 dev br0', RTM_NEWADDR);
    expect(bodies.map((body) => body.toString('hex'))).toContain(ours);
  });

  test('ip addr add fd00:9::1/64 dev br0 nodad', () => {
    const own = address('fd00:9::1');
    const header = {
      ifa_family: AF_INET6,
      ifa_prefixlen: 64,
      ifa_flags: IFA_F_NODAD,
      ifa_index: indexOf('br0'),
    };
    const ours = written((writer) =>
      addressMessage.write(writer, header, { IFA_LOCAL: own, IFA_ADDRESS: own }),
    );
    const bodies = sent('ip addr add fd00:9::1/64 dev br0 nodad', RTM_NEWADDR);
    expect(bodies.map((body) => body.toString('hex'))).toContain(ours);
  });

  const route = {
    rtm_family: AF_INET,
    rtm_table: 254,
    rtm_protocol: RTPROT_STATIC,
    rtm_type: RTN_UNICAST,
  };
  test.each([
    ['default via 10.9.0.254 dev br0 proto static', route, {}],
    [
      '10.77.0.0/16 via 10.9.0.254 dev br0 proto static metric 50',
      { ...route, rtm_dst_len: 16 },
      { RTA_DST: address('10.77.0.0'), RTA_PRIORITY: 50 },
    ],
  ])('ip route add %s', (what, header, attributes) => {
    const common = { RTA_GATEWAY: address('10.9.0.254'), RTA_OIF: indexOf('br0') };
    const ours = written((writer) =>
      routeMessage.write(writer, header, { ...attributes, ...common }),
    );
    const theirs = sent(`ip route add ${what}`, RTM_NEWROUTE).map((body) =>
      routeMessage.read(body),
    );
    expect(theirs).toContainEqual(routeMessage.read(Buffer.from(ours, 'hex')));
  });

  test('ip neigh replace 10.9.0.7 lladdr 02:00:00:00:00:07 dev br0 nud permanent', () => {
    const ours = written((writer) =>
      neighbourMessage.write(
        writer,
        { ndm_family: AF_INET, ndm_ifindex: indexOf('br0'), ndm_state: NUD_PERMANENT },
        { NDA_DST: address('10.9.0.7'), NDA_LLADDR: mac('02:00:00:00:00:07') },
      ),
    );
    const command = 'ip neigh replace 10.9.0.7 lladdr 02:00:00:00:00:07 dev br0 nud permanent';
    expect(sent(command, RTM_NEWNEIGH).map((body) => body.toString('hex'))).toContain(ours);
  });

  test.each([
    ['master', NTF_MASTER],
    ['self', NTF_SELF],
  ])('bridge fdb replace 02:00:00:00:00:08 dev port0 %s static', (where, flags) => {
    const ours = written((writer) =>
      neighbourMessage.write(
        writer,
        {
          ndm_family: AF_BRIDGE,
          ndm_ifindex: indexOf('port0'),
          ndm_state: 0x40 | NUD_REACHABLE,
          ndm_flags: flags,
        },
        { NDA_LLADDR: mac('02:00:00:00:00:08') },
      ),
    );
    const command = `bridge fdb replace 02:00:00:00:00:08 dev port0 ${where} static`;
    expect(sent(command, RTM_NEWNEIGH).map((body) => body.toString('hex'))).toContain(ours);
  });
});
