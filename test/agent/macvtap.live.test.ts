import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import type { Packet } from '#native/packet.ts';
import { requestSeqpacket } from '#native/unix.ts';
import { bootGuest } from '../support/guest.ts';
import { addNamespace, ip, only, removeNamespace, type Row } from '../support/kernel.ts';
import { type Snapshot, type Stack, startStack } from '../support/stack.ts';
import { requireTool } from '../support/tools.ts';

// Networks of type macvtap. The parent is one end of a veth pair, `nic0`; the other, `wire0` in a namespace, is the
// segment, where a peer has each network's gateway address.

const MODES = ['bridge', 'vepa', 'private', 'passthru'] as const;
const KINDS = ['vm', 'container'] as const;

const network = (name: string, third: number, extra: object) => ({
  network: name,
  type: 'macvtap',
  parent: 'nic0',
  subnet: `10.60.${third}.0/24`,
  gateway: `10.60.${third}.1`,
  reuseDelaySeconds: 0,
  ...extra,
});

const NETWORKS = [
  ...MODES.map((mode, index) => network(`mv-${mode}`, index, { mode })),
  network('mv-gone', 10, { parent: 'nic9' }),
  network('mv-lo', 11, { parent: 'lo' }),
  network('mv-port', 12, { parent: 'port0' }),
  network('mv-dhcp', 13, { dhcp: true }),
  network('mv-isolated', 14, { portIsolation: true }),
  network('mv-dual', 15, { ipv6: { subnet: 'fd00:60::/64', gateway: 'fd00:60::1' } }),
];

let stack: Stack;
let clean: Snapshot;

const run = (words: string): string =>
  execFileSync(requireTool('ip'), words.split(' '), { encoding: 'utf8' });

beforeAll(async () => {
  addNamespace('segment');
  run('link add nic0 mtu 1450 address 02:00:00:00:60:01 type veth peer name wire0 netns segment');
  run('link set nic0 up');
  run('addr add 10.60.0.100/24 dev nic0');
  run('-n segment link set wire0 up');
  for (const { gateway } of NETWORKS) run(`-n segment addr add ${gateway}/24 dev wire0`);
  run('-n segment addr add fd00:60::1/64 dev wire0 nodad');
  run('link add br9 type bridge');
  run('link add port0 type veth peer name port1');
  run('link set port0 master br9');
  addNamespace('box');
  stack = await startStack({ networks: NETWORKS });
  clean = await stack.snapshot();
});
afterAll(() => stack[Symbol.asyncDispose]());

const request = (id: string, extra: Partial<AttachRequest> = {}): AttachRequest => {
  const { kind = 'vm', ...rest } = extra;
  return {
    id,
    workload: `${kind}-${id}`,
    kind,
    network: 'mv-bridge',
    ...(kind === 'container' && { netns: '/run/netns/box' }),
    ...rest,
  };
};

const attach = async (id: string, extra: Partial<AttachRequest> = {}): Promise<Attachment> =>
  (await stack.client.attach(stack.host, request(id, extra))).attachment;

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

const nothingIsLeft = async (): Promise<void> => {
  expect(await stack.snapshot()).toEqual(clean);
  expect(ip('-n', 'box', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
  expect(only(ip('link', 'show', 'nic0'))).toMatchObject({ address: '02:00:00:00:60:01' });
};

const deviceOf = ({ device }: Attachment): NonNullable<Attachment['device']> => {
  if (device === null) throw new Error('there is no device');
  return device;
};

/** The device as `ip` sees it, wherever it is. */
const shown = (attachment: Attachment): Row =>
  only(
    ip(
      ...(attachment.kind === 'container' ? ['-n', 'box'] : []),
      ...['-d', 'addr', 'show', deviceOf(attachment).name],
    ),
  );

const received = (namespace: string, to: string): string =>
  execFileSync(
    requireTool('ip'),
    ['netns', 'exec', namespace, 'sh', '-c', `ping -c 1 -W 1 ${to} || true`],
    { encoding: 'utf8' },
  );

const plain = (address: string | undefined): string => address?.split('/')[0] ?? '';

const claim = async (
  id: string,
): Promise<Packet & { code: string | undefined; close: () => void }> => {
  const payload = Buffer.from(JSON.stringify({ op: 'claim', id }));
  const packet = await requestSeqpacket(stack.agent.socketPath, payload);
  const { error } = JSON.parse(packet.bytes.toString()) as { error?: { code: string } };
  return {
    ...packet,
    code: error?.code,
    close: () => {
      for (const descriptor of packet.descriptors) descriptor.close();
    },
  };
};

const errorOf = async (asked: AttachRequest): Promise<unknown> =>
  stack.client.attach(stack.host, asked).then(
    () => null,
    (error: unknown) => error,
  );

describe.each(KINDS)('a %s', (kind) => {
  test.each(MODES)(
    'in mode %s is attached, kept over a kill of the agent, and leaves nothing',
    async (mode) => {
      const id = `${kind}-${mode}`;
      const asked = request(id, { kind, network: `mv-${mode}` });
      const { attachment, replayed } = await stack.client.attach(stack.host, asked);
      expect(replayed).toBe(false);
      const device = deviceOf(attachment);
      const type = kind === 'vm' ? 'macvtap' : 'macvlan';
      const netns = kind === 'vm' ? undefined : '/run/netns/box';
      expect(device).toMatchObject({ type, mac: attachment.mac, mtu: 1450 });
      expect(attachment).toMatchObject({ type: 'macvtap', filter: 'none' });
      expect(attachment.netns).toBe(netns);
      const link = shown(attachment);
      expect(link).toMatchObject({
        ifindex: device.ifindex,
        address: attachment.mac,
        mtu: 1450,
        group: String(0x766f6c74),
        ifalias: `volt:${id}#${attachment.generation}`,
        linkinfo: { info_kind: type, info_data: { mode } },
      });
      expect(link.flags).toContain('UP');
      const parent = only(ip('link', 'show', 'nic0'));
      const lent = mode === 'passthru' ? attachment.mac : '02:00:00:00:60:01';
      expect(parent['address']).toBe(lent);

      await stack.agent.restart('SIGKILL');
      await stack.agent.ready();
      const again = await stack.client.attach(stack.host, asked);
      expect(again).toEqual({ attachment, replayed: true });
      expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
      expect((await stack.client.list(stack.host, {})).attachments).toEqual([attachment]);
      if (kind === 'container') {
        expect(received('box', attachment.addresses[0]?.gateway ?? '')).toContain('1 received');
      }

      expect(await stack.client.detach(stack.host, { id })).toMatchObject({ detached: true });
      await stack.gone(id);
      expect(await stack.client.detach(stack.host, { id })).toMatchObject({ detached: false });
      if (device.path !== undefined) expect(existsSync(device.path)).toBe(false);
      await nothingIsLeft();
    },
  );
});

describe('a container', () => {
  beforeEach(() => addNamespace('other'));
  afterEach(() => removeNamespace('other'));

  test('has what the request says: name, MTU, both families, a default route', async () => {
    const attachment = await attach('dual', {
      ...{ kind: 'container', network: 'mv-dual', ifname: 'lan0', mtu: 1400 },
    });
    const link = shown(attachment);
    expect(link).toMatchObject({ ifname: 'lan0', mtu: 1400 });
    expect(link.addr_info.map(({ local, prefixlen }) => `${local}/${prefixlen}`)).toEqual(
      expect.arrayContaining(attachment.addresses.map(({ address }) => address)),
    );
    expect(ip('-n', 'box', 'route', 'show', 'default')).toMatchObject([{ dev: 'lan0' }]);
    expect(received('box', '10.60.15.1')).toContain('1 received');
    expect(received('box', 'fd00:60::1')).toContain('1 received');
    await detach('dual');
    await nothingIsLeft();
  });

  test.each([
    ['bridge', '1 received'],
    ['private', '0 received'],
  ])('in mode %s reaches another: %s', async (mode, result) => {
    const extra = { kind: 'container', network: `mv-${mode}` } as const;
    const one = await attach('one', extra);
    const two = await attach('two', { ...extra, netns: '/run/netns/other' });
    expect(received('box', plain(two.addresses[0]?.address))).toContain(result);
    expect(received('other', plain(one.addresses[0]?.address))).toContain(result);
    await detach('one');
    await detach('two');
    await nothingIsLeft();
  });

  test('loses its interface also when it has been renamed and its tag taken away', async () => {
    await attach('disguised', { kind: 'container' });
    run('-n box link set eth0 down');
    run('-n box link set eth0 name lan7 alias mine');
    run('-n box link set lan7 up');
    const { differences } = await stack.client.check(stack.host, { id: 'disguised' });
    expect(differences).toMatchObject([{ what: 'device', expected: 'eth0', observed: null }]);
    await detach('disguised');
    await nothingIsLeft();
  });

  test('frees its name at once, for the next', async () => {
    await attach('before', { kind: 'container' });
    await stack.client.detach(stack.host, { id: 'before' });
    await attach('after', { kind: 'container' });
    await stack.gone('before');
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    await detach('after');
    await nothingIsLeft();
  });

  test('whose namespace is gone is detached', async () => {
    addNamespace('brief');
    const { id } = await attach('orphan', { kind: 'container', netns: '/run/netns/brief' });
    removeNamespace('brief');
    const { differences } = await stack.client.check(stack.host, { id });
    expect(differences).toMatchObject([{ what: 'netns', observed: null }]);
    await detach(id);
    await nothingIsLeft();
  });

  test('whose namespace is another by now keeps what that one has', async () => {
    addNamespace('brief');
    const { id } = await attach('replaced', { kind: 'container', netns: '/run/netns/brief' });
    removeNamespace('brief');
    addNamespace('brief');
    run('link add link nic0 name eth0 netns brief type macvlan mode bridge');
    await detach(id);
    expect(ip('-n', 'brief', 'link').map(({ ifname }) => ifname)).toEqual(['lo', 'eth0']);
    removeNamespace('brief');
    await nothingIsLeft();
  });
});

describe('a refused attach leaves everything as it was', () => {
  const cases: [name: string, code: string, details: object, extra: Partial<AttachRequest>][] = [
    ['no such parent', 'PARENT_NOT_FOUND', { parent: 'nic9' }, { network: 'mv-gone' }],
    ['loopback as parent', 'UNSUPPORTED', { parent: 'lo' }, { network: 'mv-lo' }],
    ['a bridge port as parent', 'DEVICE_BUSY', { parent: 'port0' }, { network: 'mv-port' }],
    ['DHCP', 'UNSUPPORTED', { path: 'network.dhcp' }, { network: 'mv-dhcp' }],
    ['isolation', 'UNSUPPORTED', { path: 'network.portIsolation' }, { network: 'mv-isolated' }],
    ['a large MTU', 'INVALID_REQUEST', { path: 'mtu', limit: 1450 }, { mtu: 1451 }],
    [
      'a port map',
      'UNSUPPORTED',
      { path: 'ports' },
      { ports: [{ protocol: 'tcp', hostPort: 80, port: 80 }] },
    ],
    [
      'bandwidth',
      'UNSUPPORTED',
      { path: 'bandwidth' },
      { bandwidth: { ingressBitsPerSecond: 1_000_000 } },
    ],
    ["the parent's own MAC", 'MAC_IN_USE', { parent: 'nic0' }, { mac: '02:00:00:00:60:01' }],
  ];
  test.each(KINDS.flatMap((kind) => cases.map((one) => [kind, ...one] as const)))(
    'of a %s: %s is %s',
    async (kind, _name, code, details, extra) => {
      expect(await errorOf(request('bad', { ...extra, kind }))).toMatchObject({ code, details });
      await nothingIsLeft();
    },
  );

  test('a container without a namespace, in one that is not there, or under a name that is taken', async () => {
    const { netns: _, ...homeless } = request('bad', { kind: 'container' });
    expect(await errorOf(homeless)).toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path: 'netns' },
    });
    const nowhere = request('bad', { kind: 'container', netns: '/run/netns/nowhere' });
    expect(await errorOf(nowhere)).toMatchObject({ code: 'NAMESPACE_NOT_FOUND' });
    const taken = request('bad', { kind: 'container', ifname: 'lo' });
    expect(await errorOf(taken)).toMatchObject({ code: 'INTERFACE_EXISTS' });
    await nothingIsLeft();
  });

  test('passthru beside another, also one out of sight, and another beside passthru', async () => {
    await attach('first', { kind: 'container' });
    const alone = request('alone', { network: 'mv-passthru' });
    const refused = { code: 'DEVICE_BUSY', retryable: true, details: { parent: 'nic0' } };
    expect(await errorOf(alone)).toMatchObject(refused);
    await detach('first');
    await nothingIsLeft();
    await attach('alone', { network: 'mv-passthru' });
    for (const kind of KINDS) {
      expect(await errorOf(request('second', { kind }))).toMatchObject(refused);
    }
    await detach('alone');
    await nothingIsLeft();
  });
});

describe('a claim', () => {
  test('of several queues is refused while one is held, also by a new agent', async () => {
    const attachment = await attach('queues', { tap: { queues: 3 } });
    const { name, path } = deviceOf(attachment);
    expect(deviceOf(attachment)).toMatchObject({ queues: 3, vnetHdr: true, vnetHdrSize: 12 });
    expect(path).toBe(`/dev/tap${deviceOf(attachment).ifindex}`);
    const first = await claim('queues');
    expect(first.descriptors).toHaveLength(3);
    expect((await claim('queues')).code).toBe('DEVICE_BUSY');
    await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    first.descriptors.pop()?.close();
    expect((await claim('queues')).code).toBe('DEVICE_BUSY');
    first.close();
    // Whoever had it has changed its address meanwhile.
    run(`link set ${name} address 02:00:00:00:00:99`);
    const second = await claim('queues');
    expect(second.descriptors).toHaveLength(3);
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
    second.close();
    await detach('queues');
    await nothingIsLeft();
  });

  test('of a container is refused', async () => {
    await attach('box', { kind: 'container' });
    expect((await claim('box')).code).toBe('UNSUPPORTED');
    await detach('box');
  });
});

test('a macvtap that nobody holds gives no way to the host', async () => {
  const attachment = await attach('unheld');
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
  expect(said.trim()).toBe('ARP 02:00:00:00:60:01');
  await detach('unheld');
});

test.each([1, 2])(
  'a real guest with %i queues reaches a peer on the segment, and is reached by it',
  async (queues) => {
    const attachment = await attach('guest', { tap: { queues } });
    const own = attachment.addresses[0]?.address ?? '';
    await using guest = await bootGuest(
      'guest',
      { queues, address: own, gateway: '10.60.0.1', ping: '10.60.0.1', seconds: 120 },
      { VOLT_NET_RUNTIME_DIR: stack.agent.runtimeDir },
    );
    expect(guest.output()).toContain(`link/ether ${attachment.mac}`);
    expect(guest.output()).toContain(`GUEST queues ${queues}`);
    expect(guest.output()).toMatch(/GUEST ping .* answered/);
    expect((await claim('guest')).code).toBe('DEVICE_BUSY');
    expect(received('segment', plain(own))).toContain('1 received');
    // Between the host and its guests the parent passes nothing.
    expect(received('segment', '10.60.0.100')).toContain('1 received');
    const fromHost = execFileSync('sh', ['-c', `ping -c 1 -W 1 ${plain(own)} || true`], {
      encoding: 'utf8',
    });
    expect(fromHost).toContain('0 received');
    await guest.kill();
    await detach('guest');
    await nothingIsLeft();
  },
  180_000,
);
