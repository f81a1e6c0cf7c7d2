import { connect, headers } from 'nats';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { VoltNetworkClient } from '#protocol/client.ts';
import { subjects } from '#protocol/subjects.ts';
import { Flood } from '../../support/flood.ts';
import { startStack, type Stack } from '../../support/stack.ts';

// One host, several callers: what one of them asks for, however often and under however many names, holds up no other.

const WIDE = { network: 'volt0', subnet: '10.42.0.0/21', gateway: '10.42.0.1' };
const ATTACHMENTS = 200;
const FLOOD = 300;
const ATTACHES = 20;
const CHECKS = 10;
/** Dry runs that nobody waits for any more are not begun, so that the test is short. */
const DRY_RUN_TIMEOUT_MS = 4_000;
const HARMLESS = new Set(['ok', 'OVERLOADED', 'DEADLINE_EXCEEDED']);

let stack: Stack;

beforeAll(async () => {
  stack = await startStack({ networks: [WIDE] });
});
afterAll(() => stack[Symbol.asyncDispose]());

const request = (id: string) =>
  ({ id, workload: `vm-${id}`, kind: 'vm', network: 'volt0' }) as const;

test('an orchestrator that attaches one is not kept waiting by another that attaches hundreds', async () => {
  const { client, host } = stack;
  const connection = await connect({ servers: stack.nats.url });
  const other = new VoltNetworkClient({ connection, headers });
  let answered = 0;
  const flood = Array.from({ length: ATTACHMENTS }, async (_, n) => {
    await client.attach(host, request(`many-${n}`), { timeoutMs: 30_000 });
    answered += 1;
  });
  await stack.connection.flush();
  await other.attach(host, request('one'), { timeoutMs: 30_000 });
  expect(answered).toBeLessThan(ATTACHMENTS / 2);
  await Promise.all(flood);
  await connection.close();
});

test('attaches come first, whoever asks for expensive things under hundreds of inboxes', async () => {
  const { client, host } = stack;
  const at = subjects('volt.net.v1');
  const connection = await connect({ servers: stack.nats.url });
  const floodOf = (subject: string, body: (n: number) => object, timeoutMs = 60_000): Flood =>
    new Flood({ connection, subject, body, inFlight: FLOOD, total: FLOOD, timeoutMs });
  const dryRun = (n: number): object => ({ ...request(`dry-${n}`), dryRun: true });
  const floods = [
    floodOf(at.host(host, 'list'), () => ({})),
    floodOf(at.host(host, 'check'), () => ({})),
    floodOf(at.ledger('check'), () => ({})),
    floodOf(at.ledger('leases'), () => ({})),
    floodOf(at.host(host, 'attach'), dryRun, DRY_RUN_TIMEOUT_MS),
  ];
  await connection.flush();
  for (let n = 0; n < ATTACHES; n += 1) await client.attach(host, request(`first-${n}`));
  const dryRuns = floods.at(-1);
  expect(dryRuns?.answered).toBeLessThan(FLOOD);
  // Expensive, too, and of a kind that nobody else asks for.
  const { networks } = await client.listNetworks();
  expect(networks).toHaveLength(1);
  await Promise.all(floods.map((flood) => flood.drained()));
  for (const flood of floods) {
    expect(flood.answered).toBe(FLOOD);
    expect([...flood.answers.keys()].filter((code) => !HARMLESS.has(code))).toEqual([]);
    expect(flood.count('ok')).toBeGreaterThan(0);
    expect(flood.count('OVERLOADED')).toBeGreaterThan(0);
  }
  await connection.close();
});

test('a check beside hundreds of other things says what there is', async () => {
  const { client, host } = stack;
  const at = subjects('volt.net.v1');
  const connection = await connect({ servers: stack.nats.url });
  const floods = [
    new Flood({ connection, subject: at.host(host, 'list'), body: () => ({}), inFlight: FLOOD }),
    new Flood({
      connection,
      subject: at.host(host, 'attach'),
      body: (n) => ({ ...request(`dry-${n}`), dryRun: true }),
      inFlight: FLOOD,
      timeoutMs: 1_000,
    }),
  ];
  await connection.flush();
  const answer = await client.check(host, {}, { timeoutMs: 30_000 });
  expect(answer).toMatchObject({ inSync: true, differences: [] });
  expect(answer).not.toHaveProperty('truncated');
  expect((await client.check(host, { id: 'one' }, { timeoutMs: 30_000 })).inSync).toBe(true);
  await Promise.all(floods.map((flood) => flood.stop()));
  await connection.close();
});

test('a check finds nothing amiss in what comes and goes while it looks', async () => {
  const { client, host } = stack;
  let over = false;
  const churn = Array.from({ length: 8 }, async (_, n) => {
    for (let round = 0; !over; round += 1) {
      const id = `churn-${n}-${round % 2}`;
      await client.attach(host, request(id), { timeoutMs: 30_000 });
      await client.detach(host, { id }, { timeoutMs: 30_000 });
    }
  });
  const answers = [];
  for (let n = 0; n < CHECKS; n += 1) {
    answers.push(await client.check(host, {}, { timeoutMs: 30_000 }));
  }
  over = true;
  await Promise.all(churn);
  for (const { differences, plan } of answers) {
    expect({ differences, plan }).toEqual({ differences: [], plan: [] });
  }
});
