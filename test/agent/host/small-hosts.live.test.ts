import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Attachment, AttachRequest, Difference } from '#protocol/attachment.ts';
import { addNamespace, ip, only, removeNamespace } from '../../support/kernel.ts';
import { answers, run } from '../../support/segment.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { within } from '../../support/talk.ts';
import { requireTool } from '../../support/tools.ts';

// Small MTUs, and hosts and containers where IPv6 is switched off, wholly or by default.

const TYPES = ['bridged', 'host-only', 'macvtap'] as const;
const KINDS = ['container', 'vm'] as const;
const MTUS = [68, 576, 1279] as const;
const CONF = '/proc/sys/net/ipv6/conf';

const parentOf = (type: string): object => (type === 'macvtap' ? { parent: 'nic0' } : {});
const four = (type: string, n: number, more: object = {}) => ({
  network: `${type}-${n}`,
  type,
  subnet: `10.${n}.0.0/24`,
  gateway: `10.${n}.0.1`,
  reuseDelaySeconds: 0,
  ...parentOf(type),
  ...more,
});
const dual = (type: string, n: number) => ({
  ...four(type, n),
  ipv6: { subnet: `fd00:${n}::/64`, gateway: `fd00:${n}::1` },
});

/** For each type and MTU a network that has it; then networks of IPv4 and of both, each used by one test. */
const BY_MTU = TYPES.flatMap((type, t) =>
  MTUS.map((mtu, m) => four(type, 60 + 10 * t + m, { mtu })),
);
const DUAL = TYPES.map((type, t) => dual(type, 100 + t));
const HIDDEN_FOUR = TYPES.map((type, t) => four(type, 110 + t));
const BY_DEFAULT = (['bridged', 'host-only'] as const).map((type, t) => dual(type, 120 + t));
const ISLAND = { network: 'island', type: 'isolated' };

let stack: Stack;

const attach = async (network: string, more: Partial<AttachRequest> = {}): Promise<Attachment> => {
  const { kind = 'container' } = more;
  const netns = kind === 'container' ? { netns: '/run/netns/box' } : {};
  const asked = { id: 'one', workload: 'w', kind, network, ...netns, ...more };
  return (await stack.client.attach(stack.host, asked)).attachment;
};
const refusal = (network: string, more: Partial<AttachRequest> = {}): Promise<unknown> =>
  attach(network, more).then(
    () => 'attached',
    (error: unknown) => error,
  );
const detach = async (id: string): Promise<void> => {
  await stack.client.detach(stack.host, { id });
  await stack.gone(id);
};
const inSync = async (): Promise<readonly Difference[]> =>
  (await stack.client.check(stack.host, {})).differences;

const mtuOf = (attachment: Attachment): unknown => {
  const { device, kind, netns = '' } = attachment;
  const inside =
    attachment.type === 'isolated' || (kind === 'container' && device?.peer === undefined);
  const at = inside ? ['-n', netns.replace('/run/netns/', '')] : [];
  return only(ip(...at, 'link', 'show', device?.name ?? ''))['mtu'];
};

beforeAll(async () => {
  run('link add nic0 type veth peer name wire0');
  for (const name of ['nic0', 'wire0']) run(`link set ${name} up`);
  stack = await startStack({
    networks: [...BY_MTU, ...DUAL, ...HIDDEN_FOUR, ...BY_DEFAULT, ISLAND],
  });
});
afterAll(() => stack[Symbol.asyncDispose]());
beforeEach(() => addNamespace('box'));
afterEach(async () => {
  for (const { id } of (await stack.client.list(stack.host, {})).attachments) await detach(id);
  removeNamespace('box');
});

describe.each(KINDS)('a %s', (kind) => {
  test.each(BY_MTU)('is attached with an MTU of $mtu on a network of $network', async (network) => {
    const { mtu } = network as typeof network & { mtu: number };
    const attachment = await attach(network.network, { kind });
    expect(mtuOf(attachment)).toBe(mtu);
    expect(await inSync()).toEqual([]);
    if (kind === 'container' && network.type !== 'macvtap' && mtu >= 576) {
      expect(answers(network.gateway, 'box')).toBe(true);
    }
  });

  test.each(DUAL)('on $network is refused an MTU that is too small for IPv6', async (network) => {
    const before = await stack.snapshot();
    expect(await refusal(network.network, { kind, mtu: 1279 })).toMatchObject({
      code: 'INVALID_REQUEST',
      message: expect.stringMatching(/^mtu: 1279 .*IPv6/),
      details: { path: 'mtu', least: 1280 },
    });
    await expect.poll(() => stack.snapshot()).toEqual(before);
    expect(ip('-n', 'box', 'link').map(({ ifname }) => ifname)).toEqual(['lo']);
  });
});

test.each(MTUS)('an isolated VM is attached with an MTU of %i', async (mtu) => {
  expect(mtuOf(await attach('island', { kind: 'vm', mtu }))).toBe(mtu);
  expect(await inSync()).toEqual([]);
});

test.each(DUAL)(
  'a container without IPv6 gets it on its interface on $network, and nowhere else',
  async ({ network, type }) => {
    const off = 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6';
    const [program = '', ...args] = within('box', ['sh', '-c', off]);
    execFileSync(program, args);
    run('-n box link add other type veth peer name other1');
    const { addresses } = await attach(network);
    const own = addresses.find(({ address }) => address.includes(':'));
    const found = only(ip('-n', 'box', '-6', 'addr', 'show', 'eth0')).addr_info;
    expect(found.map(({ local, prefixlen }) => `${local}/${prefixlen}`)).toContain(own?.address);
    if (type !== 'macvtap') expect(answers(own?.gateway ?? '', 'box')).toBe(true);
    const [cat = '', ...more] = within('box', ['cat', `${CONF}/other/disable_ipv6`]);
    expect(execFileSync(cat, more, { encoding: 'utf8' }).trim()).toBe('1');
  },
);

describe('on a host whose new devices have no IPv6', () => {
  beforeAll(() => writeFileSync(`${CONF}/default/disable_ipv6`, '1'));
  afterAll(() => writeFileSync(`${CONF}/default/disable_ipv6`, '0'));

  test.each(BY_DEFAULT)('a bridge of $network is a gateway for both families', async (network) => {
    await attach(network.network);
    const all = ip('addr', 'show', network.network).flatMap(({ addr_info }) => addr_info);
    const gateways = [network.gateway, network.ipv6.gateway];
    expect(all.map(({ local }) => local)).toEqual(expect.arrayContaining(gateways));
    for (const gateway of gateways) expect(answers(gateway, 'box')).toBe(true);
  });
});

// `ipv6.disable=1` takes the whole folder away. Here a mount hides it from the agent, and the kernel has IPv6 still.
describe('on a host without IPv6', () => {
  const ofAgent = (...command: string[]): Buffer =>
    execFileSync(requireTool('nsenter'), [`--mount=/proc/${stack.agent.pid}/ns/mnt`, ...command]);
  beforeAll(() => ofAgent('mount', '-t', 'tmpfs', 'none', '/proc/sys/net/ipv6'));
  afterAll(() => ofAgent('umount', '/proc/sys/net/ipv6'));

  test.each(KINDS.flatMap((kind) => HIDDEN_FOUR.map((one) => ({ kind, network: one.network }))))(
    'a $kind is attached to $network',
    async ({ kind, network }) => {
      const attachment = await attach(network, { kind });
      expect(attachment.state).toBe('attached');
      // The settings are hidden from the agent alone: the kernel has them, and tells of them.
      const differences = await inSync();
      expect(differences.filter(({ what }) => !what.includes('.ipv6.'))).toEqual([]);
      if (kind === 'container' && !network.startsWith('macvtap')) {
        expect(answers(attachment.addresses[0]?.gateway ?? '', 'box')).toBe(true);
      }
    },
  );

  test.each(KINDS.flatMap((kind) => DUAL.map((one) => ({ kind, network: one.network }))))(
    'a $kind is told what is in the way of $network, and nothing is left',
    async ({ kind, network }) => {
      const before = await stack.snapshot();
      expect(await refusal(network, { kind })).toMatchObject({
        code: 'UNSUPPORTED',
        message: expect.stringContaining('IPv6, which is switched off on this host'),
        details: { path: 'network.ipv6' },
      });
      await expect.poll(() => stack.snapshot()).toEqual(before);
    },
  );

  test('it is the agent that does not see IPv6', () => {
    expect(readFileSync(`/proc/${stack.agent.pid}/mounts`, 'utf8')).toContain('/proc/sys/net/ipv6');
  });
});
