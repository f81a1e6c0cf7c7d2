import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { pino } from 'pino';
import { Outbox, type PendingEvent } from '#agent/outbox.ts';

const log = pino({ level: 'silent' });
let stateDir: string;

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'volt-outbox-'));
});
afterEach(() => rmSync(stateDir, { recursive: true }));

const event = (id: string): PendingEvent => ({
  id,
  type: 'attached',
  network: 'volt0',
  subject: 'vm-1',
  time: '2026-01-01T00:00:00.000Z',
  body: { id },
  durationMs: {},
});

const files = (): string[] => readdirSync(join(stateDir, 'outbox')).toSorted();

test('events are published in order, and leave the disk when acknowledged', async () => {
  const published: string[] = [];
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      await Promise.resolve();
      published.push(id);
    },
  });
  outbox.start();
  const ids = Array.from({ length: 20 }, (_, n) => `e${n}`);
  for (const id of ids) outbox.add(event(id));
  await outbox.stop(5_000);
  expect(published).toEqual(ids);
  expect(files()).toEqual([]);
});

test('an event that was refused goes before those that came later', async () => {
  const published: string[] = [];
  let refusals = 3;
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      if (refusals-- > 0) throw new Error('NATS is away');
      published.push(id);
    },
  });
  outbox.start();
  for (const id of ['a', 'b', 'c']) outbox.add(event(id));
  await outbox.stop(5_000);
  expect(published).toEqual(['a', 'b', 'c']);
});

test('what was not published is published by the next agent, before its own', async () => {
  const away = new Outbox({
    stateDir,
    log,
    publish: async () => {
      throw new Error('NATS is away');
    },
  });
  away.start();
  away.add(event('old-1'));
  away.add(event('old-2'));
  await away.stop(0);
  expect(files()).toHaveLength(2);

  const published: PendingEvent[] = [];
  const next = new Outbox({
    stateDir,
    log,
    publish: async (one) => {
      published.push(one);
    },
  });
  next.start();
  next.add(event('new'));
  await next.stop(5_000);
  expect(published).toEqual([event('old-1'), event('old-2'), event('new')]);
});

test('a file that cannot be read is set aside and holds nothing up', async () => {
  const folder = join(stateDir, 'outbox');
  new Outbox({ stateDir, log, publish: async () => {} }).start();
  writeFileSync(join(folder, '0000000000000001.json'), '{"id":');
  writeFileSync(join(folder, '0000000000000002.json'), JSON.stringify(event('good')));
  const published: string[] = [];
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      published.push(id);
    },
  });
  outbox.start();
  await outbox.stop(5_000);
  expect(published).toEqual(['good']);
  expect(files()).toEqual(['0000000000000001.json.corrupt']);
});
