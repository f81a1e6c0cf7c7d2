import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { type Condition } from '#protocol/conditions.ts';
import { until } from '../../support/agent.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// A host that an operator has closed to new attachments.

let stack: Stack;
beforeAll(async () => {
  stack = await startStack();
});
afterAll(() => stack[Symbol.asyncDispose]());
afterEach(() => stack.client.cordon(stack.host, { cordoned: false }));

const vm = (id: string) => ({ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' }) as const;
const attach = (id: string) => stack.client.attach(stack.host, vm(id));
const cordon = () => stack.client.cordon(stack.host, { cordoned: true, reason: 'new kernel' });

const CORDONED = {
  code: 'HOST_CORDONED',
  retryable: false,
  message: expect.stringContaining('new kernel') as unknown,
  details: { reason: 'new kernel', since: expect.any(String) as unknown },
};

const condition = async (): Promise<Condition | undefined> =>
  ((await stack.agent.health())['conditions'] as Condition[]).find(
    ({ name }) => name === 'host-cordoned',
  );

test('it takes no new attachment; what is there may be repeated, changed and detached', async () => {
  const { attachment } = await attach('old');
  const { usage } = await stack.client.getNetwork('volt0');
  const cordoned = await cordon();
  expect(cordoned).toMatchObject({ host: stack.host, cordoned: true, reason: 'new kernel' });
  await expect(attach('new')).rejects.toMatchObject(CORDONED);
  await expect(stack.client.dryRun(stack.host, vm('new'))).rejects.toMatchObject(CORDONED);
  expect((await stack.client.getNetwork('volt0')).usage).toEqual(usage);
  expect(await attach('old')).toMatchObject({ replayed: true, attachment });
  await stack.client.update(stack.host, { id: 'old', labels: { tier: 'web' } });
  expect(await stack.client.check(stack.host)).toMatchObject({ inSync: true });
  await stack.client.detach(stack.host, { id: 'old' });
  await stack.gone('old');
  await expect(attach('old')).rejects.toMatchObject(CORDONED);
  expect(await stack.client.cordon(stack.host, { cordoned: false })).toEqual({
    host: stack.host,
    cordoned: false,
  });
  await attach('new');
  await stack.client.detach(stack.host, { id: 'new' });
});

test('a job is told that it was refused', async () => {
  await cordon();
  const { requestId } = await stack.client.submitAttach(stack.host, vm('job'));
  for await (const { body } of stack.client.watch({ types: ['failed'], after: 0 })) {
    if (body.requestId !== requestId) continue;
    expect(body.error).toMatchObject({ code: 'HOST_CORDONED' });
    break;
  }
});

test('it outlives the agent, and a second cordon keeps its beginning', async () => {
  const { since } = await cordon();
  const again = await stack.client.cordon(stack.host, { cordoned: true });
  expect(again).toEqual({ host: stack.host, cordoned: true, since });
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  await expect(attach('new')).rejects.toMatchObject({ code: 'HOST_CORDONED', details: { since } });
  const found = await condition();
  expect(found).toMatchObject({ blocks: true, reason: `cordoned since ${since}` });
});

test('orders at once are stored one after the other: the last one holds', async () => {
  const orders = Array.from({ length: 40 }, (_, n) => n % 2 === 0);
  await Promise.all(orders.map((cordoned) => stack.client.cordon(stack.host, { cordoned })));
  await stack.agent.restart('SIGKILL');
  await stack.agent.ready();
  expect(await condition()).toBeUndefined();
});

test('a reason for an open host, and a file that cannot be read', async () => {
  await expect(
    stack.client.cordon(stack.host, { cordoned: false, reason: 'why not' }),
  ).rejects.toMatchObject({ code: 'INVALID_REQUEST', details: { path: 'reason' } });
  const file = join(stack.agent.stateDir, 'cordon.json');
  writeFileSync(file, '{"version":1,"cordon":');
  await stack.agent.restart();
  await stack.agent.ready();
  expect(existsSync(`${file}.corrupt`)).toBe(true);
  await until('it is said', () => stack.agent.output().includes('cordon file set aside'));
  expect(await condition()).toBeUndefined();
});
