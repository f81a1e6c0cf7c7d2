import { setTimeout as sleep } from 'node:timers/promises';
import {
  connect,
  DebugEvents,
  ErrorCode,
  Events,
  type MsgHdrs,
  type NatsConnection,
  NatsError,
  type TlsOptions,
} from 'nats';
import { type BusProblem, connectProblem, hasCode } from './bus-problems.ts';
import type { Config } from '../config.ts';
import type { Log } from '../log.ts';
import { connectionOptionsOf } from './nats-access.ts';
import {
  Addresses,
  called,
  certifiedAs,
  type NatsServer,
  placeName,
  placeOf,
  saysSomething,
  shuffled,
} from './nats-places.ts';
import { addressOf, parseNatsUrl } from './nats-url.ts';

/** What the server does not let this user do. */
export interface Refused {
  readonly operation: string;
  readonly subject: string;
}

export interface NatsLinkOptions {
  readonly config: Config['nats'];
  /** What the server calls the connection. */
  readonly name: string;
  /** There is a connection, the first or another one. It counts as open when this resolves. */
  readonly onOpen: (connection: NatsConnection) => Promise<void>;
  /** It is open, or not any more. */
  readonly onState: (isOpen: boolean) => void;
  readonly onRefused: (refused: Refused) => void;
  readonly log: Log;
}

const RETRY_MS = 250;
/** At random beside: a server that comes back is not met by all at once. */
const RETRY_JITTER_MS = 500;
/** A server that says nothing is left after three of these periods at most, and two at least. */
const PING_INTERVAL_MS = 2_500;
const MAX_PINGS_UNANSWERED = 2;
/** Of one server, from the first packet to its answer to who we are. */
const CONNECT_TIMEOUT_MS = 2_000;
/** Of one that has taken longer, and does say something: many may be coming back to it at once. */
const PATIENT_TIMEOUT_MS = 8_000;
const DRAIN_TIMEOUT_MS = 1_000;
/** What is said while there is no connection waits so long for one: callers wait no longer, as a rule. */
const HELD_MS = 10_000;
const MAX_HELD = 1_024;

interface HeldMessage {
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly headers: MsgHdrs | undefined;
  readonly untilMs: number;
}

/**
 * The connection to NATS, which is made again for ever. The library would connect again by itself, but keeps silent servers
 * for long, and their sockets for good. So each loss is followed by a new connection here: to the next server of the list,
 * with names looked up and files of credentials read anew.
 */
export class NatsLink {
  readonly #options: NatsLinkOptions;
  /** Configured, in the order in which they are tried: the one that was left comes last. */
  #servers: readonly NatsServer[];
  /** What the last one said of its cluster: tried after those. */
  #learned: readonly NatsServer[] = [];
  readonly #addresses = new Addresses();
  /** Places that have said nothing in time. */
  readonly #silent = new Set<string>();
  #connection: NatsConnection | undefined;
  /** Whom it is to. */
  #server: NatsServer | undefined;
  #isOpen = false;
  #problem: BusProblem = { name: 'bus-away', reason: 'not connected yet' };
  #told: string | undefined;
  #held: HeldMessage[] = [];
  #closing = false;

  constructor(options: NatsLinkOptions) {
    this.#options = options;
    this.#servers = shuffled(parseNatsUrl(options.config.url).servers.map(addressOf));
  }

  start(): void {
    void this.#run();
  }

  /** The open connection. */
  get connection(): NatsConnection | undefined {
    return this.#isOpen ? this.#connection : undefined;
  }

  /** Why there is none. */
  get problem(): BusProblem | undefined {
    return this.#isOpen ? undefined : this.#problem;
  }

  /** Publishes now, or, for some seconds, as soon as there is a connection. Throws where the message cannot be sent. */
  send(subject: string, payload: Uint8Array, headers?: MsgHdrs): void {
    if (this.#connection?.isClosed() === false) {
      this.#connection.publish(subject, payload, headers === undefined ? {} : { headers });
      return;
    }
    if (this.#closing) throw new Error('NATS is away');
    if (this.#held.length >= MAX_HELD) this.#held.shift();
    this.#held.push({ subject, payload, headers, untilMs: performance.now() + HELD_MS });
  }

  /** Sends what is left, and connects no more. */
  async close(): Promise<void> {
    this.#closing = true;
    const connection = this.#connection;
    if (connection === undefined || connection.isClosed()) return;
    // A drain flushes the answers; it waits for ever where the server is away.
    await Promise.race([connection.drain().catch(() => {}), sleep(DRAIN_TIMEOUT_MS)]);
    if (!connection.isClosed()) await connection.close().catch(() => {});
  }

  async #run(): Promise<void> {
    while (!this.#closing) {
      const connection = await this.#connect();
      if (connection === undefined) {
        await sleep(RETRY_MS + Math.random() * RETRY_JITTER_MS);
        continue;
      }
      if (this.#closing) return connection.close();
      this.#connection = connection;
      await this.#use(connection);
      this.#connection = undefined;
      this.#setOpen(false);
      await sleep(Math.random() * RETRY_JITTER_MS);
    }
  }

  /** Returns when the connection is closed. */
  async #use(connection: NatsConnection): Promise<void> {
    const { onOpen, log } = this.#options;
    const server = connection.getServer();
    let isSilent = false;
    void this.#watch(connection, () => {
      isSilent = true;
    });
    try {
      await Promise.race([onOpen(connection), connection.closed()]);
      if (!connection.isClosed()) {
        this.#sendHeld(connection);
        this.#setOpen(true);
      }
    } catch (error) {
      log.warn({ server, error: String(error) }, 'a connection to NATS cannot be used');
      await connection.close();
    }
    const cause = await connection.closed();
    if (this.#closing) return;
    if (isSilent) this.#silent.add(server);
    const what = isSilent ? 'has fallen silent' : 'has closed the connection';
    this.#problem =
      cause instanceof Error && !isSilent
        ? connectProblem(server, cause)
        : { name: 'bus-away', reason: `${server}: the server ${what}` };
    log.warn({ reason: this.#problem.reason }, 'NATS connection closed');
  }

  async #watch(connection: NatsConnection, onSilent: () => void): Promise<void> {
    const { onRefused, log } = this.#options;
    for await (const { type, data, permissionContext } of connection.status()) {
      if (type === DebugEvents.StaleConnection) {
        onSilent();
        // The library would first wait until what it has written has left.
        void connection.close();
      } else if (type === Events.Update && this.#server !== undefined) {
        this.#learn(this.#server, connection);
      } else if (type === Events.Error && permissionContext !== undefined) {
        onRefused(permissionContext);
      } else if (type === Events.Error) {
        log.warn({ error: data }, 'NATS reports an error');
      }
    }
  }

  /** Tries each server once. Undefined where none lets us in: `problem` says why. */
  async #connect(): Promise<NatsConnection | undefined> {
    const problems: BusProblem[] = [];
    for (const server of [...this.#servers, ...this.#learned]) {
      const connection = await this.#tryServer(server, problems);
      if (connection !== undefined) return connection;
      if (this.#closing) return undefined;
    }
    this.#problem = together(problems);
    // Told once for each reason: it is tried some times a second.
    if (this.#problem.reason !== this.#told) {
      this.#told = this.#problem.reason;
      this.#options.log.warn({ error: this.#told }, 'cannot connect to NATS');
    }
    return undefined;
  }

  /** Tries all addresses of one server, those that were silent last. */
  async #tryServer(
    server: NatsServer,
    problems: BusProblem[],
  ): Promise<NatsConnection | undefined> {
    let found: readonly string[];
    try {
      found = await this.#addresses.of(server.name);
    } catch (error) {
      problems.push(connectProblem(server.name, error));
      return undefined;
    }
    const isSilent = (address: string): number =>
      this.#silent.has(placeOf({ ...server, address })) ? 1 : 0;
    for (const address of found.toSorted((one, other) => isSilent(one) - isSilent(other))) {
      if (this.#closing) return undefined;
      const place = placeOf({ ...server, address });
      try {
        const connection = await this.#dial(server, address);
        this.#silent.delete(place);
        this.#told = undefined;
        // It comes last when it is lost.
        if (this.#servers.includes(server)) {
          this.#servers = [...this.#servers.filter((one) => one !== server), server];
        }
        this.#server = server;
        this.#learn(server, connection);
        return connection;
      } catch (error) {
        if (hasCode(error, ErrorCode.Timeout)) this.#silent.add(place);
        const named = server.name === address ? place : `${server.name} (${place})`;
        problems.push(connectProblem(named, error));
      }
    }
    return undefined;
  }

  /** What it says of its cluster comes after those that are configured. */
  #learn(server: NatsServer, { info }: NatsConnection): void {
    const known = new Set(this.#servers.map(placeName));
    this.#learned = (info?.connect_urls ?? [])
      .map((url) => ({ ...addressOf(url), certifiedAs: certifiedAs(server) }))
      .filter((one) => !known.has(placeName(one)));
  }

  async #dial(server: NatsServer, address: string): Promise<NatsConnection> {
    const { config, name } = this.#options;
    const place = placeOf({ ...server, address });
    // The library never closes the socket of a server that says nothing: so it is asked for a word first.
    const wasSilent = this.#silent.has(place);
    const where = { address, port: server.port };
    if (wasSilent && !(await saysSomething(where, CONNECT_TIMEOUT_MS))) {
      throw NatsError.errorForCode(ErrorCode.Timeout);
    }
    const servername = certifiedAs(server);
    const given = connectionOptionsOf(config);
    const dial = (tls: TlsOptions | undefined): Promise<NatsConnection> =>
      connect({
        ...given,
        ...(tls !== undefined && { tls: called(tls, servername) }),
        servers: [place],
        name,
        resolve: false,
        reconnect: false,
        timeout: wasSilent ? PATIENT_TIMEOUT_MS : CONNECT_TIMEOUT_MS,
        pingInterval: PING_INTERVAL_MS,
        maxPingOut: MAX_PINGS_UNANSWERED,
      });
    try {
      return await dial(given.tls ?? undefined);
    } catch (error) {
      // A server that speaks TLS unasked has shown the certificate of its name.
      const isNamed = codeOf(error) === 'ERR_TLS_CERT_ALTNAME_INVALID' && servername !== undefined;
      if (!isNamed || given.tls !== undefined) throw error;
      return dial({});
    }
  }

  #sendHeld(connection: NatsConnection): void {
    const held = this.#held.filter(({ untilMs }) => performance.now() < untilMs);
    this.#held = [];
    for (const { subject, payload, headers } of held) {
      try {
        connection.publish(subject, payload, headers === undefined ? {} : { headers });
      } catch (error) {
        this.#options.log.warn({ subject, error: String(error) }, 'an answer cannot be sent');
      }
    }
  }

  #setOpen(isOpen: boolean): void {
    if (isOpen === this.#isOpen) return;
    this.#isOpen = isOpen;
    this.#options.onState(isOpen);
  }
}

/** What the servers' problems are together: the credentials, where any server has looked at them. */
function together(problems: readonly BusProblem[]): BusProblem {
  const refused = problems.some(({ name }) => name === 'credentials-refused');
  const reasons = new Set(problems.map(({ reason }) => reason));
  return {
    name: refused ? 'credentials-refused' : 'bus-away',
    reason: [...reasons].join('; ') || 'no server is known',
  };
}

const codeOf = (error: unknown): unknown =>
  error instanceof Error && 'code' in error ? error.code : undefined;
