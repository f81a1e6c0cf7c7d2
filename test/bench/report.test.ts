import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { chartOf } from './chart.ts';
import type { Table } from './figures.ts';
import { pageOf, type Report, textOf, wrapped, writePage } from './report.ts';
import { QUICK } from './sizes.ts';

const table: Table = {
  name: 'attach',
  title: 'An attach <warm>',
  how: 'In turns.',
  decisive: [
    { name: 'agent / C', unit: 'ratio', values: [2, 2.5, 3], bound: 2.2 },
    { name: 'agent / CNI', unit: 'ratio', values: [0.1], bound: 0.14 },
    { name: 'rate', unit: 'a second', values: [500], bound: 400, sense: '>=' },
    { name: 'agent / other', unit: 'ratio', values: [0.3] },
  ],
  shown: [
    { name: 'agent | bus', unit: 'ms', values: [3, 1, 2, 4] },
    { name: 'C', unit: 'ms', values: [1] },
    { name: 'memory', unit: 'MiB', values: [100] },
  ],
};

const report: Report = {
  date: '2026-03-04T05:06:07.000Z',
  command: 'npm run bench -- --write',
  machine: { processor: '2 × Some CPU', 'state folder': 'ext4 on /dev/sda' },
  versions: { Node: 'v24.0.0' },
  sizes: QUICK,
  tables: [table],
};

test('a terminal is told of each figure, its bound, and whether it is met', () => {
  const text = textOf(table);
  expect(text).toMatch(/agent \/ C +2\.50 +2\.00 – 3\.00 +≤ 2\.20 +MISSED/);
  expect(text).toMatch(/agent \/ CNI +0\.10 +≤ 0\.14 +met/);
  expect(text).toMatch(/rate +500 a second +≥ 400 a second +met/);
  expect(text).toMatch(/agent \/ other +0\.30\n/);
  expect(text).toMatch(/agent \| bus +2\.50 +4\.00 +4\.00 +ms +4/);
  expect(text).toMatch(/memory +100 +MiB +1/);
});

test('the page names machine, versions and date, and has each row and a chart', () => {
  const page = pageOf(report);
  expect(page).toContain('| date | 2026-03-04 |');
  expect(page).toContain('| processor | 2 × Some CPU |');
  expect(page).toContain('| state folder | ext4 on /dev/sda |');
  expect(page).toContain('| Node | v24.0.0 |');
  expect(page).toContain('`npm run bench -- --write`');
  expect(page).toContain('| agent / C | 2.50 | 2.00 – 3.00 | ≤ 2.20 | MISSED |');
  expect(page).toContain('| agent \\| bus | 2.50 | 4.00 | 4.00 | ms | 4 |');
  expect(page).toContain('](benchmarks/attach.svg)');
});

test('paragraphs are wrapped, and no word is lost', () => {
  const words = Array.from({ length: 60 }, (_, n) => `word${n}`);
  const lines = wrapped(words.join(' '));
  expect(lines.join(' ').split(' ')).toEqual(words);
  expect(lines.length).toBeGreaterThan(1);
  for (const line of lines) expect(line.length).toBeLessThanOrEqual(120);
});

test('each line of a table on the page has as many cells as its head', () => {
  const lines = pageOf(report).split('\n');
  const cells = (line: string): number => line.replaceAll('\\|', '').split('|').length;
  for (const [n, line] of lines.entries()) {
    if (!line.startsWith('|') || !lines[n - 1]?.startsWith('|')) continue;
    expect(cells(line), line).toBe(cells(lines[n - 1] ?? ''));
  }
});

test('a chart has a bar for each figure of its unit, as long as its median, and escapes names', () => {
  const svg = chartOf(table) ?? '';
  const bars = [...svg.matchAll(/<rect class="bar"[^>]* width="([\d.]+)"/g)];
  expect(bars.map(([, width]) => Number(width))).toEqual([197.9, 79.2]);
  expect(svg).toContain('An attach &lt;warm&gt;');
  expect(svg).not.toContain('memory');
  expect(svg).toContain('prefers-color-scheme: dark');
  expect(svg.match(/<(text|title|style|svg)\b/g)?.length).toBe(
    svg.match(/<\/(text|title|style|svg)>/g)?.length,
  );
});

test('a p99 far out leaves the bars their length, and has no mark', () => {
  const values = [...Array.from({ length: 98 }, () => 1), 1, 1_000, 1_000];
  const far = { ...table, shown: ['a', 'b'].map((name) => ({ name, unit: 'ms', values })) };
  const svg = chartOf(far) ?? '';
  expect(svg).toContain('width="316.7"');
  expect(svg.match(/v10/g)).toHaveLength(2);
});

test('where there is nothing to compare there is no chart', () => {
  expect(chartOf({ ...table, shown: table.shown.slice(1) })).toBeUndefined();
  expect(chartOf({ ...table, shown: [] })).toBeUndefined();
  const zeros = [0, 1].map((n) => ({ name: `z${n}`, unit: 'ms', values: [0] }));
  expect(chartOf({ ...table, shown: zeros })).toBeUndefined();
});

const folder = mkdtempSync(join(tmpdir(), 'volt-test-report-'));
afterAll(() => rmSync(folder, { recursive: true }));

test('a page replaces the charts of the run before', () => {
  writePage(folder, { ...report, tables: [{ ...table, name: 'earlier' }] });
  writeFileSync(join(folder, 'benchmarks/kept.txt'), '');
  writePage(folder, report);
  expect(readdirSync(join(folder, 'benchmarks')).toSorted()).toEqual(['attach.svg', 'kept.txt']);
  expect(readFileSync(join(folder, 'benchmarks.md'), 'utf8')).toBe(pageOf(report));
});
