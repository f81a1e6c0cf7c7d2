import { lookup } from 'node:dns/promises';
import { createConnection, isIP } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { TlsOptions } from 'nats';
import type { ServerAddress } from './nats-url.ts';

const LOOKUP_TIMEOUT_MS = 2_000;

/** One server of the list. `certifiedAs`: the name in its certificate, if it is called by its address. */
export interface NatsServer extends ServerAddress {
  readonly certifiedAs?: string | undefined;
}

/** Addresses of names, as the system knows them. */
export class Addresses {
  readonly #known = new Map<string, readonly string[]>();
  /** One question for each name at a time: questions that hang would take all threads that also read files. */
  readonly #asked = new Map<string, Promise<readonly string[]>>();

  /** Looks the name up. If no answer comes in time, the last answer counts; throws if there is none. */
  async of(name: string): Promise<readonly string[]> {
    if (isIP(name) !== 0) return [name];
    const asked = this.#asked.get(name) ?? this.#ask(name);
    const waiting = new AbortController();
    const late = sleep(LOOKUP_TIMEOUT_MS, undefined, waiting).then(() => {
      throw Object.assign(new Error(`${name}: DNS does not answer`), { code: 'EAI_AGAIN' });
    });
    try {
      return await Promise.race([asked, late]);
    } catch (error) {
      const known = this.#known.get(name);
      if (known === undefined) throw error;
      return known;
    } finally {
      late.catch(() => {});
      waiting.abort();
    }
  }

  #ask(name: string): Promise<readonly string[]> {
    const asked = lookup(name, { all: true })
      .then((found) => {
        const addresses = found.map(({ address }) => address);
        this.#known.set(name, addresses);
        return addresses;
      })
      .finally(() => this.#asked.delete(name));
    asked.catch(() => {});
    this.#asked.set(name, asked);
    return asked;
  }
}

/** Whether a server greets whoever connects, as nats-server does with its INFO. */
export function saysSomething(
  { address, port }: { address: string; port: number },
  timeoutMs: number,
): Promise<boolean> {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const socket = createConnection({ host: address, port });
  const timer = setTimeout(() => resolve(false), timeoutMs);
  socket.once('data', () => resolve(true));
  socket.once('error', reject);
  socket.once('close', () => resolve(true));
  return promise.finally(() => {
    clearTimeout(timer);
    socket.destroy();
  });
}

export const placeOf = ({ address, port }: { address: string; port: number }): string =>
  isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`;

export const placeName = ({ name, port }: ServerAddress): string => `${name}:${port}`;

export const certifiedAs = (server: NatsServer): string | undefined =>
  server.certifiedAs ?? (isIP(server.name) === 0 ? server.name : undefined);

/** The name that the certificate must have. The library passes it on, and its types do not know it. */
export const called = (tls: TlsOptions, servername: string | undefined): TlsOptions => {
  const named: TlsOptions & { servername?: string } = { ...tls };
  if (servername !== undefined) named.servername = servername;
  return named;
};

/** In random order, so that hosts spread over the servers. */
export const shuffled = <T>(values: readonly T[]): readonly T[] =>
  values
    .map((value) => ({ value, key: Math.random() }))
    .toSorted((one, other) => one.key - other.key)
    .map(({ value }) => value);
