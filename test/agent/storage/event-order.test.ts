import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { EventLog } from '#agent/storage/events.ts';
import { type AttachmentRecord, Journal } from '#agent/storage/journal.ts';
import { createLog } from '#agent/log.ts';
import { decode } from '#protocol/envelope.ts';

interface Published {
  readonly id: string;
  readonly subject: string;
  readonly labels: unknown;
}

const GOLDEN = new URL('golden-records-1.json', import.meta.url);
const golden = JSON.parse(readFileSync(GOLDEN, 'utf8')) as Record<string, object>;
const log = createLog('silent', 'h1');
const ANNOUNCEMENT = { requestId: 'r-attach', durationMs: { ipam: 1 } };

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'volt-test-events-'));
  const records = join(folder, 'run', 'attachments');
  mkdirSync(records, { recursive: true });
  writeFileSync(join(records, 'a-vm.json'), JSON.stringify(golden['a-vm']));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** The journal and the event log of an agent that begins with what lies in these folders. */
function opened(from = folder) {
  const published: Published[] = [];
  const stateDir = join(from, 'state');
  const journal = new Journal({ runtimeDir: join(from, 'run'), stateDir, bootId: 'boot-1', log });
  journal.load();
  const events = new EventLog({
    host: 'h1',
    subjectPrefix: 'volt.net.v1',
    stateDir,
    journal,
    log,
    maxPayload: () => 1 << 20,
    publish: ({ id, subject, payload }) => {
      const { labels } = decode(payload) as { labels?: unknown };
      published.push({ id, subject: subject.split('.').at(-1) ?? '', labels });
      return Promise.resolve();
    },
  });
  events.start();
  return { journal, events, published };
}

function recordOf(
  journal: Journal,
): AttachmentRecord & Required<Pick<AttachmentRecord, 'attachment'>> {
  const record = journal.get('a-vm');
  if (record?.attachment === undefined) throw new Error('there is no record');
  return { ...record, attachment: record.attachment };
}

/** Of one type or another; what is in its body matters to nobody here. */
const draft = (type: 'updated' | 'repaired' | 'failed' | 'detached') => ({
  type,
  network: 'volt0',
  subject: 'a-vm',
  operation: type,
  requestId: `r-${type}`,
  trace: {},
  body: { labels: type },
});

const types = (published: readonly Published[]): string[] =>
  published.map(({ subject }) => subject);

test.each(['updated', 'repaired', 'failed', 'detached'] as const)(
  'a %s event comes after the attached event of its attachment',
  async (type) => {
    const { journal, events, published } = opened();
    events.putAttached(recordOf(journal), ANNOUNCEMENT);
    events.add(draft(type));
    await events.stop(5_000);
    expect(types(published)).toEqual(['attached', type]);
  },
);

test('the attached event tells of the attachment as it was answered, whatever is put meanwhile', async () => {
  const { journal, events, published } = opened();
  const record = recordOf(journal);
  const labelled = (value: string) => ({
    ...record,
    attachment: { ...record.attachment, labels: { value } },
  });
  events.putAttached(labelled('attached'), ANNOUNCEMENT);
  journal.put(labelled('updated'));
  events.add(draft('updated'));
  // Taken from the journal before the event was stored.
  journal.put(labelled('stale'));
  await events.stop(5_000);
  expect(published).toMatchObject([
    { subject: 'attached', labels: { value: 'attached' } },
    { subject: 'updated' },
  ]);
});

test('two announcements of one attachment are two events, in order', async () => {
  const { journal, events, published } = opened();
  events.putAttached(recordOf(journal), ANNOUNCEMENT);
  events.putAttached(recordOf(journal), { requestId: 'r-repeat', durationMs: {} });
  await events.stop(5_000);
  expect(types(published)).toEqual(['attached', 'attached']);
  expect(new Set(published.map(({ id }) => id)).size).toBe(2);
});

test('an attached event is stored without another event of its attachment', async () => {
  const { journal, events, published } = opened();
  events.putAttached(recordOf(journal), ANNOUNCEMENT);
  await vi.waitFor(() => expect(types(published)).toEqual(['attached']), { timeout: 30_000 });
  expect(journal.untoldIds()).toEqual([]);
  await events.stop(5_000);
});

test('an agent that dies before the event is stored leaves it to the next, under the same id', async () => {
  const first = opened();
  first.events.putAttached(recordOf(first.journal), ANNOUNCEMENT);
  first.journal.putAnyway({ ...recordOf(first.journal), state: 'fenced' });
  const died = mkdtempSync(join(tmpdir(), 'volt-test-events-died-'));
  cpSync(folder, died, { recursive: true });
  await first.events.stop(5_000);
  const next = opened(died);
  next.events.add(draft('detached'));
  await next.events.stop(5_000);
  expect(types(next.published)).toEqual(['attached', 'detached']);
  expect(next.published[0]?.id).toBe(first.published[0]?.id);
  const third = opened(died);
  await third.events.stop(5_000);
  expect(third.published).toEqual([]);
  rmSync(died, { recursive: true });
});

test('an event that was stored is not announced again with the record as it was before', async () => {
  const { journal, events, published } = opened();
  const record = recordOf(journal);
  events.putAttached(record, ANNOUNCEMENT);
  events.announce('a-vm');
  journal.put(record);
  events.add(draft('repaired'));
  await events.stop(5_000);
  expect(types(published)).toEqual(['attached', 'repaired']);
});
