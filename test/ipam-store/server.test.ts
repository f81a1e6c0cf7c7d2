import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test, vi } from 'vitest';
import { librarySource } from '#ipam-store/library.ts';
import { startRedis } from '#test/support/servers.ts';
import { askFor, openLedger, put, until, VOLT0 } from './fixture.ts';
import { fleetOf } from './member.ts';
import { stateOf, useOpening } from './opening.ts';

// What is looked at when an agent connects may change while it is connected.

vi.setConfig({ testTimeout: 20_000 });

const { atEnd, server, rawOf } = useOpening();

const REASON = 'maxmemory-policy is allkeys-lru; it must be noeviction';

test('a server that may evict keys grants nothing, says why, and goes on by itself when it may not', async () => {
  const { redis, raw } = await server();
  await raw.function('LOAD', librarySource());
  // Of an agent that has not beaten since, and so has not heard of it.
  const other = await openLedger(redis.url);
  const ledger = await openLedger(redis.url);
  atEnd(() => Promise.all([ledger.close(), other.close()]));
  const [one] = await fleetOf(ledger, ['h1']);
  assert(one !== undefined);
  const record = await one.put(put(ledger, VOLT0));
  await one.acquire(record, 'before');
  await raw.config('SET', 'maxmemory-policy', 'allkeys-lru');
  await sleep(1_100);
  await expect(other.acquire(askFor(record, 'meanwhile'))).rejects.toMatchObject({
    code: 'STORE_UNAVAILABLE',
    message: `Redis: ${REASON}`,
    details: { sent: false },
  });
  expect(await one.beat()).toMatchObject({ state: 'armed', mayAcquire: false, unfit: REASON });
  await until(() => stateOf(ledger) === 'incompatible');
  expect(ledger.status.reason).toBe(REASON);
  await raw.config('SET', 'maxmemory-policy', 'noeviction');
  await until(() => stateOf(ledger) === 'ready');
  await sleep(1_100);
  expect(await one.beat()).toMatchObject({ state: 'armed', mayAcquire: true });
  await one.acquire(record, 'after');
  await other.acquire(askFor(record, 'also-after'));
});

test('a master that was a replica meanwhile hears every host before it grants', async () => {
  const [first, second] = await Promise.all(
    [1, 2].map(() => startRedis({ args: ['--repl-diskless-sync-delay', '0'] })),
  );
  assert(first !== undefined && second !== undefined);
  atEnd(() => Promise.all([first.stop(), second.stop()]));
  const [here, there] = [rawOf(first.url), rawOf(second.url)];
  const follow = async (replica: typeof here, port: number): Promise<void> => {
    await replica.replicaof('127.0.0.1', port);
    await expect
      .poll(() => replica.info('replication'), { timeout: 8_000 })
      .toContain('master_link_status:up');
  };
  await follow(there, first.port);
  const ledger = await openLedger(first.url);
  atEnd(() => ledger.close());
  const [one, two] = await fleetOf(ledger, ['h1', 'h2']);
  assert(one !== undefined && two !== undefined);
  const record = await one.put(put(ledger, VOLT0));
  await one.acquire(record, 'a');
  await expect.poll(() => there.hexists('volt:{ledger}:leases', 'a')).toBe(1);
  // Nothing is granted by the other, so the counter tells nothing; the first copies only what it lacks, and so
  // keeps its memory.
  await there.replicaof('NO', 'ONE');
  await follow(here, second.port);
  await here.replicaof('NO', 'ONE');
  expect(await there.info('stats')).toContain('sync_full:0');
  await sleep(1_100);
  const granted = ledger.acquire(askFor(record, 'b'));
  await expect(granted).rejects.toMatchObject({ code: 'RECOVERING' });
  await one.turn();
  await two.turn();
  await one.turn();
  await one.acquire(record, 'b');
});
