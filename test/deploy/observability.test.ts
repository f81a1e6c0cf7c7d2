import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { METRICS } from '#agent/telemetry/metrics-table.ts';
import { requireTool } from '../support/tools.ts';

// Alerts, dashboards and configurations by themselves: what promtool says of them, and whether they name what there is. That
// dashboards show something is in observability.live.test.ts.

interface Rule {
  readonly alert: string;
  readonly expr: string;
  readonly annotations: { readonly summary: string; readonly runbook_url: string };
}

const ROOT = new URL('../../', import.meta.url).pathname;
const FOLDER = join(ROOT, 'deploy/observability');
const read = (name: string): string => readFileSync(join(FOLDER, name), 'utf8');
const runbook = readFileSync(join(ROOT, 'docs/runbook.md'), 'utf8');
const { groups } = parse(read('alerts.yml')) as { groups: { rules: Rule[] }[] };
const rules = groups.flatMap((group) => group.rules);
const folder = mkdtempSync(join(tmpdir(), 'volt-alerts-'));
afterAll(() => rmSync(folder, { recursive: true }));

function promtool(...args: string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(requireTool('promtool'), args, { encoding: 'utf8' });
  return { status, output: stdout + stderr };
}

test('promtool takes the rules and the configuration', () => {
  for (const args of [
    ['check', 'rules', join(FOLDER, 'alerts.yml')],
    ['check', 'config', join(FOLDER, 'prometheus.yml')],
  ]) {
    expect(promtool(...args)).toMatchObject({ status: 0 });
  }
});

describe('alerts', () => {
  test('each fires, and each stays silent, in a history of its own', () => {
    expect(promtool('test', 'rules', join(FOLDER, 'alerts.test.yml'))).toMatchObject({ status: 0 });
    const { tests } = parse(read('alerts.test.yml')) as { tests: { name: string }[] };
    const expected = rules.flatMap(({ alert }) => [`${alert} fires`, `${alert} is silent`]);
    expect(tests.map(({ name }) => name)).toEqual(expected);
  });

  test.each([
    ['fires', 'vector(0) > 1'],
    ['is silent', 'vector(1)'],
  ])('the test that each %s notices a rule that is %s', (claim, expr) => {
    cpSync(join(FOLDER, 'alerts.test.yml'), join(folder, 'alerts.test.yml'));
    const changed = groups.map((group) => ({
      ...group,
      rules: group.rules.map((rule) => ({ ...rule, for: '0s', expr })),
    }));
    writeFileSync(join(folder, 'alerts.yml'), JSON.stringify({ groups: changed }));
    const { output } = promtool('test', 'rules', join(folder, 'alerts.test.yml'));
    const noticed = rules.filter(({ alert }) => output.includes(`name: ${alert} ${claim}`));
    expect(noticed).toEqual(rules);
  });

  test.each(rules)('$alert has a section in the runbook, with commands', (rule) => {
    const { alert, annotations } = rule;
    expect(annotations.runbook_url).toBe(`docs/runbook.md#${alert.toLowerCase()}`);
    const [, section = ''] = runbook.split(`\n## ${alert}\n`);
    expect(section.split('\n## ')[0]).toMatch(/```sh\n/);
  });

  test('the runbook has no other sections', () => {
    const headings = [...runbook.matchAll(/^## (.*)$/gm)].map(([, heading]) => heading);
    expect(headings).toEqual(rules.map(({ alert }) => alert));
  });
});

const dashboards = readdirSync(join(FOLDER, 'dashboards')).map((name) => `dashboards/${name}`);

test.each(['alerts.yml', ...dashboards])('%s names metrics that there are', (name) => {
  const known = new Set(
    Object.entries(METRICS).flatMap(([metric, { kind }]) =>
      kind === 'histogram' ? ['bucket', 'count', 'sum'].map((end) => `${metric}_${end}`) : [metric],
    ),
  );
  const named = read(name).match(/\bvolt_network_\w+/g) ?? [];
  expect(named.length).toBeGreaterThan(5);
  expect(named.filter((metric) => !known.has(metric))).toEqual([]);
});

test('every metric but those of the build is in a dashboard', () => {
  const all = dashboards.map(read).join('');
  expect(Object.keys(METRICS).filter((metric) => !all.includes(metric))).toEqual([]);
});

test("the collector's configuration names what it defines", () => {
  const config = parse(read('otel-collector.yml')) as Record<
    'receivers' | 'processors' | 'exporters',
    Record<string, unknown>
  > & {
    service: {
      pipelines: Record<string, Record<'receivers' | 'processors' | 'exporters', string[]>>;
    };
  };
  for (const pipeline of Object.values(config.service.pipelines)) {
    for (const part of ['receivers', 'processors', 'exporters'] as const) {
      expect(Object.keys(config[part])).toEqual(expect.arrayContaining(pipeline[part]));
    }
  }
});
