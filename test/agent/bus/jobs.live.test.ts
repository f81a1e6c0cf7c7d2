import type { NatsConnection } from 'nats';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { AttachRequest } from '#protocol/attachment.ts';
import type { VoltEvent } from '#protocol/client.ts';
import { encode } from '#protocol/envelope.ts';
import { until } from '../../support/agent.ts';
import { deviceNames } from '../../support/kernel.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// Jobs out of the stream VOLT_NET_JOBS: what becomes of them, whatever is killed, repeated or out of order.

const WIDE = { network: 'volt0', subnet: '10.42.0.0/16', gateway: '10.42.0.1' };

let stack: Stack;
/** All events of this file, as the stream has them. */
const events: VoltEvent[] = [];
const ended = new AbortController();

beforeAll(async () => {
  stack = await startStack({ networks: [WIDE] });
  void collect();
  await stack.connection.flush();
  await until('jobs are taken', async () => (await stack.agent.health())['jobs'] === 'ready');
});

afterAll(async () => {
  ended.abort();
  await stack[Symbol.asyncDispose]();
});

async function collect(): Promise<void> {
  for await (const event of stack.client.watch({ signal: ended.signal })) events.push(event);
}

const vm = (id: string): AttachRequest => ({
  id,
  workload: `vm-${id}`,
  kind: 'vm',
  network: 'volt0',
});

const eventsOf = (requestId: string): VoltEvent[] =>
  events.filter(({ body }) => body['requestId'] === requestId);

async function eventOf(requestId: string): Promise<VoltEvent> {
  await until(`the event of ${requestId}`, () => eventsOf(requestId).length > 0, 30_000);
  const [event] = eventsOf(requestId);
  if (event === undefined) throw new Error('no event');
  return event;
}

async function queued(connection: NatsConnection = stack.connection): Promise<number> {
  const manager = await connection.jetstreamManager();
  return (await manager.streams.info('VOLT_NET_JOBS')).state.messages;
}

const isEmpty = (): Promise<void> =>
  until('the queue is empty', async () => (await queued()) === 0);

/** A job as it is stored, past the client's checks. */
async function publish(operation: string, payload: Uint8Array): Promise<void> {
  await stack.connection.jetstream().publish(`volt.net.v1.job.${stack.host}.${operation}`, payload);
}

describe('a job', () => {
  test('attaches and detaches, tells it by its request id, and leaves the queue', async () => {
    const { client, host } = stack;
    await client.submitAttach(host, { ...vm('job'), requestId: 'a1' });
    expect(await eventOf('a1')).toMatchObject({ type: 'attached', subject: 'job' });
    await isEmpty();
    expect(deviceNames()).toContain('tap-job');
    await client.submitDetach(host, { id: 'job', requestId: 'd1' });
    expect(await eventOf('d1')).toMatchObject({
      type: 'detached',
      body: { id: 'job', reason: 'requested' },
    });
    await isEmpty();
    expect(deviceNames()).not.toContain('tap-job');
  });

  test('without a request id gets one of its place in the stream', async () => {
    await publish('detach', encode({ id: 'unnamed' }));
    await until('its event', () => events.some(({ subject }) => subject === 'unnamed'));
    const event = events.find(({ subject }) => subject === 'unnamed');
    expect(event?.body['requestId']).toMatch(/^job-\d{19}-\d+$/);
    expect(event?.body).toMatchObject({ state: 'detached', reason: 'absent' });
  });

  test('that changes nothing has an event, too', async () => {
    const { client, host } = stack;
    await client.submitAttach(host, { ...vm('twice'), requestId: 'tw1' });
    await eventOf('tw1');
    await client.submitAttach(host, { ...vm('twice'), requestId: 'tw2' });
    expect(await eventOf('tw2')).toMatchObject({ type: 'attached', body: { id: 'twice' } });
    await client.submitDetach(host, { id: 'twice', requestId: 'tw3' });
    await client.submitDetach(host, { id: 'twice', requestId: 'tw4' });
    await Promise.all([eventOf('tw3'), eventOf('tw4')]);
    await isEmpty();
    await stack.gone('twice');
  });

  test.each([
    ['garbage', 'attach', new Uint8Array([0xc1, 0xff]), 'INVALID_REQUEST'],
    ['a wrong field', 'attach', encode({ ...vm('bad'), mtu: 'big' }), 'INVALID_REQUEST'],
    ['too many bytes', 'attach', new Uint8Array(70_000), 'TOO_LARGE'],
    ['an unknown operation', 'explode', encode({ id: 'x' }), 'INVALID_REQUEST'],
  ])('of %s ends with its error', async (_, operation, payload, code) => {
    const before = events.length;
    await publish(operation, payload);
    const told = (): VoltEvent | undefined =>
      events.slice(before).find(({ type }) => type === 'failed');
    await until('its event', () => told() !== undefined);
    expect(told()).toMatchObject({ body: { error: { code } } });
    await isEmpty();
  });

  test('that can never be done ends with its error, which is remembered', async () => {
    const { client, host } = stack;
    await client.submitAttach(host, { ...vm('lost'), network: 'nowhere', requestId: 'n1' });
    expect(await eventOf('n1')).toMatchObject({ body: { error: { code: 'UNKNOWN_NETWORK' } } });
    await isEmpty();
    await client.putNetwork({ network: 'nowhere', subnet: '10.43.0.0/24' });
    const again = { ...vm('lost'), network: 'nowhere', requestId: 'n1' };
    await expect(client.attach(host, again)).rejects.toMatchObject({ code: 'UNKNOWN_NETWORK' });
    await client.deleteNetwork('nowhere');
  });
});

describe('order', () => {
  test.each([
    ['attach', 'detach'],
    ['detach', 'attach'],
  ] as const)(
    'of two jobs, %s and then %s, the later one counts, whichever comes first',
    async (first, second) => {
      const { client, host, connection } = stack;
      const id = `or-${first}`;
      const submit = (operation: 'attach' | 'detach', requestId: string): Promise<unknown> =>
        operation === 'attach'
          ? client.submitAttach(host, { ...vm(id), requestId })
          : client.submitDetach(host, { id, requestId });
      await stack.agent.kill();
      const consumer = await connection.jetstream().consumers.get('VOLT_NET_JOBS', `agent-${host}`);
      // The server might still deliver the first job to the agent that is gone.
      const asking = async (): Promise<number> => (await consumer.info()).num_waiting;
      await until('nobody asks for jobs', async () => (await asking()) === 0);
      await submit(first, `${id}-1`);
      await submit(second, `${id}-2`);
      // Delivered to somebody who keeps it until the second has been done.
      const kept = await consumer.next({ expires: 30_000 });
      expect(kept?.subject).toMatch(new RegExp(`\\.${first}$`));
      const keeping = setInterval(() => kept?.working(), 1_000);
      try {
        await stack.agent.restart();
        expect(await eventOf(`${id}-2`)).toMatchObject({ type: `${second}ed` });
      } finally {
        clearInterval(keeping);
      }
      kept?.nak();
      expect(await eventOf(`${id}-1`)).toMatchObject({
        type: 'failed',
        body: { error: { code: 'SUPERSEDED', retryable: false } },
      });
      await isEmpty();
      expect(deviceNames().includes(`tap-${id}`)).toBe(second === 'attach');
      await client.detach(host, { id });
      await stack.gone(id);
    },
  );

  test('a request that is repeated after it ended changes nothing and gets the first answer', async () => {
    const { client, host } = stack;
    const request = { ...vm('once'), requestId: 'o1' };
    const first = await client.attach(host, request);
    await client.detach(host, { id: 'once', requestId: 'o2' });
    await stack.gone('once');
    await stack.agent.restart('SIGKILL');
    await stack.agent.ready();
    const again = await client.attach(host, request);
    expect(again).toEqual({ attachment: first.attachment, replayed: true });
    expect(deviceNames()).not.toContain('tap-once');
    expect(await client.detach(host, { id: 'once', requestId: 'o2' })).toEqual({
      detached: true,
      releasing: true,
    });
    await expect(client.attach(host, { ...request, mtu: 1300 })).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path: 'requestId' },
    });
  });
});

describe('whatever is away', () => {
  test('jobs wait for the agent, and each is done once', async () => {
    const { client, host } = stack;
    await stack.agent.kill();
    for (let n = 0; n < 5; n += 1) {
      await client.submitAttach(host, { ...vm(`w${n}`), requestId: `wa${n}` });
      await client.submitDetach(host, { id: `w${n}`, requestId: `wd${n}` });
    }
    await stack.agent.restart();
    for (let n = 0; n < 5; n += 1) {
      expect(await eventOf(`wa${n}`)).toMatchObject({ type: 'attached' });
      expect(await eventOf(`wd${n}`)).toMatchObject({ type: 'detached' });
    }
    await isEmpty();
    expect(deviceNames().filter((name) => name.startsWith('tap-w'))).toEqual([]);
  });

  test('jobs wait for Redis', async () => {
    const { client, host } = stack;
    await stack.redis.kill();
    await until('Redis is away', async () => {
      const { redis } = await stack.agent.health();
      return JSON.stringify(redis).includes('unavailable');
    });
    await client.submitAttach(host, { ...vm('noredis'), requestId: 'nr' });
    await until('it is tried', async () => (await queued()) === 1);
    await stack.redis.restart();
    expect(await eventOf('nr')).toMatchObject({ type: 'attached' });
    await isEmpty();
    await client.detach(host, { id: 'noredis' });
    await stack.gone('noredis');
  });

  test('a stream or consumer that somebody deleted is made again', async () => {
    const { client, host } = stack;
    const manager = await stack.connection.jetstreamManager();
    await manager.consumers.delete('VOLT_NET_JOBS', `agent-${host}`);
    await manager.streams.delete('VOLT_NET_JOBS');
    await until(
      'the stream is there',
      async () => {
        return (await queued().catch(() => -1)) === 0;
      },
      60_000,
    );
    await client.submitAttach(host, { ...vm('anew'), requestId: 'an1' });
    expect(await eventOf('an1')).toMatchObject({ type: 'attached' });
    await client.submitDetach(host, { id: 'anew', requestId: 'an2' });
    await eventOf('an2');
    await isEmpty();
  });
});
