import { pino, type Logger } from 'pino';
import { printableLines } from '#protocol/printable.ts';
import { redacted } from '#protocol/secrets.ts';

export type Log = Logger;

/**
 * JSON lines on standard output, one an event, as journald and every collector take them; no secrets in them. A terminal
 * may have them, too: what it would act upon is escaped within the JSON, of which pino does C0 alone.
 */
export const createLog = (level: string, host: string): Log =>
  pino({
    level,
    base: { host },
    timestamp: pino.stdTimeFunctions.isoTime,
    hooks: { streamWrite: (line) => printableLines(redacted(line)) },
  });
