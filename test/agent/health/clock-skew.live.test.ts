import { globSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Condition } from '#protocol/conditions.ts';
import type { AttachRequest } from '#protocol/attachment.ts';
import type { VoltEvent } from '#protocol/client.ts';
import { until } from '../../support/agent.ts';
import { type Stack, startStack } from '../../support/stack.ts';

// A host whose clock is two seconds ahead of those of NATS and Redis.

let stack: Stack;
const events: VoltEvent[] = [];
const ended = new AbortController();

beforeAll(async () => {
  const [library = 'libfaketime is missing'] = globSync('/usr/lib/*/faketime/libfaketimeMT.so.1');
  const ahead = { LD_PRELOAD: library, FAKETIME: '+2s', DONT_FAKE_MONOTONIC: '1' };
  stack = await startStack({ env: ahead });
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
  ...{ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' },
});

async function conditions(): Promise<readonly Condition[]> {
  return (await stack.agent.health())['conditions'] as readonly Condition[];
}

test('a job that comes after a request is not taken for one of before', async () => {
  const { client, host } = stack;
  await client.attach(host, vm('web'));
  await client.detach(host, { id: 'web' });
  await client.submitAttach(host, { ...vm('web'), requestId: 'again' });
  await until('the job has its event', () =>
    events.some(({ body }) => body['requestId'] === 'again'),
  );
  expect(events.find(({ body }) => body['requestId'] === 'again')).toMatchObject({
    type: 'attached',
    body: { id: 'web' },
  });
});

test('the skew is told, by how much and against whom', async () => {
  const skew = (await conditions()).find(({ name }) => name === 'clock-skew');
  expect(skew?.reason).toMatch(/^this host and Redis: the first is (1\.9|2\.[0-9]) s ahead/);
  expect(skew?.blocks).toBe(false);
  expect(stack.agent.output()).toContain('clock-skew: this host and Redis');
});
