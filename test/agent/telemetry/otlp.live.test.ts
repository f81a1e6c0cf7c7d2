import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { METRICS, instrumentName } from '#agent/telemetry/metrics-table.ts';
import { type RunningAgent, startAgent, until } from '../../support/agent.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// Metrics as a collector gets them, over OTLP in both encodings of HTTP.

interface Received {
  readonly path: string;
  readonly type: string;
  readonly body: Buffer;
}

interface OtlpMetrics {
  readonly resourceMetrics: readonly {
    readonly resource: { readonly attributes: readonly { key: string; value: object }[] };
    readonly scopeMetrics: readonly {
      readonly metrics: readonly {
        readonly name: string;
        readonly unit: string;
        readonly sum?: { readonly isMonotonic: boolean; readonly dataPoints: readonly unknown[] };
        readonly gauge?: { readonly dataPoints: readonly unknown[] };
        readonly histogram?: { readonly dataPoints: readonly unknown[] };
      }[];
    }[];
  }[];
}

const received: Received[] = [];
const collector = createServer((request, response) => {
  const chunks: Buffer[] = [];
  request.on('data', (chunk: Buffer) => chunks.push(chunk));
  request.on('end', () => {
    const type = request.headers['content-type'] ?? '';
    received.push({ path: request.url ?? '', type, body: Buffer.concat(chunks) });
    const isJson = type === 'application/json';
    response.writeHead(200, { 'content-type': type }).end(isJson ? '{}' : '');
  });
});
let url: string;

beforeAll(async () => {
  await new Promise<void>((resolve) => {
    collector.listen(0, '127.0.0.1', resolve);
  });
  url = `http://127.0.0.1:${(collector.address() as AddressInfo).port}`;
});
afterAll(() => collector.close());

const every = { OTEL_METRIC_EXPORT_INTERVAL: '200', OTEL_TRACES_EXPORTER: 'none' };

describe('OTLP', () => {
  let stack: Stack;
  afterAll(() => stack[Symbol.asyncDispose]());

  test('in JSON, with names, units and kinds of the table, and whose they are', async () => {
    const endpoint = { OTEL_EXPORTER_OTLP_ENDPOINT: url, OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' };
    stack = await startStack({
      env: { ...every, ...endpoint, OTEL_RESOURCE_ATTRIBUTES: 'rack=r7' },
    });
    const { client, host } = stack;
    await client.attach(host, { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' });
    let last: OtlpMetrics['resourceMetrics'][number] | undefined;
    const metrics = () => last?.scopeMetrics.flatMap((scope) => scope.metrics) ?? [];
    await until('the attachment is exported', () => {
      const json = received.findLast(({ type }) => type === 'application/json');
      if (json === undefined) return false;
      expect(json.path).toBe('/v1/metrics');
      [last] = (JSON.parse(json.body.toString()) as OtlpMetrics).resourceMetrics;
      return metrics().some(({ name }) => name === 'volt_network_attachments');
    });
    const known = new Map(
      Object.entries(METRICS).map(([name, kind]) => [instrumentName(name), kind]),
    );
    for (const { name, unit, sum, gauge, histogram } of metrics()) {
      const { kind, unit: expected } = known.get(name) ?? {};
      expect({ name, unit }).toEqual({
        name,
        unit: { '': '', seconds: 's', bytes: 'By' }[expected ?? ''],
      });
      const points = kind === 'counter' ? sum : kind === 'gauge' ? gauge : histogram;
      expect([name, points?.dataPoints.length]).not.toEqual([name, 0]);
      expect([name, sum?.isMonotonic]).toEqual([name, kind === 'counter' ? true : undefined]);
    }
    const attributes = Object.fromEntries(
      last?.resource.attributes.map(({ key, value }) => [key, Object.values(value)[0]]) ?? [],
    );
    expect(attributes).toMatchObject({
      'host.name': 'h1',
      'service.name': 'volt-network-agent',
      rack: 'r7',
    });
  });
});

describe('an agent without servers', () => {
  let agent: RunningAgent;
  afterAll(() => agent.stop());

  test('exports in protobuf to the address for metrics alone', async () => {
    agent = await startAgent({
      config: { host: 'h2' },
      env: { ...every, OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: `${url}/own/metrics` },
    });
    await until('it is exported', () => {
      const found = received.find(({ path }) => path === '/own/metrics');
      return (
        found?.type === 'application/x-protobuf' && found.body.includes('volt_network_nats_state')
      );
    });
  });
});

describe('a collector that is away', () => {
  let agent: RunningAgent;
  afterAll(() => agent.stop());

  test('is in the log, and stops nothing', async () => {
    const nobody = 'http://127.0.0.1:1';
    agent = await startAgent({
      config: { host: 'h3' },
      env: { ...every, OTEL_METRICS_EXPORTER: 'otlp,foo', OTEL_EXPORTER_OTLP_ENDPOINT: nobody },
    });
    await until('the log has it', () => /"msg":"OpenTelemetry"/.test(agent.output()));
    expect(agent.output()).toContain('"exporter":"foo"');
    expect(await agent.health()).toMatchObject({ host: 'h3' });
  });
});

describe('whose they are', () => {
  interface Exported {
    readonly resourceMetrics?: readonly Owned[];
    readonly resourceSpans?: readonly Owned[];
  }
  interface Owned {
    readonly resource: { readonly attributes: readonly { key: string; value: object }[] };
  }
  const own = { 'service.name': 'volt-network-agent', 'host.name': 'h4' };
  const mine = { 'service.name': 'mine', 'host.name': 'other' };

  test.each([
    ['nothing is said', {}, own],
    ['nonsense is said', { OTEL_RESOURCE_ATTRIBUTES: 'rack=r7,rack' }, own],
    ['an empty name is said', { OTEL_SERVICE_NAME: '' }, own],
    ['attributes say so', { OTEL_RESOURCE_ATTRIBUTES: 'service.name=mine,host.name=other' }, mine],
    [
      'the service is named twice',
      { OTEL_SERVICE_NAME: 'mine', OTEL_RESOURCE_ATTRIBUTES: 'service.name=not,host.name=other' },
      mine,
    ],
  ])('metrics and traces say it where %s', async (name, said, expected) => {
    const place = `/${name.replaceAll(' ', '-')}`;
    const agent = await startAgent({
      config: { host: 'h4' },
      env: {
        ...{ OTEL_METRIC_EXPORT_INTERVAL: '200', OTEL_BSP_SCHEDULE_DELAY: '100' },
        ...{ OTEL_EXPORTER_OTLP_ENDPOINT: url + place, OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' },
        ...said,
      },
    });
    const resourceOf = (path: string): Record<string, unknown> | undefined => {
      const found = received.find((one) => one.path === place + path);
      if (found === undefined) return undefined;
      const exported = JSON.parse(found.body.toString()) as Exported;
      const [owned] = exported.resourceMetrics ?? exported.resourceSpans ?? [];
      return Object.fromEntries(
        owned?.resource.attributes.map(({ key, value }) => [key, Object.values(value)[0]]) ?? [],
      );
    };
    try {
      for (const path of ['/v1/metrics', '/v1/traces']) {
        await until(`${path} is exported`, () => resourceOf(path) !== undefined);
        expect([path, resourceOf(path)]).toMatchObject([path, expected]);
      }
      const isRefused = agent.output().includes('OTEL_RESOURCE_ATTRIBUTES is left out');
      expect(isRefused).toBe(name === 'nonsense is said');
    } finally {
      await agent.stop();
    }
  });
});

test('an interval that no timer holds is a long one', async () => {
  const agent = await startAgent({
    config: { host: 'h5' },
    env: {
      ...{ OTEL_METRICS_EXPORTER: 'otlp', OTEL_METRIC_EXPORT_INTERVAL: String(2 ** 40) },
      OTEL_EXPORTER_OTLP_ENDPOINT: `${url}/never`,
    },
  });
  try {
    const { length } = received;
    await sleep(1_000);
    expect(received.slice(length).filter(({ path }) => path.startsWith('/never'))).toEqual([]);
    expect(agent.output()).not.toContain('TimeoutOverflowWarning');
  } finally {
    await agent.stop();
  }
});

test('what OTEL_LOG_LEVEL asks for is in the log, each thing one line', async () => {
  const agent = await startAgent({
    config: { host: 'h6' },
    env: { ...every, OTEL_TRACES_EXPORTER: 'otlp', OTEL_LOG_LEVEL: 'debug' },
  });
  await agent.stop();
  const lines = agent.output().trimEnd().split('\n');
  const said = lines.map((line) => JSON.parse(line) as { msg: string; error?: string });
  expect(
    said.filter(({ msg }) => msg === 'OpenTelemetry').map(({ error }) => error),
  ).toContainEqual(expect.stringMatching(/^ProcessDetector found resource\. .*process\.pid/));
});
