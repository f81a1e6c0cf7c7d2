import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest, UpdateRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { addNamespace, nftElements } from '../../support/kernel.ts';
import { startStack, type Stack } from '../../support/stack.ts';
import { dyingWithParent } from '../../support/tools.ts';

// A live attachment is changed: what is new holds, what was is gone, and nothing is lost meanwhile.

const HOST_ONLY = {
  network: 'ho1',
  type: 'host-only',
  subnet: '10.49.0.0/24',
  gateway: '10.49.0.1',
  exclude: ['10.49.0.200/30'],
};
const BRIDGED = { network: 'br1', subnet: '10.50.0.0/24', gateway: '10.50.0.1' };

let stack: Stack;

const attach = (id: string, more: Partial<AttachRequest> = {}) =>
  stack.client.attach(stack.host, {
    id,
    workload: `container-${id}`,
    kind: 'container',
    network: 'ho1',
    netns: `/run/netns/${id}`,
    ...more,
  });

const update = (request: UpdateRequest) => stack.client.update(stack.host, request);

const maps = (): string[] => nftElements().filter((element) => / (any|one)[46] /.test(element));

const tcp = (hostPort: number) => ({ protocol: 'tcp', hostPort, port: 80 }) as const;

beforeAll(async () => {
  stack = await startStack({ networks: [HOST_ONLY, BRIDGED] });
  for (const name of ['a', 'b']) addNamespace(name);
  await attach('a', { ports: [tcp(8000)] });
  await attach('b', { network: 'br1' });
});
afterAll(() => stack[Symbol.asyncDispose]());

test('ports, labels and filter addresses take the place of what was there', async () => {
  const { attachment } = await update({
    id: 'a',
    ports: [tcp(8001), tcp(8002)],
    labels: { tier: 'web' },
    filterAddresses: ['10.49.0.201'],
  });
  expect(attachment).toMatchObject({
    ports: [{ hostPort: 8001 }, { hostPort: 8002 }],
    labels: { tier: 'web' },
    filterAddresses: ['10.49.0.201'],
  });
  expect(maps()).toHaveLength(2);
  expect(nftElements().filter((element) => element.includes('10.49.0.201'))).toHaveLength(2);
  expect((await stack.client.get(stack.host, { id: 'a' })).attachment).toEqual(attachment);
  expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
});

test('what is left out stays', async () => {
  const { attachment } = await update({ id: 'a', labels: {} });
  expect(attachment).toMatchObject({ labels: {}, filterAddresses: ['10.49.0.201'] });
  expect(attachment.ports).toHaveLength(2);
});

test('an attach with the first content, or with the content of now, is a repeat', async () => {
  expect((await attach('a', { ports: [tcp(8000)] })).replayed).toBe(true);
  expect((await attach('a', { ports: [tcp(8001), tcp(8002)] })).replayed).toBe(true);
  await expect(attach('a', { ports: [tcp(8003)] })).rejects.toMatchObject({
    code: 'ALREADY_ATTACHED',
  });
});

test('it outlives the agent', async () => {
  const before = nftElements();
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  expect(nftElements()).toEqual(before);
  expect((await stack.client.check(stack.host, {})).differences).toEqual([]);
});

test('no packet is lost while it changes', async () => {
  const [program, args] = dyingWithParent(
    'ip netns exec a ping -i 0.002 -c 1000 -q 10.49.0.1'.split(' '),
  );
  const ping = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  ping.stdout.on('data', (chunk: Buffer) => (said += chunk.toString()));
  const ended = once(ping, 'exit');
  await until('it pings', () => said.includes('PING'));
  for (let port = 9000; ping.exitCode === null && port < 9400; port += 1) {
    await update({ id: 'a', ports: [tcp(port)], filterAddresses: [] });
    await update({ id: 'a', ports: [], filterAddresses: ['10.49.0.202'] });
  }
  await ended;
  expect(said).toContain('1000 packets transmitted, 1000 received');
});

describe('a change that cannot be is refused, and nothing changes', () => {
  test.each([
    [
      'an address of the pool',
      { id: 'a', filterAddresses: ['10.49.0.77'] },
      'ADDRESS_OUT_OF_RANGE',
    ],
    [
      'an address of elsewhere',
      { id: 'a', filterAddresses: ['192.0.2.1'] },
      'ADDRESS_OUT_OF_RANGE',
    ],
    [
      'a host address that is not there',
      { id: 'a', ports: [{ ...tcp(1), hostAddress: '192.0.2.9' }] },
      'INVALID_REQUEST',
    ],
    ['ports of a bridged network', { id: 'b', ports: [tcp(8100)] }, 'UNSUPPORTED'],
    ['what is not attached', { id: 'nobody', labels: {} }, 'NOT_FOUND'],
    ['an older generation', { id: 'a', generation: 1, labels: {} }, 'STALE_GENERATION'],
    ['a port twice', { id: 'a', ports: [tcp(1), tcp(1)] }, 'INVALID_REQUEST'],
  ] as [string, UpdateRequest, string][])('%s', async (_what, request, code) => {
    const before = { elements: nftElements(), list: await stack.client.list(stack.host) };
    await expect(update(request)).rejects.toMatchObject({ code });
    expect({ elements: nftElements(), list: await stack.client.list(stack.host) }).toEqual(before);
  });

  test('a port of another attachment', async () => {
    addNamespace('c');
    await attach('c', { ports: [tcp(8200)] });
    await expect(update({ id: 'a', ports: [tcp(8200)] })).rejects.toMatchObject({
      code: 'PORT_IN_USE',
      details: { holder: { id: 'c' } },
    });
    await stack.client.detach(stack.host, { id: 'c' });
    await stack.gone('c');
  });
});

test('its event carries the attachment as it is now', async () => {
  const controller = new AbortController();
  const seen = (async () => {
    for await (const event of stack.client.watch({
      types: ['updated'],
      signal: controller.signal,
    })) {
      if (event.body['requestId'] === 'up-1') return event.body;
    }
    return undefined;
  })();
  await until('the event came', async () => {
    await update({ id: 'a', requestId: 'up-1', labels: { seen: 'yes' } });
    return (await Promise.race([seen, Promise.resolve('none')])) !== 'none';
  });
  expect(await seen).toMatchObject({ id: 'a', labels: { seen: 'yes' } });
  controller.abort();
  const cli = execFileSync(
    'deploy/bin/voltnet',
    ['--nats', stack.nats.url, '--host', stack.host, '--json', 'update', 'a', '--label', 'x=y'],
    { encoding: 'utf8' },
  );
  expect(JSON.parse(cli)).toMatchObject({ attachment: { labels: { x: 'y' } } });
});
