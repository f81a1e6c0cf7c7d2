import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { chartOf } from './chart.ts';
import { type Figure, isMet, median, quantile, shown, type Table } from './figures.ts';
import type { Facts } from './machine.ts';
import type { Sizes } from './sizes.ts';

/** All that one run has found out. */
export interface Report {
  /** RFC 3339. */
  readonly date: string;
  /** What was typed. */
  readonly command: string;
  readonly machine: Facts;
  readonly versions: Facts;
  readonly sizes: Sizes;
  readonly tables: readonly Table[];
}

const CHARTS = 'benchmarks';
const PAGE = 'benchmarks.md';
const PAGE_WIDTH = 120;

/** `0.12`, `41.0 ms`. */
const withUnit = (value: number, unit: string): string =>
  unit === 'ratio' ? shown(value) : `${shown(value)} ${unit}`;

const SIGNS = { '<=': '≤', '>=': '≥' };

const boundOf = ({ bound, sense = '<=', unit }: Figure): string =>
  bound === undefined ? '' : `${SIGNS[sense]} ${withUnit(bound, unit)}`;

function verdictOf(figure: Figure): string {
  const met = isMet(figure);
  return met === undefined ? '' : met ? 'met' : 'MISSED';
}

/** Between which values nine of ten rounds lie. */
const spreadOf = ({ values }: Figure): string =>
  values.length < 2 ? '' : `${shown(quantile(values, 0.05))} – ${shown(quantile(values, 0.95))}`;

const decisiveRow = (figure: Figure): string[] => [
  figure.name,
  withUnit(median(figure.values), figure.unit),
  spreadOf(figure),
  boundOf(figure),
  verdictOf(figure),
];

function shownRow({ name, unit, values }: Figure): string[] {
  const tails = [0.95, 0.99].map((share) =>
    values.length < 2 ? '' : shown(quantile(values, share)),
  );
  return [name, shown(median(values)), ...tails, unit, String(values.length)];
}

const DECISIVE_HEAD = ['', 'figure', 'nine of ten', 'bound', ''];
const SHOWN_HEAD = ['', 'median', 'p95', 'p99', 'unit', 'values'];

/** For a terminal. */
export function textOf(table: Table): string {
  const parts = [
    { head: DECISIVE_HEAD, rows: table.decisive.map(decisiveRow) },
    { head: SHOWN_HEAD, rows: table.shown.map(shownRow) },
  ];
  const blocks = parts
    .filter(({ rows }) => rows.length > 0)
    .map(({ head, rows }) => {
      const lines = [head, ...rows];
      const widths = head.map((_, column) =>
        Math.max(...lines.map((line) => line[column]?.length ?? 0)),
      );
      return lines.map((line) => `  ${padded(line, widths)}`.trimEnd()).join('\n');
    });
  return `\n${table.title}\n${blocks.join('\n\n')}\n`;
}

const padded = (line: readonly string[], widths: readonly number[]): string =>
  line
    .map((cell, column) => {
      const width = widths[column] ?? 0;
      return column === 0 ? cell.padEnd(width) : cell.padStart(width);
    })
    .join('  ');

/** The page of a report; charts are files beside it. */
export function pageOf(report: Report): string {
  const { date, command, machine, versions, tables } = report;
  const facts = Object.entries({ date: date.slice(0, 10), ...machine, ...versions });
  return [
    '# Benchmarks',
    '',
    ...wrapped(
      `Written by \`${command}\`: change the bench, not this page. What decides are ratios of things that were ` +
        'measured in turns on one machine; times are beside them, and drift with the machine. Each row says what was ' +
        'held against it. Servers, agent, rivals and bench share the processors.',
    ),
    '',
    ...markdownTable(
      ['machine and versions', ''],
      facts.map(([name, value]) => [name, value]),
    ),
    '',
    ...wrapped(
      'The state folder of the agent and the data of the servers are on the disk that is named above, the runtime ' +
        'folder is in memory, as on a host. “nine of ten”: between which values nine of ten rounds lie. p95 and p99 ' +
        'are of all values of all rounds.',
    ),
    ...tables.flatMap(sectionOf),
    '',
  ].join('\n');
}

function sectionOf(table: Table): string[] {
  const chart = chartOf(table);
  return [
    '',
    `## ${table.title}`,
    '',
    ...wrapped(table.how),
    ...(table.decisive.length === 0
      ? []
      : ['', ...markdownTable(DECISIVE_HEAD, table.decisive.map(decisiveRow))]),
    ...(table.shown.length === 0
      ? []
      : ['', ...markdownTable(SHOWN_HEAD, table.shown.map(shownRow))]),
    ...(chart === undefined ? [] : ['', `![${table.title}](${CHARTS}/${table.name}.svg)`]),
  ];
}

/** Lines of a paragraph. */
export function wrapped(text: string): string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last === undefined || last.length + word.length >= PAGE_WIDTH) lines.push(word);
    else lines[lines.length - 1] = `${last} ${word}`;
  }
  return lines;
}

function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]): string =>
    `|${cells.map((cell) => ` ${cell.replaceAll('|', '\\|')} `.replace(/^ +$/, ' ')).join('|')}|`;
  return [
    line(head),
    `|${head.map((_, n) => (n === 0 ? '---' : '--:')).join('|')}|`,
    ...rows.map(line),
  ];
}

/** Writes the page and its charts into a folder, in place of those of an earlier run. */
export function writePage(folder: string, report: Report): void {
  const charts = join(folder, CHARTS);
  mkdirSync(charts, { recursive: true });
  for (const name of readdirSync(charts)) {
    if (name.endsWith('.svg')) rmSync(join(charts, name));
  }
  for (const table of report.tables) {
    const chart = chartOf(table);
    if (chart !== undefined) writeFileSync(join(charts, `${table.name}.svg`), chart);
  }
  writeFileSync(join(folder, PAGE), pageOf(report));
}
