import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test, vi } from 'vitest';
import { slotOf } from '#ipam-store/keys.ts';
import { installLedger } from '#ipam-store/install.ts';
import type { Ledger, LedgerOptions } from '#ipam-store/ledger.ts';
import { librarySource } from '#ipam-store/library.ts';
import { startClusterFleet, startSentinelFleet } from '#test/support/fleets.ts';
import type { Server } from '#test/support/servers.ts';
import { askFor, optionsFor, put, until, VOLT0, owned } from './fixture.ts';
import { fleetOf, forgetMemory } from './member.ts';
import { beat, persist, stateOf, useOpening } from './opening.ts';

// The rights that docs/ledger.md tells operators to give are exactly enough, in each way in which the ledger is run.

// Servers elect and copy at their own pace, which a busy machine stretches.
vi.setConfig({ testTimeout: 30_000 });

const { atEnd, server, ledgerOf, rawOf, fileWith, connecting } = useOpening();

/** Rights of a documented user, without its password. */
function documentedRights(user: string): string[] {
  const page = readFileSync(new URL('../../docs/ledger.md', import.meta.url), 'utf8');
  const line = new RegExp(`^ACL SETUSER ${user} (on >\\S+ (?:[^\\n]|\\n  )+)`, 'm').exec(page)?.[1];
  if (line === undefined) throw new Error(`docs/ledger.md has no user ${user}`);
  return line.trim().split(/\s+/).slice(2);
}

test.each(['volt-h1', 'volt-admin'])('deploy/redis/users.acl gives %s just these', (user) => {
  const file = readFileSync(new URL('../../deploy/redis/users.acl', import.meta.url), 'utf8');
  const [, rights = ''] = new RegExp(`^user ${user} on (.*)$`, 'm').exec(file) ?? [];
  expect(rights.split(' ')).toEqual(documentedRights(user));
});

/** Rights that docs/ledger.md gives beside, for one way of running it. */
function furtherRights(what: string): string[] {
  const page = readFileSync(new URL('../../docs/ledger.md', import.meta.url), 'utf8');
  const rights = page.split(`\n- ${what}: \``)[1]?.split('`')[0];
  if (rights === undefined) throw new Error(`docs/ledger.md has no rights for ${what}`);
  return rights.split(' ');
}

const AGENT = { username: 'volt-h1', passwordFile: '' } satisfies Partial<LedgerOptions>;
const PASSWORD = 'pass word';
const OTHER_DATABASE = 'where the URL names another database than 0';
/** On the command line of a server, so that a replica has the user too. */
const userArgs = (...more: string[]): string[] => [
  ...['--user', AGENT.username, 'on', `>${PASSWORD}`],
  ...[...documentedRights(AGENT.username), ...more],
];
const asAgent = (): Partial<LedgerOptions> => ({ ...AGENT, passwordFile: fileWith(PASSWORD) });

/** All that an agent ever asks of the ledger. */
async function useAll(ledger: Ledger): Promise<void> {
  const dual = { ...VOLT0, ipv6: { subnet: 'fd00:42::/64' } };
  const ask = <T>(work: () => Promise<T>): Promise<T> => persist(ledger, work);
  const first = await ask(() => put(ledger, dual));
  const changed = { ...dual, exclude: ['10.42.0.128/25'] };
  const record = await ask(() => put(ledger, changed, first.revision));
  const expiring = askFor(record, 'a', { ttlSeconds: 60 });
  const { lease } = await ask(() => ledger.acquire(expiring));
  await ask(() => ledger.acquire(expiring));
  await ask(() => ledger.acquire(askFor(record, 'b', { addresses: ['10.42.0.77'] })));
  await ask(() => ledger.preview(askFor(record, 'p')));
  expect((await ledger.listLeases({ host: 'h1' })).leases).toHaveLength(2);
  expect((await ledger.getNetwork('volt0'))?.usage.used).toBe(2);
  expect((await ledger.listNetworks({})).networks).toHaveLength(1);
  expect((await ledger.listHosts()).hosts).toHaveLength(1);
  await ask(() => ledger.release({ ...owned(lease), cool: true }));
  await ask(() => ledger.acquire(askFor(record, 'c', { workload: 'vm-web' })));
  for await (const difference of ledger.audit()) throw new Error(JSON.stringify(difference));
  for (const { id, generation, host } of (await ledger.listLeases({})).leases) {
    await ask(() => ledger.release({ ...owned({ id, generation, host }), cool: false }));
  }
  expect(await ask(() => ledger.deleteNetwork('volt0'))).toEqual({ deleted: true });
}

/** Commands that a server has refused to a user. */
async function refusedBy({ port }: Server): Promise<string[]> {
  const log = await rawOf(port).call('ACL', 'LOG');
  return Array.isArray(log) ? log.map(String) : [];
}

test('the documented rights are those that functions and client use, and no others', () => {
  const folder = new URL('../../ipam-store/functions/', import.meta.url);
  const source = readdirSync(folder).map((name) => readFileSync(new URL(name, folder), 'utf8'));
  const calls = [...source.join('\n').matchAll(/redis\.p?call\(\s*'(\w+)'/g)];
  expect(source.join('\n').match(/redis\.p?call/g)).toHaveLength(calls.length);
  const used = new Set(calls.map(([, name = '']) => `+${name.toLowerCase()}`));
  for (const own of ['+fcall', '+fcall_ro', '+info']) used.add(own);
  const documented = documentedRights(AGENT.username);
  expect(new Set(documented.filter((right) => right.startsWith('+')))).toEqual(used);
  expect(documented.filter((right) => !right.startsWith('+'))).toEqual([
    '~volt:{ledger}*',
    '-@all',
  ]);
});

describe('the documented user', () => {
  test('does all that an agent does, and nothing else', async () => {
    const { redis, raw } = await server(...userArgs());
    await raw.function('LOAD', librarySource());
    const ledger = await ledgerOf(redis.url, asAgent());
    await useAll(ledger);
    expect(await refusedBy(redis)).toEqual([]);
    const agent = rawOf(redis.url.replace('redis://', 'redis://volt-h1:pass%20word@'));
    for (const attempt of [
      () => agent.eval('return 1', 0),
      () => agent.call('HSET', 'other', 'a', 'b'),
      () => agent.call('HGET', 'volt:other', 'a'),
      () => agent.flushall(),
      () => agent.function('LOAD', librarySource()),
      () => agent.function('FLUSH'),
      () => agent.call('CLIENT', 'PAUSE', '1000'),
      () => agent.call('CLIENT', 'KILL', 'TYPE', 'normal'),
      () => agent.call('CLIENT', 'LIST'),
      () => agent.call('ACL', 'LIST'),
      () => agent.call('CONFIG', 'GET', '*'),
      () => agent.call('KEYS', '*'),
      () => agent.call('REPLICAOF', 'NO', 'ONE'),
      () => agent.call('MONITOR'),
      () => agent.call('SHUTDOWN'),
    ]) {
      await expect(attempt()).rejects.toThrow('NOPERM');
    }
  });

  test('re-asserts what it holds after a loss, and repairs damage', async () => {
    const { redis, raw } = await server(...userArgs());
    await raw.function('LOAD', librarySource());
    const ledger = await ledgerOf(redis.url, asAgent());
    const [member] = await fleetOf(ledger, ['h1']);
    const record = await member?.put(put(ledger, VOLT0));
    if (member === undefined || record === undefined) throw new Error('no member');
    await member.acquire(record, 'held', { ttlSeconds: 60 });
    await raw.flushall();
    await forgetMemory(raw);
    await member.turn();
    expect(await ledger.getLease('held')).not.toBeNull();
    await raw.zrem('volt:{ledger}:host:h1:ids', 'volt0 held');
    await raw.zadd('volt:{ledger}:net:volt0:4:held', 0, '0a2a0063 x');
    await raw.hset('volt:{ledger}:net:volt0', 'mac:02:00:00:00:00:01', 'x');
    let repaired = 0;
    for await (const one of ledger.audit()) repaired += (await ledger.repair(one)) ? 1 : 0;
    expect(repaired).toBe(3);
    await raw.zadd('volt:{ledger}:hosts', 1, 'h1');
    expect(await ledger.forgetHost('h1')).toMatchObject({ forgotten: true, released: 1 });
    expect(await refusedBy(redis)).toEqual([]);
  });

  test('of an earlier version goes on without change logs, says so, and leaves none with a gap', async () => {
    const { redis, raw } = await server(...userArgs());
    await raw.function('LOAD', librarySource());
    const log = 'volt:{ledger}:net:volt0:log';
    const ledger = await ledgerOf(redis.url, asAgent());
    expect(ledger.status).toEqual({ state: 'ready' });
    await beat(ledger);
    const record = await persist(ledger, () => put(ledger, VOLT0));
    expect(await raw.exists(log)).toBe(1);
    await raw.call('ACL', 'SETUSER', AGENT.username, '-xadd', '-xrange', '-xrevrange');
    await persist(ledger, () => ledger.acquire(askFor(record, 'a')));
    expect(await raw.exists(log)).toBe(0);
    await expect(ledger.snapshot('volt0')).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
    const later = await ledgerOf(redis.url, asAgent());
    expect(later.status.state).toBe('ready');
    expect(later.status.reason).toMatch(/no change logs .*docs\/ledger\.md/);
    await persist(later, () => later.acquire(askFor(record, 'b')));
    await beat(later);
  });

  test('says that the library is missing, and goes on when the administrator has loaded it', async () => {
    const { redis, raw } = await server(...userArgs());
    const { ledger } = connecting(redis.url, asAgent());
    await until(() => stateOf(ledger) === 'incompatible');
    expect(ledger.status.reason).toMatch(/library is missing.*voltnet ledger install/);
    await raw.call(
      'ACL',
      'SETUSER',
      'volt-admin',
      'on',
      '>admin',
      ...documentedRights('volt-admin'),
    );
    const admin = { username: 'volt-admin', passwordFile: fileWith('admin') };
    await installLedger(optionsFor(redis.url, admin));
    await until(() => stateOf(ledger) === 'ready');
    await beat(ledger);
    await raw.function('FLUSH');
    await expect(put(ledger, VOLT0)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
    await installLedger(optionsFor(redis.url, admin));
    await until(() => stateOf(ledger) === 'ready');
    await useAll(ledger);
  });

  test('loads the library itself with one right more', async () => {
    const { redis } = await server(...userArgs(...furtherRights('where agents load the library')));
    await useAll(await ledgerOf(redis.url, asAgent()));
    expect(await refusedBy(redis)).toEqual([]);
  });

  test('uses another database with one right more', async () => {
    const { redis, raw } = await server(...userArgs(...furtherRights(OTHER_DATABASE)));
    await raw.function('LOAD', librarySource());
    await useAll(await ledgerOf(`${redis.url}/5`, asAgent()));
    expect(await refusedBy(redis)).toEqual([]);
  });

  test('outlives a fail-over behind sentinels, and waits for replicas', async () => {
    const fleet = await startSentinelFleet({
      redisArgs: userArgs(...furtherRights('for `minReplicas`')),
      replicas: 2,
      sentinelLines: [
        `user volt-sentinel on ">sentinel" ${documentedRights('volt-sentinel').join(' ')}`,
      ],
    });
    atEnd(() => fleet.stop());
    await rawOf(fleet.master.port).function('LOAD', librarySource());
    const { nodes, masterName } = fleet;
    const ledger = await ledgerOf('', {
      ...asAgent(),
      ...{ mode: 'sentinel', nodes, masterName, minReplicas: 1, commandTimeoutMs: 600 },
      ...{ sentinelUsername: 'volt-sentinel', sentinelPasswordFile: fileWith('sentinel') },
    });
    await useAll(ledger);
    await rawOf(fleet.master.port).wait(2, 5_000);
    await fleet.master.kill();
    await useAll(ledger);
    for (const replica of fleet.replicas) expect(await refusedBy(replica)).toEqual([]);
  });

  test('works in a cluster', async () => {
    const fleet = await startClusterFleet({
      slot: slotOf(),
      redisArgs: userArgs(...furtherRights('in a Redis Cluster')),
    });
    atEnd(() => fleet.stop());
    await installLedger(optionsFor('', { mode: 'cluster', nodes: fleet.nodes }));
    const ledger = await ledgerOf('', { ...asAgent(), mode: 'cluster', nodes: fleet.nodes });
    await useAll(ledger);
  });
});
