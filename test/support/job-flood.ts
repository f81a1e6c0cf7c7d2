import { setTimeout as sleep } from 'node:timers/promises';
import { headers as createHeaders } from 'nats';
import { expect } from 'vitest';
import { decodeAnswer, encode } from '#protocol/envelope.ts';
import { until } from './agent.ts';
import { disagreements, viewsOf } from './agreement-of-host.ts';
import { deviceNames } from './kernel.ts';
import type { Stack } from './stack.ts';

interface Job {
  readonly operation: 'attach' | 'detach';
  readonly requestId: string;
  readonly body: object;
}

/** Of so many ids one is asked for out of order, and of so many jobs one is stored twice. */
const REORDERED = 100;
const DUPLICATED = 10;
/** Published at once; so many ids at most are attached at a time. */
const AT_ONCE = 50;
const NATS_KILLS = 3;
const DEVICES_ALIVE = 1_000;
const PATIENCE_MS = 60_000;
const PATIENCE_PER_ID_MS = 30;

/**
 * Attaches and detaches `ids` VMs by jobs, two requests each, a tenth of them stored twice and a hundredth of the ids
 * detached first, while nats-server is killed and started again three times. Each request has one outcome event, an id
 * is attached only where its attach was stored last, and the queue is empty.
 */
export async function floodOfJobs(stack: Stack, ids: number): Promise<void> {
  const { host, nats, client } = stack;
  const late = new Set(Array.from({ length: ids / REORDERED }, (_, n) => n * REORDERED + 7));
  const killAt = Array.from({ length: NATS_KILLS }, (_, n) => ((n + 1) * ids) / (NATS_KILLS + 1));
  const requests = new Set<string>();
  let most = 0;
  const noteAlive = (): void => {
    most = Math.max(most, deviceNames().filter((name) => name.startsWith('tap-')).length);
  };
  for (let from = 0; from < ids; from += AT_ONCE) {
    const some = Array.from({ length: Math.min(AT_ONCE, ids - from) }, (_, n) => from + n);
    const storing = Promise.all(
      some.map(async (n) => {
        const pair = late.has(n) ? jobsOf(n).toReversed() : jobsOf(n);
        for (const job of pair) {
          requests.add(job.requestId);
          await store(stack, job, job.requestId);
          if (n % DUPLICATED === 0) await store(stack, job, `${job.requestId}-again`);
        }
      }),
    );
    if (killAt.some((at) => from <= at && at < from + AT_ONCE)) {
      await nats.kill();
      await sleep(300);
      await nats.restart();
    }
    await storing;
    noteAlive();
  }
  await until(
    'the queue is empty',
    async () => {
      noteAlive();
      await sleep(200);
      return (await waiting(stack)) === 0;
    },
    PATIENCE_MS + ids * PATIENCE_PER_ID_MS,
  );
  await until('all events are out', async () => {
    return (await stack.agent.health())['eventsPending'] === 0;
  });
  const told = await outcomeIds(stack);
  for (const requestId of requests) {
    expect([...(told.get(requestId) ?? [])], requestId).toHaveLength(1);
  }
  expect(most).toBeLessThanOrEqual(DEVICES_ALIVE);
  const expected = [...late].map((n) => `flood-${n}`).toSorted();
  const alive: string[] = [];
  for await (const { id } of client.listAll(host)) alive.push(id);
  expect(alive.toSorted()).toEqual(expected);
  expect((await client.check(host, {})).differences).toEqual([]);
  expect(disagreements(viewsOf(stack))).toEqual([]);
  for (const id of alive) await client.detach(host, { id });
  for (const id of alive) await stack.gone(id);
}

function jobsOf(n: number): Job[] {
  const id = `flood-${n}`;
  return [
    {
      operation: 'attach',
      requestId: `a${n}`,
      body: { id, workload: `vm-f${n}`, kind: 'vm', network: 'volt0', requestId: `a${n}` },
    },
    { operation: 'detach', requestId: `d${n}`, body: { id, requestId: `d${n}` } },
  ];
}

/** Until the stream says that it has it: with the same message id a repeat is stored once. */
async function store({ connection, host }: Stack, job: Job, messageId: string): Promise<void> {
  for (;;) {
    try {
      await connection
        .jetstream()
        .publish(`volt.net.v1.job.${host}.${job.operation}`, encode(job.body), {
          msgID: messageId,
          headers: createHeaders(),
          timeout: 1_000,
        });
      return;
    } catch {
      await sleep(100);
    }
  }
}

async function waiting({ connection }: Stack): Promise<number> {
  const manager = await connection.jetstreamManager();
  return (await manager.streams.info('VOLT_NET_JOBS')).state.messages;
}

/** Event ids by request id, of all that the stream of events has. */
async function outcomeIds({ connection }: Stack): Promise<Map<string, Set<string>>> {
  const manager = await connection.jetstreamManager();
  const { state } = await manager.streams.info('VOLT_NET_EVENTS');
  const ids = new Map<string, Set<string>>();
  if (state.messages === 0) return ids;
  const consumer = await connection.jetstream().consumers.get('VOLT_NET_EVENTS');
  const messages = await consumer.consume();
  let read = 0;
  for await (const message of messages) {
    const body = decodeAnswer(message.data);
    const requestId: unknown =
      typeof body === 'object' && body !== null && 'requestId' in body ? body.requestId : undefined;
    if (typeof requestId === 'string') {
      const known = ids.get(requestId) ?? new Set();
      ids.set(requestId, known.add(message.headers?.get('ce-id') ?? ''));
    }
    read += 1;
    if (read === state.messages) break;
  }
  return ids;
}
