import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MacAddress } from '#protocol/address.ts';
import { parseNetwork } from '#protocol/network.ts';
import { Firewall } from '#agent/host/firewall/firewall.ts';
import {
  foreignForwardingFacts,
  hostOnlyFacts,
  isolatedFacts,
  portMapFacts,
} from '#agent/host/firewall/host-nat.ts';
import {
  bridgePortFacts,
  guardFacts,
  hostLocalFacts,
  trustedFacts,
} from '#agent/host/firewall/port-filter.ts';
import { createLog } from '#agent/log.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip, nftElements, only } from '../../support/kernel.ts';
import { dyingWithParent, requireTool } from '../../support/tools.ts';

// Tables that others may change, as on kernels before 6.9: what they do to them is put right, by itself.

const nft = (...words: string[]): string =>
  execFileSync(requireTool('nft'), words, { encoding: 'utf8', stdio: 'pipe' });

const mac = '02:00:00:00:00:01';
const log = createLog('silent', 'h1');
let firewall: Firewall;

/** Our sets, and chains with their rules, in some order of their own; counters at zero, no elements. */
function blocks(): string[] {
  return ['bridge', 'netdev', 'inet'].flatMap((family) =>
    nft('-s', '-t', 'list', 'table', family, 'open')
      .replace(/^table .*\n/, '')
      .replace(/\}\n$/, '')
      .split('\n\n')
      .map((block) => `${family} ${block.trim()}`),
  );
}

/** All that there is of ours; `nothing` where a table is missing. */
function listed(): string {
  try {
    return [...blocks().toSorted(), ...nftElements()].join('\n');
  } catch {
    return 'nothing';
  }
}

beforeAll(() => {
  execFileSync('ip', 'link add br0 type bridge'.split(' '));
  firewall = new Firewall({ log, table: 'open', exclusive: false });
  firewall.start();
  const { ifindex } = only(ip('link', 'show', 'br0'));
  firewall.put('bridge', [
    ...guardFacts({ name: 'br0', index: Number(ifindex) }),
    ...hostLocalFacts(MacAddress.parse(mac)),
    ...isolatedFacts({ bridge: 'br0' }),
    ...trustedFacts('up0'),
    // One of each kind of set: ranges, ranges behind a device, maps, numbers.
    ...hostOnlyFacts(
      parseNetwork({
        network: 'br0',
        type: 'host-only',
        subnet: '10.0.0.0/24',
        ipv6: { subnet: 'fd00::/64' },
        nat: { ipv6: true },
      }),
    ),
    ...portMapFacts({
      ports: [
        { protocol: 'tcp', hostPort: 80, port: 8080 },
        { protocol: 'udp', hostPort: 53, port: 53, hostAddress: '192.0.2.1' },
      ],
      addresses: [{ address: '10.0.0.2/24' }, { address: 'fd00::2/64' }],
    }),
    ...foreignForwardingFacts([4, 6], ['lan0']),
  ]);
  const addresses = ['10.0.0.2/24', 'fd00::2/64'];
  firewall.put('port', bridgePortFacts({ device: 'tap0', mac, addresses, linkLocal: 'any' }));
});
afterAll(() => firewall[Symbol.dispose]());

describe('tables that are open to others', () => {
  test.each([
    ['flush ruleset'],
    ['delete table bridge open'],
    ['flush table inet open'],
    ['flush chain bridge open forward'],
    ['flush chain netdev open guard'],
    ['flush set bridge open mac'],
    ['flush set bridge open trusted'],
    ['delete element bridge open ports { "tap0" }'],
    ['add element bridge open trusted { "tap0" }'],
    ['add rule bridge open prerouting accept'],
    ['insert rule bridge open port accept'],
    // As many as before.
    ['replace rule bridge open port_arp handle HANDLE accept'],
    ['delete element bridge open ports { "tap0" } ; add element bridge open ports { "tap1" }'],
    ['add chain inet open forward { policy drop ; }'],
    [
      'delete element inet open pool4 { 10.0.0.0/24 } ; add element inet open pool4 { 10.0.0.0/25 }',
    ],
    ['delete chain netdev open bridge_INDEX'],
    ['flush chain netdev open bridge_INDEX'],
  ])('are as before after: nft %s', async (command) => {
    const before = listed();
    expect(firewall.differences()).toEqual([]);
    const index = String(only(ip('link', 'show', 'br0'))['ifindex']);
    const told: string[] = [];
    firewall.onRestored((found) => told.push(...found.map(({ what }) => what)));
    const handle =
      /# handle (\d+)\n\t\}/.exec(nft('-a', 'list chain bridge open port_arp'))?.[1] ?? '';
    const said = command.replace('INDEX', index).replace('HANDLE', handle);
    const [, , family = '', , name = ''] = said.split(' ');
    nft(said);
    expect(listed()).not.toBe(before);
    await until('it is put right', () => listed() === before, 30_000);
    expect(firewall.differences()).toEqual([]);
    // It says which chain or set it was.
    expect(told.some((what) => what.startsWith(family) && what.endsWith(name))).toBe(true);
  });

  test('are loaded again by the next change, when somebody took them away just now', () => {
    const before = listed();
    nft('flush', 'ruleset');
    firewall.put('other', trustedFacts('up1'));
    expect(firewall.differences()).toEqual([]);
    firewall.remove('other');
    expect(listed()).toBe(before);
  });

  test('do not grow and are not loaded again by what happens beside them', async () => {
    const before = listed();
    // Rules that are loaded again have other handles.
    const generation = (): string => nft('-a', 'list', 'chain', 'bridge', 'open', 'port');
    nft('add', 'table', 'inet', 'theirs');
    nft('delete', 'table', 'inet', 'theirs');
    const after = generation();
    // Longer than a look takes to come.
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(generation()).toBe(after);
    expect(listed()).toBe(before);
  });

  test('have each fact once, whoever holds it, until the last lets go', () => {
    firewall.put('one', trustedFacts('shared'));
    firewall.put('two', trustedFacts('shared'));
    const has = (): boolean => nftElements().includes('bridge open trusted "shared"');
    expect(has()).toBe(true);
    firewall.remove('one');
    expect(has()).toBe(true);
    firewall.remove('two');
    expect(has()).toBe(false);
    firewall.remove('two');
    expect(firewall.differences()).toEqual([]);
  });
});

test('a second start finds tables and elements of an earlier process, and makes them its own', () => {
  const own = { log, table: 'earlier', exclusive: false };
  {
    using earlier = new Firewall(own);
    earlier.start();
    earlier.put('gone', trustedFacts('gone0'));
    earlier.put('kept', trustedFacts('kept0'));
  }
  using later = new Firewall(own);
  later.put('kept', trustedFacts('kept0'));
  later.start();
  expect(later.differences()).toEqual([]);
  const trusted = nftElements().filter((element) => element.startsWith('bridge earlier trusted'));
  expect(trusted).toEqual(['bridge earlier trusted "kept0"']);
});

test('one that takes over from another drops nothing that a workload sends to its gateway', async () => {
  addNamespace('box');
  for (const words of [
    'link add br1 type bridge',
    'link set br1 up',
    'addr add 10.1.0.1/24 dev br1',
    'link add port1 master br1 type veth peer name eth0 netns box',
    'link set port1 up',
    '-n box link set eth0 up',
    '-n box addr add 10.1.0.2/24 dev eth0',
  ])
    execFileSync('ip', words.split(' '));
  const { ifindex } = only(ip('link', 'show', 'br1'));
  const { address } = only(ip('-n', 'box', 'link', 'show', 'eth0'));
  const portFacts = (device: string, own: string, ip4: string) =>
    bridgePortFacts({ device, mac: own, addresses: [ip4], linkLocal: 'eui64' });
  const takeOver = (): Firewall => {
    const next = new Firewall({ log, table: 'volt' });
    next.put('br1', guardFacts({ name: 'br1', index: Number(ifindex) }));
    next.put('port1', portFacts('port1', String(address), '10.1.0.2'));
    // The more there is, the longer the kernel takes from the old rules to the new ones.
    for (let n = 0; n < 200; n += 1) next.put(`tap${n}`, portFacts(`tap${n}`, mac, '10.1.0.3'));
    next.ready();
    return next;
  };
  takeOver()[Symbol.dispose]();
  const words = ['netns', 'exec', 'box', requireTool('ping'), '-f', '-q', '10.1.0.1'];
  const [program, args] = dyingWithParent([requireTool('ip'), ...words]);
  const ping = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  ping.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const closed = once(ping, 'close');
  const sent = (): number =>
    Number(Object(only(ip('-s', 'link', 'show', 'port1'))['stats64']).rx.packets);
  for (let turn = 0; turn < 30; turn += 1) {
    const before = sent();
    takeOver()[Symbol.dispose]();
    await until('it goes on', () => sent() > before + 100);
  }
  ping.kill('SIGINT');
  await closed;
  const [, asked, answered] = /(\d+) packets transmitted, (\d+) received/.exec(said) ?? [];
  expect(Number(asked)).toBeGreaterThan(10_000);
  // The last may have been on its way.
  expect(Number(asked) - Number(answered)).toBeLessThanOrEqual(1);
});
