import { printable } from '#protocol/printable.ts';

/** How a part of a line is set off on a terminal that can do so. */
export type Mark = 'strong' | 'faint' | 'bad' | 'good';

/** A piece of text within a line. The printer escapes everything in it that a terminal would act upon. */
export type Span = string | { readonly mark: Mark; readonly text: string };

export type Line = Span | readonly Span[];

/** The output of a command for people. A view makes only this; line feeds and colours are the printer's. */
export type Page = readonly Line[];

export const marked = (mark: Mark, text: string): Span => ({ mark, text });

type Value = string | number | undefined;

/**
 * Columns as wide as their widest cell, two spaces apart, without spaces at the end of a line. An absent value is the
 * cell `-`, so that every row has every column and `awk` can count on it.
 */
export function table(header: readonly string[], rows: readonly (readonly Value[])[]): Page {
  const cells = rows.map((row) => header.map((_, column) => cell(row[column])));
  const widths = header.map((title, column) =>
    Math.max(title.length, ...cells.map((row) => row[column]?.length ?? 0)),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((text, column) => text.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd();
  return [marked('strong', line(header)), ...cells.map(line)];
}

/** One object, a line for each property; undefined properties are left out. */
export function details(properties: readonly (readonly [name: string, value: Value])[]): Page {
  const present = properties
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => [printable(name), String(value)] as const);
  const width = Math.max(0, ...present.map(([name]) => name.length));
  return present.map(([name, value]) => [marked('faint', name.padEnd(width)), `  ${value}`]);
}

/** As wide as it will be shown. */
const cell = (value: Value): string =>
  value === undefined || value === '' ? '-' : printable(String(value));
