import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { dyingWithParent } from '../../support/tools.ts';

// Port maps of two host-only networks of one host, both of one container; and which addresses a map may be of.

const networkOf = (network: string, place: number) => ({
  network,
  type: 'host-only',
  subnet: `10.${place}.0.0/24`,
  gateway: `10.${place}.0.1`,
  ipv6: { subnet: `fd${place}::/64`, gateway: `fd${place}::1` },
  nat: { ipv6: true },
});
const NETWORKS = [networkOf('one0', 61), networkOf('two0', 62)];
const HOST = { 4: '192.0.2.1', 6: '2001:db8::1' } as const;
const LOOPBACK = { 4: '127.0.0.1', 6: '::1' } as const;

let stack: Stack;
const open = new AsyncDisposableStack();

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8', stdio: 'pipe' });

const attach = (id: string, more: Partial<AttachRequest> = {}) =>
  stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'one0',
    netns: `/run/netns/${id}`,
    ...more,
  });

/** Answers each connection with the address at which it was asked. */
const SERVER = `
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', 80)); s.listen(16); print('ready', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(c.getsockname()[0].replace('::ffff:', '').encode()); c.close()
`;
const ASK = `
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))
    print(s.recv(200).decode(), end='')
except OSError: print('-', end='')
`;

async function serve(netns: string): Promise<void> {
  const command = ['ip', 'netns', 'exec', netns, 'python3', '-c', SERVER];
  const [program, args] = dyingWithParent(command);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  open.defer(async () => {
    child.kill('SIGKILL');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  });
  await until(`${netns} serves`, () => said.includes('ready'));
}

/** The address of the workload at which a connection arrives; `-` when none does. */
function ask(netns: string | undefined, host: string, port: number, seconds = 5): string {
  const inside = netns === undefined ? [] : ['ip', 'netns', 'exec', netns];
  const words = [...inside, 'python3', '-c', ASK, host, String(port), String(seconds)];
  const [program = '', ...args] = words;
  return execFileSync(program, args, { encoding: 'utf8' });
}

const addressOf = (netns: string, device: string, family: 4 | 6): string =>
  ip('-n', netns, `-${family}`, 'addr', 'show', device)
    .flatMap(({ addr_info }) => addr_info)
    .map(({ local }) => local)
    .find((local) => !local.startsWith('fe80')) ?? '';

const tcp = (hostPort: number, hostAddress?: string) => ({
  protocol: 'tcp' as const,
  hostPort,
  port: 80,
  ...(hostAddress !== undefined && { hostAddress }),
});

beforeAll(async () => {
  stack = open.use(await startStack({ networks: NETWORKS }));
  addNamespace('outside');
  for (const command of [
    'link add up0 type veth peer name eth0 netns outside',
    `addr add ${HOST[4]}/24 dev up0`,
    `addr add ${HOST[6]}/64 dev up0 nodad`,
    'link set up0 up',
    '-n outside link set eth0 up',
    '-n outside addr add 192.0.2.2/24 dev eth0',
    '-n outside addr add 2001:db8::2/64 dev eth0 nodad',
  ]) {
    run(command);
  }
  for (const name of ['both', 'late']) addNamespace(name);
  const netns = '/run/netns/both';
  await attach('first', { netns, ports: [tcp(8001)] });
  await attach('second', { netns, network: 'two0', ifname: 'eth1', ports: [tcp(8002)] });
  // Replies leave by the interface by which they were asked for.
  for (const [device, place] of [
    ['eth0', 61],
    ['eth1', 62],
  ] as const) {
    const gateways = { 4: `10.${place}.0.1`, 6: `fd${place}::1` } as const;
    for (const family of [4, 6] as const) {
      const own = addressOf('both', device, family);
      run(`-n both -${family} rule add from ${own} table ${place}`);
      run(
        `-n both -${family} route add default via ${gateways[family]} dev ${device} table ${place}`,
      );
    }
  }
  await serve('both');
});
afterAll(() => open.disposeAsync());

describe.each(['0', '1'])('one container on two networks, bridge-nf-call-iptables %s', (called) => {
  beforeAll(() => {
    for (const name of ['iptables', 'ip6tables']) {
      writeFileSync(`/proc/sys/net/bridge/bridge-nf-call-${name}`, called);
    }
  });

  describe.each([4, 6] as const)('IPv%i', (family) => {
    test.each([
      ['outside', 'outside', HOST[family]],
      ['the host, at its own address', undefined, HOST[family]],
      ['the host, at its loopback address', undefined, LOOPBACK[family]],
      ['the container itself', 'both', HOST[family]],
    ] as const)('both maps answer to %s', (_what, netns, host) => {
      const answers = [8001, 8002].map((port) => ask(netns, host, port));
      expect(answers).toEqual(['eth0', 'eth1'].map((name) => addressOf('both', name, family)));
    });
  });
});

test('each bridge has its way for replies to ::1, and the host has no difference', async () => {
  const routes = ip('-6', 'route', 'show', 'table', 'local', '::1').filter(
    ({ metric }) => metric === 10,
  );
  expect(new Set(routes.map(({ dev }) => dev))).toEqual(new Set(['one0', 'two0']));
  expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
});

describe('a map of every address of a family', () => {
  test.each([
    ['0.0.0.0', 4, 6, 8101],
    ['::', 6, 4, 8102],
  ] as const)(
    '%s answers there, and not in the other',
    async (hostAddress, family, other, port) => {
      const id = `every${family}`;
      addNamespace(id);
      await attach(id, { ports: [tcp(port, hostAddress)] });
      await serve(id);
      const own = addressOf(id, 'eth0', family);
      for (const [netns, host] of [
        ['outside', HOST[family]],
        [undefined, HOST[family]],
        [undefined, LOOPBACK[family]],
      ] as const) {
        expect(ask(netns, host, port)).toBe(own);
      }
      expect(ask('outside', HOST[other], port, 1)).toBe('-');
    },
  );

  test.each([
    ['every address', undefined],
    ['every one of its family', '0.0.0.0'],
    ['a given one', HOST[4]],
  ])('is in the way of another map of %s', async (_what, hostAddress) => {
    const refused = attach('late', { ports: [tcp(8101, hostAddress)] });
    await expect(refused).rejects.toMatchObject({
      code: 'PORT_IN_USE',
      details: { holder: { id: 'every4' } },
    });
  });

  test('is not in the way of one of the other family', async () => {
    addNamespace('six');
    await attach('six', { ports: [tcp(8101, '::')] });
    await serve('six');
    expect(ask('outside', HOST[6], 8101)).toBe(addressOf('six', 'eth0', 6));
  });

  test('is refused where a process of the host listens on one of them', async () => {
    const listens = `
import socket
s = socket.socket(); s.bind(('127.0.0.1', 8103)); s.listen(); print('ready', flush=True)
s.accept()
`;
    const [program, args] = dyingWithParent(['python3', '-c', listens]);
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    open.defer(() => void child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    await expect(attach('late', { ports: [tcp(8103, '0.0.0.0')] })).rejects.toMatchObject({
      code: 'PORT_IN_USE',
      details: { holder: { command: 'python3' } },
    });
  });

  test.each([[[tcp(8104), tcp(8104, '0.0.0.0')]], [[tcp(8104, '::'), tcp(8104)]]])(
    'is not mapped twice by one request: %j',
    async (ports) => {
      const refused = stack.client.update(stack.host, { id: 'first', ports });
      await expect(refused).rejects.toMatchObject({
        code: 'INVALID_REQUEST',
        details: { path: 'ports.1' },
      });
    },
  );
});

test.each([
  ['0.1.2.3', 'no address of one host'],
  ['224.0.0.1', 'no address of one host'],
  ['255.255.255.255', 'no address of one host'],
  ['192.0.2.255', 'broadcast'],
  ['ff02::1', 'no address of one host'],
  ['fe80::1', 'link-local'],
  ['::ffff:192.0.2.1', 'IPv4'],
])('a map of %s is refused: %s', async (hostAddress, reason) => {
  const refused = stack.client.update(stack.host, { id: 'first', ports: [tcp(8105, hostAddress)] });
  await expect(refused).rejects.toMatchObject({
    code: 'INVALID_REQUEST',
    message: expect.stringContaining(reason),
    details: { path: 'ports.0.hostAddress' },
  });
});

test("an address that the host may get later is mapped where the host says so, and takes nobody's packets", async () => {
  const later = '198.51.100.9';
  const ports = [tcp(8106, later)];
  addNamespace('beyond');
  for (const command of [
    'link add up1 type veth peer name eth0 netns beyond',
    'addr add 198.51.100.1/24 dev up1',
    'link set up1 up',
    '-n beyond link set eth0 up',
    `-n beyond addr add ${later}/24 dev eth0`,
    '-n beyond route add default via 198.51.100.1',
  ]) {
    run(command);
  }
  const update = () => stack.client.update(stack.host, { id: 'first', ports });
  await expect(update()).rejects.toMatchObject({ code: 'INVALID_REQUEST' });
  writeFileSync('/proc/sys/net/ipv4/ip_nonlocal_bind', '1');
  await update();
  // It is a neighbour's for now: the neighbour's own port refuses, and nothing of ours answers.
  expect(ask('both', later, 8106, 2)).toBe('-');
  run(`-n beyond addr del ${later}/24 dev eth0`);
  run(`addr add ${later}/32 dev up1`);
  expect(ask(undefined, later, 8106)).toBe(addressOf('both', 'eth0', 4));
});
