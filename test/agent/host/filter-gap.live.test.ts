import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { BROADCAST, ethernet, ETHERTYPE, ipv4, PROTOCOL, udp } from '../../support/frames.ts';
import { type Heard, heardAfter, listenUdp, stationOf } from '../../support/hearing.ts';
import { addNamespace, ip, only, removeNamespace } from '../../support/kernel.ts';
import type { Station } from '../../support/packets.ts';
import { openContainer, openPacket, type RawPort } from '../../support/raw-port.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// The filter at every moment: before a port is up and after it is down, while somebody flushes all rules, while
// the agent is dead and while another takes over. Spoofed frames are sent all the time, and nobody hears one.

const FLOOD = new URL('flood.py', import.meta.url).pathname;
/** Of who has no business on this network. */
const SPOOFED = { mac: '02:00:00:00:66:01', ip4: '10.42.0.250' };

const open = new AsyncDisposableStack();
let stack: Stack;
let speaker: { readonly port: RawPort; readonly station: Station };
let hearers: Record<string, RawPort>;

const attach = async (id: string): Promise<Attachment> => {
  const { attachment } = await stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'volt0',
    netns: `/run/netns/${id}`,
  });
  return attachment;
};

const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};

beforeAll(async () => {
  stack = open.use(await startStack());
  for (const id of ['speaker', 'listener']) addNamespace(id);
  const station = stationOf(await attach('speaker'));
  speaker = { station, port: open.use(openContainer('/run/netns/speaker')) };
  await attach('listener');
  hearers = {
    'another container': open.use(openContainer('/run/netns/listener')),
    'the bridge': open.use(openPacket('volt0')),
  };
});
afterAll(() => open.disposeAsync());

/** A broadcast that port and host hear alike. The last four bytes are for its number. */
function broadcast({ mac, ip4 }: Pick<Station, 'mac' | 'ip4'>, port: number): Buffer {
  const way = { from: ip4, to: '10.42.0.255' };
  const datagram = udp(way, 4711, port, Buffer.from('-numbered-    '));
  // No checksum: the number is not part of it.
  datagram.writeUInt16BE(0, 6);
  return ethernet(BROADCAST, mac, ETHERTYPE.ipv4, ipv4(way, PROTOCOL.udp, datagram));
}

const sourceOf = (frame: Buffer): string => frame.subarray(6, 12).toString('hex');
const isFrom = (frame: Buffer, mac: string): boolean => sourceOf(frame) === mac.replaceAll(':', '');
const spoofedIn = (heard: Heard): string[] =>
  Object.entries(heard).flatMap(([who, all]) =>
    all.some((frame) => isFrom(frame, SPOOFED.mac) || frame.includes(SPOOFED_IP)) ? [who] : [],
  );
const SPOOFED_IP = Buffer.from(SPOOFED.ip4.split('.').map(Number));

interface Flood {
  /** How many turns there were. */
  end(): Promise<number>;
}

async function flood(netns: string, seconds: number, frames: readonly Buffer[]): Promise<Flood> {
  const hex = frames.map((frame) => frame.toString('hex'));
  const inside = ['ip', 'netns', 'exec', netns, requireTool('python3'), FLOOD];
  const [program, args] = dyingWithParent([...inside, 'eth0', String(seconds), ...hex]);
  const child: ChildProcess = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout?.on('data', (chunk: Buffer) => (said += chunk.toString()));
  await until('it sends', () => said.includes('ready'));
  return {
    end: async () => {
      const closed = once(child, 'close');
      child.kill('SIGTERM');
      await closed;
      return Number(said.split('\n')[1]);
    },
  };
}

const sentBy = (netns: string): number => {
  const { stats64 } = only(ip('-s', '-n', netns, 'link', 'show', 'eth0'));
  return (stats64 as { tx: { packets: number } }).tx.packets;
};

test('nothing passes before the port is under the filter, and after it', async () => {
  addNamespace('hasty');
  const running = await flood('hasty', 0, [broadcast(SPOOFED, 9)]);
  for (let turn = 0; turn < 5; turn += 1) {
    await attach('hasty');
    const before = sentBy('hasty');
    await until('it sends', () => sentBy('hasty') > before + 100);
    await detach('hasty');
    expect(spoofedIn(await heardAfter(hearers, speaker))).toEqual([]);
  }
  expect(await running.end()).toBeGreaterThan(500);
  removeNamespace('hasty');
});

const flushAll = (): void => {
  execFileSync(requireTool('nft'), ['flush', 'ruleset']);
};

test('nothing passes while somebody flushes all rules: kernel 6.9 and later', async () => {
  addNamespace('flushed');
  await attach('flushed');
  const running = await flood('flushed', 0, [broadcast(SPOOFED, 9)]);
  for (let turn = 0; turn < 20; turn += 1) flushAll();
  for (const family of ['bridge', 'netdev', 'inet']) {
    expect(() =>
      execFileSync(requireTool('nft'), ['delete', 'table', family, 'volt'], { stdio: 'pipe' }),
    ).toThrow('Operation not permitted');
  }
  expect(await running.end()).toBeGreaterThan(100);
  expect(spoofedIn(await heardAfter(hearers, speaker))).toEqual([]);
  await detach('flushed');
  removeNamespace('flushed');
});

test('an agent that is killed leaves the filter, and the next takes it over without a gap', async () => {
  addNamespace('steady');
  const station = stationOf(await attach('steady'));
  using host = await listenUdp('0.0.0.0');
  const frames = [broadcast(station, host.port), broadcast(SPOOFED, host.port)];
  // What was sent before this counts for nothing.
  await heardAfter(hearers, speaker);
  const running = await flood('steady', 0.001, frames);
  await stack.agent.kill();
  await stack.agent.restart();
  await stack.agent.ready();
  flushAll();
  const { inSync } = await stack.client.check(stack.host, {});
  const turns = await running.end();
  const heard = await heardAfter(hearers, speaker);
  expect(spoofedIn(heard)).toEqual([]);
  expect(inSync).toBe(true);
  const all = Array.from({ length: turns }, (_, turn) => turn);
  for (const received of Object.values(heard)) {
    const numbered = received.filter(
      (frame) => isFrom(frame, station.mac) && frame.includes('-numbered-'),
    );
    expect(numbered.map((frame) => frame.readUInt32BE(frame.length - 4))).toEqual(all);
  }
  await until('the host has heard all', () => host.heard.length >= turns);
  expect(host.heard.length).toBe(turns);
  await detach('steady');
  removeNamespace('steady');
});

test('of a thousand pings a second none is lost while the agent is replaced, and killed', async () => {
  addNamespace('pinged');
  const { addresses } = await attach('pinged');
  const address = addresses[0]?.address.split('/')[0] ?? '';
  const ping = ['netns', 'exec', 'speaker', 'ping', '-i', '0.001', '-q', address];
  const [program, args] = dyingWithParent([requireTool('ip'), ...ping]);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const closed = once(child, 'close');
  for (const signal of ['SIGTERM', 'SIGKILL', 'SIGTERM', 'SIGKILL'] as const) {
    await stack.agent.restart(signal);
    await stack.agent.ready();
  }
  expect((await stack.client.check(stack.host, {})).inSync).toBe(true);
  child.kill('SIGINT');
  await closed;
  const [, sent, received] = /(\d+) packets transmitted, (\d+) received/.exec(said) ?? [];
  expect(Number(sent)).toBeGreaterThan(1_000);
  // The last may have been on its way.
  expect(Number(sent) - Number(received)).toBeLessThanOrEqual(1);
  await detach('pinged');
  removeNamespace('pinged');
});
