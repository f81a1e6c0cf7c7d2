import type { Redis } from 'ioredis';
import { describe, expect, test, vi } from 'vitest';
import type { Ledger, LedgerOptions } from '#ipam-store/ledger.ts';
import { type Server, startRedis } from '#test/support/servers.ts';
import { askFor, put, until, VOLT0, owned } from './fixture.ts';
import { beat, persist, stateOf, useOpening } from './opening.ts';

// Servers elect and copy at their own pace, which a busy machine stretches.
vi.setConfig({ testTimeout: 30_000 });

const { atEnd, server, rawOf, ledgerOf, connecting } = useOpening();

/** A master, its replica, and a ledger that wants the replica to have what counts. */
async function replicated(more: Partial<LedgerOptions> = {}): Promise<{
  ledger: Ledger;
  master: Server;
  replica: Server;
  raw: Redis;
}> {
  const { redis: master, raw } = await server('--repl-diskless-sync-delay', '0');
  const replica = await startRedis({ args: ['--replicaof', '127.0.0.1', String(master.port)] });
  atEnd(() => replica.stop());
  const ledger = await ledgerOf(master.url, { minReplicas: 1, commandTimeoutMs: 600, ...more });
  await persist(ledger, async () => put(ledger, VOLT0));
  await beat(ledger);
  return { ledger, master, replica, raw };
}

const callsOf = async (raw: Redis, command: string): Promise<number> =>
  Number(
    new RegExp(`cmdstat_${command}:calls=(\\d+)`).exec(await raw.info('commandstats'))?.[1] ?? 0,
  );

const short = {
  code: 'STORE_UNAVAILABLE',
  retryable: true,
  message: 'Redis: 0 of 1 replicas have what was written',
  details: { sent: true },
};

describe('a ledger that wants a replica', () => {
  test('grants what the replica has', async () => {
    const { ledger, replica } = await replicated();
    const record = await put(ledger, VOLT0);
    const { lease } = await ledger.acquire(askFor(record, 'one'));
    const copy = rawOf(replica.port);
    expect(String(await copy.hget('volt:{ledger}:leases', 'one'))).toContain(lease.mac);
  });

  test('counts no lease that the replica has not, however often it is asked for, and then the same', async () => {
    const { ledger, replica, raw } = await replicated();
    const record = await put(ledger, VOLT0);
    replica.pause();
    await expect(ledger.acquire(askFor(record, 'one'))).rejects.toMatchObject(short);
    await expect(ledger.acquire(askFor(record, 'one'))).rejects.toMatchObject(short);
    const granted = await ledger.getLease('one');
    expect(granted).not.toBeNull();
    // Replicas that the master has not heard of for a while are dropped by it, and come back by themselves.
    replica.resume();
    const { lease, created } = await persist(ledger, () => ledger.acquire(askFor(record, 'one')));
    expect({ generation: lease.generation, created }).toEqual({
      generation: granted?.generation,
      created: false,
    });
    expect(await callsOf(raw, 'wait')).toBeGreaterThanOrEqual(3);
  });

  test('writes also when it finds a lease, so that there is something to wait for', async () => {
    const { ledger, raw } = await replicated();
    const record = await put(ledger, VOLT0);
    await ledger.acquire(askFor(record, 'one'));
    const offset = async (): Promise<number> =>
      Number(/master_repl_offset:(\d+)/.exec(await raw.info('replication'))?.[1]);
    // A ping that the master sends to its replica every ten seconds moves the offset by 14 bytes.
    const before = await offset();
    expect(await ledger.acquire(askFor(record, 'one'))).toMatchObject({ created: false });
    expect((await offset()) - before).toBeGreaterThan(100);
  });

  test('waits for all that must outlive the master, and for nothing else', async () => {
    const { ledger, replica } = await replicated();
    const record = await put(ledger, VOLT0);
    const { lease } = await ledger.acquire(askFor(record, 'one'));
    replica.pause();
    await expect(ledger.release({ ...owned(lease), cool: true })).rejects.toMatchObject(short);
    await expect(ledger.release({ ...owned(lease), cool: true })).rejects.toMatchObject(short);
    await expect(put(ledger, { ...VOLT0, mtu: 1400 }, record.revision)).rejects.toMatchObject(
      short,
    );
    await expect(ledger.deleteNetwork('volt0')).rejects.toMatchObject(short);
    expect(await ledger.getNetwork('volt0')).toBeNull();
    await beat(ledger);
    // A refusal is none the less one.
    await expect(ledger.acquire(askFor(record, 'two'))).rejects.toMatchObject({
      code: 'UNKNOWN_NETWORK',
    });
    replica.resume();
    expect(await persist(ledger, () => ledger.release({ ...owned(lease), cool: true }))).toBe(
      'absent',
    );
  });

  test('waits once for many', async () => {
    const { ledger, raw } = await replicated();
    const record = await put(ledger, VOLT0);
    const before = await callsOf(raw, 'wait');
    const asked = Array.from({ length: 200 }, (_, n) => ledger.acquire(askFor(record, `n${n}`)));
    expect(new Set((await Promise.all(asked)).map(({ lease }) => lease.mac)).size).toBe(200);
    expect((await callsOf(raw, 'wait')) - before).toBeLessThan(20);
  });

  test('keeps its heartbeat while leases wait in vain', async () => {
    const { ledger, replica } = await replicated();
    const record = await put(ledger, VOLT0);
    replica.pause();
    const asked = new Set<string>();
    const refuse = async (id: string): Promise<void> => {
      await ledger
        .acquire(askFor(record, id))
        .catch(({ code }: { code: string }) => asked.add(code));
    };
    // One after the other, so that each could wait by itself. A heartbeat that is held up by more than one
    // WAIT would end as STORE_UNAVAILABLE.
    const asking = [refuse('n0')];
    for (let n = 1; n <= 4; n += 1) {
      await beat(ledger);
      asking.push(refuse(`n${n}`));
    }
    await Promise.all(asking);
    expect(asked).toEqual(new Set(['STORE_UNAVAILABLE']));
    expect(stateOf(ledger)).toBe('ready');
  });

  test('says so where its user may not WAIT', async () => {
    const { redis, raw } = await server();
    await raw.call('ACL', 'SETUSER', 'default', '-wait');
    const { ledger } = connecting(redis.url, { minReplicas: 1 });
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toMatch(/redis\.minReplicas: NOPERM/);
    await raw.call('ACL', 'SETUSER', 'default', '+wait');
    await until(() => stateOf(ledger) === 'ready');
  });
});

test('a ledger that wants none does not wait', async () => {
  const { ledger, raw } = await replicated({ minReplicas: 0 });
  const record = await put(ledger, VOLT0);
  await ledger.acquire(askFor(record, 'one'));
  expect(await callsOf(raw, 'wait')).toBe(0);
});

test('a master that becomes a replica is not used until it is a master again', async () => {
  const { redis, raw } = await server();
  const other = await startRedis();
  atEnd(() => other.stop());
  const ledger = await ledgerOf(redis.url);
  await put(ledger, VOLT0);
  await raw.replicaof('127.0.0.1', String(other.port));
  await expect(put(ledger, { ...VOLT0, network: 'two' })).rejects.toMatchObject({
    code: 'STORE_UNAVAILABLE',
    details: { sent: false },
  });
  await until(() => ledger.status.reason?.includes('replica') === true);
  await expect(ledger.getNetwork('volt0')).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
  await raw.replicaof('NO', 'ONE');
  await until(() => stateOf(ledger) === 'ready');
});
