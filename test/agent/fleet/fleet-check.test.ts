import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, expect, test } from 'vitest';
import { decodeAnswer, encodeAnswer, MAX_ANSWER_BYTES } from '#protocol/envelope.ts';
import { ledgerCheckAnswerSchema, type LedgerCheckAnswer } from '#protocol/ledger.ts';
import type { Ledger } from '#ipam-store/ledger.ts';
import { FleetCheck } from '#agent/fleet/fleet-check.ts';
import { Slices } from '#agent/schedule/slices.ts';
import { actionsOn, HOSTS, put, ROOT, useStore, VOLT0 } from '../../ipam-store/fixture.ts';

// A check of the whole fleet, against a real ledger; its hosts find themselves in order.

const store = useStore();
const { acquire } = actionsOn(store);
const LATER_MS = 60_000;
let asked: string[];

const checkOf = (runMs?: number): FleetCheck =>
  new FleetCheck({
    ledger: store.ledger,
    bus: () => ({
      request: async (subject) => {
        asked.push(subject);
        return encodeAnswer({ inSync: true, differences: [] });
      },
    }),
    subjectPrefix: 'volt.net',
    slices: new Slices(),
    answerBytes: () => MAX_ANSWER_BYTES,
    ...(runMs !== undefined && { runMs }),
  });

async function answerOf(
  check: FleetCheck,
  request: { repair?: boolean; cursor?: string } = {},
): Promise<LedgerCheckAnswer> {
  const { bytes } = await check.check(request, performance.now() + LATER_MS);
  return ledgerCheckAnswerSchema.parse(decodeAnswer(bytes));
}

/** Asks again and again, from where the answer before ended; each time another agent, as may be. */
async function stepByStep(repair = false): Promise<LedgerCheckAnswer[]> {
  const answers = [await answerOf(checkOf(0), { repair })];
  for (let last = answers[0]; last?.cursor !== undefined; last = answers.at(-1)) {
    answers.push(await answerOf(checkOf(0), { repair, cursor: last.cursor }));
  }
  return answers;
}

beforeEach(async () => {
  asked = [];
  const record = await put(store.ledger, VOLT0);
  await put(store.ledger, { network: 'volt1', subnet: '10.43.0.0/24' });
  for (const id of ['a', 'b', 'c']) await acquire(record, id);
  // One of each stage.
  await store.raw.zrem(`${ROOT}:net:volt0:4:held`, '0a2a0002 a');
  await store.raw.zadd(`${ROOT}:host:h2:ids`, 0, 'volt0 nobody');
  await store.raw.hset(`${ROOT}:net:volt0`, 'mac:02:00:00:00:00:99', 'nobody');
  await store.raw.hset(`${ROOT}:net:volt1`, 'type', 'other');
});

const whatOf = (answers: readonly LedgerCheckAnswer[]): string[] =>
  answers.flatMap(({ differences }) => differences.map(({ what }) => what)).toSorted();

test('step by step it finds what it finds at once', async () => {
  const whole = await answerOf(checkOf());
  expect(whole).toMatchObject({ inSync: false, truncated: false, checked: [...HOSTS], silent: [] });
  expect(whole.cursor).toBeUndefined();
  expect(whatOf([whole])).toContain('ledger network differs');
  const asOnce = asked.splice(0);
  const steps = await stepByStep();
  expect(steps.length).toBeGreaterThan(20);
  expect(whatOf(steps)).toEqual(whatOf([whole]));
  expect(steps.flatMap(({ checked }) => checked)).toEqual([...HOSTS]);
  expect(asked).toEqual(asOnce);
  for (const { inSync } of steps.slice(0, -1)) expect(inSync).toBe(false);
  const said = steps.map(({ progress }) => progress);
  for (const word of ['hosts up to h2', 'networks up to volt0', 'counts']) {
    expect(said).toContain(word);
  }
});

test('step by step it repairs all that it can, and is in sync afterwards', async () => {
  await stepByStep(true);
  const steps = await stepByStep();
  // What its host alone can prove is left.
  expect(whatOf(steps).filter((what) => what !== 'ledger host stray')).toEqual([
    'ledger mac stray',
  ]);
});

test('a cursor that no answer ended with is refused', async () => {
  for (const cursor of ['x', '{}x', '{"ledger":{"stage":-1}}', '{"other":1}', '"h1"']) {
    await expect(answerOf(checkOf(), { cursor })).rejects.toMatchObject({
      code: 'INVALID_REQUEST',
      details: { path: 'cursor' },
    });
  }
});

test('it ends when nobody waits for it any more, though all is in order', async () => {
  let steps = 0;
  async function* endless(_from: unknown, signal: AbortSignal) {
    for (;;) {
      await sleep(1, undefined, { signal });
      steps += 1;
      yield { differences: [], next: { stage: 0 } };
    }
  }
  const ledger = Object.create(store.ledger, { auditPages: { value: endless } }) as Ledger;
  const check = new FleetCheck({
    ledger,
    bus: () => ({ request: () => Promise.reject(new Error('nobody')) }),
    subjectPrefix: 'volt.net',
    slices: new Slices(),
    answerBytes: () => MAX_ANSWER_BYTES,
    runMs: LATER_MS,
  });
  await expect(check.check({}, performance.now() + 30)).rejects.toMatchObject({
    code: 'DEADLINE_EXCEEDED',
  });
  await sleep(20);
  const ended = steps;
  await sleep(50);
  expect(steps).toBe(ended);
});

test('all checks together have a part of the time of Redis: who asks too soon is told to wait', async () => {
  const ask = JSON.stringify({ part: 'names' });
  const replies = await Promise.all(
    Array.from({ length: 2_000 }, () => store.raw.call('FCALL_RO', 'volt1_audit', '1', ROOT, ask)),
  );
  const waits = replies.map((reply) => String(reply)).filter((reply) => reply.includes('waitMs'));
  expect(waits.length).toBeGreaterThan(0);
  // Those that wait are answered in the end.
  const steps = await Promise.all([stepByStep(), stepByStep()]);
  for (const answers of steps) expect(answers.at(-1)?.cursor).toBeUndefined();
});
