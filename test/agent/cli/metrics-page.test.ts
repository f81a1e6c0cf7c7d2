import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { metricsPage } from '#agent/cli/metrics-page.ts';
import { METRICS } from '#agent/telemetry/metrics-table.ts';

const PAGE = new URL('../../../docs/metrics.md', import.meta.url).pathname;

// Run with `-u` it writes the page.
test('docs/metrics.md is as the table says', async () => {
  await expect(metricsPage()).toMatchFileSnapshot(PAGE);
});

test('docs/metrics.md has each metric once', () => {
  const named = [...readFileSync(PAGE, 'utf8').matchAll(/^\| `(volt_network_\w+)` \|/gm)].map(
    ([, name]) => name,
  );
  expect(named.length).toBe(Object.keys(METRICS).length);
  expect(new Set(named)).toEqual(new Set(Object.keys(METRICS)));
});

test.each(Object.entries(METRICS))('%s has a name as Prometheus wants it', (name, metric) => {
  const { kind, unit, buckets } = metric;
  const ending = [unit, kind === 'counter' ? 'total' : ''].filter((part) => part !== '').join('_');
  expect(name.endsWith(ending)).toBe(true);
  expect(buckets !== undefined).toBe(kind === 'histogram');
  expect(metric.help).toMatch(/^[A-Z].*\.$/);
});
