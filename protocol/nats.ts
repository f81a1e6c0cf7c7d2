// What this project uses of a NATS connection, by structure: a connection of the package `nats` 2 fits, and one of
// `@nats-io/transport-node` 3. Neither package is named here, so the declarations ask for neither.

export interface NatsHeaders {
  /** The status of a message that the server itself has sent: 503, nobody listens; 100, a heartbeat. */
  readonly code: number;
  /** The value, or '' for a header that is not there. */
  get(name: string): string;
  set(name: string, value: string): void;
  keys(): string[];
}

export interface NatsMessage {
  readonly subject: string;
  readonly data: Uint8Array;
  readonly reply?: string;
  /** The libraries parse headers when they are looked at, and throw what they cannot parse. */
  readonly headers?: NatsHeaders;
}

export interface NatsSubscription extends AsyncIterable<NatsMessage> {
  /** Version 3 resolves with the reason; version 2 rejects with it. */
  readonly closed: Promise<void | Error>;
  unsubscribe(): void;
  isClosed(): boolean;
}

export interface NatsLike {
  readonly info?: { readonly max_payload: number };
  publish(
    subject: string,
    payload?: Uint8Array,
    options?: { reply?: string; headers?: NatsHeaders },
  ): void;
  subscribe(
    subject: string,
    options?: { max?: number; callback?: (error: Error | null, message: NatsMessage) => void },
  ): NatsSubscription;
  isClosed(): boolean;
}
