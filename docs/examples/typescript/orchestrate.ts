import { setTimeout as sleep } from 'node:timers/promises';
import { AckPolicy, connect, DeliverPolicy, headers, type NatsConnection } from 'nats';
import {
  type AttachRequest,
  type StoredEvent,
  VoltError,
  VoltNetworkClient,
} from 'volt-network/protocol';

// An orchestrator for Volt Unified Networking.
// Usage: orchestrate.ts NATS_URL HOST NETNS     such as nats://127.0.0.1:4222 h1 /run/netns/box

const STREAM = 'VOLT_NET_EVENTS';
const CONSUMER = 'example-typescript';

const say = (...words: unknown[]): void => console.log(...words);

/** Again where that may help, later each time. A repeat is harmless. */
async function insist<Answer>(ask: () => Promise<Answer>): Promise<Answer> {
  for (let waitMs = 100; ; waitMs = Math.min(2 * waitMs, 5_000)) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof VoltError) || !error.retryable) throw error;
      say('retry', error.code);
      await sleep(Math.max(waitMs, error.retryAfterMs ?? 0));
    }
  }
}

/** Every event since the consumer was made, also those of when nobody was here. */
async function follow(connection: NatsConnection, volt: VoltNetworkClient): Promise<Follower> {
  const manager = await connection.jetstreamManager();
  await manager.consumers.add(STREAM, {
    durable_name: CONSUMER,
    ack_policy: AckPolicy.Explicit,
    deliver_policy: DeliverPolicy.New,
  });
  return new Follower(volt);
}

class Follower {
  readonly #end = new AbortController();
  readonly #over: Promise<void>;
  #waiting: ((event: StoredEvent) => void)[] = [];

  constructor(volt: VoltNetworkClient) {
    this.#over = this.#read(volt);
  }

  /** Calls `handle` with each event to come, until it gives something else than undefined. */
  async until<Found>(handle: (event: StoredEvent) => Found | undefined): Promise<Found> {
    return new Promise((resolve) => {
      const look = (event: StoredEvent): void => {
        const found = handle(event);
        if (found === undefined) return;
        this.#waiting = this.#waiting.filter((one) => one !== look);
        resolve(found);
      };
      this.#waiting.push(look);
    });
  }

  async end(): Promise<void> {
    this.#end.abort();
    await this.#over;
  }

  // An event is acknowledged when the next one is asked for.
  async #read(volt: VoltNetworkClient): Promise<void> {
    for await (const event of volt.watch({ consumer: CONSUMER, signal: this.#end.signal })) {
      say('event', event.sequence, event.type, event.subject);
      for (const look of this.#waiting) look(event);
    }
  }
}

const [, , url = '', host = '', netns = ''] = process.argv;
const connection = await connect({ servers: url, maxReconnectAttempts: -1 });
const volt = new VoltNetworkClient({ connection, headers });
const events = await follow(connection, volt);

const subnet = { subnet: '10.42.0.0/24', gateway: '10.42.0.1' };
const put = await insist(() => volt.putNetwork({ network: 'volt0', ...subnet }));
say('network', put.network.network, 'revision', put.revision);

const requests: readonly AttachRequest[] = [
  { id: 'web', workload: 'vm-web', kind: 'vm', network: 'volt0' },
  { id: 'box', workload: 'container-box', kind: 'container', network: 'volt0', netns },
];
for (const request of requests) {
  const { attachment } = await insist(() => volt.attach(host, request));
  say('attached', attachment.id, attachment.device?.name, attachment.addresses[0]?.address);
}

// A job is stored, and done when the host's agent is there; its outcome is an event.
const requestId = crypto.randomUUID();
const outcome = events.until((event) => {
  if (event.body.requestId !== requestId) return undefined;
  if (event.type === 'updated') return ['job', event.type, event.body.labels['tier']];
  return ['job', event.type, event.type === 'failed' ? event.body.error.code : ''];
});
await insist(() => volt.submitUpdate(host, { id: 'web', labels: { tier: 'front' }, requestId }));
say(...(await outcome));

const going = new Set(['box', 'web']);
const gone = events.until((event) => {
  if (event.type !== 'detached' || !going.delete(event.body.id)) return undefined;
  say('detached', event.body.id, event.body.reason);
  return going.size === 0 ? true : undefined;
});
for (const id of ['box', 'web']) await insist(() => volt.detach(host, { id }));
await gone;
await events.end();
await connection.drain();
