import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { decode } from '#protocol/envelope.ts';
import { until } from '../../support/agent.ts';
import { BROADCAST, sentTo } from '../../support/frames.ts';
import { gatewayOn, heardAfter, heardUntil, stationOf, whoHeard } from '../../support/hearing.ts';
import { addNamespace, bridge, ip, only, removeNamespace } from '../../support/kernel.ts';
import { markOf, ping4 } from '../../support/packets.ts';
import { claimVm, type ClaimedPort, openContainer, openPacket } from '../../support/raw-port.ts';
import { type Stack, startStack, VOLT0 } from '../../support/stack.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Whoever holds a TAP may change its MAC, to a neighbour's for one, and the bridge then keeps the neighbour's frames.
// And how a bridge knows the MACs of ports without learning them.

const NETWORKS = [
  VOLT0,
  { network: 'free0', subnet: '10.43.0.0/24', gateway: '10.43.0.1', filter: false },
];

const open = new AsyncDisposableStack();
let stack: Stack;
let attached: string[] = [];

beforeAll(async () => {
  // No comparison but those that the kernel's events lead to, and the one at the start.
  const config = { reconcileSeconds: 3_600 };
  stack = open.use(await startStack({ networks: NETWORKS, config }));
});
afterAll(() => open.disposeAsync());
afterEach(async () => {
  for (const id of attached.splice(0)) {
    await stack.client.detach(stack.host, { id });
    await stack.gone(id);
    if (id.startsWith('box')) removeNamespace(id);
  }
});

async function attach(
  id: string,
  { network = 'volt0', ...more }: Partial<AttachRequest> = {},
): Promise<Attachment> {
  const kind = id.startsWith('box') ? 'container' : 'vm';
  if (kind === 'container' && !attached.includes(id)) addNamespace(id);
  const request = { id, workload: id, kind, network, ...more } as const;
  const inside = kind === 'container' ? { netns: `/run/netns/${id}` } : {};
  const { attachment } = await stack.client.attach(stack.host, { ...request, ...inside });
  attached = [...new Set([...attached, id])];
  return attachment;
}

const claim = async (id: string): Promise<ClaimedPort> =>
  open.use(await claimVm(id, stack.agent.socketPath));
const nameOf = ({ device }: Attachment): string => device?.name ?? '';

/** Where the bridge leads frames for a MAC, and how. */
const waysTo = (mac: string, name = 'volt0'): string[] =>
  bridge('fdb', 'show', 'br', name)
    .filter((row) => row['mac'] === mac && row['master'] === name)
    .map(({ ifname, state, flags }) => [ifname, state, ...flags].join(' '));
const fixedTo = (attachment: Attachment): string => `${nameOf(attachment)} static sticky`;

/** What `repaired` events say of an attachment: `mend device.mac`. */
async function told(id: string): Promise<string[]> {
  const manager = await stack.connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_EVENTS');
  const found: string[] = [];
  for (let seq = state.first_seq; seq <= state.last_seq; seq += 1) {
    const stored = await manager.streams.getMessage('VOLT_NET_EVENTS', { seq });
    if (!stored.subject.endsWith('.repaired') || stored.header.get('ce-subject') !== id) continue;
    const body = decode(stored.data) as { action: string; differences: { what: string }[] };
    found.push(...body.differences.map(({ what }) => `${body.action} ${what}`));
  }
  return found;
}

const reaches = (from: string, { addresses }: Attachment): boolean => {
  const to = addresses[0]?.address.split('/')[0] ?? '';
  const ping = `netns exec ${from} ping -c 1 -W 1 ${to}`.split(' ');
  try {
    execFileSync(requireTool('ip'), ping, { stdio: 'pipe' });
    return true;
  } catch {
    return false;
  }
};

test('a neighbour whose MAC the holder of a TAP takes is reached again at once', async () => {
  const evil = await attach('evil');
  const victim = await attach('box-victim');
  await attach('box-other');
  const held = await claim('evil');
  expect(reaches('box-other', victim)).toBe(true);
  held.changeMac(victim.mac);
  await until('the frames of the neighbour are its own', () =>
    waysTo(victim.mac).includes(fixedTo(victim)),
  );
  expect(reaches('box-other', victim)).toBe(true);
  await until('the TAP has its own MAC', () => {
    return only(ip('link', 'show', nameOf(evil)))['address'] === evil.device?.mac;
  });
  expect(waysTo(victim.mac)).toEqual([fixedTo(victim)]);
  await until('it is told', async () => (await told('evil')).includes('mend device.mac'));
  const { inSync } = await stack.client.check(stack.host, {});
  expect(inSync).toBe(true);
});

/** Takes the MAC of another again and again, with its own between or not. */
const WAYS: readonly [name: string, macs: (own: string, other: string) => readonly string[]][] = [
  ['and waits for the repair', (_own, other) => [other, other, other]],
  ['gives it back itself', (own, other) => [other, own, other, own, other, own]],
  ['takes the MACs of many', (_own, other) => ['02:00:00:00:99:01', '02:00:00:00:99:02', other]],
];

for (const [place, [name, macs]] of WAYS.entries()) {
  test(`a holder who does it three times, ${name}, is cut off until it is detached`, async () => {
    const id = `again${place}`;
    const evil = await attach(id);
    const victim = await attach(`box-victim${place}`);
    await attach(`box-other${place}`);
    const held = await claim(id);
    const own = evil.device?.mac ?? '';
    const macNow = (): unknown => only(ip('link', 'show', nameOf(evil)))['address'];
    for (const mac of macs(own, victim.mac)) {
      held.changeMac(mac);
      const waits = name.includes('repair') && (await stateOf(id)) === 'attached';
      if (waits)
        await until('it is repaired, or closed', async () => {
          return macNow() === own || (await stateOf(id)) === 'fenced';
        });
    }
    await until('it is closed', async () => (await stateOf(id)) === 'fenced');
    expectClosed(evil);
    // From here on it can do what it likes.
    for (const mac of [victim.mac, own, victim.mac]) held.changeMac(mac);
    expect(waysTo(victim.mac)).toEqual([fixedTo(victim)]);
    expect(reaches(`box-other${place}`, victim)).toBe(true);
    await until('it is told', async () => (await told(id)).includes('close device.mac'));
    const { inSync, differences } = await stack.client.check(stack.host, {});
    expect(inSync).toBe(false);
    expect(differences).toMatchObject([{ id, what: 'device.mac', expected: own }]);
    // The next agent leaves it as it is, and whoever sets it up finds it down again.
    await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    execFileSync(requireTool('ip'), ['link', 'set', nameOf(evil), 'master', 'volt0', 'up']);
    await until('it is closed again', () => isClosed(evil));
    await until('the neighbour is reached', () => waysTo(victim.mac).includes(fixedTo(victim)));
    // It is made anew by an attach.
    const again = await attach(id);
    expect(isClosed(again)).toBe(false);
    const after = await stack.client.check(stack.host, {});
    expect(after.differences).toEqual([]);
  });
}

const stateOf = async (id: string): Promise<string> =>
  (await stack.client.get(stack.host, { id })).attachment.state;

function isClosed(attachment: Attachment): boolean {
  const link = only(ip('link', 'show', nameOf(attachment)));
  return !link.flags.includes('UP') && link['master'] === undefined;
}
const expectClosed = (attachment: Attachment): void => expect(isClosed(attachment)).toBe(true);

test('a MAC that the holder of a TAP has taken is kept from no workload', async () => {
  await attach('early');
  const held = await claim('early');
  const mac = '02:00:00:00:42:42';
  held.changeMac(mac);
  const late = await attach('late', { mac });
  expect(late.mac).toBe(mac);
  expect(waysTo(mac)).toEqual([fixedTo(late)]);
});

test('the MAC of the gateway is taken by nobody', async () => {
  await attach('greedy');
  await attach('box-asks');
  const held = await claim('greedy');
  const gateway = gatewayOn('volt0', { ip4: '10.42.0.1', ip6: '::' });
  held.changeMac(gateway.mac);
  expect(reaches('box-asks', { addresses: [{ address: '10.42.0.1/24' }] } as Attachment)).toBe(
    true,
  );
  expect(waysTo(gateway.mac)).toEqual(['volt0 permanent']);
});

test('a workload that has said nothing yet is reached without flooding', async () => {
  const asks = await attach('box-asks');
  const silent = await attach('silent');
  await attach('third');
  using sender = openContainer('/run/netns/box-asks');
  const third = await claim('third');
  const said = await claim('silent');
  for (const name of ['tap-silent', 'tap-third']) {
    await until('its port forwards', () => {
      return only(bridge('link', 'show', 'dev', name))['state'] === 'forwarding';
    });
  }
  const station = stationOf(asks);
  const own = { from: station.ip4, to: stationOf(silent).ip4 };
  const frame = sentTo(silent.mac, ping4(asks.mac, own));
  sender.send(frame);
  await heardUntil({ said }, (heard) => heard.some((each) => each.includes(markOf(frame))));
  const heard = await heardAfter({ third }, { port: sender, station });
  expect(whoHeard([frame], heard)).toEqual([]);
});

test('a port under the filter learns nothing, and its MAC stays where it is', async () => {
  const box = await attach('box-own');
  const settings = only(bridge('-d', 'link', 'show', 'dev', nameOf(box)));
  expect(settings).toMatchObject({ learning: false });
  expect(waysTo(box.mac)).toEqual([fixedTo(box)]);
  // From a port that is not ours.
  execFileSync(requireTool('ip'), 'link add odd0 type veth peer name odd1'.split(' '));
  execFileSync(requireTool('ip'), 'link set odd0 master volt0 up'.split(' '));
  execFileSync(requireTool('ip'), 'link set odd1 up'.split(' '));
  using odd = openPacket('odd1');
  const way = { from: stationOf(box).ip4, to: '10.42.0.1' };
  for (let n = 0; n < 3; n += 1) odd.send(sentTo(BROADCAST, ping4(box.mac, way)));
  expect(waysTo(box.mac)).toEqual([fixedTo(box)]);
  execFileSync(requireTool('ip'), 'link delete odd0'.split(' '));
});

test('a port without a filter learns what it hears', async () => {
  const box = await attach('box-free', { network: 'free0' });
  expect(only(bridge('-d', 'link', 'show', 'dev', nameOf(box)))).toMatchObject({ learning: true });
  using port = openContainer('/run/netns/box-free');
  const other = '02:00:00:00:43:43';
  port.send(ping4(other, { from: '10.43.0.43', to: '10.43.0.1' }));
  await until('it is learned', () => waysTo(other, 'free0').length > 0);
});

test('attachments of an agent that left learning on are taken over without a packet lost', async () => {
  const one = await attach('box-one');
  const two = await attach('box-two');
  const address = stationOf(two).ip4;
  const ping = ['netns', 'exec', 'box-one', 'ping', '-i', '0.002', '-q', address];
  const [program, args] = dyingWithParent([requireTool('ip'), ...ping]);
  await stack.agent.kill();
  for (const attachment of [one, two]) {
    const set = (words: string): Buffer => execFileSync(requireTool('bridge'), words.split(' '));
    set(`link set dev ${nameOf(attachment)} learning on`);
    set(`fdb del ${attachment.mac} dev ${nameOf(attachment)} master`);
  }
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  child.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const closed = once(child, 'close');
  await stack.agent.restart();
  await stack.agent.ready();
  await until('both are as they are to be', () =>
    [one, two].every(({ mac }, place) => {
      const [way] = waysTo(mac);
      return way === fixedTo(place === 0 ? one : two);
    }),
  );
  await until('all agree', async () => (await stack.client.check(stack.host, {})).inSync);
  child.kill('SIGINT');
  await closed;
  const [, sent, received] = /(\d+) packets transmitted, (\d+) received/.exec(said) ?? [];
  expect(Number(sent)).toBeGreaterThan(50);
  // The last may have been on its way.
  expect(Number(sent) - Number(received)).toBeLessThanOrEqual(1);
});

test('a TAP that its holder lets go again and again is made again with pauses', async () => {
  await attach('gone');
  const indices = new Set<unknown>();
  const began = performance.now();
  for (let turn = 0; turn < 5; turn += 1) {
    await until('it is there', () => {
      const link = ip('link').find(({ ifname }) => ifname === 'tap-gone');
      return link !== undefined && !indices.has(link['ifindex']);
    });
    indices.add(only(ip('link', 'show', 'tap-gone'))['ifindex']);
    execFileSync(requireTool('ip'), 'link delete tap-gone'.split(' '));
  }
  await until('it is there', () => ip('link').some(({ ifname }) => ifname === 'tap-gone'));
  // Two pauses of a second each.
  expect(performance.now() - began).toBeGreaterThan(1_500);
});
