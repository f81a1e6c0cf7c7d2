import { fstatSync } from 'node:fs';
import { pino, type Logger } from 'pino';
import { printable } from '#protocol/printable.ts';
import { redacted } from '#protocol/secrets.ts';

export type Log = Logger;

/** How a line of JSON is shown. */
export type LogForm = (line: string) => string;

const STANDARD_OUTPUT = 1;

/**
 * The log, on standard output: lines of JSON, one an event, as journald and every collector take them, or what `form`
 * makes of them. No secrets are in it. A terminal may have it, too: what it would act upon is escaped, of which pino does
 * C0 alone, and in JSON. Where the journal has it, each line begins with its priority.
 */
export function createLog(level: string, host: string, form: LogForm = (line) => line): Log {
  const prefix = isJournal() ? priorityOf : (): string => '';
  return pino({
    level,
    base: { host },
    timestamp: pino.stdTimeFunctions.isoTime,
    hooks: {
      // Each thing is one line: the journal would know no priority of a second one, and anybody could have written it.
      streamWrite: (line) => {
        const text = form(line).replace(/\n$/, '');
        return `${prefix(line)}${printable(redacted(text))}\n`;
      },
    },
  });
}

/**
 * The form for a `logFormat` of the configuration; undefined for JSON. Text is for people:
 * `[2026-11-29 23:04:05.678] WARN: bus-away is over {"lastedSeconds":3}`.
 */
export async function logForm(format: 'auto' | 'json' | 'text'): Promise<LogForm | undefined> {
  if (format === 'json' || (format === 'auto' && !process.stdout.isTTY)) return undefined;
  const { prettyFactory } = await import('pino-pretty');
  return prettyFactory({
    // Colours would be escaped.
    colorize: false,
    translateTime: 'SYS:yyyy-mm-dd HH:MM:ss.l',
    ignore: 'pid,hostname,host',
    singleLine: true,
    // By default what is named `error` has a line of its own.
    errorLikeObjectKeys: [],
  });
}

/** systemd.exec(5): whether standard output is the journal's. */
function isJournal(): boolean {
  const { dev, ino } = fstatSync(STANDARD_OUTPUT);
  return process.env['JOURNAL_STREAM'] === `${dev}:${ino}`;
}

/** sd-daemon(3), by the levels of pino. */
const PRIORITIES: Readonly<Record<string, number>> = { 10: 7, 20: 7, 30: 6, 40: 4, 50: 3, 60: 2 };

function priorityOf(line: string): string {
  const priority = PRIORITIES[/^\{"level":(\d+)/.exec(line)?.[1] ?? ''];
  return priority === undefined ? '' : `<${priority}>`;
}
