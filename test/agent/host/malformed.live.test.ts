import { writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Attachment } from '#protocol/attachment.ts';
import { harmOf } from '../../support/harm.ts';
import { gatewayOn, type Heard, heardAfter, stationOf } from '../../support/hearing.ts';
import { addNamespace, ip, only } from '../../support/kernel.ts';
import { malformed, type Malformed } from '../../support/malformed.ts';
import type { Segment, Station } from '../../support/packets.ts';
import { claimVm, openContainer, openPacket, type RawPort } from '../../support/raw-port.ts';
import { PARENT_MAC, startSegment } from '../../support/segment.ts';
import { type Stack, startStack, VOLT0 } from '../../support/stack.ts';

// Thousands of frames whose headers contradict themselves, from a bridged TAP, a bridged veth and a macvtap. Whatever
// of them is heard by anybody is judged: no receiver, however lenient, finds in it what the port must not send.

/** So many at once: a TAP that is not read keeps no more than a thousand. */
const AT_ONCE = 256;
const MOST_NAMED = 20;

interface Speaker {
  readonly port: RawPort;
  readonly segment: Segment;
}
type Hearers = Readonly<Record<string, RawPort>>;

/** All that anybody hears of the sender's frames. */
async function heardOf(speaker: Speaker, hearers: Hearers, frames: readonly Malformed[]) {
  const { port, segment } = speaker;
  const station = segment.self;
  await heardAfter(hearers, { port, station });
  const heard: Record<string, Buffer[]> = {};
  const take = (some: Heard): void => {
    for (const [who, all] of Object.entries(some)) heard[who] = [...(heard[who] ?? []), ...all];
  };
  for (let at = 0; at < frames.length; at += AT_ONCE) {
    for (const { frame } of frames.slice(at, at + AT_ONCE)) port.send(frame);
    take(
      Object.fromEntries(Object.entries(hearers).map(([who, hearer]) => [who, hearer.received()])),
    );
  }
  take(await heardAfter(hearers, { port, station }));
  return heard;
}

/** `others` say things of their own meanwhile, and answer what was harmless. */
async function expectNoHarm(
  speaker: Speaker,
  hearers: Hearers,
  others: readonly string[],
): Promise<void> {
  const { self } = speaker.segment;
  const frames = malformed(speaker.segment);
  const heard = await heardOf(speaker, hearers, frames);
  const sent = new Map(frames.map(({ name, frame }) => [frame.toString('latin1'), name]));
  const harms = Object.entries(heard).flatMap(([who, all]) =>
    all.flatMap((frame) => {
      const harm = harmOf(frame, self);
      if (harm === undefined) return [];
      const name = sent.get(frame.toString('latin1'));
      const theirs = name === undefined && isFrom(frame, others);
      return theirs ? [] : [`${who} hears ${name ?? frame.toString('hex')}: ${harm}`];
    }),
  );
  expect(harms.slice(0, MOST_NAMED)).toEqual([]);
  // What says that it is ICMP, or from another port, is no DHCP answer any more: all can be heard.
  for (const all of Object.values(heard)) expect(all.length).toBeGreaterThan(200);
}

const isFrom = (frame: Buffer, macs: readonly string[]): boolean =>
  macs.some((mac) => frame.subarray(6, 12).toString('hex') === mac.replaceAll(':', ''));
describe('on a bridge', () => {
  const open = new AsyncDisposableStack();
  const NETWORK = { ...VOLT0, ipv6: { subnet: 'fd42::/64', gateway: 'fd42::1' } };
  let stack: Stack;
  let stations: Record<string, Station>;
  let speakers: Record<'vm' | 'container', RawPort>;
  let hearers: Hearers;

  async function attach(kind: 'vm' | 'container', id: string): Promise<Station> {
    if (kind === 'container') addNamespace(id);
    const netns = `/run/netns/${id}`;
    const asked = { id, workload: id, kind, network: 'volt0' };
    const inside = kind === 'container' ? { netns } : {};
    const { attachment } = await stack.client.attach(stack.host, { ...asked, ...inside });
    return stationOf(attachment);
  }

  beforeAll(async () => {
    stack = open.use(await startStack({ networks: [NETWORK] }));
    const ids = ['vm', 'container'].flatMap((kind) =>
      ['evil', 'other'].map((who) => [kind, `${who}-${kind}`] as const),
    );
    stations = {};
    for (const [kind, id] of ids) {
      stations[id] = await attach(kind === 'vm' ? 'vm' : 'container', id);
    }
    const vm = async (id: string): Promise<RawPort> =>
      open.use(await claimVm(id, stack.agent.socketPath));
    const box = (id: string): RawPort => open.use(openContainer(`/run/netns/${id}`));
    speakers = { vm: await vm('evil-vm'), container: box('evil-container') };
    hearers = {
      'another VM': await vm('other-vm'),
      'another container': box('other-container'),
      'the host': open.use(openPacket('volt0')),
    };
  });
  afterAll(() => open.disposeAsync());

  const CALLS = ['iptables', 'ip6tables', 'arptables'].map(
    (family) => `/proc/sys/net/bridge/bridge-nf-call-${family}`,
  );
  const KINDS = ['vm', 'container'] as const;

  test.each([0, 1].flatMap((called) => KINDS.map((kind) => ({ kind, called }))))(
    'a $kind, with br_netfilter $called, sends no malformed frame that does harm',
    async ({ kind, called }) => {
      for (const file of CALLS) writeFileSync(file, String(called));
      const gateway = gatewayOn('volt0', { ip4: '10.42.0.1', ip6: 'fd42::1' });
      const [self, other] = [stations[`evil-${kind}`], stations[`other-${kind}`]];
      if (self === undefined || other === undefined) throw new Error('no stations');
      const others = [gateway, ...Object.values(stations).filter((one) => one !== self)];
      const speaker = { port: speakers[kind], segment: { self, other, gateway } };
      await expectNoHarm(
        speaker,
        hearers,
        others.map(({ mac }) => mac),
      );
    },
  );
});

const macOf = (netns: string, device: string): string =>
  String(only(ip('-n', netns, 'link', 'show', device))['address']);

test('a VM on a macvtap sends no malformed frame that does harm', async () => {
  await using segment = await startSegment();
  const stationsOf = async (id: string): Promise<Attachment> =>
    segment.attach(id, { network: 'mv-dual' });
  const [self, other] = [stationOf(await stationsOf('evil')), stationOf(await stationsOf('good'))];
  const { socketPath } = segment.stack.agent;
  using port = await claimVm('evil', socketPath);
  using good = await claimVm('good', socketPath);
  using wire = openContainer('/run/netns/segment', 'wire0');
  const gateway = { ...other, ip4: '10.60.15.1', ip6: 'fd00:60::1', mac: '02:00:00:00:60:99' };
  await expectNoHarm(
    { port, segment: { self, other, gateway } },
    { 'another VM': good, 'the wire': wire },
    [other.mac, PARENT_MAC, macOf('segment', 'wire0')],
  );
});
