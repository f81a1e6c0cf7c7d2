import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import {
  BROADCAST,
  ethernet,
  ETHERTYPE,
  ipv4,
  PROTOCOL,
  sentTo,
  udp,
} from '../../support/frames.ts';
import {
  gatewayOn,
  heardAfter,
  heardUntil,
  listenUdp,
  stationOf,
  whoHas,
  whoHeard,
} from '../../support/hearing.ts';
import { addNamespace } from '../../support/kernel.ts';
import { advertise, markOf, ping4, ping6, solicit, type Station } from '../../support/packets.ts';
import { openContainer, type RawPort } from '../../support/raw-port.ts';
import { spoofs } from '../../support/spoofs.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// What the port filter leaves alone: by the network's definition, or since it is not ours.

const network = (name: string, n: number, more: object = {}) => ({
  network: name,
  subnet: `10.${n}.0.0/24`,
  gateway: `10.${n}.0.1`,
  ipv6: { subnet: `fd${n}::/64`, gateway: `fd${n}::1` },
  ...more,
});
const NETWORKS = [
  network('free0', 51, { filter: false }),
  network('any0', 52, { linkLocal: 'any' }),
  network('volt0', 53, { uplink: { device: 'up0' }, gatewayMode: 'anycast' }),
  network('given0', 54),
  network('tree0', 56),
  network('tree1', 57, { filter: false }),
];

interface Box {
  readonly answer: Attachment;
  readonly station: Station;
  readonly port: RawPort;
}

const open = new AsyncDisposableStack();
let stack: Stack;
let far: RawPort;

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8' });

/** A device whose other end is somewhere else. */
function wireTo(name: string): RawPort {
  const place = `at-${name}`;
  addNamespace(place);
  run(`link add ${name} type veth peer name eth0 netns ${place}`);
  run(`link set ${name} up`);
  run(`-n ${place} link set eth0 up`);
  return open.use(openContainer(`/run/netns/${place}`));
}

/** The other end of what somebody else made a port of a bridge. */
function strangerOn(bridge: string, name: string): RawPort {
  const end = wireTo(name);
  run(`link set ${name} master ${bridge}`);
  return end;
}

beforeAll(async () => {
  // Each frame is looked at as it is.
  for (const family of ['iptables', 'ip6tables', 'arptables']) {
    writeFileSync(`/proc/sys/net/bridge/bridge-nf-call-${family}`, '0');
  }
  far = wireTo('up0');
  for (const name of ['given0', 'foreign0']) {
    run(`link add ${name} type bridge`);
    run(`link set ${name} up`);
  }
  run('addr add 10.54.0.1/24 dev given0');
  run('addr add 10.55.0.1/24 dev foreign0');
  stack = open.use(await startStack({ networks: NETWORKS }));
});
afterAll(() => open.disposeAsync());

async function attach(on: string, id: string): Promise<Box> {
  addNamespace(id);
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: on,
    netns: `/run/netns/${id}`,
  });
  const port = open.use(openContainer(`/run/netns/${id}`));
  return { answer: attachment, station: stationOf(attachment), port };
}

/** A datagram with words of one's own, broadcast. */
const says = (
  { mac, ip4 }: Pick<Station, 'mac' | 'ip4'>,
  to: { ip4: string; port: number },
  words: string,
): Buffer => {
  const way = { from: ip4, to: to.ip4 };
  const packet = ipv4(way, PROTOCOL.udp, udp(way, 4711, to.port, Buffer.from(words)));
  return ethernet(BROADCAST, mac, ETHERTYPE.ipv4, packet);
};

test('on a network without a filter everything passes, and the answer says so', async () => {
  const one = await attach('free0', 'free-one');
  const two = await attach('free0', 'free-two');
  expect(one.answer.filter).toBe('none');
  const gateway = gatewayOn('free0', { ip4: '10.51.0.1', ip6: 'fd51::1' });
  const all = spoofs({ self: one.station, other: two.station, gateway });
  // LLDP ends at every bridge.
  const frames = all.filter(([name]) => name !== 'LLDP').flatMap(([, some]) => some);
  for (const frame of frames) one.port.send(frame);
  await heardUntil({ port: two.port }, (heard) =>
    frames.every((frame) => heard.some((each) => each.includes(markOf(frame)))),
  );
});

describe('with `linkLocal: "any"`', () => {
  let one: Box;
  let two: Box;
  let gateway: Station;
  const chosen = 'fe80::4242';

  beforeAll(async () => {
    one = await attach('any0', 'any-one');
    two = await attach('any0', 'any-two');
    gateway = gatewayOn('any0', { ip4: '10.52.0.1', ip6: 'fd52::1' });
  });

  /** All that takes part in having a link-local address. */
  const having = (address: string): Buffer[] => {
    const { mac, ip6 } = one.station;
    return [
      solicit(mac, '::', address),
      advertise(mac, address, address),
      advertise(mac, ip6, address),
      solicit(mac, address, ip6),
      ping6(mac, { from: address, to: 'ff02::1' }),
    ];
  };

  test('a port has the link-local addresses that it likes', async () => {
    expect(one.answer.filter).toBe('full');
    const frames = having(chosen);
    for (const frame of frames) one.port.send(frame);
    await heardUntil({ port: two.port }, (heard) =>
      frames.every((frame) => heard.some((each) => each.includes(markOf(frame)))),
    );
  });

  test('but not that of the gateway, or of another bridge of this host', async () => {
    const other = gatewayOn('free0', { ip4: '10.51.0.1', ip6: 'fd51::1' });
    // The solicitation for oneself from that address is among them: its source is what is refused.
    const frames = [gateway, other].flatMap(({ linkLocal }) => having(linkLocal));
    for (const frame of frames) one.port.send(frame);
    const speaker = { port: one.port, station: one.station };
    expect(whoHeard(frames, await heardAfter({ port: two.port }, speaker))).toEqual([]);
  });
});

describe("a stranger's port", () => {
  const stranger = { mac: '02:00:00:00:77:01', ip4: '10.53.0.77' };

  test('on a bridge of ours reaches no port, no uplink and not the host', async () => {
    const box = await attach('volt0', 'own-box');
    const odd = strangerOn('volt0', 'odd0');
    using socket = await listenUdp('0.0.0.0');
    const station = { ...stranger, ip6: '::', linkLocal: '::' };
    const frames = [
      whoHas(station, '10.53.0.1'),
      whoHas(station, box.station.ip4),
      sentTo(box.station.mac, ping4(stranger.mac, { from: stranger.ip4, to: box.station.ip4 })),
      says(stranger, { ip4: '10.53.0.1', port: socket.port }, 'strange'),
    ];
    for (const frame of frames) odd.send(frame);
    box.port.send(says(box.station, { ip4: '10.53.0.1', port: socket.port }, 'own'));
    const { port } = box;
    const fromBox = await heardAfter({ far }, { port, station: box.station });
    const beyond = { ...station, mac: '02:00:00:00:99:99', ip4: '10.53.0.99' };
    const fromFar = await heardAfter({ box: port }, { port: far, station: beyond });
    expect(whoHeard(frames, { ...fromBox, ...fromFar })).toEqual([]);
    await heardUntil({ socket: textOf(socket.heard) }, (heard) => heard.length > 0);
    expect(socket.heard).toEqual(['own']);
  });

  test('on a bridge that was there reaches the host and its like, and no port of ours', async () => {
    const box = await attach('given0', 'given-box');
    const odd = strangerOn('given0', 'odd1');
    const even = strangerOn('given0', 'even1');
    using socket = await listenUdp('0.0.0.0');
    const own = { ...stranger, ip4: '10.54.0.77' };
    const frame = says(own, { ip4: '10.54.0.1', port: socket.port }, 'strange');
    odd.send(frame);
    await heardUntil({ even }, (heard) => heard.some((each) => each.includes(markOf(frame))));
    await heardUntil({ socket: textOf(socket.heard) }, (heard) => heard.length > 0);
    expect(socket.heard).toEqual(['strange']);
    const second = await attach('given0', 'given-two');
    const heard = await heardAfter({ box: box.port }, second);
    expect(whoHeard([frame], heard)).toEqual([]);
  });

  test('on a bridge of its own is none of our business', async () => {
    const odd = strangerOn('foreign0', 'odd2');
    const even = strangerOn('foreign0', 'even2');
    using socket = await listenUdp('0.0.0.0');
    const own = { ...stranger, ip4: '10.55.0.77' };
    const station = { ...own, ip6: 'fd55::77', linkLocal: 'fe80::77' };
    const other = { ...station, mac: '02:00:00:00:77:02', ip4: '10.55.0.78' };
    const gateway = { ...station, mac: '02:00:00:00:77:03', ip4: '10.55.0.79' };
    const frames = [
      ...spoofs({ self: station, other, gateway })
        .filter(([name]) => name !== 'LLDP')
        .flatMap(([, some]) => some),
      says(own, { ip4: '10.55.0.1', port: socket.port }, 'strange'),
    ];
    for (const frame of frames) odd.send(frame);
    await heardUntil({ even }, (heard) =>
      frames.every((frame) => heard.some((each) => each.includes(markOf(frame)))),
    );
    await heardUntil({ socket: textOf(socket.heard) }, (heard) => heard.length > 0);
    expect(socket.heard).toEqual(['strange']);
  });
});

/** IEEE 802.1D: whoever sends this wants to be the root of the tree. */
const rootBpdu = (mac: string): Buffer => {
  const id = `0000${mac.replaceAll(':', '')}`;
  const body = `4242030000000000${id}00000000${id}80010000140002000f00`;
  return ethernet('01:80:c2:00:00:00', mac, 38, Buffer.from(body, 'hex'));
};

test('a workload takes no part in the spanning tree of a bridge that was there', async () => {
  const rootOf = (bridge: string): string => sysfs(bridge, 'root_id');
  const boxes: Box[] = [];
  for (const bridge of ['tree0', 'tree1']) {
    run(`link add ${bridge} type bridge stp_state 1`);
    run(`link set ${bridge} up`);
    boxes.push(await attach(bridge, `${bridge}-box`));
  }
  for (const { port, station } of boxes) port.send(rootBpdu(station.mac));
  // Without a filter it does.
  await until('there is another root', () => rootOf('tree1') !== sysfs('tree1', 'bridge_id'));
  expect(rootOf('tree0')).toBe(sysfs('tree0', 'bridge_id'));
});

const sysfs = (bridge: string, name: string): string =>
  readFileSync(`/sys/class/net/${bridge}/bridge/${name}`, 'utf8').trim();

/** What a socket has heard, for who waits for frames. */
const textOf = (heard: readonly string[]): RawPort => ({
  send: () => {},
  received: () => heard.map((text) => Buffer.from(text)),
  [Symbol.dispose]: () => {},
});
