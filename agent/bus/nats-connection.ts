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
  /** There is a connection, the first one or a new one. It counts as open when this resolves. */
  readonly onOpen: (connection: NatsConnection) => Promise<void>;
  /** It is open, or not any more. */
  readonly onState: (isOpen: boolean) => void;
  readonly onRefused: (refused: Refused) => void;
  readonly log: Log;
}

const RETRY_MS = 250;
/** Plus a random part, so that a server that comes back does not meet all clients at once. */
const RETRY_JITTER_MS = 500;
/** A silent server is left after two to three of these periods. */
const PING_INTERVAL_MS = 2_500;
const MAX_PINGS_UNANSWERED = 2;
/** How long one server may take, from the first packet to its answer to the credentials. */
const CONNECT_TIMEOUT_MS = 2_000;
/** For a server that has taken longer and does answer: many clients may be coming back to it at once. */
const PATIENT_TIMEOUT_MS = 8_000;
const DRAIN_TIMEOUT_MS = 1_000;
/** A message waits so long for a connection; most callers wait no longer either. */
const HELD_MS = 10_000;
const MAX_HELD = 1_024;

interface HeldMessage {
  readonly subject: string;
  readonly payload: Uint8Array;
  readonly headers: MsgHdrs | undefined;
  readonly untilMs: number;
}

/**
 * The connection to NATS, which is made again for ever. The library could connect again by itself, but it keeps
 * silent servers for long, and their sockets for good. So after each loss this class makes a new connection: to the
 * next server of the list, with names looked up and credentials read again.
 */
export class NatsLink {
  readonly #options: NatsLinkOptions;
  /** The configured servers, in the order in which they are tried: the one that was left comes last. */
  #servers: readonly NatsServer[];
  /** Servers of the cluster, as the last server named them: tried after the configured ones. */
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

  /** Publishes now or, for some seconds, as soon as there is a connection. Throws if the message cannot be sent. */
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
    // A drain flushes the answers; while the server is away it would wait for ever.
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
      log.warn(
        { server, error: String(error) },
        'NATS: a new connection could not be used, and is closed',
      );
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
        // The library would first wait until everything that it has written has left.
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

  /** Tries each server once. Undefined if none lets us in: `problem` says why. */
  async #connect(): Promise<NatsConnection | undefined> {
    const problems: BusProblem[] = [];
    for (const server of [...this.#servers, ...this.#learned]) {
      const connection = await this.#tryServer(server, problems);
      if (connection !== undefined) return connection;
      if (this.#closing) return undefined;
    }
    this.#problem = together(problems);
    // Logged once for each reason: connecting is tried some times a second.
    if (this.#problem.reason !== this.#told) {
      this.#told = this.#problem.reason;
      this.#options.log.warn({ error: this.#told }, 'cannot connect to NATS');
    }
    return undefined;
  }

  /** Tries all addresses of one server, the silent ones last. */
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

  /** The servers of its cluster come after the configured ones. */
  #learn(server: NatsServer, { info }: NatsConnection): void {
    const known = new Set(this.#servers.map(placeName));
    this.#learned = (info?.connect_urls ?? [])
      .map((url) => ({ ...addressOf(url), certifiedAs: certifiedAs(server) }))
      .filter((one) => !known.has(placeName(one)));
  }

  async #dial(server: NatsServer, address: string): Promise<NatsConnection> {
    const { config, name } = this.#options;
    const place = placeOf({ ...server, address });
    // The library never closes the socket of a server that says nothing. So the server has to greet before the
    // library connects.
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
        // Else each request costs the stack of an error that it may never have.
        noAsyncTraces: true,
        timeout: wasSilent ? PATIENT_TIMEOUT_MS : CONNECT_TIMEOUT_MS,
        pingInterval: PING_INTERVAL_MS,
        maxPingOut: MAX_PINGS_UNANSWERED,
      });
    try {
      return await dial(given.tls ?? undefined);
    } catch (error) {
      // A server that speaks TLS unasked has shown the certificate for its name.
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
        this.#options.log.warn(
          { subject, error: String(error) },
          'NATS: an answer could not be sent',
        );
      }
    }
  }

  #setOpen(isOpen: boolean): void {
    if (isOpen === this.#isOpen) return;
    this.#isOpen = isOpen;
    this.#options.onState(isOpen);
  }
}

/** The problems of all servers as one: the credentials, if any server has looked at them. */
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
