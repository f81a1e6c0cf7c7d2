import { readFileSync } from 'node:fs';
import { connect, type ConnectionOptions, credsAuthenticator, headers, NatsError } from 'nats';
import { VoltNetworkClient } from '#protocol/client.ts';
import { VoltError } from '#protocol/errors.ts';
import type { Settings } from './settings.ts';
import { UsageError } from './errors.ts';

/**
 * Connects, lends the client to `work`, and closes whatever came of it. A server that cannot be reached is
 * AGENT_UNAVAILABLE at once: whoever runs a command wants to know, not to wait.
 */
export async function withClient<T>(
  settings: Settings,
  work: (client: VoltNetworkClient) => Promise<T>,
): Promise<T> {
  const connection = await open(settings);
  try {
    return await work(
      new VoltNetworkClient({
        connection,
        headers,
        prefix: settings.subjectPrefix,
        timeoutMs: settings.timeoutMs,
        traceContext: () => settings.traceContext,
      }),
    );
  } finally {
    await connection.close();
  }
}

async function open(settings: Settings): ReturnType<typeof connect> {
  try {
    return await connect(connectionOptions(settings));
  } catch (cause) {
    if (cause instanceof UsageError) throw cause;
    const reason = cause instanceof NatsError ? `${cause.code}: ${cause.message}` : String(cause);
    throw new VoltError('AGENT_UNAVAILABLE', `NATS at ${settings.natsUrl}: ${reason}`, { cause });
  }
}

function connectionOptions(settings: Settings): ConnectionOptions {
  const { natsUrl, credentialsFile, tls, timeoutMs } = settings;
  return {
    servers: natsUrl.split(','),
    name: 'voltnet',
    timeout: timeoutMs,
    reconnect: false,
    ...(tls !== undefined && { tls: { ...tls } }),
    ...(credentialsFile !== undefined && {
      authenticator: credsAuthenticator(readCredentials(credentialsFile)),
    }),
  };
}

function readCredentials(file: string): Uint8Array {
  try {
    return readFileSync(file);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`cannot read the NATS credentials: ${reason}`, { cause });
  }
}
