import type { NatsConnection, Subscription } from 'nats';
import { headers as createHeaders } from 'nats';
import { decodeAnswer, encode } from '#protocol/envelope.ts';
import { fromErrorBody } from '#protocol/errors.ts';

/** What is asked again and again. */
export interface FloodOptions {
  readonly connection: NatsConnection;
  readonly subject: string;
  /** The body of the nth request. */
  readonly body: (n: number) => object;
  readonly inFlight: number;
  /** How many requests in all; without it, until `stop`. */
  readonly total?: number;
  readonly timeoutMs?: number;
}

/**
 * Requests of somebody who gives each of them an inbox of its own, so that an agent takes each for another caller's.
 * Every one is answered, or `drained` never resolves.
 */
export class Flood {
  readonly #options: FloodOptions;
  readonly #subscription: Subscription;
  readonly #drained = Promise.withResolvers<void>();
  readonly #prefix = `_INBOX.flood${Math.random().toString(36).slice(2)}`;
  /** Answers by their error code; `ok` are those without. */
  readonly answers = new Map<string, number>();
  #sent = 0;
  #answered = 0;
  #stopped = false;

  constructor(options: FloodOptions) {
    this.#options = options;
    this.#subscription = options.connection.subscribe(`${this.#prefix}.>`, {
      callback: (_, { data }) => this.#take(data),
    });
    for (let n = 0; n < options.inFlight; n += 1) this.#send();
  }

  get sent(): number {
    return this.#sent;
  }

  get answered(): number {
    return this.#answered;
  }

  count(code: string): number {
    return this.answers.get(code) ?? 0;
  }

  /** Sends no more; resolves when all that was sent has been answered. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#endIfDone();
    await this.drained();
  }

  async drained(): Promise<void> {
    await this.#drained.promise;
    this.#subscription.unsubscribe();
  }

  #send(): void {
    const { connection, subject, body, total = Infinity, timeoutMs = 60_000 } = this.#options;
    if (this.#stopped || this.#sent >= total) return;
    const headers = createHeaders();
    headers.set('volt-timeout-ms', String(timeoutMs));
    const n = this.#sent;
    this.#sent += 1;
    connection.publish(subject, encode(body(n)), { reply: `${this.#prefix}.${n}.1`, headers });
  }

  #take(data: Uint8Array): void {
    this.#answered += 1;
    const code = fromErrorBody(decodeAnswer(data))?.code ?? 'ok';
    this.answers.set(code, this.count(code) + 1);
    this.#send();
    this.#endIfDone();
  }

  #endIfDone(): void {
    const { total = Infinity } = this.#options;
    const over = this.#stopped || this.#sent >= total;
    if (over && this.#answered === this.#sent) this.#drained.resolve();
  }
}
