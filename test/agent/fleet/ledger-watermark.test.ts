import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { createLog } from '#agent/log.ts';
import { LedgerWatermark } from '#agent/fleet/ledger-watermark.ts';
import { parseNetwork } from '#protocol/network.ts';

const log = createLog('error', 'h1');
const network = parseNetwork({ network: 'volt0', subnet: '10.42.0.0/24' });

let stateDir: string;

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'volt-test-watermark-'));
});
afterEach(() => rmSync(stateDir, { recursive: true, force: true }));

function loaded(): LedgerWatermark {
  const watermark = new LedgerWatermark({ stateDir, log });
  watermark.load();
  return watermark;
}

test('what was noted is what the next agent has seen', async () => {
  const first = loaded();
  expect(first.seen).toEqual({ generation: 0, revision: 0, roster: 0, hosts: [] });
  await first.note({ generation: 2 ** 32 + 5, revision: 3 }, { roster: 2, hosts: ['h1', 'h2'] });
  await first.noteNetworks({ revision: 3, epoch: '4', networks: [{ network, revision: 3 }] });
  const second = loaded();
  expect(second.seen).toEqual(first.seen);
  expect(second.networks).toEqual([{ network, revision: 3 }]);
  expect(second.networksRevision).toBe(3);
  expect(second.networksEpoch).toBe('4');
});

test('counters never go back, and a roster comes with its list', async () => {
  const watermark = loaded();
  await watermark.note({ generation: 10, revision: 5 }, { roster: 4, hosts: ['h1'] });
  await watermark.note({ generation: 9, revision: 4 });
  expect(watermark.seen).toEqual({ generation: 10, revision: 5, roster: 4, hosts: ['h1'] });
  // After a loss the list may be a shorter one, of a roster that is lower.
  await watermark.note({ generation: 12, revision: 5 }, { roster: 5, hosts: ['h2'] });
  expect(loaded().seen).toEqual({ generation: 12, revision: 5, roster: 5, hosts: ['h2'] });
});

test('a generation and a network that this host has had count at once, and are stored with the next answer', async () => {
  const watermark = loaded();
  watermark.noteGeneration(20);
  watermark.noteNetwork({ network, revision: 6 });
  watermark.noteNetwork({ network, revision: 2 });
  expect(watermark.seen).toMatchObject({ generation: 20, revision: 6 });
  expect(watermark.networks).toEqual([{ network, revision: 6 }]);
  await watermark.note({ generation: 1, revision: 1 });
  expect(loaded().seen).toMatchObject({ generation: 20, revision: 6 });
});

test('a new list or epoch is written at once, counters when the agent ends', async () => {
  const list = { roster: 1, hosts: ['h1'] };
  const stored = (): unknown => loaded().seen;
  const watermark = loaded();
  const epoch = 2 ** 32;
  await watermark.note({ generation: epoch, revision: 1 }, list);
  await watermark.note({ generation: epoch + 1, revision: 2 });
  expect(stored()).toEqual({ generation: epoch, revision: 1, ...list });
  await watermark.note({ generation: epoch + 1, revision: 2 }, { ...list, roster: 2 });
  expect(stored()).toEqual({ generation: epoch + 1, revision: 2, ...list, roster: 2 });
  await watermark.note({ generation: 2 * epoch, revision: 2 });
  expect(stored()).toMatchObject({ generation: 2 * epoch });
  watermark.noteGeneration(2 * epoch + 7);
  await watermark.close();
  expect(stored()).toMatchObject({ generation: 2 * epoch + 7, revision: 2 });
});

test('a network that was put while the others were read is not forgotten', async () => {
  const watermark = loaded();
  watermark.noteNetwork({ network, revision: 4 });
  await watermark.noteNetworks({ revision: 3, epoch: '1', networks: [] });
  expect(watermark.networks).toEqual([{ network, revision: 4 }]);
  await watermark.noteNetworks({ revision: 5, epoch: '1', networks: [] });
  expect(watermark.networks).toEqual([]);
});

test('networks are never newer than what was seen, whichever file was written last', async () => {
  await loaded().noteNetworks({ revision: 9, epoch: '1', networks: [{ network, revision: 9 }] });
  expect(loaded().seen.revision).toBe(9);
});

test('a file that cannot be read is set aside', () => {
  const file = join(stateDir, 'ledger.json');
  writeFileSync(file, '{"version":1,"generation":-1}');
  expect(loaded().seen.generation).toBe(0);
  expect(readFileSync(`${file}.corrupt`, 'utf8')).toContain('-1');
});

test('a list of hosts that the disk refuses has not been seen', async () => {
  const watermark = loaded();
  rmSync(stateDir, { recursive: true });
  await watermark.note({ generation: 10, revision: 5 }, { roster: 4, hosts: ['h1'] });
  expect(watermark.seen).toEqual({ generation: 10, revision: 5, roster: 0, hosts: [] });
});
