import { execFileSync } from 'node:child_process';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest } from '#protocol/attachment.ts';
import { addNamespace, ip, removeNamespace } from '../../support/kernel.ts';
import { answers, run } from '../../support/segment.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { ask, serve } from '../../support/talk.ts';
import { requireTool } from '../../support/tools.ts';

// Several interfaces of one container, seen from outside, from this host, and from the container itself.

const dual = (n: number, type: string, more: object = {}) => ({
  network: `${type}-${n}`,
  type,
  subnet: `10.${n}.0.0/24`,
  gateway: `10.${n}.0.1`,
  ipv6: { subnet: `fd00:${n}::/64`, gateway: `fd00:${n}::1` },
  reuseDelaySeconds: 0,
  ...(type === 'host-only' && { nat: { ipv6: true } }),
  ...more,
});
const NETWORKS = [
  dual(51, 'host-only'),
  dual(52, 'host-only'),
  dual(53, 'bridged'),
  dual(54, 'bridged', { filter: false }),
  dual(55, 'bridged', { routes: [{ to: '172.16.0.0/12', via: '10.55.0.9' }] }),
  dual(56, 'bridged', {
    routes: [
      { to: '172.16.0.0/12', via: '10.56.0.9' },
      { to: 'fd99::/64', via: 'fd00:56::9' },
    ],
  }),
  { network: 'lan', type: 'macvtap', parent: 'nic0', subnet: '10.57.0.0/24', gateway: '10.57.0.1' },
  { network: 'four', subnet: '10.58.0.0/24', gateway: '10.58.0.1' },
];
/** This host and its neighbour on the link between them. */
const HOST = { 4: '192.0.2.1', 6: '2001:db8::1' } as const;
const FAMILIES = [4, 6] as const;

let stack: Stack;

const attach = async (id: string, network: string, more: Partial<AttachRequest> = {}) => {
  const asked = { workload: `c-${id}`, kind: 'container', netns: '/run/netns/box' } as const;
  return (await stack.client.attach(stack.host, { id, network, ...asked, ...more })).attachment;
};

const detach = async (...ids: string[]): Promise<void> => {
  for (const id of ids) {
    await stack.client.detach(stack.host, { id });
    await stack.gone(id);
  }
};

const addressOf = ({ addresses }: Attachment, family: 4 | 6): string =>
  addresses
    .map(({ address }) => address.split('/')[0] ?? '')
    .find((one) => one.includes(':') === (family === 6)) ?? '';

const sysctl = (netns: string, name: string, device: string, value = ''): string =>
  execFileSync(
    requireTool('ip'),
    [
      'netns',
      'exec',
      netns,
      'sh',
      '-c',
      `f=/proc/sys/net/${name.replace('*', device)}; ` +
        (value === '' ? 'cat $f' : `echo ${value} > $f`),
    ],
    { encoding: 'utf8' },
  ).trim();

/** The device that a packet to there leaves by, from an address or from none. */
function wayTo(netns: string, to: string, from?: string): string | undefined {
  const given = from === undefined ? [] : ['from', from];
  return String(ip('-n', netns, 'route', 'get', to, ...given)[0]?.['dev']);
}

/** Rules that the kernel has not made itself. */
const rulesOf = (netns: string): unknown[] =>
  FAMILIES.flatMap((family) => ip('-n', netns, `-${family}`, 'rule')).filter(
    ({ priority }) => ![0, 32_766, 32_767].includes(Number(priority)),
  );

beforeAll(async () => {
  addNamespace('router');
  run('link add nic0 type veth peer name wire0 netns router');
  run('link set nic0 up');
  run('-n router link set wire0 up');
  run('-n router addr add 10.57.0.1/24 dev wire0');
  stack = await startStack({ networks: NETWORKS });
  addNamespace('outside');
  run('link add up0 type veth peer name eth0 netns outside');
  for (const command of [
    `addr add ${HOST[4]}/24 dev up0`,
    `addr add ${HOST[6]}/64 dev up0 nodad`,
    'link set up0 up',
    '-n outside link set eth0 up',
    '-n outside addr add 192.0.2.2/24 dev eth0',
    '-n outside addr add 2001:db8::2/64 dev eth0 nodad',
  ]) {
    run(command);
  }
});
afterAll(() => stack[Symbol.asyncDispose]());
beforeEach(() => addNamespace('box'));
afterEach(async () => {
  const { attachments } = await stack.client.list(stack.host, {});
  await detach(...attachments.map(({ id }) => id));
  for (const { name } of ip('netns')) {
    if (['box', 'peer'].includes(String(name))) removeNamespace(String(name));
  }
});

describe('two host-only networks', () => {
  test('port maps of both answer, from outside and from the host, also with rp_filter', async () => {
    for (const name of ['all', 'default']) sysctl('box', 'ipv4/conf/*/rp_filter', name, '1');
    const kinds = ['tcp', 'udp'] as const;
    const map = (hostPort: number) => ({
      ports: kinds.map((protocol) => ({ protocol, hostPort, port: 80 })),
    });
    const one = await attach('one', 'host-only-51', map(8051));
    const two = await attach('two', 'host-only-52', { ...map(8052), ifname: 'eth1' });
    const each = kinds.flatMap((kind) => FAMILIES.map((family) => ({ kind, family })));
    const end = await serve(
      'box',
      Object.entries({ one, two }).flatMap(([name, attachment]) =>
        each.map(({ kind, family }) => ({
          ...{ name, kind, port: 80, host: addressOf(attachment, family) },
        })),
      ),
    );
    for (const from of ['outside', undefined]) {
      for (const [name, port] of Object.entries({ one: 8051, two: 8052 })) {
        const heard = ask(
          from,
          each.map(({ kind, family }) => ({ kind, port, host: HOST[family] })),
        );
        const wanted = each.map(({ kind, family }) => [name, kind, family]);
        expect(
          heard.map((text, n) => [text.split(' ')[0], ...(wanted[n]?.slice(1) ?? [])]),
        ).toEqual(wanted);
      }
    }
    await end();
  });

  test('the first has the default route, the second after its detach, and a third comes after both', async () => {
    await attach('one', 'host-only-51');
    await attach('two', 'host-only-52', { ifname: 'eth1' });
    const to = { 4: '198.51.100.9', 6: '2001:db8:9::9' } as const;
    for (const family of FAMILIES) expect(wayTo('box', to[family])).toBe('eth0');
    await detach('one');
    for (const family of FAMILIES) expect(wayTo('box', to[family])).toBe('eth1');
    await attach('three', 'bridged-53', { ifname: 'eth2' });
    for (const family of FAMILIES) expect(wayTo('box', to[family])).toBe('eth1');
    await detach('two');
    for (const family of FAMILIES) expect(wayTo('box', to[family])).toBe('eth2');
    await detach('three');
  });

  test('a container without a default route of its own keeps that of somebody else', async () => {
    run('-n box link add own0 type veth peer name own1');
    run('-n box link set own0 up');
    run('-n box link set own1 up');
    run('-n box addr add 10.99.0.2/24 dev own0');
    run('-n box route add default via 10.99.0.1 metric 50');
    const one = await attach('one', 'host-only-51');
    expect(wayTo('box', '198.51.100.9')).toBe('own0');
    expect(wayTo('box', '198.51.100.9', addressOf(one, 4))).toBe('eth0');
    await detach('one');
  });
});

describe.each([
  ['host-only-51', '1'],
  ['bridged-53', '0'],
  ['bridged-54', '0'],
  ['bridged-54', '1'],
  ['lan', '0'],
])('two on %s, with rp_filter %s,', (network, filter) => {
  const families = network === 'lan' ? ([4] as const) : FAMILIES;
  test('are both reachable, each by its own MAC, and the second also when it is alone', async () => {
    for (const name of ['all', 'default']) sysctl('box', 'ipv4/conf/*/rp_filter', name, filter);
    addNamespace('peer');
    const one = await attach('one', network);
    const two = await attach('two', network, { ifname: 'eth1' });
    const peer = await attach('peer', network, { netns: '/run/netns/peer' });
    const reached = (own: Attachment) =>
      families.map((family) => answers(addressOf(own, family), 'peer'));
    const all = families.map(() => true);
    expect([reached(one), reached(two)]).toEqual([all, all]);
    const ways = families.flatMap((family) =>
      [one, two].map((own) => ({
        ...{ kind: 'tcp' as const, port: 80, host: addressOf(peer, family) },
        from: addressOf(own, family),
      })),
    );
    const end = await serve(
      'peer',
      families.map((family) => ({
        ...{ name: 'peer', kind: 'tcp', port: 80, host: addressOf(peer, family) },
      })),
    );
    expect(ask('box', ways)).toEqual(ways.map(({ from }) => `peer ${from}`));
    await end();
    const known = ip('-n', 'peer', 'neigh', 'show', 'dev', 'eth0');
    for (const own of [one, two]) {
      expect(known.find(({ dst }) => dst === addressOf(own, 4))).toMatchObject({ lladdr: own.mac });
    }
    // Where the first was down for a while, the kernel has made its routes anew, after those of the second.
    run('-n box link set eth0 down');
    run('-n box link set eth0 up');
    expect([answers(addressOf(two, 4), 'peer'), answers(addressOf(one, 4), 'peer')]).toEqual([
      true,
      true,
    ]);
    await detach('one');
    expect(reached(two)).toEqual(all);
  });
});

test('the same route on two networks goes by the first, then by the second', async () => {
  const one = await attach('one', 'bridged-55');
  const two = await attach('two', 'bridged-56', { ifname: 'eth1' });
  expect(wayTo('box', '172.16.5.5')).toBe('eth0');
  expect(wayTo('box', '172.16.5.5', addressOf(one, 4))).toBe('eth0');
  expect(wayTo('box', '172.16.5.5', addressOf(two, 4))).toBe('eth1');
  expect(ip('-n', 'box', 'route', 'get', '172.16.5.5', 'from', addressOf(two, 4))).toMatchObject([
    { gateway: '10.56.0.9' },
  ]);
  expect(wayTo('box', 'fd99::1')).toBe('eth1');
  await detach('one');
  expect(wayTo('box', '172.16.5.5')).toBe('eth1');
  await detach('two');
});

test('routes of a network that is edited change with it, for the first interface and for others', async () => {
  const one = await attach('one', 'bridged-53');
  const two = await attach('two', 'bridged-55', { ifname: 'eth1' });
  const put = async (n: number, routes: readonly { to: string; via: string }[]) => {
    const { revision } = await stack.client.getNetwork(`bridged-${n}`);
    await stack.client.putNetwork({ ...dual(n, 'bridged', { routes }), revision });
  };
  await put(53, [{ to: '172.30.0.0/16', via: '10.53.0.9' }]);
  await put(55, [{ to: '172.30.0.0/16', via: '10.55.0.8' }]);
  await expect.poll(() => wayTo('box', '172.30.0.1', addressOf(two, 4))).toBe('eth1');
  await expect.poll(() => wayTo('box', '172.30.0.1', addressOf(one, 4))).toBe('eth0');
  expect(wayTo('box', '172.30.0.1')).toBe('eth0');
  await expect
    .poll(() => ip('-n', 'box', 'route', 'get', '172.30.0.1', 'from', addressOf(two, 4)))
    .toMatchObject([{ gateway: '10.55.0.8' }]);
  await detach('one');
  await expect.poll(() => wayTo('box', '172.30.0.1')).toBe('eth1');
  await detach('two');
  await put(53, []);
  await put(55, [{ to: '172.16.0.0/12', via: '10.55.0.9' }]);
});

test.each(['host-only-52', 'bridged-53', 'lan'])(
  'a detach takes the rules of its interface on %s with it, and no others',
  async (network) => {
    await attach('one', 'host-only-51');
    expect(rulesOf('box')).toEqual([]);
    const two = await attach('two', network, { ifname: 'eth1' });
    await attach('three', 'bridged-54', { ifname: 'eth2' });
    const before = rulesOf('box');
    expect(before).toContainEqual(expect.objectContaining({ src: addressOf(two, 4) }));
    await detach('two');
    const after = rulesOf('box');
    expect(after).toHaveLength(2);
    expect(before).toEqual(expect.arrayContaining(after));
    await detach('three', 'one');
    expect(rulesOf('box')).toEqual([]);
    for (const family of FAMILIES) {
      expect(
        ip('-n', 'box', `-${family}`, 'route', 'show', 'table', 'all').filter(
          ({ dev }) => dev !== 'lo',
        ),
      ).toEqual([]);
    }
  },
);

test.each(['host-only-51', 'bridged-53', 'four', 'lan'])(
  'an interface on %s takes no advertised routers',
  async (network) => {
    sysctl('box', 'ipv6/conf/*/accept_ra', 'default', '2');
    await attach('one', network);
    await attach('two', network, { ifname: 'eth1' });
    expect(sysctl('box', 'ipv6/conf/*/accept_ra', 'eth0')).toBe('0');
    expect(sysctl('box', 'ipv6/conf/*/accept_ra', 'eth1')).toBe('0');
    await detach('one', 'two');
  },
);
