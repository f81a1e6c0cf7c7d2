import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip, removeNamespace } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// A host-only network between two workloads, this host, and a neighbour that is outside: real sockets everywhere.

const NETWORK = {
  network: 'ho0',
  type: 'host-only',
  subnet: '10.48.0.0/24',
  gateway: '10.48.0.1',
  ipv6: { subnet: 'fd48::/64', gateway: 'fd48::1' },
  nat: { ipv6: true },
};
/** This host and its neighbour on the link between them. */
const HOST = { 4: '192.0.2.1', 6: '2001:db8::1' } as const;
const OUTSIDE = { 4: '192.0.2.2', 6: '2001:db8::2' } as const;
const LOOPBACK = { 4: '127.0.0.1', 6: '::1' } as const;

let stack: Stack;
const servers: { end: () => Promise<void> }[] = [];

const run = (...command: string[]): string =>
  execFileSync(requireTool(command[0] ?? ''), command.slice(1), { encoding: 'utf8' });

const inside = (netns: string | undefined, command: readonly string[]): string[] =>
  netns === undefined ? [...command] : ['ip', 'netns', 'exec', netns, ...command];

/**
 * Answers each datagram or connection with its name and the address that it was asked from; ends with the test.
 */
const SERVER = `
import socket, sys, threading
name, kind, host, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
family = socket.AF_INET6 if ':' in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((host, port))
if kind == 'tcp': s.listen(16)
print('ready', flush=True)
while True:
    if kind == 'tcp':
        c, peer = s.accept()
        c.sendall((name + ' ' + peer[0]).encode()); c.close()
    else:
        data, peer = s.recvfrom(2000)
        s.sendto((name + ' ' + peer[0]).encode(), peer)
`;
const ASK = `
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[4]))
try:
    s.connect((host, port))
    if kind == 'udp': s.send(b'?')
    print(s.recv(200).decode(), end='')
except OSError as e:
    print('-', end='')
`;

async function serve(
  netns: string | undefined,
  as: { name: string; kind: 'tcp' | 'udp'; host: string; port: number },
): Promise<void> {
  const command = ['python3', '-c', SERVER, as.name, as.kind, as.host, String(as.port)];
  const [program, args] = dyingWithParent(inside(netns, command));
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await until(`${as.name} serves`, () => said.includes('ready'));
  servers.push({
    end: async () => {
      child.kill('SIGKILL');
      await once(child, 'exit');
    },
  });
}

/** What answers there: the server's name and whom it saw; `-` when nobody does. */
function ask(
  netns: string | undefined,
  to: { kind: 'tcp' | 'udp'; host: string; port: number; seconds?: number },
): string {
  const { kind, host, port, seconds = 3 } = to;
  const [program = '', ...args] = inside(netns, [
    'python3',
    '-c',
    ASK,
    kind,
    host,
    String(port),
    String(seconds),
  ]);
  return execFileSync(program, args, { encoding: 'utf8' });
}

const attach = (id: string, more: Partial<AttachRequest> = {}) =>
  stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'ho0',
    netns: `/run/netns/${id}`,
    ...more,
  });

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

const PORTS: AttachRequest['ports'] = [
  { protocol: 'tcp', hostPort: 8080, port: 80 },
  { protocol: 'udp', hostPort: 8080, port: 80 },
  { protocol: 'sctp', hostPort: 8080, port: 80 },
  { protocol: 'tcp', hostPort: 8081, port: 80, hostAddress: HOST[4] },
  { protocol: 'udp', hostPort: 8081, port: 80, hostAddress: HOST[4] },
  { protocol: 'tcp', hostPort: 8081, port: 80, hostAddress: HOST[6] },
  { protocol: 'udp', hostPort: 8081, port: 80, hostAddress: HOST[6] },
];

const addressOf = (id: string, family: 4 | 6): string =>
  ip('-n', id, `-${family}`, 'addr', 'show', 'eth0')
    .flatMap(({ addr_info }) => addr_info)
    .map(({ local }) => local)
    .find((local) => !local.startsWith('fe80')) ?? '';

beforeAll(async () => {
  stack = await startStack({ networks: [NETWORK] });
  addNamespace('outside');
  for (const command of [
    'link add up0 type veth peer name eth0 netns outside',
    `addr add ${HOST[4]}/24 dev up0`,
    `addr add ${HOST[6]}/64 dev up0 nodad`,
    'link set up0 up',
    '-n outside link set lo up',
    '-n outside link set eth0 up',
    `-n outside addr add ${OUTSIDE[4]}/24 dev eth0`,
    `-n outside addr add ${OUTSIDE[6]}/64 dev eth0 nodad`,
  ]) {
    run('ip', ...command.split(' '));
  }
  for (const name of ['web', 'peer']) addNamespace(name);
  await attach('web', { ports: PORTS });
  await attach('peer');
  for (const kind of ['tcp', 'udp'] as const) {
    for (const family of [4, 6] as const) {
      await serve('web', { name: 'web', kind, host: addressOf('web', family), port: 80 });
      await serve('outside', { name: 'outside', kind, host: OUTSIDE[family], port: 99 });
    }
  }
});

afterAll(async () => {
  for (const server of servers) await server.end();
  await stack[Symbol.asyncDispose]();
});

describe.each(['0', '1'])('with bridge-nf-call-iptables %s', (call) => {
  beforeAll(() => {
    for (const name of ['iptables', 'ip6tables']) {
      writeFileSync(`/proc/sys/net/bridge/bridge-nf-call-${name}`, call);
    }
  });

  describe.each([4, 6] as const)('IPv%i', (family) => {
    const matrix = (['tcp', 'udp'] as const).flatMap((kind) =>
      [8080, 8081].flatMap((port) => [
        { kind, from: 'outside', port, host: HOST[family] },
        { kind, from: 'host', port, host: HOST[family] },
        { kind, from: 'peer', port, host: HOST[family] },
        { kind, from: 'web', port, host: HOST[family] },
        ...(port === 8080
          ? [
              { kind, from: 'host', port, host: LOOPBACK[family] },
              { kind, from: 'peer', port, host: family === 4 ? '10.48.0.1' : 'fd48::1' },
              { kind, from: 'web', port, host: family === 4 ? '10.48.0.1' : 'fd48::1' },
            ]
          : []),
      ]),
    );

    test.each(matrix)(
      '$kind port $port of $host answers to $from',
      ({ kind, from, port, host }) => {
        const answer = ask(from === 'host' ? undefined : from, { kind, host, port });
        expect(answer).toMatch(/^web /);
        // From outside the workload sees who asks; what has to come back through the host, it sees as the host.
        if (from === 'outside') expect(answer).toBe(`web ${OUTSIDE[family]}`);
      },
    );

    test('a workload reaches outside as the host', () => {
      for (const kind of ['tcp', 'udp'] as const) {
        const answer = ask('peer', { kind, host: OUTSIDE[family], port: 99 });
        expect(answer).toBe(`outside ${HOST[family]}`);
      }
    });

    test('workloads reach each other directly, seen as themselves', () => {
      const answer = ask('peer', { kind: 'tcp', host: addressOf('web', family), port: 80 });
      expect(answer).toBe(`web ${addressOf('peer', family)}`);
    });

    test('a neighbour that routes to a workload is not let in, mapped or not', () => {
      const pool = family === 4 ? '10.48.0.0/24' : 'fd48::/64';
      run('ip', '-n', 'outside', `-${family}`, 'route', 'replace', pool, 'via', HOST[family]);
      for (const kind of ['tcp', 'udp'] as const) {
        const web = addressOf('web', family);
        expect(ask('outside', { kind, host: web, port: 80, seconds: 0.4 })).toBe('-');
      }
      expect(ask('outside', { kind: 'tcp', host: HOST[family], port: 8080 })).toMatch(/^web /);
    });
  });
});

test('a loopback address is not reached from a workload, whatever route_localnet allows', async () => {
  await serve(undefined, { name: 'host', kind: 'udp', host: '127.0.0.1', port: 9053 });
  run('ip', '-n', 'peer', 'route', 'add', '127.0.0.0/8', 'via', '10.48.0.1', 'table', '77');
  run('ip', '-n', 'peer', 'rule', 'add', 'pref', '0', 'to', '127.0.0.1', 'table', '77');
  expect(ask('peer', { kind: 'udp', host: '127.0.0.1', port: 9053, seconds: 0.4 })).toBe('-');
  run('ip', '-n', 'peer', 'rule', 'del', 'pref', '0', 'to', '127.0.0.1', 'table', '77');
});

// This kernel tracks and translates SCTP, and may have no sockets for it: an INIT chunk by hand, seen by hand.
const SCTP = `
import ctypes, os, socket, struct, sys
def enter(name):
    fd = os.open('/run/netns/' + name, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000): raise OSError(ctypes.get_errno())
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8): crc = (crc >> 1) ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
init = struct.pack('!BBHIIHHI', 1, 0, 20, 0x1234, 65535, 1, 1, 1)
packet = struct.pack('!HHII', 4444, 8080, 0, 0) + init
packet = packet[:8] + struct.pack('<I', crc32c(packet)) + packet[12:]
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
enter('web'); seen = socket.socket(family, socket.SOCK_RAW, 132); seen.settimeout(5)
enter('outside'); socket.socket(family, socket.SOCK_RAW, 132).sendto(packet, (sys.argv[1], 0))
data = seen.recv(2000)
print(struct.unpack('!H', data[-len(packet):][2:4])[0])
`;

test.each([4, 6] as const)('an SCTP port is mapped, too: IPv%i', (family) => {
  expect(run('python3', '-c', SCTP, HOST[family])).toBe('80\n');
});

/** Sends datagrams by hand: to ::1, past routing, then to the gateway's address, both to the bridge's MAC. */
const TO_LOOPBACK = `
import socket, struct, sys
mac, bridge, own = (bytes.fromhex(sys.argv[1].replace(':', '')), bytes.fromhex(sys.argv[2].replace(':', '')), sys.argv[3])
def datagram(to, text):
    src, dst = socket.inet_pton(socket.AF_INET6, own), socket.inet_pton(socket.AF_INET6, to)
    udp = struct.pack('!HHHH', 4000, 9054, 8 + len(text), 0) + text
    sum_of = src + dst + struct.pack('!II', len(udp), 17) + udp + (b'\\0' if len(udp) % 2 else b'')
    total = sum(struct.unpack('!%dH' % (len(sum_of) // 2), sum_of))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    udp = udp[:6] + struct.pack('!H', (~total & 0xffff) or 0xffff) + udp[8:]
    return bridge + mac + b'\\x86\\xdd' + struct.pack('!IHBB', 6 << 28, len(udp), 17, 64) + src + dst + udp
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('eth0', 0))
s.send(datagram('::1', b'loopback')); s.send(datagram('fd48::1', b'gateway'))
`;

const HEAR = `
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 9054)); print('ready', flush=True)
while True: print(s.recv(100).decode(), flush=True)
`;

test.each(['0', '1'])('nor is ::1, with bridge-nf-call-ip6tables %s', async (call) => {
  writeFileSync('/proc/sys/net/bridge/bridge-nf-call-ip6tables', call);
  const [program, args] = dyingWithParent(['python3', '-c', HEAR]);
  const ear = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let heard = '';
  ear.stdout.on('data', (chunk: Buffer) => (heard += chunk.toString()));
  try {
    await until('it listens', () => heard.includes('ready'));
    const [bridge] = ip('link', 'show', 'ho0');
    const [own] = ip('-n', 'peer', 'link', 'show', 'eth0');
    const words = [String(own?.['address']), String(bridge?.['address']), addressOf('peer', 6)];
    run('ip', 'netns', 'exec', 'peer', 'python3', '-c', TO_LOOPBACK, ...words);
    await until('the second came', () => heard.includes('gateway'));
    expect(heard).not.toContain('loopback');
  } finally {
    ear.kill('SIGKILL');
    await once(ear, 'exit');
  }
});

describe('a host port that is taken', () => {
  const asking = async (ports: AttachRequest['ports']): Promise<unknown> => {
    addNamespace('late');
    const before = await stack.snapshot();
    const error: unknown = await attach('late', { ports }).catch((cause: unknown) => cause);
    expect(await stack.snapshot()).toEqual(before);
    removeNamespace('late');
    return error;
  };

  test.each([
    ['the same', { protocol: 'tcp', hostPort: 8080, port: 1 }],
    [
      'of a given address, where another has every one',
      { protocol: 'udp', hostPort: 8080, port: 1, hostAddress: HOST[4] },
    ],
    [
      'of every address, where another has a given one',
      { protocol: 'tcp', hostPort: 8081, port: 1 },
    ],
  ] as const)('by another attachment is PORT_IN_USE: %s', async (_what, map) => {
    expect(await asking([map])).toMatchObject({
      code: 'PORT_IN_USE',
      details: { holder: { id: 'web' }, hostPort: map.hostPort, path: 'ports.0' },
    });
  });

  test.each(['tcp', 'udp'] as const)(
    'by a process is PORT_IN_USE, the process named: %s',
    async (kind) => {
      await serve(undefined, { name: 'own', kind, host: '127.0.0.1', port: 9000 });
      expect(await asking([{ protocol: kind, hostPort: 9000, port: 1 }])).toMatchObject({
        code: 'PORT_IN_USE',
        details: { holder: { command: 'python3' } },
      });
    },
  );

  test.each([['an address that the host does not have', { hostAddress: '192.0.2.77' }]])(
    '%s is INVALID_REQUEST',
    async (_what, more) => {
      expect(await asking([{ protocol: 'tcp', hostPort: 9001, port: 1, ...more }])).toMatchObject({
        code: 'INVALID_REQUEST',
        details: { path: 'ports.0' },
      });
    },
  );
});

test('maps of one port on tcp and udp, and on two addresses, come and go independently', async () => {
  for (const name of ['m1', 'm2', 'm3']) addNamespace(name);
  const map = { hostPort: 7000, port: 80 };
  await attach('m1', { ports: [{ protocol: 'tcp', ...map, hostAddress: HOST[4] }] });
  await attach('m2', { ports: [{ protocol: 'tcp', ...map, hostAddress: LOOPBACK[4] }] });
  await attach('m3', { ports: [{ protocol: 'udp', ...map }] });
  for (const name of ['m1', 'm2', 'm3']) {
    await serve(name, { name, kind: name === 'm3' ? 'udp' : 'tcp', host: '0.0.0.0', port: 80 });
  }
  const answers = (): string[] => [
    ask('outside', { kind: 'tcp', host: HOST[4], port: 7000, seconds: 0.5 }).slice(0, 2),
    ask(undefined, { kind: 'tcp', host: LOOPBACK[4], port: 7000, seconds: 0.5 }).slice(0, 2),
    ask('outside', { kind: 'udp', host: HOST[4], port: 7000, seconds: 0.5 }).slice(0, 2),
  ];
  expect(answers()).toEqual(['m1', 'm2', 'm3']);
  await detach('m1');
  expect(answers()).toEqual(['-', 'm2', 'm3']);
  await detach('m3');
  expect(answers()).toEqual(['-', 'm2', '-']);
  await detach('m2');
  expect(answers()).toEqual(['-', '-', '-']);
});

test('a UDP flow that began before the map, or to its predecessor, goes where the map leads', async () => {
  for (const name of ['u1', 'u2']) addNamespace(name);
  // One socket that keeps asking, as a resolver does: to the tracker it is one flow.
  const script = `
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5555)); s.settimeout(0.1)
while True:
    s.sendto(b'?', ('${HOST[4]}', 7100))
    try: print(s.recv(200).decode().split()[0], flush=True)
    except OSError: pass
    time.sleep(0.02)
`;
  const [program, args] = dyingWithParent(inside('outside', ['python3', '-c', script]));
  const client = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let heard = '';
  client.stdout.on('data', (chunk: Buffer) => (heard = (heard + chunk.toString()).slice(-40)));
  const ports = [{ protocol: 'udp', hostPort: 7100, port: 80 }] as const;
  for (const name of ['u1', 'u2']) {
    await attach(name, { ports: [...ports] });
    await serve(name, { name, kind: 'udp', host: '0.0.0.0', port: 80 });
    await until(`${name} answers`, () => heard.trimEnd().endsWith(name));
    await detach(name);
  }
  client.kill('SIGKILL');
  await once(client, 'exit');
});

test('maps and masquerade stay when the agent dies, and are its own again when it is back', async () => {
  await stack.agent.kill();
  expect(ask('outside', { kind: 'tcp', host: HOST[4], port: 8080 })).toMatch(/^web /);
  run('nft', 'flush', 'ruleset');
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  expect(ask('outside', { kind: 'tcp', host: HOST[4], port: 8080 })).toMatch(/^web /);
  expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  const again = await attach('web', { ports: PORTS });
  expect(again.replayed).toBe(true);
});
