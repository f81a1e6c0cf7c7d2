import { createServer, type Server as TcpServer, type Socket } from 'node:net';
import { Redis } from 'ioredis';
import { afterEach, describe, expect, test } from 'vitest';
import { Ledger, type LedgerStatus } from '#ipam-store/ledger.ts';
import { librarySource, libraryVersion } from '#ipam-store/library.ts';
import { freePort, type Server, startRedis } from '#test/support/servers.ts';
import { askFor, contents, openLedger, optionsFor, put, until, VOLT0 } from './fixture.ts';

const opened: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of opened.splice(0).toReversed()) await close();
});

async function server(...args: string[]): Promise<{ redis: Server; raw: Redis }> {
  const redis = await startRedis({ args });
  const raw = new Redis(redis.url);
  raw.on('error', () => {});
  opened.push(
    () => redis.stop(),
    () => raw.disconnect(),
  );
  return { redis, raw };
}

const ledgerOf = async (url: string, more = {}): Promise<Ledger> => {
  const ledger = await openLedger(url, more);
  opened.push(() => ledger.close());
  return ledger;
};

function connecting(url: string, more = {}): { ledger: Ledger; seen: LedgerStatus[] } {
  const ledger = new Ledger(optionsFor(url, more));
  const seen: LedgerStatus[] = [];
  ledger.onStatus((status) => seen.push(status));
  opened.push(() => ledger.close());
  ledger.start();
  return { ledger, seen };
}

const stateOf = ({ status }: Ledger): string => status.state;

const version = libraryVersion(librarySource());
const otherVersion = (text: string): string =>
  librarySource().replace(`local VERSION = '${version}'`, `local VERSION = '${text}'`);
const loadedVersion = (raw: Redis): Promise<unknown> => raw.fcall_ro('volt1_version', 0);

describe('the function library', () => {
  test('is loaded where it is missing', async () => {
    const { redis, raw } = await server();
    await ledgerOf(redis.url);
    expect(await loadedVersion(raw)).toBe(version);
  });

  test('is replaced where it is older', async () => {
    const { redis, raw } = await server();
    await raw.function('LOAD', otherVersion('0.9'));
    await ledgerOf(redis.url);
    expect(await loadedVersion(raw)).toBe(version);
  });

  test('stays where it is newer', async () => {
    const { redis, raw } = await server();
    await raw.function('LOAD', otherVersion('1.999'));
    const ledger = await ledgerOf(redis.url);
    expect(await loadedVersion(raw)).toBe('1.999');
    await put(ledger, VOLT0);
  });

  test('of the next major is refused, until it is gone', async () => {
    const { redis, raw } = await server();
    const next =
      "#!lua name=volt2\nredis.register_function{function_name='volt2_version', callback=function() return '2.3' end, flags={'no-writes'}}";
    await raw.function('LOAD', next);
    const { ledger } = connecting(redis.url);
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toContain('2.3');
    await expect(ledger.getNetwork('volt0')).rejects.toMatchObject({ code: 'STORE_VERSION' });
    await raw.function('DELETE', 'volt2');
    await until(() => stateOf(ledger) === 'ready');
  });

  test('is found out to be of the next major on reconnect', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    const next =
      "#!lua name=volt2\nredis.register_function{function_name='volt2_version', callback=function() return '2.0' end, flags={'no-writes'}}";
    await raw.function('LOAD', next);
    await raw.call('CLIENT', 'KILL', 'TYPE', 'normal');
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toContain('2.0');
  });

  test('lost with everything else is loaded again, within the call', async () => {
    const { redis, raw } = await server();
    const ledger = await ledgerOf(redis.url);
    await raw.flushall();
    await raw.function('FLUSH');
    expect((await put(ledger, VOLT0)).revision).toBe(1);
  });

  test('is loaded once by many that start together', async () => {
    const { redis, raw } = await server();
    await Promise.all(Array.from({ length: 8 }, () => ledgerOf(redis.url)));
    expect(await loadedVersion(raw)).toBe(version);
  });
});

describe('a user with no more rights than it needs', () => {
  const DATA =
    '~volt:* -@all +fcall +fcall_ro +info +ping +client +time +exists +del +hget +hset +hsetnx +hmget +hdel +hincrby +zadd +zrem +zrange +zrangebylex +zrevrangebylex +zrangebyscore +zscore +zcard +zcount +zlexcount +pttl +pexpire';

  test('works without loading where an operator has loaded the library', async () => {
    const { redis, raw } = await server();
    await raw.call('ACL', 'SETUSER', 'agent', 'on', '>secret', ...DATA.split(' '));
    await raw.function('LOAD', librarySource());
    const ledger = await ledgerOf(redis.url, { username: 'agent', password: 'secret' });
    const record = await put(ledger, VOLT0);
    const { lease } = await ledger.acquire(askFor(record, 'one', { addresses: ['10.42.0.9'] }));
    await ledger.heartbeat({ host: 'h1', machineId: 'm', bootId: 'b' });
    await ledger.listLeases({});
    await ledger.listNetworks();
    await ledger.getNetwork('volt0');
    await ledger.release({ ...lease, cool: true });
    await ledger.acquire(askFor(record, 'two', { workload: 'vm-one', addresses: ['10.42.0.9'] }));
    await put(ledger, { ...VOLT0, exclude: ['10.42.0.128/25'] }, record.revision);
    const two = await ledger.getLease('two');
    await ledger.release({ id: 'two', generation: two?.generation ?? 0, host: 'h1', cool: false });
    expect(await ledger.deleteNetwork('volt0')).toEqual({ deleted: true });
  });

  test('says what it may not where the library is missing', async () => {
    const { redis, raw } = await server();
    await raw.call('ACL', 'SETUSER', 'agent', 'on', '>secret', ...DATA.split(' '));
    const { ledger } = connecting(redis.url, { username: 'agent', password: 'secret' });
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toMatch(/library is missing.*loading it failed.*NOPERM/);
    await raw.function('LOAD', librarySource());
    await until(() => stateOf(ledger) === 'ready');
  });
});

describe('settings', () => {
  test('that forget leases when memory runs out are refused, until they are mended', async () => {
    const { redis, raw } = await server('--maxmemory-policy', 'allkeys-lru');
    const { ledger } = connecting(redis.url);
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toBe('maxmemory-policy is allkeys-lru; it must be noeviction');
    await expect(ledger.getLease('one')).rejects.toMatchObject({ code: 'STORE_VERSION' });
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
    expect(await ledger.release({ ...lease, cool: true })).toBe('released');
  });

  test('that cannot be meant are refused at once', () => {
    expect(() => new Ledger(optionsFor('', { mode: 'cluster', minReplicas: 1 }))).toThrow(
      'minReplicas',
    );
    expect(() => new Ledger(optionsFor('', { keyPrefix: 'a{b}' }))).toThrow('keyPrefix');
  });
});

describe('Redis that is away', () => {
  test('is a status, and every call is refused at once', async () => {
    const { ledger, seen } = connecting(`redis://127.0.0.1:${await freePort()}`);
    await until(() => stateOf(ledger) === 'unavailable');
    const started = performance.now();
    await expect(ledger.getLease('one')).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      retryable: true,
      details: { sent: false },
    });
    expect(performance.now() - started).toBeLessThan(100);
    expect(seen).toHaveLength(1);
    expect(seen[0]?.reason).toContain('ECONNREFUSED');
  });

  test('is used as soon as it is there', async () => {
    const port = await freePort();
    const { ledger } = connecting(`redis://127.0.0.1:${port}`);
    await until(() => stateOf(ledger) === 'unavailable');
    const redis = await startRedis({ port });
    opened.push(() => redis.stop());
    await until(() => stateOf(ledger) === 'ready');
    expect(await put(ledger, VOLT0)).toMatchObject({ created: true });
  });

  test('killed and started again has its leases from the append-only file', async () => {
    const { redis, raw } = await server('--appendonly', 'yes', '--appendfsync', 'always');
    const ledger = await ledgerOf(redis.url);
    const record = await put(ledger, { ...VOLT0, pool: { start: '10.42.0.2', end: '10.42.0.3' } });
    const { lease } = await ledger.acquire(askFor(record, 'one'));
    await ledger.acquire(askFor(record, 'two'));
    await ledger.release({ ...lease, cool: true });
    const before = await contents(raw);
    await redis.kill();
    await until(() => stateOf(ledger) === 'unavailable');
    await redis.restart();
    await until(() => stateOf(ledger) === 'ready');
    expect(await contents(raw)).toEqual(before);
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
    expect(performance.now() - started).toBeLessThan(1_000);
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

  test('hanging from the first connection on is not waited for', async () => {
    const port = await freePort();
    const silent = await silentServer(port);
    const { ledger } = connecting(`redis://127.0.0.1:${port}`, { commandTimeoutMs: 200 });
    await until(() => stateOf(ledger) === 'unavailable');
    await expect(ledger.getLease('one')).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
    await silent.stop();
    const redis = await startRedis({ port });
    opened.push(() => redis.stop());
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
