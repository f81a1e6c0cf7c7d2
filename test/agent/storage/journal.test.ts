import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Journal, openVmRecords } from '#agent/storage/journal.ts';
import type { RecordLog } from '#agent/storage/record-log.ts';
import { createLog } from '#agent/log.ts';

/** As release 0.1 writes them; never to be changed. */
const GOLDEN = new URL('golden-records-1.json', import.meta.url);
const golden = JSON.parse(readFileSync(GOLDEN, 'utf8')) as Record<string, { bootId: string }>;
const textOf = (id: string): string => JSON.stringify(golden[id]);

let folder: string;
let records: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'volt-test-journal-'));
  records = join(folder, 'run', 'attachments');
  mkdirSync(records, { recursive: true });
});
afterEach(() => rmSync(folder, { recursive: true }));

function loaded(bootId = 'boot-1'): Journal {
  const journal = new Journal({
    runtimeDir: join(folder, 'run'),
    stateDir: join(folder, 'state'),
    bootId,
    log: createLog('silent', 'h1'),
  });
  journal.load();
  return journal;
}

const lay = (id: string, text: string): void => writeFileSync(join(records, `${id}.json`), text);
const copies = (): string[] => [...openCopies().load().keys()];

const openCopies = (): RecordLog => openVmRecords(join(folder, 'state'), createLog('silent', 'h1'));

function layCopy(id: string, text: string): void {
  const log = openCopies();
  log.load();
  log.put(id, text);
}

test.each(Object.keys(golden))('a record of version 1, %s, is read and kept as it is', (id) => {
  lay(id, textOf(id));
  const journal = loaded();
  const record = journal.get(id);
  const announce = journal.untold(id)?.announcement;
  expect({ version: 1, ...record, ...(announce && { announce }) }).toEqual(golden[id]);
  if (record !== undefined) journal.put(record);
  expect(JSON.parse(readFileSync(join(records, `${id}.json`), 'utf8'))).toEqual(golden[id]);
});

describe('a file that is no record of this release', () => {
  const vm = textOf('a-vm');
  const newer = JSON.stringify({ ...JSON.parse(vm), version: 2, shape: 'another' });

  test('is set aside, and the others are read', () => {
    lay('a-vm', vm);
    lay('newer', newer.replaceAll('a-vm', 'newer'));
    lay('cut', vm.slice(0, 200));
    lay('empty', '');
    lay('other', vm);
    lay('list', '[]');
    const journal = loaded();
    expect(journal.values().map(({ id }) => id)).toEqual(['a-vm']);
    const left = readdirSync(records, { recursive: true }).map(String).toSorted();
    const corrupt = ['cut', 'empty', 'list', 'other'].map((name) => `corrupt/${name}.json`);
    expect(left).toEqual(['a-vm.json', 'corrupt', ...corrupt, 'newer', 'newer/newer.json']);
  });

  test('of a newer one comes back with the release that reads it, unless the id is in use by now', () => {
    for (const id of ['back', 'taken']) {
      mkdirSync(join(records, 'newer'), { recursive: true });
      writeFileSync(join(records, 'newer', `${id}.json`), vm.replaceAll('a-vm', id));
    }
    lay('taken', vm.replaceAll('a-vm', 'taken'));
    const journal = loaded();
    expect(journal.get('back')?.id).toBe('back');
    expect(readdirSync(join(records, 'newer'))).toEqual(['taken.json']);
  });
});

describe("the copy of a VM's record", () => {
  const vm = textOf('a-vm');
  const boot = golden['a-vm']?.bootId;

  test('is what the next boot finds, and not this one', () => {
    lay('a-vm', vm);
    loaded(boot);
    rmSync(records, { recursive: true });
    expect(loaded('next-boot').ofEarlierBoot).toEqual(['a-vm']);
    rmSync(records, { recursive: true });
    rmSync(join(folder, 'state'), { recursive: true });
    mkdirSync(records);
    lay('a-vm', vm);
    loaded(boot);
    rmSync(records, { recursive: true });
    expect(loaded(boot).values()).toEqual([]);
    expect(copies()).toEqual([]);
  });

  test('follows what the next boot needs, and goes with the record', () => {
    lay('a-vm', vm);
    const journal = loaded(boot);
    const record = journal.get('a-vm');
    const { attachment } = record ?? {};
    if (record === undefined || !attachment?.device) throw new Error('there is no record');
    const device = { ...attachment.device, ifindex: 4711 };
    journal.put({ ...record, attachment: { ...attachment, device, labels: { of: 'an update' } } });
    expect(journal.get('a-vm')?.attachment?.device?.ifindex).toBe(4711);
    rmSync(records, { recursive: true });
    const next = loaded('next-boot');
    expect(next.get('a-vm')?.attachment?.labels).toEqual({ of: 'an update' });
    next.remove('a-vm');
    expect(copies()).toEqual([]);
  });

  test('that an earlier release has left as a file is taken over', async () => {
    const old = join(folder, 'state', 'attachments');
    mkdirSync(old, { recursive: true });
    const [stale, fresh] = ['of the log', 'of the file'].map((of) =>
      vm.replaceAll('"labels":{', `"labels":{"from":"${of}",`),
    );
    layCopy('a-vm', stale ?? '');
    writeFileSync(join(old, 'a-vm.json'), fresh ?? '');
    const next = loaded('next-boot');
    expect(next.get('a-vm')?.attachment?.labels).toMatchObject({ from: 'of the file' });
    await next.close();
    expect(readdirSync(old)).toEqual([]);
    rmSync(records, { recursive: true });
    expect(loaded('boot-after').get('a-vm')?.attachment?.labels).toMatchObject({
      from: 'of the file',
    });
  });

  test('of a newer release stays for that release', () => {
    const newer = JSON.stringify({ ...JSON.parse(vm), version: 2 });
    layCopy('a-vm', newer);
    expect(loaded('next-boot').values()).toEqual([]);
    expect(copies()).toEqual(['a-vm']);
  });

  test('is not there for a container', () => {
    lay('a-container', textOf('a-container'));
    loaded();
    expect(copies()).toEqual([]);
  });
});
