import { createMasterClients, type LedgerOptions } from './client.ts';
import { messageOf, storeError, unavailable } from './errors.ts';
import { type Installed, installLibrary } from './library.ts';

export interface InstalledOn extends Installed {
  /** `127.0.0.1:6379`, or the path of a socket. */
  readonly server: string;
}

/**
 * Loads the function library where agents may not do so themselves: on the master, of a cluster on all masters.
 * A library as new as ours is left alone. STORE_UNAVAILABLE where a server cannot be reached or refuses,
 * STORE_VERSION where the next major is; servers done before stay done.
 */
export async function installLedger(options: LedgerOptions): Promise<InstalledOn[]> {
  let clients;
  try {
    clients = await createMasterClients(options);
  } catch (error) {
    throw unavailable(messageOf(error), false, error);
  }
  const done: InstalledOn[] = [];
  try {
    for (const client of clients) {
      const { path, host, port } = client.options;
      const server = path ?? `${host}:${port}`;
      let reason: string | undefined;
      client.on('error', (error: Error) => {
        reason ??= messageOf(error);
      });
      try {
        await client.connect();
        done.push({ server, ...(await installLibrary(client)) });
      } catch (error) {
        throw storeError(reason === undefined ? error : new Error(`${server}: ${reason}`));
      }
    }
    return done;
  } finally {
    for (const client of clients) client.disconnect();
  }
}
