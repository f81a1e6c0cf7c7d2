import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { until } from '../../support/agent.ts';
import { receiveTraces } from '../../support/otlp-traces.ts';
import { startStack } from '../../support/stack.ts';

// What of OpenTelemetry an agent loads, and that variables keep their meaning whatever it has loaded.

const folder = mkdtempSync(join(tmpdir(), 'volt-test-tracer-'));
afterAll(() => {
  rmSync(folder, { recursive: true });
});

/** Notes every module of OpenTelemetry that a process loads. */
const hook = join(folder, 'hook.mjs');
writeFileSync(
  hook,
  `import { appendFileSync } from 'node:fs';
import { registerHooks } from 'node:module';
registerHooks({
  load(url, context, next) {
    const [, name] = /@opentelemetry\\/([^/]+)/.exec(url) ?? [];
    if (name !== undefined) appendFileSync(process.env.LOADED_FILE, name + '\\n');
    return next(url, context);
  },
});
`,
);

interface Ran {
  readonly loaded: ReadonlySet<string>;
  readonly names: ReadonlySet<string>;
  readonly attributes: Readonly<Record<string, string | number>>;
  readonly output: string;
}

let runs = 0;

/** An agent with these variables attaches and ends; `spans`: whether a collector is to get any. */
async function ran(env: Record<string, string>, { spans = true } = {}): Promise<Ran> {
  runs += 1;
  const file = join(folder, `loaded-${runs}`);
  writeFileSync(file, '');
  await using collector = await receiveTraces();
  let output = '';
  {
    await using stack = await startStack({
      env: {
        NODE_OPTIONS: `--import ${hook}`,
        LOADED_FILE: file,
        OTEL_METRICS_EXPORTER: 'none',
        OTEL_BSP_SCHEDULE_DELAY: '100',
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: collector.url,
        ...env,
      },
    });
    await stack.client.attach(stack.host, {
      id: 'web',
      workload: 'vm-web',
      kind: 'vm',
      network: 'volt0',
    });
    if (spans) {
      await until('the spans are there', () =>
        collector.spans.some(({ name }) => name === 'publish attached'),
      );
    }
    await stack.client.detach(stack.host, { id: 'web' });
    await stack.gone('web');
    await stack.agent.stop();
    output = stack.agent.output();
  }
  const attach = collector.spans.find(({ name }) => name === 'attach');
  return {
    loaded: new Set(readFileSync(file, 'utf8').split('\n').filter(Boolean)),
    names: new Set(collector.spans.map(({ name }) => name)),
    attributes: attach?.attributes ?? {},
    output,
  };
}

test('OTLP over HTTP loads its own parts, and gives the same spans as the whole SDK', async () => {
  const parts = await ran({});
  expect(parts.loaded).toContain('sdk-trace');
  expect(parts.loaded).toContain('exporter-trace-otlp-proto');
  for (const name of ['sdk-node', 'sdk-logs', 'otlp-grpc-exporter-base', 'exporter-zipkin']) {
    expect(parts.loaded).not.toContain(name);
  }
  // The default by its name; whoever gives a sampler gets all of sdk-node.
  const whole = await ran({ OTEL_TRACES_SAMPLER: 'parentbased_always_on' });
  expect(whole.loaded).toContain('sdk-node');
  for (const name of ['attach', 'ipam', 'kernel', 'publish attached']) {
    expect(parts.names).toContain(name);
    expect(whole.names).toContain(name);
  }
  expect(parts.attributes).toEqual(whole.attributes);
});

test('a sampler, another exporter and none keep their meaning; without any nothing is loaded', async () => {
  const off = await ran({ OTEL_TRACES_SAMPLER: 'always_off' }, { spans: false });
  expect(off.names).toEqual(new Set());
  const console = await ran({ OTEL_TRACES_EXPORTER: 'console' }, { spans: false });
  expect(console.names).toEqual(new Set());
  expect(console.output).toMatch(/name: 'attach'/);
  const none = await ran({ OTEL_TRACES_EXPORTER: 'none' }, { spans: false });
  expect(none.names).toEqual(new Set());
  expect(none.loaded).toEqual(new Set());
});
