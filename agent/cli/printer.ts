import { constants } from 'node:os';
import { printable, printableLines } from '#protocol/printable.ts';
import { redacted } from '#protocol/secrets.ts';
import type { Line, Mark, Page, Span } from './page.ts';

/** Where a run's text goes. */
export interface Terminal {
  readonly write: (text: string) => void;
  readonly writeError: (text: string) => void;
  readonly isTTY: () => boolean;
}

/**
 * The one way from a command to the terminal. Everything that came over the bus, or from anywhere else, is text: with
 * `--json` it is escaped within the JSON, otherwise line by line. No other file of the command line writes
 * (test/agent/cli/raw-writes.test.ts).
 */
export class Printer {
  readonly #terminal: Terminal;
  readonly #json: boolean;
  readonly #colours: () => boolean;

  constructor(options: {
    readonly terminal: Terminal;
    readonly json: boolean;
    readonly env: Readonly<Record<string, string | undefined>>;
  }) {
    const { terminal, json, env } = options;
    this.#terminal = terminal;
    this.#json = json;
    this.#colours = () => hasColours(terminal.isTTY(), env);
  }

  /** One result, as JSON with `--json`, else as the page for people. */
  result(value: unknown, forPeople: () => Page): void {
    this.#terminal.write(this.#json ? jsonText(value, 2) : this.#text(forPeople()));
  }

  /** One of many results that come one by one: a line each, JSON or text. */
  line(value: unknown, forPeople: () => Line): void {
    this.#terminal.write(this.#json ? jsonText(value) : this.#text([forPeople()]));
  }

  /** For people alone, beside the results: on standard error, and not with `--json`. */
  note(line: Line): void {
    if (!this.#json) this.#terminal.writeError(render([line]));
  }

  /** For people and scripts, beside the results: on standard error, with `--json` as a line of JSON. */
  notice(value: unknown, line: Line): void {
    const text = this.#json ? jsonText(value) : render([line]);
    this.#terminal.writeError(redacted(text));
  }

  /** An error, on standard error: with `--json` its body, otherwise the page. */
  complaint(body: unknown, forPeople: () => Page): void {
    this.#terminal.writeError(this.#json ? jsonText(body) : render(forPeople()));
  }

  /** Lines for people, with `--json` too: help. */
  prose(text: string): void {
    this.#terminal.write(render(linesOf(text)));
  }

  /** Lines for people on standard error: what is wrong with the command line, without the secrets that it may hold. */
  proseOfError(text: string): void {
    this.#terminal.writeError(render(linesOf(redacted(text))));
  }

  #text(page: Page): string {
    return render(page, this.#colours());
  }
}

/** A page as text. Without colours every mark leaves its text as it is. */
export function render(page: Page, colours = false): string {
  const spanText = (span: Span): string => {
    if (typeof span === 'string') return printable(span);
    const text = printable(span.text);
    return colours ? `\x1b[${SGR[span.mark]}m${text}\x1b[0m` : text;
  };
  return page.map((line) => `${[line].flat().map(spanText).join('')}\n`).join('');
}

const linesOf = (text: string): Page => text.replace(/\n$/, '').split('\n');

const SGR: Readonly<Record<Mark, number>> = { strong: 1, faint: 2, bad: 31, good: 32 };

/** NO_COLOR as https://no-color.org has it: any value but the empty one. */
export const hasColours = (
  isTTY: boolean,
  env: Readonly<Record<string, string | undefined>>,
): boolean => isTTY && (env['NO_COLOR'] ?? '') === '' && env['TERM'] !== 'dumb';

// JSON.stringify escapes C0 and lone surrogates, and no other character that a terminal acts upon.
const jsonText = (value: unknown, indent?: number): string =>
  `${printableLines(JSON.stringify(value, null, indent))}\n`;

/** Standard output and standard error of this process. */
export const STANDARD: Terminal = {
  write: (text) => writeTo(process.stdout, text),
  writeError: (text) => writeTo(process.stderr, text),
  isTTY: () => process.stdout.isTTY,
};

/** Resolves when everything that was written has been taken. */
export const drained = (): Promise<unknown> =>
  Promise.all(
    [process.stdout, process.stderr].map(
      (stream) => new Promise<void>((resolve) => writeTo(stream, '', () => resolve())),
    ),
  );

/** A reader that went away (`voltnet list | head -1`) ends the process as SIGPIPE would, without a word. */
function writeTo(stream: NodeJS.WriteStream, text: string, taken?: () => void): void {
  if (stream.listenerCount('error') === 0) {
    stream.on('error', () => process.exit(128 + constants.signals.SIGPIPE));
  }
  stream.write(text, taken);
}
