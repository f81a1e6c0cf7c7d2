import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Packet } from '#native/packet.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { until } from '../../support/agent.ts';
import { bootGuest } from '../../support/guest.ts';
import { ip, only } from '../../support/kernel.ts';
import { claimVm } from '../../support/raw-port.ts';
import {
  addressOf,
  answers,
  deviceOf,
  PARENT_MAC,
  run,
  type Segment,
  startSegment,
} from '../../support/segment.ts';
import { requireTool } from '../../support/tools.ts';

// A macvtap and who holds it: nobody, a claimer, a real guest.

let segment: Segment;

beforeAll(async () => {
  segment = await startSegment();
});
afterAll(() => segment[Symbol.asyncDispose]());

const claim = async (
  id: string,
): Promise<Packet & { code: string | undefined; close: () => void }> => {
  const payload = Buffer.from(JSON.stringify({ op: 'claim', id }));
  const packet = await requestSeqpacket(segment.stack.agent.socketPath, payload);
  const { error } = JSON.parse(packet.bytes.toString()) as { error?: { code: string } };
  return {
    ...packet,
    code: error?.code,
    close: () => {
      for (const descriptor of packet.descriptors) descriptor.close();
    },
  };
};

describe('a claim', () => {
  test('of several queues is refused while one is held, also by a new agent', async () => {
    const attachment = await segment.attach('queues', { tap: { queues: 3 } });
    const { name, path } = deviceOf(attachment);
    expect(deviceOf(attachment)).toMatchObject({ queues: 3, vnetHdr: true, vnetHdrSize: 12 });
    expect(path).toBe(`/dev/tap${deviceOf(attachment).ifindex}`);
    const first = await claim('queues');
    expect(first.descriptors).toHaveLength(3);
    expect((await claim('queues')).code).toBe('DEVICE_BUSY');
    await segment.stack.agent.restart('SIGKILL');
    await segment.stack.agent.ready();
    first.descriptors.pop()?.close();
    expect((await claim('queues')).code).toBe('DEVICE_BUSY');
    first.close();
    // Whoever had it has changed its address meanwhile.
    run(`link set ${name} address 02:00:00:00:00:99`);
    const second = await claim('queues');
    expect(second.descriptors).toHaveLength(3);
    expect((await segment.stack.client.check(segment.stack.host, {})).differences).toEqual([]);
    second.close();
    await segment.detach('queues');
    await segment.nothingIsLeft();
  });

  test('of a container is refused', async () => {
    await segment.attach('box', { kind: 'container' });
    expect((await claim('box')).code).toBe('UNSUPPORTED');
    await segment.detach('box');
  });
});

test('whoever holds a macvtap and changes its MAC again and again is cut off', async () => {
  const { client, host, agent } = segment.stack;
  const { name } = deviceOf(await segment.attach('evil'));
  using held = await claimVm('evil', agent.socketPath);
  for (const n of [1, 2, 3]) held.changeMac(`02:00:00:00:88:0${n}`);
  await until('it is closed', async () => {
    return (await client.get(host, { id: 'evil' })).attachment.state === 'fenced';
  });
  expect(only(ip('link', 'show', name)).flags).not.toContain('UP');
  const { differences } = await client.check(host, {});
  expect(differences).toMatchObject([{ id: 'evil', what: 'device.mac' }]);
  held[Symbol.dispose]();
  await segment.detach('evil');
  await segment.nothingIsLeft();
});

test('a macvtap that nobody holds gives no way to the host', async () => {
  const attachment = await segment.attach('unheld');
  const { name, mac } = deviceOf(attachment);
  const ipv6 = `/proc/sys/net/ipv6/conf/${name}/disable_ipv6`;
  expect(readFileSync(ipv6, 'utf8').trim()).toBe('1');
  // Asks who has the host's address, and sends an echo request for it to the workload's MAC.
  const script = `
import socket, struct, sys
workload, host, peer = bytes.fromhex(sys.argv[1]), *(socket.inet_aton(one) for one in sys.argv[2:])
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("wire0", 0))
wire.settimeout(0.3)
own = wire.getsockname()[4]
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xffff)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xffff)
def with_checksum(data, at):
    return data[:at] + checksum(data) + data[at + 2:]
arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + own + peer + bytes(6) + host
wire.send(b"\\xff" * 6 + own + b"\\x08\\x06" + arp)
icmp = with_checksum(struct.pack("!BBHHH", 8, 0, 0, 7, 7), 2)
header = with_checksum(struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 1, 0) + peer + host, 10)
wire.send(workload + own + b"\\x08\\x00" + header + icmp)
try:
    while True:
        frame = wire.recv(2048)
        if frame[:6] != own: continue
        if frame[12:14] == b"\\x08\\x06" and frame[20:22] == b"\\0\\2": print("ARP", frame[22:28].hex(":"))
        if frame[12:14] == b"\\x08\\x00" and frame[23] == 1: print("ICMP", frame[34])
except TimeoutError:
    pass`;
  const said = execFileSync(
    requireTool('ip'),
    [
      ...['netns', 'exec', 'segment', 'python3', '-c', script],
      ...[mac.replaceAll(':', ''), '10.60.0.100', '10.60.0.1'],
    ],
    { encoding: 'utf8' },
  );
  expect(said.trim()).toBe(`ARP ${PARENT_MAC}`);
  await segment.detach('unheld');
});

test.each([1, 2])(
  'a real guest with %i queues reaches a peer on the segment, and is reached by it',
  async (queues) => {
    const attachment = await segment.attach('guest', { tap: { queues } });
    const own = attachment.addresses[0]?.address ?? '';
    await using guest = await bootGuest(
      'guest',
      { queues, address: own, gateway: '10.60.0.1', ping: '10.60.0.1', seconds: 120 },
      { VOLT_NET_RUNTIME_DIR: segment.stack.agent.runtimeDir },
    );
    expect(guest.output()).toContain(`link/ether ${attachment.mac}`);
    expect(guest.output()).toContain(`GUEST queues ${queues}`);
    expect(guest.output()).toMatch(/GUEST ping .* answered/);
    expect((await claim('guest')).code).toBe('DEVICE_BUSY');
    expect(answers(addressOf(attachment), 'segment')).toBe(true);
    // Between the host and its guests the parent passes nothing.
    expect(answers('10.60.0.100', 'segment')).toBe(true);
    expect(answers(addressOf(attachment))).toBe(false);
    await guest.kill();
    await segment.detach('guest');
    await segment.nothingIsLeft();
  },
  180_000,
);
