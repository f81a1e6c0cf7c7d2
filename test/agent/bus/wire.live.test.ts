import { execFileSync } from 'node:child_process';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { VoltEvent } from '#protocol/client.ts';
import type { EventType } from '#protocol/events.ts';
import { until } from '../../support/agent.ts';
import { ip, only } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';
import { requireTool } from '../../support/tools.ts';

// What travels: requests written by somebody else's tools, events, traces, and NATS going away.

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
}

let stack: Stack;
const spans: Span[] = [];
const collector = createServer((request, response) => {
  let body = '';
  request.on('data', (chunk: Buffer) => (body += chunk.toString()));
  request.on('end', () => {
    response.end('{}');
    const { resourceSpans = [] } = JSON.parse(body) as {
      resourceSpans?: { scopeSpans: { spans: Span[] }[] }[];
    };
    for (const { scopeSpans } of resourceSpans)
      for (const one of scopeSpans) spans.push(...one.spans);
  });
});

beforeAll(async () => {
  await new Promise<void>((resolve) => {
    collector.listen(0, '127.0.0.1', resolve);
  });
  const { port } = collector.address() as AddressInfo;
  stack = await startStack({
    env: {
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json',
      OTEL_BSP_SCHEDULE_DELAY: '100',
      OTEL_METRICS_EXPORTER: 'none',
    },
  });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  collector.close();
});

const stranger = (operation: string, request: object): Record<string, unknown> => {
  const script = new URL('stranger.py', import.meta.url).pathname;
  const args = [String(stack.nats.port), stack.host, operation, JSON.stringify(request)];
  // Debian's interpreter: it is the one that sees Debian's msgpack.
  const answer = execFileSync('/usr/bin/python3', [script, ...args], { encoding: 'utf8' });
  return JSON.parse(answer) as Record<string, unknown>;
};

const vm = (id: string) => ({ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' }) as const;

test('another NATS client and another MessagePack library attach, list and detach', async () => {
  requireTool('python3');
  const { attachment, replayed } = stranger('attach', vm('foreign')) as {
    attachment: { device: { name: string; ifindex: number; mac: string; mtu: number } };
    replayed: boolean;
  };
  expect(replayed).toBe(false);
  expect(only(ip('link', 'show', attachment.device.name))).toMatchObject({
    ifindex: attachment.device.ifindex,
    address: attachment.device.mac,
    mtu: attachment.device.mtu,
  });
  expect(stranger('list', {})).toMatchObject({ attachments: [{ id: 'foreign' }] });
  expect(stranger('detach', { id: 'foreign' })).toEqual({ detached: true, releasing: true });
  await stack.gone('foreign');
  expect(stranger('get', { id: 'foreign' })).toMatchObject({
    error: { code: 'NOT_FOUND', retryable: false },
  });
});

test('the service answers pings with its host', async () => {
  const message = await stack.connection.request('$SRV.PING.volt-network-agent');
  expect(message.json()).toMatchObject({
    name: 'volt-network-agent',
    metadata: { host: stack.host },
  });
});

test('one trace runs from the caller through ledger and kernel to the event', async () => {
  const traceId = 'c0ffee00c0ffee00c0ffee00c0ffee00';
  const traceparent = `00-${traceId}-00f067aa0ba902b7-01`;
  const events = watchOne('attached');
  await stack.client.attach(stack.host, vm('traced'), { traceparent });
  const event = await events;
  expect(event.traceparent?.split('-')[1]).toBe(traceId);
  expect(event).toMatchObject({
    subject: 'traced',
    body: { id: 'traced', durationMs: { ipam: expect.any(Number), kernel: expect.any(Number) } },
  });
  await until('the spans have come', () => {
    return spans.some(({ name, traceId: id }) => id === traceId && name === 'publish attached');
  });
  const own = spans.filter((span) => span.traceId === traceId);
  const named = (name: string): Span => {
    const found = own.find((span) => span.name === name);
    if (found === undefined) throw new Error(`no span ${name} in ${own.map((s) => s.name).join()}`);
    return found;
  };
  const root = named('attach');
  expect(root.parentSpanId).toBe('00f067aa0ba902b7');
  expect(event.traceparent?.split('-')[2]).toBe(root.spanId);
  for (const child of ['ipam', 'kernel', 'publish attached']) {
    expect(named(child).parentSpanId).toBe(root.spanId);
  }
  for (const [name, parent] of [
    ['TUNSETIFF tap-traced', 'kernel'],
    ['RTM_SETLINK tap-traced', 'kernel'],
    ['sysctl net/ipv6/conf/tap-traced/disable_ipv6=1', 'kernel'],
  ] as const) {
    expect(named(name).parentSpanId).toBe(named(parent).spanId);
  }
  expect(own.some((s) => s.name === 'redis fcall' && s.parentSpanId === named('ipam').spanId)).toBe(
    true,
  );
  await stack.client.detach(stack.host, { id: 'traced' });
  await stack.gone('traced');
});

async function watchOne(type: EventType): Promise<VoltEvent> {
  const watch = stack.client.watch({ types: [type] });
  const next = watch.next();
  const { value } = await next;
  await watch.return();
  if (value === undefined) throw new Error('the watch ended');
  return value;
}

describe('events', () => {
  test('tell of attach, failure and detach, in order, with the request ids', async () => {
    const seen: [type: string, requestId: unknown][] = [];
    const ended = new AbortController();
    const watching = (async () => {
      for await (const { type, body } of stack.client.watch({ signal: ended.signal })) {
        seen.push([type, body['requestId']]);
      }
    })();
    await stack.connection.flush();
    await stack.client.attach(stack.host, { ...vm('told'), requestId: 'r1' });
    const other = { ...vm('told'), mtu: 1300, requestId: 'r2' };
    await expect(stack.client.attach(stack.host, other)).rejects.toMatchObject({
      code: 'ALREADY_ATTACHED',
    });
    await stack.client.detach(stack.host, { id: 'told', requestId: 'r3' });
    await stack.gone('told');
    await until('three events have come', () => seen.length >= 3);
    ended.abort();
    await watching;
    expect(seen).toEqual([
      ['attached', 'r1'],
      ['failed', 'r2'],
      ['detached', 'r3'],
    ]);
  });

  test('wait on disk while NATS is away, and none is lost or told twice', async () => {
    await stack.client.attach(stack.host, { ...vm('waits'), leaseTtlSeconds: 2 });
    await stack.nats.kill();
    const pending = async (): Promise<unknown> => (await stack.agent.health())['eventsPending'];
    // The lease expires while nobody can be told.
    const devices = (): unknown[] => ip('link').map(({ ifname }) => ifname);
    await until('the device is gone', () => !devices().includes('tap-waits'));
    await until('its end is on disk', async () => {
      const { attachments, unfinished } = await stack.agent.health();
      return attachments === 0 && unfinished === 0;
    });
    // That of the attach may not have been out either.
    expect(await pending()).toBeGreaterThanOrEqual(1);
    expect((await stack.agent.health())['nats']).toBe('connecting');
    await stack.nats.restart();
    await until('the event is out', async () => (await pending()) === 0);
    await until('NATS is back', async () => (await stack.agent.health())['nats'] === 'connected');
    await until('this test is back', async () => (await stack.connection.rtt()) >= 0);
    const manager = await stack.connection.jetstreamManager();
    const { state } = await manager.streams.info('VOLT_NET_EVENTS', {
      subjects_filter: 'volt.net.v1.event.*.*.detached',
    });
    const last = await manager.streams.getMessage('VOLT_NET_EVENTS', {
      last_by_subj: `volt.net.v1.event.${stack.host}.volt0.detached`,
    });
    expect(last.header.get('ce-subject')).toBe('waits');
    expect(state.messages).toBeGreaterThan(0);
    expect(await stack.client.list(stack.host, {})).toEqual({ attachments: [] });
  });
});

test('an agent that starts while NATS and Redis are away is up, says so, and serves when they come', async () => {
  await stack.nats.kill();
  await stack.redis.kill();
  await stack.agent.restart();
  expect(await stack.agent.health()).toMatchObject({
    nats: 'connecting',
    redis: { state: expect.stringMatching(/connecting|unavailable/) },
  });
  await stack.nats.restart();
  await stack.redis.restart();
  await stack.agent.ready();
  await until('this test is back', async () => (await stack.connection.rtt()) >= 0);
  // Redis lost everything; the agent has not.
  const names = async (): Promise<string[]> =>
    (await stack.client.listNetworks()).networks.map(({ network }) => network.network);
  await until('it answers', async () => (await names()).join() === 'volt0');
  expect(await stack.agent.stop()).toBe(0);
});
