import { inspect } from 'node:util';
import { diag, type DiagLogFunction, DiagLogLevel } from '@opentelemetry/api';
import type { Log } from '../log.ts';

const TOLD_AGAIN_MS = 60_000;
const MAX_TEXT = 500;
/** So much of a text says whether it is the same again; behind it may be counters. */
const SAME_TEXT = 80;
const MAX_KNOWN = 64;

/**
 * Puts what OpenTelemetry has to say (a collector that is away) into the agent's log, each text once a minute. It says no
 * more than warnings, unless OTEL_LOG_LEVEL asks for more.
 */
export function reportTo(log: Log, env: NodeJS.ProcessEnv): void {
  const told = new Map<string, number>();
  const say =
    (level: 'warn' | 'info'): DiagLogFunction =>
    (message, ...parts) => {
      const text = [message, ...parts.map(textOf)].join(' ').slice(0, MAX_TEXT);
      const now = performance.now();
      const key = text.slice(0, SAME_TEXT);
      if (now - (told.get(key) ?? -TOLD_AGAIN_MS) < TOLD_AGAIN_MS) return;
      if (told.size >= MAX_KNOWN) told.clear();
      told.set(key, now);
      log[level]({ error: text }, 'OpenTelemetry');
    };
  const logger = {
    error: say('warn'),
    warn: say('warn'),
    info: say('info'),
    debug: say('info'),
    verbose: say('info'),
  };
  const wanted = (env['OTEL_LOG_LEVEL'] ?? '').trim().toUpperCase();
  // With it the SDK would put a logger of its own in the place of this one: past the log, with whatever secrets.
  delete env['OTEL_LOG_LEVEL'];
  const [, logLevel = DiagLogLevel.WARN] =
    Object.entries(DiagLogLevel).find(([name]) => name === wanted) ?? [];
  if (typeof logLevel === 'number') diag.setLogger(logger, { logLevel });
}

const textOf = (part: unknown): string =>
  typeof part === 'object' && part !== null && !(part instanceof Error)
    ? inspect(part, { breakLength: Number.POSITIVE_INFINITY })
    : String(part);
