import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { addNamespace, ip, only } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A NIC of the host as a port of the bridge, with a peer on its wire.

let stack: Stack;

const run = (command: string): string =>
  execFileSync('ip', command.split(' '), { encoding: 'utf8' });

const attach = (id: string, network: string) =>
  stack.client.attach(stack.host, { id, workload: `vm-${id}`, kind: 'vm', network });

const networkOf = (network: string, number: number, uplink: object) => ({
  network,
  subnet: `10.67.${number}.0/24`,
  gateway: `10.67.${number}.1`,
  uplink,
});

beforeAll(async () => {
  addNamespace('peer');
  addNamespace('box');
  for (const command of [
    'link add up0 mtu 1400 type veth peer name eth0 netns peer',
    'addr add 192.0.2.1/24 dev up0',
    '-n peer link set eth0 up',
    '-n peer addr add 10.67.0.99/24 dev eth0',
    'link add way0 type veth peer name way1',
    'addr add 198.51.100.1/24 dev way0',
    'link set way0 up',
    'link set way1 up',
    'route add default via 198.51.100.2',
    'link add other0 type bridge',
    'link add port0 type veth peer name port1',
    'link set port0 master other0',
  ]) {
    run(command);
  }
  stack = await startStack({
    networks: [
      networkOf('upl0', 0, { device: 'up0' }),
      networkOf('upl1', 1, { device: 'way0' }),
      networkOf('upl2', 2, { device: 'way0', allowDefaultRoute: true }),
      networkOf('upl3', 3, { device: 'none0' }),
      networkOf('upl4', 4, { device: 'port0' }),
    ],
  });
});
afterAll(() => stack[Symbol.asyncDispose]());

test('becomes a port, keeps its addresses, and brings its MTU and its segment along', async () => {
  const { attachment } = await stack.client.attach(stack.host, {
    id: 'box',
    workload: 'container-box',
    kind: 'container',
    network: 'upl0',
    netns: '/run/netns/box',
  });
  expect(attachment.device?.mtu).toBe(1400);
  const uplink = only(ip('addr', 'show', 'up0'));
  expect(uplink).toMatchObject({ master: 'upl0' });
  expect(uplink.addr_info.map(({ local }) => local)).toContain('192.0.2.1');
  execFileSync('ip', 'netns exec box ping -c 1 -W 5 10.67.0.99'.split(' '));
  await stack.client.detach(stack.host, { id: 'box' });
  await stack.gone('box');
  expect(only(ip('link', 'show', 'up0'))['master']).toBe('upl0');
});

test('taken away by hand is put back by the next attach', async () => {
  run('link set up0 nomaster');
  await attach('back', 'upl0');
  expect(only(ip('link', 'show', 'up0'))['master']).toBe('upl0');
});

test('with the default route of the host is refused, unless that is wanted', async () => {
  const before = await stack.snapshot();
  await expect(attach('no', 'upl1')).rejects.toMatchObject({
    code: 'UNSUPPORTED',
    details: { path: 'uplink.device', device: 'way0' },
  });
  expect(await stack.snapshot()).toEqual(before);
  expect(only(ip('link', 'show', 'way0'))['master']).toBeUndefined();
  await attach('yes', 'upl2');
  expect(only(ip('link', 'show', 'way0'))['master']).toBe('upl2');
  expect(ip('route', 'show', 'default')).toHaveLength(1);
});

test.each([
  ['that is not there', 'upl3', 'PARENT_NOT_FOUND'],
  ['that is a port of another bridge', 'upl4', 'DEVICE_BUSY'],
])('%s is refused', async (_what, network, code) => {
  const before = await stack.snapshot();
  await expect(attach('no', network)).rejects.toMatchObject({ code });
  expect(await stack.snapshot()).toEqual(before);
});
