import { afterAll, beforeAll, expect, test } from 'vitest';
import { startStack, type Stack } from '../../support/stack.ts';

// Whoever lists and then watches knows of everything, however much happens meanwhile.

const COUNT = 40;
let stack: Stack;
beforeAll(async () => {
  stack = await startStack();
});
afterAll(() => stack[Symbol.asyncDispose]());

const vm = (n: number) =>
  ({ id: `a${n}`, workload: `vm-${n}`, kind: 'vm', network: 'volt0' }) as const;

test('what is attached before, while and after it lists is known, each in its last state', async () => {
  const { client, host } = stack;
  const changes = (async () => {
    for (let n = 0; n < COUNT; n += 1) {
      await client.attach(host, vm(n));
      if (n % 2 === 1) await client.detach(host, { id: `a${n - 1}` });
    }
  })();
  const views = await Promise.all(
    Array.from({ length: 8 }, async (_, nth) => {
      // Each begins at another moment of the changes.
      for (let n = 0; n < nth * 4; n += 1) await client.list(host);
      return client.listThenWatch(host, { network: 'volt0' });
    }),
  );
  await changes;
  const expected = Array.from({ length: COUNT / 2 }, (_, n) => `a${2 * n + 1}`).toSorted();
  await Promise.all(expected.map((id) => client.update(host, { id, labels: { last: 'yes' } })));
  const last = expected.map((id) => `${id} yes`).join();
  for (const { attachments, events } of views) {
    const known = new Map(attachments.map((one) => [one.id, one.labels['last']]));
    const view = (): string =>
      [...known]
        .map(([id, label]) => `${id} ${label}`)
        .toSorted()
        .join();
    // Whoever missed an event would wait for ever.
    for await (const { type, body } of events) {
      if (type === 'attached' || type === 'updated') known.set(body.id, body.labels['last']);
      if (type === 'detached') known.delete(body.id);
      if (view() === last) break;
    }
    expect(view()).toBe(last);
  }
});

test('eachLease asks for page after page', async () => {
  const { client, host } = stack;
  const ids: string[] = [];
  for await (const { id } of client.eachLease({ network: 'volt0', host, limit: 3 })) ids.push(id);
  const { attachments } = await client.list(host);
  expect(ids.toSorted()).toEqual(attachments.map(({ id }) => id).toSorted());
  expect(ids.length).toBeGreaterThan(3);
});
