import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { pino } from 'pino';
import { Outbox } from '#agent/storage/outbox.ts';
import { type PendingEvent, PublishError } from '#agent/storage/pending-event.ts';

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

/** However busy the machine is. */
const eventually = (look: () => void): Promise<void> => vi.waitFor(look, { timeout: 30_000 });

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
      if (refusals-- > 0) throw new PublishError('away', 'NATS is away');
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
      throw new PublishError('away', 'NATS is away');
    },
  });
  away.start();
  away.add(event('old-1'));
  away.add(event('old-2'));
  await away.stop(0);
  expect(files()).toHaveLength(1);

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

test('files of an earlier release are taken over; one that cannot be read holds nothing up', async () => {
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

test('an event that was acknowledged is not published again after a kill', async () => {
  const first: string[] = [];
  const killed = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      if (id === 'b') throw new PublishError('away', 'NATS is away');
      first.push(id);
    },
  });
  killed.start();
  for (const id of ['a', 'b']) killed.add(event(id));
  await eventually(() => expect(killed.pending).toBe(1));

  const published: string[] = [];
  const next = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      published.push(id);
    },
  });
  next.start();
  await next.stop(5_000);
  await killed.stop(0);
  expect(first).toEqual(['a']);
  expect(published).toEqual(['b']);
});

test('one that the stream refuses for ever is set aside, and those after it go out', async () => {
  const published: string[] = [];
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      if (id === 'huge') throw new PublishError('never', 'too large');
      published.push(id);
    },
  });
  outbox.start();
  for (const id of ['a', 'huge', 'b']) outbox.add(event(id));
  await outbox.stop(5_000);
  expect(published).toEqual(['a', 'b']);
  expect(readdirSync(join(stateDir, 'outbox', 'refused'))).toEqual(['huge.json']);
});

test('what was set aside goes out when the stream takes it, and is counted until then', async () => {
  let limit = 10;
  const published: string[] = [];
  const started = (): Outbox => {
    const outbox = new Outbox({
      stateDir,
      log,
      publish: async ({ id }) => {
        if (id.length > limit) throw new PublishError('never', 'too large');
        published.push(id);
      },
    });
    outbox.start();
    return outbox;
  };
  const outbox = started();
  for (const id of ['a', 'much too long', 'much much too long']) outbox.add(event(id));
  await eventually(() => expect(outbox.setAside).toBe(2));
  await outbox.stop(5_000);

  const next = started();
  expect(next.setAside).toBe(2);
  limit = 15;
  next.nudge();
  await eventually(() => expect(next.setAside).toBe(1));
  limit = 20;
  await eventually(() => {
    next.nudge();
    expect(next.setAside).toBe(0);
  });
  await next.stop(5_000);
  expect(published).toEqual(['a', 'much too long', 'much much too long']);
  expect(readdirSync(join(stateDir, 'outbox', 'refused'))).toEqual([]);
});

test('a file among those set aside that is no event is left, and holds up none', async () => {
  const folder = join(stateDir, 'outbox', 'refused');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'a.json'), 'no JSON');
  writeFileSync(join(folder, 'b.json'), JSON.stringify({ reason: 'x', event: event('b') }));
  const published: string[] = [];
  const outbox = new Outbox({ stateDir, log, publish: async ({ id }) => void published.push(id) });
  outbox.start();
  outbox.nudge();
  await eventually(() => expect(outbox.setAside).toBe(0));
  await outbox.stop(5_000);
  expect(published).toEqual(['b']);
  expect(readdirSync(folder)).toEqual(['a.json.corrupt']);
});

test('the oldest event that waits is told with why it was not taken', async () => {
  let reason = 'JetStream is off';
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async () => {
      if (reason !== '') throw new PublishError('later', reason);
    },
  });
  outbox.start();
  expect(outbox.oldest).toBeUndefined();
  outbox.add({ ...event('a'), subject: 'vm-1', time: '2026-01-01T00:00:01.000Z' });
  outbox.add({ ...event('b'), subject: 'vm-2', time: '2026-01-01T00:00:02.000Z' });
  await eventually(() =>
    expect(outbox.oldest).toEqual({ time: '2026-01-01T00:00:01.000Z', reason }),
  );
  reason = '';
  outbox.nudge();
  await eventually(() => expect(outbox.oldest).toBeUndefined());
  await outbox.stop(5_000);
});

test('while it is held, what tells of repairs waits on disk, unless something else follows it', async () => {
  const published: string[] = [];
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => void published.push(id),
  });
  outbox.start();
  const about = (subject: string, type: string): void =>
    outbox.add({ ...event(`${type} ${subject}`), subject, type });
  {
    using _held = outbox.hold();
    about('vm-1', 'repaired');
    about('vm-2', 'attached');
    about('vm-3', 'repaired');
    about('vm-3', 'detached');
    await eventually(() => expect(published).toHaveLength(3));
    expect(published.toSorted()).toEqual(['attached vm-2', 'detached vm-3', 'repaired vm-3']);
    expect(published.indexOf('repaired vm-3')).toBeLessThan(published.indexOf('detached vm-3'));
    expect(outbox.pending).toBe(1);
  }
  await eventually(() => expect(published).toContain('repaired vm-1'));
  await outbox.stop(5_000);
});

test('what is about another subject does not wait for one that is under way', async () => {
  const slow = Promise.withResolvers<void>();
  const published: string[] = [];
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      if (id === 'slow') await slow.promise;
      published.push(id);
    },
  });
  outbox.start();
  outbox.add(event('slow'));
  outbox.add(event('behind'));
  outbox.add({ ...event('other'), subject: 'vm-2' });
  await eventually(() => expect(published).toEqual(['other']));
  slow.resolve();
  await outbox.stop(5_000);
  expect(published).toEqual(['other', 'slow', 'behind']);
});

test('ten thousand that waited are read back from disk, in order for each subject', async () => {
  const away = new Outbox({
    stateDir,
    log,
    publish: async () => {
      throw new PublishError('away', 'NATS is away');
    },
  });
  away.start();
  const made = Array.from({ length: 10_000 }, (_, n) => ({
    ...event(`e${n}`),
    subject: `vm-${n % 100}`,
  }));
  for (const one of made) away.add(one);
  await away.stop(0);
  const published = new Map<string, number[]>();
  const next = new Outbox({
    stateDir,
    log,
    publish: async ({ id, subject }) => {
      published.set(subject, [...(published.get(subject) ?? []), Number(id.slice(1))]);
    },
  });
  next.start();
  await next.stop(10_000);
  expect([...published.values()].flat()).toHaveLength(10_000);
  for (const numbers of published.values()) {
    expect(numbers).toEqual(numbers.toSorted((a, b) => a - b));
  }
});

test('an event that is not taken for now delays no other subject, and keeps its own in order', async () => {
  const published: string[] = [];
  let taken = false;
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      if (id === 'stuck-1' && !taken) throw new PublishError('later', 'maximum messages exceeded');
      published.push(id);
    },
  });
  outbox.start();
  for (const id of ['stuck-1', 'stuck-2']) outbox.add({ ...event(id), subject: 'vm-stuck' });
  for (let n = 0; n < 20; n += 1) outbox.add({ ...event(`free-${n}`), subject: `vm-${n}` });
  await eventually(() => expect(published).toHaveLength(20));
  expect(published.filter((id) => id.startsWith('stuck'))).toEqual([]);
  taken = true;
  outbox.nudge();
  await outbox.stop(5_000);
  expect(published.slice(20)).toEqual(['stuck-1', 'stuck-2']);
});

test('events about nothing in particular do not wait for each other', async () => {
  const published: string[] = [];
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async ({ id }) => {
      if (id === 'stuck') throw new PublishError('later', 'no answer');
      published.push(id);
    },
  });
  outbox.start();
  for (const id of ['stuck', 'free']) outbox.add({ ...event(id), subject: '-' });
  await eventually(() => expect(published).toEqual(['free']));
  await outbox.stop(0);
});

test('where all fail, the stream is asked less and less', async () => {
  let asked = 0;
  let away = true;
  const outbox = new Outbox({
    stateDir,
    log,
    publish: async () => {
      asked += 1;
      if (away) throw new PublishError('later', 'no responders');
    },
  });
  outbox.start();
  for (let n = 0; n < 1_000; n += 1) outbox.add({ ...event(`e-${n}`), subject: `vm-${n}` });
  await eventually(() => expect(asked).toBeGreaterThan(64));
  // Were each tried by itself, it would be a thousand.
  expect(asked).toBeLessThan(500);
  away = false;
  outbox.nudge();
  await outbox.stop(10_000);
  expect(outbox.pending).toBe(0);
});
