import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test, vi } from 'vitest';
import type { LedgerOptions } from '#ipam-store/ledger.ts';
import { type SentinelFleet, startSentinelFleet } from '#test/support/fleets.ts';
import { freePort, startRedis, startSentinel } from '#test/support/servers.ts';
import { askFor, put, until, VOLT0, owned } from './fixture.ts';
import { loadedVersion, persist, stateOf, useOpening, VERSION } from './opening.ts';

// Servers elect and copy at their own pace, which a busy machine stretches.
vi.setConfig({ testTimeout: 30_000 });

const { atEnd, rawOf, ledgerOf, connecting, fileWith } = useOpening();

async function fleetOf(
  options: Parameters<typeof startSentinelFleet>[0] = {},
): Promise<SentinelFleet> {
  const fleet = await startSentinelFleet(options);
  atEnd(() => fleet.stop());
  return fleet;
}

const through = (
  { nodes, masterName }: SentinelFleet,
  more: Partial<LedgerOptions> = {},
): Partial<LedgerOptions> => ({
  mode: 'sentinel',
  nodes,
  masterName,
  commandTimeoutMs: 600,
  ...more,
});

describe('a ledger behind sentinels', () => {
  test('outlives its master, with every lease that it counted', async () => {
    const fleet = await fleetOf({ replicas: 2 });
    const ledger = await ledgerOf('', through(fleet, { minReplicas: 1 }));
    const record = await persist(ledger, () => put(ledger, VOLT0));
    const first = await persist(ledger, () => ledger.acquire(askFor(record, 'one')));
    // With two replicas and minReplicas 1 it is the sentinels who choose the one that has it; here both do.
    await rawOf(fleet.master.port).wait(2, 5_000);
    await fleet.master.kill();
    const second = await persist(ledger, () => ledger.acquire(askFor(record, 'two')));
    expect(await ledger.getLease('one')).toEqual(first.lease);
    expect(second.lease.generation).toBeGreaterThan(first.lease.generation);
  });

  test('leaves a master that hangs, and does not come back to it', async () => {
    const fleet = await fleetOf();
    const { ledger, seen } = connecting('', through(fleet));
    const record = await persist(ledger, () => put(ledger, VOLT0));
    const [replica] = fleet.replicas;
    await rawOf(fleet.master.port).wait(1, 5_000);
    fleet.master.pause();
    await persist(ledger, () => ledger.acquire(askFor(record, 'one')));
    expect(await rawOf(replica?.port ?? 0).hexists('volt:{ledger}:leases', 'one')).toBe(1);
    const raw = rawOf(fleet.master.port);
    fleet.master.resume();
    while (!(await raw.info('replication')).includes('role:slave')) await ledger.getLease('one');
    await ledger.release({ ...owned(await leaseOf(ledger, 'one')), cool: true });
    expect(seen.map(({ state }) => state)).toEqual(
      expect.arrayContaining(['ready', 'unavailable', 'ready']),
    );
  });

  test('leaves a master that others have deposed, and counts no lease that went with it', async () => {
    const fleet = await fleetOf();
    const ledger = await ledgerOf('', through(fleet, { minReplicas: 1 }));
    // With an address for as long as the sentinels may take.
    const wide = { network: 'volt0', subnet: '10.42.0.0/16', gateway: '10.42.0.1' };
    const record = await persist(ledger, () => put(ledger, wide));
    const [sentinel] = fleet.sentinels;
    await rawOf(sentinel?.port ?? 0).call('SENTINEL', 'FAILOVER', fleet.masterName);
    const counted: string[] = [];
    for (let n = 0; (await fleet.masterPort()) === fleet.master.port || n < 20; n += 1) {
      await persist(ledger, () => ledger.acquire(askFor(record, `n${n}`)));
      counted.push(`n${n}`);
      await sleep(20);
    }
    for (const id of counted) expect(await ledger.getLease(id)).not.toBeNull();
    const [replica] = fleet.replicas;
    // Beside them are the counter of generations, and what is counted of other keys.
    const fields = await rawOf(replica?.port ?? 0).hkeys('volt:{ledger}:leases');
    expect(fields.filter((field) => !field.startsWith('#')).toSorted()).toEqual(counted.toSorted());
  });

  test('loads the library on a new master that lacks it', async () => {
    const fleet = await fleetOf();
    const ledger = await ledgerOf('', through(fleet));
    await persist(ledger, () => put(ledger, VOLT0));
    const [replica] = fleet.replicas;
    const copy = rawOf(replica?.port ?? 0);
    await copy.config('SET', 'replica-read-only', 'no');
    await copy.function('FLUSH');
    await fleet.master.kill();
    await persist(ledger, () => ledger.getNetwork('volt0'));
    expect(await loadedVersion(copy)).toBe(VERSION);
  });

  test('finds its master while some sentinels are away', async () => {
    const fleet = await fleetOf();
    const nodes = [{ host: '127.0.0.1', port: await freePort() }, ...fleet.nodes];
    await ledgerOf('', through(fleet, { nodes }));
    await fleet.sentinels[0]?.stop();
    await ledgerOf('', through(fleet, { nodes }));
  });
});

describe('sentinels that call one master', () => {
  test.each([
    ['by name and by address', 'localhost', []],
    ['by an IPv4-mapped address', '::ffff:127.0.0.1', []],
    ['by two of its addresses', '127.0.0.2', ['--bind', '127.0.0.1', '127.0.0.2']],
  ])('%s, are of one opinion', async (_, name, redisArgs) => {
    const fleet = await fleetOf({ names: [name, '127.0.0.1', '127.0.0.1'], redisArgs });
    const orders = [fleet.nodes, fleet.nodes.toReversed()];
    const opened = orders.map((nodes) => connecting('', through(fleet, { nodes })));
    for (const { ledger } of opened) {
      const record = await persist(ledger, () => put(ledger, VOLT0));
      await persist(ledger, () => ledger.acquire(askFor(record, 'one')));
    }
    await sleep(1_000);
    for (const { seen } of opened) expect(seen).toEqual([{ state: 'ready' }]);
    if (name !== 'localhost') return; // A fail-over is the same for all.
    await rawOf(fleet.master.port).wait(1, 5_000);
    await fleet.master.kill();
    for (const { ledger } of opened) {
      await persist(ledger, () => ledger.getLease('one'));
      expect(await ledger.getLease('one')).not.toBeNull();
    }
  });
});

test('a sentinel that answers nothing is waited for no longer than the others take', async () => {
  const fleet = await fleetOf();
  fleet.sentinels[0]?.pause();
  const { seen, ledger } = connecting('', through(fleet));
  await persist(ledger, () => put(ledger, VOLT0));
  await sleep(1_000);
  expect(seen).toEqual([{ state: 'ready' }]);
});

test('sentinels with two masters are refused, and are not asked again and again', async () => {
  const fleet = await fleetOf();
  const other = await startRedis();
  const lines = [`sentinel monitor ${fleet.masterName} 127.0.0.1 ${other.port} 1`];
  const alone = await startSentinel({ lines });
  atEnd(() => Promise.all([alone.stop(), other.stop()]));
  await fleet.sentinels[0]?.stop();
  const nodes = [{ host: '127.0.0.1', port: alone.port }, ...fleet.nodes.slice(1, 2)];
  const { ledger, seen } = connecting('', through(fleet, { nodes }));
  await until(() => ledger.status.reason?.startsWith('the sentinels disagree') === true);
  for (const port of [fleet.master.port, other.port]) {
    expect(ledger.status.reason).toContain(`127.0.0.1:${port}`);
  }
  // One more sentinel, and most are of one opinion: the other is heard when the connection is there.
  const most = connecting(
    '',
    through(fleet, { nodes: [...fleet.nodes.slice(1), ...nodes.slice(0, 1)] }),
  );
  await sleep(2_000);
  expect(seen.filter(({ state }) => state === 'ready')).toEqual([]);
  expect(most.seen.filter(({ state }) => state === 'ready').length).toBeLessThan(8);
});

describe('what is wrong is told', () => {
  test('when no sentinel answers', async () => {
    const nodes = [await freePort(), await freePort()].map((port) => ({ host: '127.0.0.1', port }));
    const { ledger } = connecting('', { mode: 'sentinel', nodes, masterName: 'volt' });
    await until(() => stateOf(ledger) === 'unavailable');
    for (const { port } of nodes) {
      expect(ledger.status.reason).toContain(`ECONNREFUSED 127.0.0.1:${port}`);
    }
  });

  test('when no sentinel knows the master', async () => {
    const fleet = await fleetOf();
    const { ledger } = connecting('', through(fleet, { masterName: 'other' }));
    await until(() => stateOf(ledger) === 'unavailable');
    expect(ledger.status.reason).toMatch(/^no sentinel knows the master: .*No such master/);
  });
});

test('sentinels and servers have users and passwords of their own', async () => {
  const user = ['--user', 'agent', 'on', '>redis secret', '~volt:*', '+@all'];
  const fleet = await fleetOf({
    redisArgs: user,
    sentinelLines: [
      'user watcher on ">sentinel secret" -@all +sentinel|get-master-addr-by-name +sentinel|master +subscribe &+switch-master',
    ],
  });
  const secured = through(fleet, {
    username: 'agent',
    passwordFile: fileWith('redis secret\n'),
    sentinelUsername: 'watcher',
    sentinelPasswordFile: fileWith('sentinel secret\n'),
  });
  const ledger = await ledgerOf('', secured);
  await persist(ledger, () => put(ledger, VOLT0));
  const wrong = { ...secured, sentinelPasswordFile: fileWith('redis secret') };
  const refused = connecting('', wrong).ledger;
  await until(() => stateOf(refused) === 'unavailable');
  expect(refused.status.reason).toMatch(
    /WRONGPASS.*\(set redis\.sentinelUsername and redis\.sentinelPasswordFile\)/,
  );
});

async function leaseOf(
  ledger: Awaited<ReturnType<typeof ledgerOf>>,
  id: string,
): Promise<{ id: string; generation: number; host: string }> {
  const lease = await ledger.getLease(id);
  if (lease === null) throw new Error(`${id} has no lease`);
  return lease;
}
