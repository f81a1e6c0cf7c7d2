import { type DestinationStream, pino, type Logger } from 'pino';
import { redacted } from '#protocol/secrets.ts';

export type Log = Logger;

/** JSON lines on standard output, one an event, as journald and every collector take them; no secrets in them. */
export const createLog = (level: string, host: string): Log =>
  pino({ level, base: { host }, timestamp: pino.stdTimeFunctions.isoTime }, withoutSecrets());

function withoutSecrets(): DestinationStream {
  const output = pino.destination({ fd: 1, sync: true });
  return { write: (line) => output.write(redacted(line)) };
}
