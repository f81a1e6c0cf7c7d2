import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { encode as encodeAny } from '@msgpack/msgpack';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { decodeAnswer } from '#protocol/envelope.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, ip, removeNamespace } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// Everything that can be wrong with a request gets its own error, and leaves nothing: no lease, no record, no
// address that cools down, no device.

const TINY = {
  network: 'tiny0',
  subnet: '10.43.0.0/29',
  gateway: '10.43.0.1',
  pool: { start: '10.43.0.2', end: '10.43.0.4' },
  reservations: { 'vm-web': '10.43.0.5' },
  exclude: ['10.43.0.6'],
};

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: [TINY] });
  addNamespace('full');
  execFileSync(requireTool('ip'), [...['-n', 'full', 'link', 'add', 'eth0', 'type', 'bridge']]);
  mkdirSync('/run/files');
  writeFileSync('/run/files/plain', '');
  // The bridge is there from the first attach on; it is not what a refused request may leave.
  await stack.client.attach(stack.host, request('first'));
  await stack.client.detach(stack.host, { id: 'first' });
  await stack.gone('first');
});
afterAll(() => stack[Symbol.asyncDispose]());

function request(id: string, extra: Partial<AttachRequest> = {}): AttachRequest {
  return { id, workload: `container-${id}`, kind: 'container', network: 'tiny0', ...extra };
}

/** Sends bytes as they are; answers the error's code and its service headers. */
async function raw(
  operation: string,
  payload: Uint8Array,
): Promise<{ code: string | undefined; path: unknown; headers: (string | undefined)[] }> {
  const subject = `volt.net.v1.host.${stack.host}.${operation}`;
  const message = await stack.connection.request(subject, payload, { timeout: 5_000 });
  const { error } = decodeAnswer(message.data) as {
    error?: { code: string; details?: { path?: unknown } };
  };
  const header = (name: string): string | undefined => message.headers?.get(name);
  return {
    code: error?.code,
    path: error?.details?.path,
    headers: [header('Nats-Service-Error-Code'), header('Nats-Service-Error')],
  };
}

describe('a refused attach leaves everything as it was', () => {
  const cases: [name: string, code: string, extra: Partial<AttachRequest>][] = [
    ['an unknown network', 'UNKNOWN_NETWORK', { network: 'nowhere' }],
    ['an address outside', 'ADDRESS_OUT_OF_RANGE', { addresses: ['10.99.0.1'] }],
    ['an address of another family', 'ADDRESS_OUT_OF_RANGE', { addresses: ['fd00::1'] }],
    ['the gateway', 'ADDRESS_OUT_OF_RANGE', { addresses: ['10.43.0.1'] }],
    ['the network address', 'ADDRESS_OUT_OF_RANGE', { addresses: ['10.43.0.0'] }],
    ['the broadcast address', 'ADDRESS_OUT_OF_RANGE', { addresses: ['10.43.0.7'] }],
    ['an excluded address', 'ADDRESS_OUT_OF_RANGE', { addresses: ['10.43.0.6'] }],
    ['an address reserved for another', 'ADDRESS_IN_USE', { addresses: ['10.43.0.5'] }],
    ['a namespace that is not there', 'NAMESPACE_NOT_FOUND', { netns: '/run/netns/none' }],
    ['a file that is no namespace', 'NAMESPACE_NOT_FOUND', { netns: '/run/files/plain' }],
    ['a namespace of another kind', 'NAMESPACE_NOT_FOUND', { netns: '/proc/self/ns/uts' }],
    ['a name taken in the namespace', 'INTERFACE_EXISTS', { netns: '/run/netns/full' }],
    ['an MTU beyond the bridge', 'INVALID_REQUEST', { mtu: 9000 }],
    [
      'port maps on a bridged network',
      'UNSUPPORTED',
      { ports: [{ protocol: 'tcp', hostPort: 80, port: 80 }] },
    ],
  ];
  test.each(cases)('%s: %s', async (_name, code, extra) => {
    const before = await stack.snapshot();
    const asked = request('refused', extra);
    await expect(stack.client.attach(stack.host, asked)).rejects.toMatchObject({ code });
    expect(await stack.snapshot()).toEqual(before);
  });

  test("the host's own namespace: INVALID_REQUEST", async () => {
    const before = await stack.snapshot();
    const asked = request('refused', { netns: `/proc/${stack.agent.pid}/ns/net` });
    await expect(stack.client.attach(stack.host, asked)).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path: 'netns' },
    });
    expect(await stack.snapshot()).toEqual(before);
  });

  test('an address that is held: ADDRESS_IN_USE, and so is a MAC: MAC_IN_USE', async () => {
    const { attachment } = await stack.client.attach(stack.host, request('holder'));
    const held = attachment.addresses[0]?.address.split('/')[0] ?? '';
    const before = await stack.snapshot();
    await expect(
      stack.client.attach(stack.host, request('second', { addresses: [held] })),
    ).rejects.toMatchObject({ code: 'ADDRESS_IN_USE', details: { id: 'holder' } });
    await expect(
      stack.client.attach(stack.host, request('second', { mac: attachment.mac })),
    ).rejects.toMatchObject({ code: 'MAC_IN_USE' });
    expect(await stack.snapshot()).toEqual(before);
    await stack.client.detach(stack.host, { id: 'holder' });
    await stack.gone('holder');
  });

  test('a pool that is exhausted: POOL_EXHAUSTED says when an address has cooled down', async () => {
    await stack.client.attach(stack.host, request('last'));
    const before = await stack.snapshot();
    await expect(stack.client.attach(stack.host, request('third'))).rejects.toMatchObject({
      code: 'POOL_EXHAUSTED',
      retryable: true,
      retryAfterMs: expect.any(Number),
    });
    expect(await stack.snapshot()).toEqual(before);
    await stack.client.detach(stack.host, { id: 'last' });
    await stack.gone('last');
  });
});

describe('a payload that is no request', () => {
  const good = { id: 'x', workload: 'container-x', kind: 'container', network: 'tiny0' };
  let deep: unknown = 1;
  for (let level = 0; level < 9; level += 1) deep = { deep };
  const cases: [name: string, code: string, payload: Uint8Array][] = [
    ['garbage', 'INVALID_REQUEST', Uint8Array.from([0xc1, 0xff, 0x00])],
    ['nothing', 'INVALID_REQUEST', new Uint8Array()],
    ['an array', 'INVALID_REQUEST', encodeAny([good])],
    ['bytes behind the request', 'INVALID_REQUEST', Buffer.concat([encodeAny(good), encodeAny(1)])],
    ['65 KiB', 'TOO_LARGE', encodeAny({ ...good, labels: { big: 'x'.repeat(65 * 1024) } })],
    ['nine levels', 'INVALID_REQUEST', encodeAny({ ...good, labels: deep })],
    ['a timestamp', 'INVALID_REQUEST', encodeAny({ ...good, labels: { at: new Date() } })],
  ];
  test.each(cases)('%s: %s', async (_name, code, payload) => {
    const before = await stack.snapshot();
    for (const operation of ['attach', 'detach', 'get', 'list', 'check']) {
      const answer = await raw(operation, payload);
      expect(answer.code, operation).toBe(code);
      expect(answer.headers).toEqual([code === 'TOO_LARGE' ? '413' : '400', code]);
    }
    expect(await stack.snapshot()).toEqual(before);
  });

  const fields: [path: string, value: unknown][] = [
    ['id', ''],
    ['id', 'a/b'],
    ['id', 'x'.repeat(65)],
    ['workload', 7],
    ['kind', 'pod'],
    ['network', 'Volt0'],
    ['netns', 'run/netns/x'],
    ['ifname', 'sixteen-bytes-xx'],
    ['addresses', '10.43.0.2'],
    ['mac', '01:00:5e:00:00:01'],
    ['mtu', 0],
    ['hostname', '-x'],
    ['tap', { queues: 1 }],
    ['leaseTtlSeconds', -1],
    ['labels', { a: 1 }],
    ['colour', 'red'],
  ];
  test.each(fields)('names %s when it is wrong (%j)', async (path, value) => {
    const answer = await raw('attach', encodeAny({ ...good, [path]: value }));
    expect(answer.code).toBe('INVALID_REQUEST');
    expect(String(answer.path).split('.')[0]).toBe(path);
  });

  test.each(['id', 'workload', 'kind', 'network'])('names %s when it is absent', async (path) => {
    const answer = await raw('attach', encodeAny({ ...good, [path]: null }));
    expect(answer).toMatchObject({ code: 'INVALID_REQUEST', path });
  });
});

test('an agent without CAP_NET_ADMIN answers KERNEL_ERROR with the errno, and leaves nothing', async () => {
  const bounding = ['--bounding-set', '-net_admin', '--inh-caps', '-net_admin'];
  await using weak = await startStack({
    networks: [{ ...TINY, network: 'weak0', subnet: '10.44.0.0/29' }].map((network) => ({
      ...network,
      gateway: '10.44.0.1',
      pool: { start: '10.44.0.2', end: '10.44.0.3' },
      reservations: {},
      exclude: [],
    })),
    wrap: [requireTool('setpriv'), ...bounding, '--'],
  });
  const before = await weak.snapshot();
  for (const kind of ['vm', 'container'] as const) {
    await expect(
      weak.client.attach(weak.host, { id: 'no', workload: 'w', kind, network: 'weak0' }),
    ).rejects.toMatchObject({ code: 'KERNEL_ERROR', details: { errno: 'EPERM' } });
  }
  expect(await weak.snapshot()).toEqual(before);
});

test('Redis away: STORE_UNAVAILABLE, detach takes the device away and the lease follows', async () => {
  await using own = await startStack({
    networks: [{ ...TINY, network: 'away0', subnet: '10.45.0.0/24' }].map(
      ({ network, subnet }) => ({ network, subnet, gateway: '10.45.0.1' }),
    ),
    // A second agent in this namespace.
    config: { nftablesTable: 'volt_away' },
  });
  const asked = { workload: 'container-a', kind: 'container', network: 'away0' } as const;
  const { attachment } = await own.client.attach(own.host, { ...asked, id: 'a' });
  const before = await own.snapshot();
  await own.redis.kill();
  await until('the agent has noticed', async () => {
    const { redis } = await own.agent.health();
    return (redis as { state: string }).state !== 'ready';
  });
  await expect(own.client.attach(own.host, { ...asked, id: 'b' })).rejects.toMatchObject({
    code: 'STORE_UNAVAILABLE',
    retryable: true,
  });
  // A repeat needs no store.
  expect(await own.client.attach(own.host, { ...asked, id: 'a' })).toMatchObject({
    replayed: true,
  });
  expect(ip('link').map(({ ifname }) => ifname)).toContain(attachment.device?.name);
  expect(await own.client.detach(own.host, { id: 'a' })).toEqual({
    detached: true,
    releasing: true,
  });
  expect(ip('link').map(({ ifname }) => ifname)).not.toContain(attachment.device?.name);
  expect((await own.client.list(own.host, {})).attachments).toMatchObject([
    { id: 'a', state: 'detaching' },
  ]);
  // It comes back empty, and with it the agent's function library.
  await own.redis.restart();
  await own.gone('a');
  expect(before.attachments).toBe(1);
  await own.agent.ready();
  await own.client.putNetwork({ network: 'away0', subnet: '10.45.0.0/24', gateway: '10.45.0.1' });
  await own.client.attach(own.host, { ...asked, id: 'b' });
  await own.client.detach(own.host, { id: 'b' });
  await own.gone('b');
});

test('the namespace of the taken name is as it was', () => {
  expect(ip('-n', 'full', 'link').map(({ ifname }) => ifname)).toEqual(['lo', 'eth0']);
  removeNamespace('full');
});
