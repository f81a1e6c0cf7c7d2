import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { VoltError } from '#protocol/errors.ts';
import { Detaches } from '#agent/attachments/detaches.ts';
import { HostLeases } from '#agent/attachments/host-leases.ts';
import { Journal } from '#agent/storage/journal.ts';
import { createLog } from '#agent/log.ts';

// Which leases a host says it has while one of them is being given back.

const GOLDEN = new URL('../storage/golden-records-1.json', import.meta.url);
const golden = JSON.parse(readFileSync(GOLDEN, 'utf8')) as Record<string, { bootId: string }>;
const log = createLog('silent', 'h1');

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'volt-test-detaches-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

/** The `release` of the ledger is this. */
function detaching(release: () => Promise<'released' | 'absent'>, warn?: (of: object) => void) {
  const records = join(folder, 'run', 'attachments');
  mkdirSync(records, { recursive: true });
  writeFileSync(join(records, 'a-vm.json'), JSON.stringify(golden['a-vm']));
  const [runtimeDir, stateDir] = [join(folder, 'run'), join(folder, 'state')];
  const journal = new Journal({ runtimeDir, stateDir, bootId: 'boot-1', log });
  journal.load();
  const self = { host: 'h1', machineId: 'm', agentId: 'a', bootId: 'boot-1' };
  const shared = { self, journal, networkTypes: {}, log, ledger: { release } };
  const detaches = new Detaches({
    ...shared,
    ...(warn && { log: { warn } }),
    events: { add: () => {} },
  } as never);
  const hostLeases = new HostLeases({ ...shared, detaches } as never);
  const record = journal.get('a-vm');
  if (record === undefined) throw new Error('no record');
  const begin = (): void =>
    detaches.begin(record, { reason: 'requested', requestId: 'r', startedAt: '2026-01-01' });
  return { begin, held: () => hostLeases.leases().map(({ id }) => id), detaches };
}

test('a lease is not said to be held from when its release is on its way until it is known not to be', async () => {
  const answers = [
    Promise.withResolvers<'released'>(),
    Promise.withResolvers<'released'>(),
    Promise.withResolvers<'released'>(),
  ];
  let asked = 0;
  const { begin, held, detaches } = detaching(() => {
    asked += 1;
    return answers[asked - 1]?.promise ?? Promise.resolve('released');
  });
  expect(held()).toEqual(['a-vm']);
  begin();
  await vi.waitFor(() => expect(asked).toBe(1), { timeout: 30_000 });
  expect(held()).toEqual([]);
  // It may have been done, and the next try finds that it was.
  answers[0]?.reject(new VoltError('STORE_UNAVAILABLE', 'late', { details: { sent: true } }));
  await vi.waitFor(() => expect(asked).toBe(2), { timeout: 30_000 });
  expect(held()).toEqual([]);
  // It was not done: the ledger waits for what this host holds.
  answers[1]?.reject(new VoltError('RECOVERING', 'waits'));
  await vi.waitFor(() => expect(held()).toEqual(['a-vm']), { timeout: 30_000 });
  answers[2]?.resolve('released');
  await detaches.idle();
  expect(held()).toEqual([]);
});

test('a detach that waits says why once, and again when the reason is another', async () => {
  const reasons = ['away', 'away', 'away', 'busy', 'busy'];
  const told: string[] = [];
  const { begin, detaches } = detaching(
    () => {
      const reason = reasons.shift();
      return reason === undefined
        ? Promise.resolve('released')
        : Promise.reject(new VoltError('STORE_UNAVAILABLE', reason));
    },
    (of) => told.push(JSON.stringify(of)),
  );
  begin();
  await vi.waitFor(() => expect(reasons).toEqual([]), { timeout: 30_000 });
  await detaches.idle();
  expect(told).toEqual([expect.stringContaining('away'), expect.stringContaining('busy')]);
});
