import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { askFor, beatOf, contents, put, refused, useStore, VOLT0 } from './fixture.ts';
import { silentFor } from './member.ts';

const store = useStore();

const SESSION = beatOf('h1');

describe('a heartbeat', () => {
  test('answers the time of the server and which leases have expired', async () => {
    const record = await put(store.ledger, VOLT0);
    const ask = (id: string, more: object): Promise<unknown> =>
      store.ledger.acquire(askFor(record, id, more));
    await ask('stays', {});
    await ask('long', { ttlSeconds: 100 });
    await ask('short', { ttlSeconds: 0.01 });
    await ask('elsewhere', { ttlSeconds: 0.01, host: 'h2' });
    await sleep(20);
    const { nowMs, due } = await store.ledger.heartbeat(SESSION);
    expect(Math.abs(nowMs - Date.now())).toBeLessThan(30_000);
    expect(due).toEqual([{ id: 'short', generation: 2 ** 32 + 3 }]);
    expect((await store.ledger.getLease('short'))?.addresses).toEqual(['10.42.0.4/24']);
  });

  test('does not name a lease that was extended or has ended', async () => {
    const record = await put(store.ledger, VOLT0);
    for (const id of ['extended', 'ended']) {
      await store.ledger.acquire(askFor(record, id, { ttlSeconds: 0.01 }));
    }
    await sleep(20);
    await store.ledger.acquire(askFor(record, 'extended', { ttlSeconds: 100 }));
    const lease = await store.ledger.getLease('ended');
    await store.ledger.release({
      id: 'ended',
      generation: lease?.generation ?? 0,
      host: 'h1',
      machineId: 'machine-h1',
      cool: true,
    });
    expect((await store.ledger.heartbeat(SESSION)).due).toEqual([]);
  });

  test('of another machine under a live name is refused', async () => {
    await store.ledger.heartbeat(SESSION);
    const other = { ...SESSION, machineId: 'machine-2' };
    const error = await refused(store.raw, () => store.ledger.heartbeat(other));
    expect(error.code).toBe('HOST_CONFLICT');
    expect(error.details).toMatchObject({ host: 'h1', machineId: 'machine-h1' });
  });

  test('after a reboot of the same machine is taken', async () => {
    await store.ledger.heartbeat(SESSION);
    await silentFor(store.raw, 'h1', 60);
    await store.ledger.heartbeat({ ...SESSION, bootId: 'boot-2' });
    expect(await contents(store.raw)).toMatchObject({
      'volt:{ledger}:host:h1': { bootId: 'boot-2', machineId: 'machine-h1' },
    });
  });
});
