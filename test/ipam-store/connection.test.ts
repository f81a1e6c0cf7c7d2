import { createServer, type Server as TcpServer, type Socket } from 'node:net';
import { describe, expect, test, vi } from 'vitest';
import { Ledger } from '#ipam-store/ledger.ts';
import { freePort, startRedis } from '#test/support/servers.ts';
import { askFor, contents, optionsFor, put, until, VOLT0, owned } from './fixture.ts';
import { beat, stateOf, useOpening } from './opening.ts';

const { atEnd, server, ledgerOf, connecting } = useOpening();

describe('settings', () => {
  test('that forget leases when memory runs out are refused, until they are mended', async () => {
    const { redis, raw } = await server('--maxmemory-policy', 'allkeys-lru');
    const { ledger } = connecting(redis.url);
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toBe('maxmemory-policy is allkeys-lru; it must be noeviction');
    await expect(ledger.getLease('one')).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      details: { sent: false },
    });
    await raw.config('SET', 'maxmemory-policy', 'noeviction');
    await until(() => stateOf(ledger) === 'ready');
  });

  test('full memory refuses grants, and lets leases be released', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    const record = await put(ledger, VOLT0);
    const { lease } = await ledger.acquire(askFor(record, 'one'));
    await raw.config('SET', 'maxmemory', '1');
    const before = await contents(raw);
    await expect(ledger.acquire(askFor(record, 'two'))).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      details: { sent: false },
    });
    expect(await contents(raw)).toEqual(before);
    expect(await ledger.release({ ...owned(lease), cool: true })).toBe('released');
  });

  test('that cannot be meant are refused at once', () => {
    expect(() => new Ledger(optionsFor('', { mode: 'cluster' }))).toThrow('redis.nodes');
    const nodes = [{ host: '127.0.0.1', port: 26_379 }];
    expect(() => new Ledger(optionsFor('', { mode: 'sentinel', nodes }))).toThrow('masterName');
    expect(() => new Ledger(optionsFor('', { keyPrefix: 'a{b}' }))).toThrow('keyPrefix');
  });
});

describe('Redis that is away', () => {
  test('is a status, and every call is refused at once', async () => {
    const { ledger, seen } = connecting(`redis://127.0.0.1:${await freePort()}`);
    await until(() => stateOf(ledger) === 'unavailable');
    // Nothing was sent: no time-out is waited for.
    await expect(ledger.getLease('one')).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      retryable: true,
      details: { sent: false },
    });
    expect(seen).toHaveLength(1);
    expect(seen[0]?.reason).toContain('ECONNREFUSED');
  });

  test('is used as soon as it is there', async () => {
    const port = await freePort();
    const { ledger } = connecting(`redis://127.0.0.1:${port}`);
    await until(() => stateOf(ledger) === 'unavailable');
    const redis = await startRedis({ port });
    atEnd(() => redis.stop());
    await until(() => stateOf(ledger) === 'ready');
    await beat(ledger);
    expect(await put(ledger, VOLT0)).toMatchObject({ created: true });
  });

  test('killed and started again has its leases from the append-only file', async () => {
    const { redis, raw } = await server('--appendonly', 'yes', '--appendfsync', 'always');
    const ledger = await ledgerOf(redis.url);
    const record = await put(ledger, { ...VOLT0, pool: { start: '10.42.0.2', end: '10.42.0.3' } });
    const { lease } = await ledger.acquire(askFor(record, 'one'));
    await ledger.acquire(askFor(record, 'two'));
    await ledger.release({ ...owned(lease), cool: true });
    const before = await contents(raw);
    await redis.kill();
    await until(() => stateOf(ledger) === 'unavailable');
    await redis.restart();
    await until(() => stateOf(ledger) === 'ready');
    expect(await contents(raw)).toEqual(before);
    await beat(ledger);
    await expect(ledger.acquire(askFor(record, 'three'))).rejects.toMatchObject({
      code: 'POOL_EXHAUSTED',
    });
  });

  test('hanging is given up after one command timeout, and taken up again', async () => {
    const { redis } = await server();
    const ledger = await ledgerOf(redis.url, { commandTimeoutMs: 200 });
    const record = await put(ledger, VOLT0);
    redis.pause();
    const started = performance.now();
    const calls = Array.from({ length: 50 }, (_, n) =>
      ledger.acquire(askFor(record, `n${n}`)).then(
        () => 'granted',
        (error: unknown) => error,
      ),
    );
    for (const error of await Promise.all(calls)) {
      expect(error).toMatchObject({ code: 'STORE_UNAVAILABLE', details: { sent: true } });
    }
    // One after the other they would take ten seconds.
    expect(performance.now() - started).toBeLessThan(5_000);
    await until(() => stateOf(ledger) === 'unavailable');
    await expect(ledger.getLease('one')).rejects.toMatchObject({ details: { sent: false } });
    redis.resume();
    await until(() => stateOf(ledger) === 'ready');
    // What was sent may have been done: only asking tells, and the repeat finds it.
    const done = await ledger.getLease('n0');
    const { lease, created } = await ledger.acquire(askFor(record, 'n0'));
    expect(created).toBe(done === null);
    expect(lease.generation).toBe(done?.generation ?? lease.generation);
  });

  test('that does not answer in time is given nothing more to do until it does', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url, { commandTimeoutMs: 1_000 });
    await raw.config('RESETSTAT');
    redis.pause();
    await expect(ledger.getLease('one')).rejects.toMatchObject({ details: { sent: true } });
    for (let n = 0; n < 20; n += 1) {
      await expect(ledger.getLease('one')).rejects.toMatchObject({ details: { sent: false } });
    }
    redis.resume();
    await vi.waitFor(() => ledger.getLease('one'), { timeout: 8_000 });
    const calls = /cmdstat_fcall:calls=(\d+)/.exec(await raw.info('commandstats'))?.[1];
    expect(Number(calls)).toBeLessThan(10);
  });

  test('hanging from the first connection on is not waited for', async () => {
    const port = await freePort();
    const silent = await silentServer(port);
    const { ledger } = connecting(`redis://127.0.0.1:${port}`, { commandTimeoutMs: 200 });
    await until(() => stateOf(ledger) === 'unavailable');
    await expect(ledger.getLease('one')).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
    await silent.stop();
    const redis = await startRedis({ port });
    atEnd(() => redis.stop());
    await until(() => stateOf(ledger) === 'ready');
  });
});

/** Accepts connections and says nothing. */
async function silentServer(port: number): Promise<{ stop(): Promise<void> }> {
  const sockets = new Set<Socket>();
  const listening: TcpServer = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    socket.resume();
  });
  await new Promise<void>((resolve) => {
    listening.listen(port, '127.0.0.1', resolve);
  });
  return {
    stop: () =>
      new Promise((resolve) => {
        listening.close(() => resolve());
        for (const socket of sockets) socket.destroy();
      }),
  };
}
