import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { decodeAnswer, encode } from '#protocol/envelope.ts';
import { subjects } from '#protocol/subjects.ts';
import { until } from '#test/support/agent.ts';
import { type RawMessage, RawNats } from '#test/support/raw-nats.ts';
import { type Stack, startStack } from '#test/support/stack.ts';

// What a stranger sends over NATS that no client library would. Nothing of it ends an agent, stops it, or makes it
// speak for somebody else.

const known = subjects();
let stack: Stack;
let stranger: RawNats;
let asked = 0;

beforeAll(async () => {
  stack = await startStack();
  stranger = await RawNats.open(stack.nats.url);
});
afterAll(async () => {
  stranger[Symbol.dispose]();
  await stack[Symbol.asyncDispose]();
});

/** The answer to a message with these headers. */
async function answerTo(message: {
  subject: string;
  headers: string | Uint8Array;
  data?: Uint8Array;
}): Promise<unknown> {
  asked += 1;
  const reply = `_INBOX.stranger.${asked}`;
  const { promise, resolve } = Promise.withResolvers<RawMessage>();
  stranger.subscribe(reply, resolve);
  stranger.publish({ ...message, reply });
  const { data } = await promise;
  return data[0] === '{'.charCodeAt(0) ? JSON.parse(data.toString()) : decodeAnswer(data);
}

async function eventOf(requestId: string): Promise<Readonly<Record<string, unknown>>> {
  const manager = await stack.connection.jetstreamManager();
  let found: Readonly<Record<string, unknown>> | undefined;
  await until(`the event of ${requestId} is stored`, async () => {
    const { state } = await manager.streams.info('VOLT_NET_EVENTS');
    for (let seq = state.first_seq; seq <= state.last_seq && found === undefined; seq += 1) {
      const { data } = await manager.streams.getMessage('VOLT_NET_EVENTS', { seq });
      const body = decodeAnswer(data) as Readonly<Record<string, unknown>>;
      if (body['requestId'] === requestId) found = body;
    }
    return found !== undefined;
  });
  return found ?? {};
}

const MALFORMED: readonly [what: string, headers: string | Uint8Array][] = [
  ['a lone LF in a value', 'x: a\nb'],
  ['a lone CR in a value', 'x: a\rb'],
  ['a space in a name', 'x y: a'],
  ['no name', ': a'],
  ['no colon', 'traceparent'],
  ['a name of eight bits', Uint8Array.of(0xff, 0x3a, 0x20, 0x61)],
  ['a control character in a name', 'x\u0001: a'],
  [
    'more headers than anybody sends',
    Array.from({ length: 100 }, (_, n) => `x${n}: a`).join('\r\n'),
  ],
  ['a megabyte of short lines', 'x:\r\n'.repeat(200_000)],
];

describe('malformed headers', () => {
  const operations = [
    ...(['attach', 'detach', 'update', 'check', 'get', 'list'] as const).map((one) =>
      known.host('h1', one),
    ),
    ...(['put', 'get', 'list', 'delete'] as const).map((one) => known.network(one)),
    ...(['leases', 'hosts', 'forget', 'check'] as const).map((one) => known.ledger(one)),
  ];

  test.for(MALFORMED)('%s: every request is refused', async ([, headers]) => {
    for (const subject of operations) {
      const answer = await answerTo({ subject, headers, data: encode({}) });
      expect(answer).toMatchObject({
        error: { code: 'INVALID_REQUEST', details: { path: 'headers' } },
      });
    }
  });

  test.for(MALFORMED)('%s: the service says who it is', async ([, headers]) => {
    for (const verb of ['PING', 'INFO', 'STATS']) {
      const subject = `$SRV.${verb}.volt-network-agent`;
      expect(await answerTo({ subject, headers })).toMatchObject({ metadata: { host: 'h1' } });
    }
  });

  test.for(MALFORMED)(
    '%s: a job ends with its event, its neighbours too',
    async ([what, headers]) => {
      const requestId = `poisoned: ${what}`;
      const job = { id: 'nobody', requestId };
      stranger.publish({
        subject: known.job('h1', 'detach'),
        // JetStream stores 64 KiB of them at most.
        headers: headers.slice(0, 30_000),
        data: encode(job),
      });
      await stranger.flush();
      const next = await stack.client.submitDetach('h1', { id: 'nobody' });
      expect(await eventOf(requestId)).toMatchObject({
        error: { code: 'INVALID_REQUEST' },
        operation: 'detach',
      });
      expect(await eventOf(next.requestId)).toMatchObject({ reason: 'absent' });
    },
  );

  test.for(MALFORMED)(
    '%s: in answers to the agent, its connection goes on',
    async ([, headers]) => {
      using rogue = await RawNats.open(stack.nats.url);
      // Beside the stream, or instead of it, somebody answers each event that the agent publishes.
      let answered = 0;
      rogue.subscribe('volt.net.v1.event.>', ({ reply }) => {
        answered += 1;
        rogue.publish({ subject: reply, headers });
      });
      rogue.subscribe('$JS.API.>', ({ reply }) => rogue.publish({ subject: reply, headers }));
      await rogue.flush();
      const { requestId } = await stack.client.submitDetach('h1', { id: 'nobody' });
      await until('an event was answered', () => answered > 0);
      rogue[Symbol.dispose]();
      expect(await eventOf(requestId)).toMatchObject({ reason: 'absent' });
    },
  );
});

test.for([
  'volt.net.v1.event.h2.volt0.attached',
  'volt.net.v1.job.h2.detach',
  'volt.net.v1.host.h2.detach',
  '$JS.API.STREAM.DELETE.VOLT_NET_EVENTS',
  'elsewhere',
])('an answer does not go to %s', async (reply) => {
  const heard: string[] = [];
  stranger.subscribe(reply, ({ subject }) => heard.push(subject));
  stranger.publish({ subject: known.host('h1', 'get'), reply, data: encode({ id: 'a' }) });
  stranger.publish({ subject: '$SRV.PING.volt-network-agent', reply });
  stranger.publish({ subject: known.network('list'), reply, data: encode({}) });
  await stranger.flush();
  // What was sent before is dealt with before.
  expect(
    await answerTo({ subject: known.host('h1', 'list'), headers: 'x: y', data: encode({}) }),
  ).toMatchObject({ attachments: [] });
  await stranger.flush();
  expect(heard).toEqual([]);
});

describe('an event can always be published', () => {
  const label = (n: number): string => `${n}`.padEnd(64, 'x');
  const labels = Object.fromEntries(
    Array.from({ length: 64 }, (_, n) => [label(n), '\u7db2'.repeat(256)]),
  );
  const ports = Array.from({ length: 256 }, (_, n) => ({
    protocol: 'tcp',
    hostPort: n + 1,
    port: 80,
  }));
  const roomy = { kind: 'container', netns: `/${'n'.repeat(3_600)}` };
  const wide = { network: 'volt0', workload: 'vm-1', kind: 'vm', labels };
  const jobs: [what: string, operation: 'attach' | 'detach', job: object, headers: string][] = [
    ['an id that is no id', 'detach', { id: 'a\nce-source: x', requestId: 'event 1' }, ''],
    ['a request id with a line feed', 'detach', { id: 'a', requestId: 'event\n2' }, ''],
    [
      'a traceparent that is none',
      'detach',
      { id: 'a', requestId: 'event 3' },
      `traceparent: ${'0'.repeat(60_000)}`,
    ],
    [
      'a tracestate without end',
      'detach',
      { id: 'a', requestId: 'event 4' },
      `tracestate: ${'a=b,'.repeat(15_000)}`,
    ],
    [
      'a request as large as they come, refused',
      'attach',
      { ...wide, ...roomy, id: 'wide-1', network: 'nowhere', ports, requestId: 'event 5' },
      '',
    ],
    [
      'an attachment with all the labels there may be',
      'attach',
      { ...wide, id: 'wide-2', requestId: 'event 6' },
      '',
    ],
  ];

  test.for(jobs)('of a job with %s', async ([what, operation, job, headers]) => {
    const subject = known.job('h1', operation);
    const data = encode(job);
    stranger.publish({ subject, ...(headers !== '' && { headers }), data });
    const { requestId } = job as { requestId: string };
    const event = await eventOf(requestId);
    const isTooLarge = what.startsWith('a request as large');
    expect(data.byteLength > 65_000).toBe(isTooLarge);
    expect(event['truncated']).toEqual(isTooLarge ? ['request'] : undefined);
    await until('nothing waits', async () => (await stack.agent.health())['eventsPending'] === 0);
    expect(existsSync(join(stack.agent.stateDir, 'outbox', 'refused'))).toBe(false);
  });
});

test('nothing of this was unexpected to the agent', async () => {
  const { pid, unexpectedErrors } = await stack.agent.health();
  expect(pid).toBe(stack.agent.pid);
  expect(unexpectedErrors).toEqual({ count: 0 });
});
