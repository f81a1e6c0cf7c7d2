import { connect, headers, type JetStreamManager, NatsError } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import { fromNatsError } from '#protocol/nats-errors.ts';
import { connectionOptionsOf, checkAccess } from '../nats-access.ts';
import { parseNatsUrl } from '../nats-url.ts';
import type { Settings } from './settings.ts';
import { UsageError } from './errors.ts';

export interface Connected {
  readonly client: VoltNetworkClient;
  readonly settings: Settings;
  /** Resolves when the server has all that was sent: a subscription made before is active then. */
  readonly flush: () => Promise<void>;
  /** Lends the manager of JetStream. Its errors come out as VoltError. */
  readonly jetStream: <T>(work: (manager: JetStreamManager) => Promise<T>) => Promise<T>;
}

/**
 * Connects, lends the client to `work`, and closes whatever came of it. A server that cannot be reached is
 * AGENT_UNAVAILABLE at once: whoever runs a command wants to know, not to wait. A connection that is lost
 * later is made again with `stay`, for work that has no end of its own.
 */
export async function withClient<T>(
  settings: Settings,
  work: (connected: Connected) => Promise<T>,
  options: { stay?: boolean } = {},
): Promise<T> {
  const connection = await open(settings, options.stay === true);
  try {
    const client = new VoltNetworkClient({
      connection,
      headers,
      prefix: settings.subjectPrefix,
      inboxPrefix: settings.nats.inboxPrefix,
      timeoutMs: settings.timeoutMs,
      traceContext: () => settings.traceContext,
    });
    const jetStream: Connected['jetStream'] = async (managing) => {
      try {
        return await managing(await connection.jetstreamManager({ checkAPI: false }));
      } catch (error) {
        throw fromNatsError(error, { subject: 'JetStream', timeoutMs: settings.timeoutMs });
      }
    };
    return await work({ client, settings, flush: () => connection.flush(), jetStream });
  } finally {
    await connection.close();
  }
}

async function open(settings: Settings, stay: boolean): ReturnType<typeof connect> {
  const { nats, timeoutMs } = settings;
  try {
    checkAccess(nats);
  } catch (cause) {
    throw new UsageError(cause instanceof Error ? cause.message : String(cause), { cause });
  }
  try {
    return await connect({
      ...connectionOptionsOf(nats),
      name: 'voltnet',
      timeout: timeoutMs,
      reconnect: stay,
      maxReconnectAttempts: -1,
    });
  } catch (cause) {
    const servers = parseNatsUrl(nats.url).servers.join(',');
    const reason = cause instanceof NatsError ? `${cause.code}: ${cause.message}` : String(cause);
    throw new VoltError('AGENT_UNAVAILABLE', `NATS at ${servers}: ${reason}`, { cause });
  }
}
