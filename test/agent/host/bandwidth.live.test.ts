import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, deviceNames, ip } from '../../support/kernel.ts';
import { startStack, type Stack, VOLT0 } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Limits as the workload sees them, on the host's end of its pair: read back with `tc`, and by sending more.

let stack: Stack;

beforeAll(async () => {
  stack = await startStack();
  for (const name of ['slow', 'peer']) addNamespace(name);
  await attach('peer');
});
afterAll(() => stack[Symbol.asyncDispose]());

const attach = async (id: string, more: Partial<AttachRequest> = {}): Promise<Attachment> => {
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'volt0',
    netns: `/run/netns/${id}`,
    ...more,
  });
  return attachment;
};

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

/** Bits a second of the token bucket at the root of a device. */
function rateOf(device: string): number | null {
  const text = execFileSync(requireTool('tc'), ['-j', 'qdisc', 'show', 'dev', device], {
    encoding: 'utf8',
  });
  const rows = JSON.parse(text) as { kind: string; options: { rate: number } }[];
  const bucket = rows.find(({ kind }) => kind === 'tbf');
  return bucket === undefined ? null : bucket.options.rate * 8;
}

const addressOf = ({ addresses }: Attachment): string => addresses[0]?.address.split('/')[0] ?? '';

/** What arrives in a second of sending as fast as TCP can, in Mbit/s. */
async function throughput(from: string, to: string, target: string): Promise<number> {
  const sink = `
import socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', 7777)); s.listen(1); print('ready', flush=True)
c, _ = s.accept(); total = 0; first = time.monotonic()
while True:
    data = c.recv(65536)
    if not data: break
    total += len(data)
print(total * 8 / 1e6 / (time.monotonic() - first), flush=True)
`;
  const source = `
import socket, time
s = socket.create_connection(('${target}', 7777)); end = time.monotonic() + 1.5
while time.monotonic() < end: s.send(bytes(65536))
s.close()
`;
  const [program, args] = dyingWithParent(['ip', 'netns', 'exec', to, 'python3', '-c', sink]);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const ended = once(child, 'exit');
  await until('the sink listens', () => said.includes('ready'));
  execFileSync('ip', ['netns', 'exec', from, 'python3', '-c', source]);
  await ended;
  return Number(said.split('\n')[1]);
}

const LIMITS = { ingressBitsPerSecond: 8_000_000, egressBitsPerSecond: 16_000_000 };

describe('limits', () => {
  let slow: Attachment;
  let ifb: string;

  test('are in the kernel as they were asked for', async () => {
    slow = await attach('slow', { bandwidth: LIMITS });
    ifb = `ifb-${slow.device?.ifindex}`;
    expect(slow.bandwidth).toEqual(LIMITS);
    expect(rateOf('veth-slow-h')).toBe(8_000_000);
    expect(rateOf(ifb)).toBe(16_000_000);
    expect(ip('-d', 'link', 'show', ifb)).toMatchObject([
      { ifalias: `volt:slow#${slow.generation}` },
    ]);
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  });

  test('hold what comes to the workload, and what goes from it', async () => {
    const peer = await attach('peer');
    const towards = await throughput('peer', 'slow', addressOf(slow));
    expect(towards).toBeGreaterThan(4);
    expect(towards).toBeLessThan(10);
    const from = await throughput('slow', 'peer', addressOf(peer));
    expect(from).toBeGreaterThan(8);
    expect(from).toBeLessThan(20);
  });

  test('are changed live, without a packet lost', async () => {
    const [program, args] = dyingWithParent(
      `ip netns exec slow ping -i 0.005 -c 400 -q ${VOLT0.gateway}`.split(' '),
    );
    const ping = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    let said = '';
    ping.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
    const ended = once(ping, 'exit');
    await until('it pings', () => said.includes('PING'));
    for (let mega = 1; ping.exitCode === null && mega < 200; mega += 1) {
      const bandwidth = {
        ingressBitsPerSecond: mega * 1_000_000,
        egressBitsPerSecond: mega * 2_000_000,
      };
      await stack.client.update(stack.host, { id: 'slow', bandwidth });
      expect(rateOf('veth-slow-h')).toBe(mega * 1_000_000);
      expect(rateOf(ifb)).toBe(mega * 2_000_000);
    }
    await ended;
    expect(said).toContain('400 packets transmitted, 400 received');
  });

  test('that somebody else changed are found out', async () => {
    execFileSync('tc', ['qdisc', 'del', 'dev', ifb, 'root']);
    const { differences } = await stack.client.check(stack.host, { id: 'slow' });
    expect(differences).toMatchObject([{ what: 'bandwidth.egress', observed: null }]);
  });

  test('are taken off one by one, and come back', async () => {
    const update = (bandwidth: object) =>
      stack.client.update(stack.host, { id: 'slow', bandwidth });
    await update({ ingressBitsPerSecond: 5_000_000 });
    expect(rateOf('veth-slow-h')).toBe(5_000_000);
    expect(deviceNames()).not.toContain(ifb);
    await update({});
    expect(rateOf('veth-slow-h')).toBeNull();
    await update(LIMITS);
    expect(rateOf(ifb)).toBe(16_000_000);
    expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  });

  test('go with the attachment', async () => {
    await detach('slow');
    expect(deviceNames().filter((name) => name.startsWith('ifb'))).toEqual([]);
    await attach('slow');
    expect(rateOf('veth-slow-h')).toBeNull();
    await detach('slow');
  });
});

test('go with the attachment also when its device was deleted by hand', async () => {
  await attach('slow', { bandwidth: LIMITS });
  execFileSync('ip', ['link', 'delete', 'veth-slow-h']);
  await detach('slow');
  expect(deviceNames().filter((name) => name.startsWith('ifb'))).toEqual([]);
});

test('very slow and very fast ones are taken as they are', async () => {
  const bandwidth = { ingressBitsPerSecond: 8_000, egressBitsPerSecond: 1e12 };
  const attachment = await attach('slow', { bandwidth });
  expect(rateOf('veth-slow-h')).toBe(8_000);
  expect(rateOf(`ifb-${attachment.device?.ifindex}`)).toBe(1e12);
  expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
  await detach('slow');
});

test('a VM has them on its TAP', async () => {
  const attachment = await attach('vm', {
    kind: 'vm',
    workload: 'vm-slow',
    netns: undefined,
    bandwidth: LIMITS,
  });
  expect(rateOf('tap-slow')).toBe(8_000_000);
  expect(rateOf(`ifb-${attachment.device?.ifindex}`)).toBe(16_000_000);
  await detach('vm');
  expect(deviceNames().filter((name) => name.startsWith('ifb'))).toEqual([]);
});
