import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import { until } from '../../support/agent.ts';
import { ip } from '../../support/kernel.ts';
import { type ReceivedSpan, receiveTraces } from '../../support/otlp-traces.ts';
import { startStack, type Stack, VOLT0 } from '../../support/stack.ts';

// What a collector gets of a request, a failed one, a job that came twice, and a repair: each is one tree.

const [SERVER, CONSUMER, INTERNAL] = [2, 5, 1];

let collector: Awaited<ReturnType<typeof receiveTraces>>;
let stack: Stack;

beforeAll(async () => {
  collector = await receiveTraces();
  stack = await startStack({
    networks: [{ ...VOLT0, subnet: '10.42.0.0/20', pool: undefined, reservations: undefined }].map(
      (one) => JSON.parse(JSON.stringify({ ...one, reuseDelaySeconds: 1 })),
    ),
    env: {
      OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: collector.url,
      OTEL_METRICS_EXPORTER: 'none',
      OTEL_BSP_SCHEDULE_DELAY: '100',
    },
  });
});
afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  await collector[Symbol.asyncDispose]();
});

const vm = (id: string, more: Partial<AttachRequest> = {}): AttachRequest => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network: 'volt0',
  ...more,
});

/** The span of an orchestrator that calls. */
const caller = () => {
  const traceId = randomBytes(16).toString('hex');
  const spanId = randomBytes(8).toString('hex');
  return { traceId, spanId, traceparent: `00-${traceId}-${spanId}-01` };
};

/** The spans of a trace, once those names are among them. */
async function traceOf(traceId: string, ...names: string[]): Promise<ReceivedSpan[]> {
  const found = (): ReceivedSpan[] => collector.spans.filter((one) => one.traceId === traceId);
  await until(`${names.join(', ')} of ${traceId}`, () =>
    names.every((name) => found().some((span) => span.name === name)),
  );
  return found();
}

const only = (spans: readonly ReceivedSpan[], name: string): ReceivedSpan => {
  const named = spans.filter((one) => one.name === name);
  expect(named.map((one) => one.name)).toEqual([name]);
  return named[0] ?? expect.unreachable();
};

/** Each span hangs on another one, or on `root`; a part of a request lies within it, and durations add up. */
function expectTree(spans: readonly ReceivedSpan[], root: string): void {
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  const loose = spans.filter(({ parentSpanId: id }) => id !== root && !byId.has(id));
  expect(loose.map(({ name }) => name)).toEqual([]);
  for (const span of spans) {
    expect(span.end).toBeGreaterThanOrEqual(span.start);
    const parts = spans
      .filter((one) => one.parentSpanId === span.spanId && !one.name.startsWith('publish'))
      .filter(({ name }) => !name.startsWith('redis'));
    for (const part of parts) {
      expect([part.name, part.start >= span.start, part.end <= span.end]).toEqual([
        part.name,
        true,
        true,
      ]);
    }
    // The ledger works while the agent looks at the host; in the kernel one operation follows the other.
    const sum = parts.reduce((total, { start, end }) => total + (end - start), 0n);
    if (span.name === 'kernel') expect(sum).toBeLessThanOrEqual(span.end - span.start);
  }
}

test('an attach: from the caller to each kernel operation and the event', async () => {
  const { traceId, spanId, traceparent } = caller();
  await stack.client.attach(stack.host, vm('web', { requestId: 'r-web' }), { traceparent });
  const spans = await traceOf(traceId, 'attach', 'ipam', 'kernel', 'publish attached');
  expectTree(spans, spanId);
  const attach = only(spans, 'attach');
  expect(attach).toMatchObject({
    parentSpanId: spanId,
    kind: SERVER,
    failed: false,
    attributes: {
      'volt.host': stack.host,
      'volt.attachment.id': 'web',
      'volt.request.id': 'r-web',
    },
  });
  const kernel = only(spans, 'kernel');
  const operations = spans.filter((one) => one.parentSpanId === kernel.spanId);
  expect(operations.some(({ name }) => name.startsWith('TUNSETIFF'))).toBe(true);
  expect(operations.length).toBeGreaterThan(3);
  await stack.client.detach(stack.host, { id: 'web' });
});

test('an attach that fails: the error is on the span', async () => {
  const { traceId, spanId, traceparent } = caller();
  const asked = vm('lost', { addresses: ['10.99.0.1'] });
  await expect(stack.client.attach(stack.host, asked, { traceparent })).rejects.toMatchObject({
    code: 'ADDRESS_OUT_OF_RANGE',
  });
  const spans = await traceOf(traceId, 'attach', 'publish failed');
  expectTree(spans, spanId);
  expect(only(spans, 'attach')).toMatchObject({ failed: true, parentSpanId: spanId });
});

test('a job that comes twice: both deliveries are under the caller, the second linked with the first', async () => {
  const addresses = ['10.42.0.99'];
  await stack.client.attach(stack.host, vm('before', { addresses }));
  await stack.client.detach(stack.host, { id: 'before' });
  await stack.gone('before');
  const { traceId, spanId, traceparent } = caller();
  // The address rests for a second.
  await stack.client.submitAttach(stack.host, vm('after', { addresses }), { traceparent });
  const spans = await traceOf(traceId, 'job.attach', 'publish attached');
  expectTree(spans, spanId);
  const deliveries = spans
    .filter(({ name }) => name === 'job.attach')
    .toSorted((one, other) => (one.start < other.start ? -1 : 1));
  expect(deliveries.length).toBeGreaterThanOrEqual(2);
  for (const [index, delivery] of deliveries.entries()) {
    expect(delivery).toMatchObject({
      parentSpanId: spanId,
      kind: CONSUMER,
      failed: index < deliveries.length - 1,
      attributes: { 'volt.attachment.id': 'after', 'volt.job.delivery': index + 1 },
      links: deliveries.slice(0, index).map((one) => ({ traceId, spanId: one.spanId })),
    });
  }
  await stack.client.detach(stack.host, { id: 'after' });
});

test('a repair: one tree of its own, with what the kernel was told and the event', async () => {
  const { attachment } = await stack.client.attach(stack.host, vm('broken'));
  ip('link', 'delete', attachment.device?.name ?? '');
  const isRepair = ({ name, attributes }: ReceivedSpan): boolean =>
    name.startsWith('repair') && attributes['volt.attachment.id'] === 'broken';
  await until('the repair is told', () => collector.spans.some(isRepair));
  const repair = collector.spans.find(isRepair);
  expect(repair).toMatchObject({ name: 'repair remake', kind: INTERNAL, failed: false });
  const spans = await traceOf(repair?.traceId ?? '', 'publish repaired');
  expectTree(spans, '');
  expect(spans.some(({ name }) => name.startsWith('TUNSETIFF'))).toBe(true);
  await stack.client.detach(stack.host, { id: 'broken' });
});

test('a burst of ten thousand spans is complete', async () => {
  const before = collector.spans.length;
  const callers = Array.from({ length: 850 }, (_, n) => ({ id: `burst-${n}`, ...caller() }));
  const left = [...callers];
  const lane = async (): Promise<void> => {
    for (let one = left.pop(); one !== undefined; one = left.pop()) {
      await stack.client.attach(stack.host, vm(one.id), { traceparent: one.traceparent });
    }
  };
  await Promise.all(Array.from({ length: 32 }, lane));
  const isWhole = ({ traceId }: { readonly traceId: string }): boolean => {
    const names = byTrace.get(traceId)?.map(({ name }) => name) ?? [];
    return ['attach', 'ipam', 'kernel', 'publish attached'].every((name) => names.includes(name));
  };
  let byTrace = new Map<string, ReceivedSpan[]>();
  await until('all are whole', () => {
    byTrace = Map.groupBy(collector.spans.slice(before), ({ traceId }) => traceId);
    return callers.every(isWhole);
  });
  const spans = callers.flatMap(({ traceId }) => byTrace.get(traceId) ?? []);
  expect(spans.length).toBeGreaterThan(10_000);
  for (const { traceId, spanId } of callers) expectTree(byTrace.get(traceId) ?? [], spanId);
});
