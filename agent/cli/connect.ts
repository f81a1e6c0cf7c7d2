import {
  connect,
  ErrorCode,
  Events,
  headers,
  type JetStreamManager,
  type NatsConnection,
  NatsError,
} from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { hasCode } from '../bus/bus-problems.ts';
import { connectionOptionsOf, checkAccess } from '../bus/nats-access.ts';
import { parseNatsUrl } from '../bus/nats-url.ts';
import { UsageError } from './errors.ts';
import { ofJetStream, unconnected } from './nats-words.ts';
import type { Settings } from './settings.ts';

/** A silent server is left after so many pings. */
const PING_INTERVAL_MS = 4_000;
const MAX_PINGS_UNANSWERED = 2;

/** A question to JetStream without an answer for this long is taken for lost, and asked again where that is allowed. */
const QUESTION_TIMEOUT_MS = 5_000;

export interface Connected {
  readonly client: VoltNetworkClient;
  readonly settings: Settings;
  /** Resolves when the server has everything that was sent: a subscription that was made before is active then. */
  readonly flush: () => Promise<void>;
  /** False while the connection is lost and being made again. */
  readonly isUp: () => boolean;
  /**
   * Lends the manager of JetStream. Its errors come out as VoltError. With `repeated`, work that got no answer to a
   * question within some seconds is begun again, until the command's time is over: a cluster whose leader changes
   * drops questions. Only for work that may be done twice.
   */
  readonly jetStream: <T>(
    work: (manager: JetStreamManager) => Promise<T>,
    options?: { repeated?: boolean },
  ) => Promise<T>;
}

/**
 * Connects, lends the client to `work`, and closes the connection afterwards. A server that cannot be reached within
 * `timeoutMs` is AGENT_UNAVAILABLE, one that refuses the user is UNAUTHORIZED (`Unasked`); both at once, since
 * whoever runs a command wants to know, and not to wait. With `stay`, for work without an end of its own, a
 * connection that is lost is made again.
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
    const { timeoutMs } = settings;
    const jetStream: Connected['jetStream'] = async (managing, { repeated = false } = {}) => {
      const end = performance.now() + timeoutMs;
      for (;;) {
        const left = Math.max(1, Math.ceil(end - performance.now()));
        const timeout = repeated ? Math.min(left, QUESTION_TIMEOUT_MS) : left;
        try {
          return await managing(await connection.jetstreamManager({ checkAPI: false, timeout }));
        } catch (error) {
          const unanswered = hasCode(error, ErrorCode.Timeout);
          if (!repeated || !unanswered || timeout === left) throw ofJetStream(error, timeoutMs);
        }
      }
    };
    const flush = (): Promise<void> =>
      within(timeoutMs, connection.flush()).catch((cause: unknown) => {
        throw unconnected(cause, { servers: serversOf(settings), timeoutMs });
      });
    return await work({ client, settings, flush, isUp: stateOf(connection), jetStream });
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
  const servers = serversOf(settings);
  const connecting = connect({
    ...connectionOptionsOf(nats),
    name: 'voltnet',
    // For each server: all of them are tried within this time.
    timeout: Math.ceil(timeoutMs / servers.length),
    reconnect: stay,
    maxReconnectAttempts: -1,
    pingInterval: PING_INTERVAL_MS,
    maxPingOut: MAX_PINGS_UNANSWERED,
  });
  try {
    return await within(timeoutMs, connecting);
  } catch (cause) {
    connecting.then((late) => late.close()).catch(() => {});
    throw unconnected(cause, { servers, timeoutMs });
  }
}

function stateOf(connection: NatsConnection): () => boolean {
  let up = true;
  const follow = async (): Promise<void> => {
    for await (const { type } of connection.status()) {
      if (type === Events.Disconnect) up = false;
      if (type === Events.Reconnect) up = true;
    }
  };
  follow().catch(() => {});
  return () => up && !connection.isClosed();
}

const serversOf = ({ nats }: Settings): readonly string[] => parseNatsUrl(nats.url).servers;

/** Ends work that takes longer: NATS's library has no limit for a look-up in DNS, or for an answer to a ping. */
async function within<T>(timeoutMs: number, work: Promise<T>): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(NatsError.errorForCode(ErrorCode.Timeout)), timeoutMs);
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
