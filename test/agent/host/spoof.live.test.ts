import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MacAddress } from '#protocol/address.ts';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import {
  BROADCAST,
  ethernet,
  ETHERTYPE,
  ipv4,
  ipv6,
  PROTOCOL,
  sentTo,
  udp,
  type Way,
} from '../../support/frames.ts';
import {
  gatewayOn,
  heardAfter,
  heardUntil,
  listenUdp,
  stationOf,
  whoHeard,
} from '../../support/hearing.ts';
import { addNamespace, bridge } from '../../support/kernel.ts';
import { claimVm, openContainer, openPacket, type RawPort } from '../../support/raw-port.ts';
import { type Case, markOf, ping4, type Segment, type Station } from '../../support/packets.ts';
import { legitimate } from '../../support/legitimate.ts';
import { spoofs } from '../../support/spoofs.ts';
import { type Stack, startStack, VOLT0 } from '../../support/stack.ts';

// What leaves a port, by raw frames from the workload's side: towards other ports, the uplink and the host.

const NETWORK = {
  ...VOLT0,
  ipv6: { subnet: 'fd42::/64', gateway: 'fd42::1' },
  uplink: { device: 'up0' },
  gatewayMode: 'anycast',
};
/** IEEE 802.1D: group addresses that end at a bridge, from …:00 to …:0f. */
const RESERVED = Array.from({ length: 16 }, (_, n) =>
  MacAddress.fromBytes(Buffer.of(0x01, 0x80, 0xc2, 0, 0, n)).toString(),
);
const OFF_SEGMENT = '02:00:00:00:99:99';

const open = new AsyncDisposableStack();
let stack: Stack;
let segments: Record<Kind, Segment>;
let senders: Record<Kind, RawPort>;
let hearers: Record<string, RawPort>;
let devices: Record<Kind, string>;

type Kind = 'vm' | 'container';
const KINDS = ['vm', 'container'] as const;

beforeAll(async () => {
  execFileSync('ip', 'link add up0 type veth peer name far0'.split(' '));
  execFileSync('ip', 'link set far0 up'.split(' '));
  stack = open.use(await startStack({ networks: [NETWORK] }));
  const vm = await attach('vm', 'evil-vm');
  const box = await attach('container', 'evil-box');
  const other = stationOf(await attach('container', 'other-box'));
  await attach('vm', 'other-vm');
  const gateway = gatewayOn('volt0', { ip4: '10.42.0.1', ip6: 'fd42::1' });
  segments = {
    vm: { self: stationOf(vm), other, gateway },
    container: { self: stationOf(box), other, gateway },
  };
  devices = { vm: vm.device?.name ?? '', container: box.device?.name ?? '' };
  senders = {
    vm: open.use(await claimVm('evil-vm', stack.agent.socketPath)),
    container: open.use(openContainer('/run/netns/evil-box')),
  };
  hearers = {
    'another container': open.use(openContainer('/run/netns/other-box')),
    'another VM': open.use(await claimVm('other-vm', stack.agent.socketPath)),
    'the uplink': open.use(openPacket('far0')),
    'the bridge': open.use(openPacket('volt0')),
  };
});
afterAll(() => open.disposeAsync());

async function attach(kind: Kind, id: string): Promise<Attachment> {
  if (kind === 'container') addNamespace(id);
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `${kind}-${id}`,
    kind,
    network: 'volt0',
    ...(kind === 'container' && { netns: `/run/netns/${id}` }),
  });
  expect(attachment.filter).toBe('full');
  return attachment;
}

const speaker = (kind: Kind): { port: RawPort; station: Station } => ({
  port: senders[kind],
  station: segments[kind].self,
});

/** Names first: addresses are known when the hosts are. */
const SAMPLE: Station = { mac: OFF_SEGMENT, ip4: '10.0.0.1', ip6: 'fd00::1', linkLocal: 'fe80::1' };
const namesOf = (cases: (segment: Segment) => Case[]): string[] =>
  cases({ self: SAMPLE, other: SAMPLE, gateway: SAMPLE }).map(([name]) => name);

function framesOf(
  cases: (segment: Segment) => Case[],
  kind: Kind,
  name: string,
): readonly Buffer[] {
  const found = cases(segments[kind]).find(([one]) => one === name);
  if (found === undefined) throw new Error(`no case ${name}`);
  return found[1];
}

const CALLS = ['iptables', 'ip6tables', 'arptables'].map(
  (family) => `/proc/sys/net/bridge/bridge-nf-call-${family}`,
);

describe.each([0, 1].flatMap((called) => KINDS.map((kind) => ({ kind, called }))))(
  'a $kind, with br_netfilter $called,',
  ({ kind, called }) => {
    beforeAll(() => {
      for (const file of CALLS) writeFileSync(file, String(called));
    });

    test.each(namesOf(spoofs))('does not send %s', async (name) => {
      const frames = framesOf(spoofs, kind, name);
      const { other, gateway } = segments[kind];
      for (const frame of frames) {
        senders[kind].send(frame);
        for (const to of [other.mac, gateway.mac, OFF_SEGMENT, BROADCAST, ...RESERVED]) {
          senders[kind].send(sentTo(to, frame));
        }
      }
      expect(whoHeard(frames, await heardAfter(hearers, speaker(kind)))).toEqual([]);
    });

    test('does not take the place of another in the forwarding table', () => {
      const { other, gateway, self } = segments[kind];
      const own = { from: self.ip4, to: other.ip4 };
      for (const to of [BROADCAST, ...RESERVED]) {
        for (const { mac } of [other, gateway]) senders[kind].send(sentTo(to, ping4(mac, own)));
      }
      const learned = bridge('fdb', 'show', 'br', 'volt0')
        .filter(({ ifname }) => ifname === devices[kind])
        .map(({ mac }) => mac);
      expect(learned).toContain(self.mac);
      expect(learned).not.toContain(other.mac);
      expect(learned).not.toContain(gateway.mac);
    });

    test.each(['0.0.0.0', '::'] as const)(
      'reaches no socket of the host on %s by a reserved group',
      async (any) => {
        using socket = await listenUdp(any);
        const { self, other, gateway } = segments[kind];
        const way = (from: Station): Way =>
          any === '::' ? { from: from.ip6, to: gateway.ip6 } : { from: from.ip4, to: gateway.ip4 };
        const say = (to: string, from: Station, words: string): void => {
          const inside = udp(way(from), 4711, socket.port, Buffer.from(words));
          const packet =
            any === '::'
              ? ethernet(to, self.mac, ETHERTYPE.ipv6, ipv6(way(from), PROTOCOL.udp, inside))
              : ethernet(to, self.mac, ETHERTYPE.ipv4, ipv4(way(from), PROTOCOL.udp, inside));
          senders[kind].send(packet);
        };
        for (const to of RESERVED) for (const from of [self, other]) say(to, from, 'spoofed');
        say(gateway.mac, self, 'own');
        await until('the host has heard its own', () => socket.heard.includes('own'));
        expect(socket.heard).toEqual(['own']);
      },
    );

    test.each(namesOf(legitimate))('sends %s', async (name) => {
      const frames = framesOf(legitimate, kind, name);
      for (const frame of frames) senders[kind].send(frame);
      await heardUntil(hearers, (all) =>
        frames.every((frame) => all.some((one) => one.includes(markOf(frame)))),
      );
    });
  },
);
