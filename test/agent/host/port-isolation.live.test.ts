import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { ETHERTYPE, sentTo } from '../../support/frames.ts';
import {
  gatewayOn,
  heardAfter,
  heardUntil,
  stationOf,
  whoHas,
  whoHeard,
} from '../../support/hearing.ts';
import { addNamespace } from '../../support/kernel.ts';
import { markOf, ping4, ping6, type Station } from '../../support/packets.ts';
import { openContainer, type RawPort } from '../../support/raw-port.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// `portIsolation`: ports reach the gateway and the uplink, and each other in no way; beside a network without it.

const ISOLATED = {
  network: 'iso0',
  subnet: '10.45.0.0/24',
  gateway: '10.45.0.1',
  ipv6: { subnet: 'fd45::/64', gateway: 'fd45::1' },
  portIsolation: true,
  uplink: { device: 'up0' },
  gatewayMode: 'anycast',
  exclude: ['10.45.0.200', 'fd45::200'],
};
const OPEN = {
  network: 'open0',
  subnet: '10.46.0.0/24',
  gateway: '10.46.0.1',
  ipv6: { subnet: 'fd46::/64', gateway: 'fd46::1' },
};

interface Place {
  readonly gateway: Station;
  readonly one: Station;
  readonly two: Station;
  readonly first: RawPort;
  readonly second: RawPort;
}

const open = new AsyncDisposableStack();
let stack: Stack;
let isolated: Place;
let shared: Place;
let far: RawPort;

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8' });

beforeAll(async () => {
  addNamespace('far');
  run('link add up0 type veth peer name eth0 netns far');
  for (const command of [
    'addr add 10.45.0.200/24 dev eth0',
    'addr add fd45::200/64 dev eth0 nodad',
    'link set eth0 up',
  ]) {
    run(`-n far ${command}`);
  }
  stack = open.use(await startStack({ networks: [ISOLATED, OPEN] }));
  isolated = await placeOn('iso0', { ip4: '10.45.0.1', ip6: 'fd45::1' });
  shared = await placeOn('open0', { ip4: '10.46.0.1', ip6: 'fd46::1' });
  far = open.use(openContainer('/run/netns/far'));
  for (const file of ['ipv4/ip_forward', 'ipv6/conf/all/forwarding']) {
    writeFileSync(`/proc/sys/net/${file}`, '1');
  }
});
afterAll(() => open.disposeAsync());

async function placeOn(network: string, own: { ip4: string; ip6: string }): Promise<Place> {
  const one = await attach(network, `${network}-one`);
  const two = await attach(network, `${network}-two`);
  return {
    gateway: gatewayOn(network, own),
    one: stationOf(one),
    two: stationOf(two),
    first: open.use(openContainer(`/run/netns/${network}-one`)),
    second: open.use(openContainer(`/run/netns/${network}-two`)),
  };
}

async function attach(network: string, id: string): Promise<Attachment> {
  addNamespace(id);
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network,
    netns: `/run/netns/${id}`,
  });
  return attachment;
}

/** Packets for the second port, by way of the host: to the bridge's MAC, and to that of the port's own end. */
function byGateway({ one, two, gateway }: Place): Buffer[] {
  const hostEnd = `fe${one.mac.slice(2)}`;
  return [gateway.mac, hostEnd].flatMap((mac) => [
    sentTo(mac, ping4(one.mac, { from: one.ip4, to: two.ip4 })),
    sentTo(mac, ping6(one.mac, { from: one.ip6, to: two.ip6 })),
  ]);
}

describe.each([0, 1])('with br_netfilter %i', (called) => {
  beforeAll(() => {
    for (const family of ['iptables', 'ip6tables', 'arptables']) {
      writeFileSync(`/proc/sys/net/bridge/bridge-nf-call-${family}`, String(called));
    }
  });

  test('ports reach the gateway and the uplink', () => {
    // The other tests send from a MAC of their own as the station beyond the uplink, which a container may believe.
    run('-n iso0-one neigh flush dev eth0');
    for (const to of ['10.45.0.1', 'fd45::1', '10.45.0.200', 'fd45::200']) {
      const pinged = run(`netns exec iso0-one ping -c 1 -W 5 ${to}`);
      expect(pinged).toContain('1 received');
    }
  });

  test('ports do not reach each other', async () => {
    const { one, two, first, second } = isolated;
    const frames = [
      whoHas(one, two.ip4),
      sentTo(two.mac, ping4(one.mac, { from: one.ip4, to: two.ip4 })),
      sentTo(two.mac, ping6(one.mac, { from: one.ip6, to: two.ip6 })),
      ping6(one.mac, { from: one.linkLocal, to: 'ff02::1' }),
    ];
    for (const frame of frames) first.send(frame);
    const uplinked = await heardAfter({ uplink: far }, { port: first, station: one });
    expect(whoHeard(frames, uplinked).length).toBeGreaterThan(0);
    const beyond = { mac: '02:00:00:00:99:99', ip4: '10.45.0.200', ip6: '::', linkLocal: '::' };
    const heard = await heardAfter({ port: second }, { port: far, station: beyond });
    expect(whoHeard(frames, heard)).toEqual([]);
  });

  test('without it they do, and by way of the gateway, too', async () => {
    const { one, two, first, second } = shared;
    const frames = [
      ...byGateway(shared),
      sentTo(two.mac, ping4(one.mac, { from: one.ip4, to: two.ip4 })),
    ];
    // So that the host need not ask for it.
    run(`neigh replace ${two.ip4} lladdr ${two.mac} dev open0`);
    run(`neigh replace ${two.ip6} lladdr ${two.mac} dev open0`);
    for (const frame of frames) first.send(frame);
    await heardUntil({ port: second }, (all) =>
      frames.every((frame) => all.some((heard) => heard.includes(markOf(frame)))),
    );
  });

  test('ports do not reach each other by way of the gateway', async () => {
    const { one, two, first, second, gateway } = isolated;
    run(`neigh replace ${two.ip4} lladdr ${two.mac} dev iso0`);
    run(`neigh replace ${two.ip6} lladdr ${two.mac} dev iso0`);
    const frames = byGateway(isolated);
    for (const frame of frames) first.send(frame);
    // The host has been through with them when it has answered what came after.
    first.received();
    first.send(sentTo(gateway.mac, ping4(one.mac, { from: one.ip4, to: gateway.ip4 })));
    await heardUntil({ port: first }, (all) => all.some(isAnswer));
    const beyond = { mac: '02:00:00:00:99:99', ip4: '10.45.0.200', ip6: '::', linkLocal: '::' };
    const heard = await heardAfter({ port: second }, { port: far, station: beyond });
    expect(whoHeard(frames, heard)).toEqual([]);
  });
});

/** An echo reply of IPv4. */
const isAnswer = (frame: Buffer): boolean =>
  frame.readUInt16BE(12) === ETHERTYPE.ipv4 && frame[23] === 1 && frame[34] === 0;
