import { pino, type Logger } from 'pino';

export type Log = Logger;

/** JSON lines on standard output, one an event, as journald and every collector take them. */
export const createLog = (level: string, host: string): Log =>
  pino({ level, base: { host }, timestamp: pino.stdTimeFunctions.isoTime });
