/** Where a command's results go. One per run; tests give their own. */
export interface Output {
  /** One result, as JSON with `--json`, else as the text that `forPeople` makes. */
  result(value: unknown, forPeople: (style: Style) => string): void;
  /** One of many results that come one by one: a line each, JSON or text. */
  line(value: unknown, forPeople: (style: Style) => string): void;
  /** For people alone, beside the results: standard error, and nothing with `--json`. */
  note(text: string): void;
}

/** How text is set off. Without a terminal, or with NO_COLOR, every style leaves the text as it is. */
export interface Style {
  readonly strong: (text: string) => string;
  readonly faint: (text: string) => string;
  readonly bad: (text: string) => string;
  readonly good: (text: string) => string;
}

const sgr =
  (code: number) =>
  (text: string): string =>
    `\x1b[${code}m${text}\x1b[0m`;
const plain = (text: string): string => text;

export const COLOURS: Style = { strong: sgr(1), faint: sgr(2), bad: sgr(31), good: sgr(32) };
export const NO_COLOURS: Style = { strong: plain, faint: plain, bad: plain, good: plain };

/** NO_COLOR as https://no-color.org has it: any value but the empty one. */
export const styleFor = (
  isTTY: boolean,
  env: Readonly<Record<string, string | undefined>>,
): Style =>
  isTTY && (env['NO_COLOR'] ?? '') === '' && env['TERM'] !== 'dumb' ? COLOURS : NO_COLOURS;

export function createOutput(options: {
  readonly json: boolean;
  readonly style: () => Style;
  readonly write: (text: string) => void;
  readonly writeNote: (text: string) => void;
}): Output {
  const { json, style, write, writeNote } = options;
  return {
    result: (value, forPeople) =>
      write(json ? `${JSON.stringify(value, null, 2)}\n` : `${forPeople(style())}\n`),
    line: (value, forPeople) =>
      write(json ? `${JSON.stringify(value)}\n` : `${forPeople(style())}\n`),
    note: (text) => {
      if (!json) writeNote(`${text}\n`);
    },
  };
}

/**
 * Columns as wide as their widest cell, two spaces apart, no spaces at the end of a line. A cell of `-`
 * stands for what is absent, so that every row has every column and `awk` can count on it.
 */
export function table(
  header: readonly string[],
  rows: readonly (readonly (string | number | undefined)[])[],
  style: Style = NO_COLOURS,
): string {
  const cells = rows.map((row) => header.map((_, column) => cell(row[column])));
  const widths = header.map((title, column) =>
    Math.max(title.length, ...cells.map((row) => row[column]?.length ?? 0)),
  );
  const line = (row: readonly string[]): string =>
    row
      .map((text, column) => text.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd();
  return [style.strong(line(header)), ...cells.map(line)].join('\n');
}

/** One thing, a line per property; properties that are undefined are left out. */
export function details(
  properties: readonly (readonly [name: string, value: string | number | undefined])[],
  style: Style = NO_COLOURS,
): string {
  const present = properties.filter(([, value]) => value !== undefined);
  const width = Math.max(0, ...present.map(([name]) => name.length));
  return present
    .map(([name, value]) => `${style.faint(name.padEnd(width))}  ${printable(String(value))}`)
    .join('\n');
}

const cell = (value: string | number | undefined): string =>
  value === undefined || value === '' ? '-' : printable(String(value));

/**
 * Labels, host names and messages come from others: a control character among them is shown as an escape
 * and never reaches the terminal.
 */
export const printable = (text: string): string =>
  text.replace(
    /[\p{Cc}\p{Bidi_Control}]/gu,
    (character) => `\\u${(character.codePointAt(0) ?? 0).toString(16).padStart(4, '0')}`,
  );
