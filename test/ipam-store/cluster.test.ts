import { expect, test, vi } from 'vitest';
import type { LedgerOptions } from '#ipam-store/ledger.ts';
import { installLedger } from '#ipam-store/install.ts';
import { slotOf } from '#ipam-store/keys.ts';
import { createAuthority } from '#test/support/certificates.ts';
import { asking, type ClusterFleet, startClusterFleet } from '#test/support/fleets.ts';
import { askFor, optionsFor, put, VOLT0 } from './fixture.ts';
import { loadedVersion, persist, useOpening, VERSION } from './opening.ts';

// Nodes elect and copy at their own pace, which a busy machine stretches.
vi.setConfig({ testTimeout: 40_000 });

const { atEnd, rawOf, ledgerOf } = useOpening();

async function clusterOf(
  options: Partial<Parameters<typeof startClusterFleet>[0]> = {},
): Promise<ClusterFleet> {
  const fleet = await startClusterFleet({ slot: slotOf(), ...options });
  atEnd(() => fleet.stop());
  return fleet;
}

const through = (
  { nodes }: ClusterFleet,
  more: Partial<LedgerOptions> = {},
): Partial<LedgerOptions> => ({ mode: 'cluster', nodes, commandTimeoutMs: 600, ...more });

test('the slot of the ledger is the one that the server computes', async () => {
  const fleet = await clusterOf();
  const [first] = fleet.masters;
  const raw = rawOf(first.port);
  expect(await raw.call('CLUSTER', 'KEYSLOT', 'volt:{ledger}:meta')).toBe(slotOf());
  for (const cell of ['a', 'north-1', 'x'.repeat(32)]) {
    const key = `volt:{ledger-${cell}}:meta`;
    expect(await raw.call('CLUSTER', 'KEYSLOT', key)).toBe(slotOf(cell));
  }
});

test('two cells of a cluster are two ledgers, each where its slot is', async () => {
  const fleet = await clusterOf();
  const granted: unknown[] = [];
  for (const cell of [null, 'a', 'b']) {
    const ledger = await ledgerOf('', through(fleet, { cell }));
    const record = await persist(ledger, () => put(ledger, VOLT0));
    const { lease } = await persist(ledger, () => ledger.acquire(askFor(record, 'one')));
    granted.push(lease.addresses);
  }
  // None of them knows of the others' leases.
  expect(new Set(granted.map(String)).size).toBe(1);
  const held = await Promise.all(fleet.masters.map(({ port }) => rawOf(port).keys('*:leases')));
  const keys = held.flat().toSorted();
  expect(keys).toEqual([
    'volt:{ledger-a}:leases',
    'volt:{ledger-b}:leases',
    'volt:{ledger}:leases',
  ]);
  expect(Math.max(...held.map((some) => some.length))).toBeLessThan(3);
});

test('nodes that announce names which are unknown here are found by their addresses', async () => {
  const announced = ['--cluster-announce-hostname', 'nowhere.invalid'];
  const preferred = ['--cluster-preferred-endpoint-type', 'hostname'];
  const ledger = await ledgerOf(
    '',
    through(await clusterOf({ redisArgs: [...announced, ...preferred] })),
  );
  await persist(ledger, () => put(ledger, VOLT0));
});

test('a ledger in a cluster is found from any node, and outlives its master', async () => {
  const fleet = await clusterOf();
  const [, other] = fleet.nodes;
  if (other === undefined) throw new Error('the cluster has one node');
  const ledger = await ledgerOf('', through(fleet, { minReplicas: 1 }));
  const record = await persist(ledger, () => put(ledger, VOLT0));
  const first = await persist(ledger, () => ledger.acquire(askFor(record, 'one')));
  const elsewhere = await ledgerOf('', through(fleet, { nodes: [other] }));
  expect(await elsewhere.getLease('one')).toEqual(first.lease);

  const [master] = fleet.masters;
  await master.kill();
  // Nobody is left to copy to: what is granted from here on counts without replicas.
  const survivor = await ledgerOf('', through(fleet));
  const second = await persist(survivor, () => survivor.acquire(askFor(record, 'two')));
  expect(await survivor.getLease('one')).toEqual(first.lease);
  expect(second.lease.generation).toBeGreaterThan(first.lease.generation);
});

test('an administrator loads the library on every master, over TLS', async () => {
  const authority = createAuthority();
  atEnd(() => authority[Symbol.dispose]());
  const tls = authority.certificates;
  const fleet = await clusterOf({ tls });
  const options = optionsFor('', through(fleet, { tls }));
  const installed = await installLedger(options);
  expect(installed.map(({ before, after }) => [before, after])).toEqual([
    [null, VERSION],
    [null, VERSION],
    [null, VERSION],
  ]);
  for (const { port } of fleet.masters) {
    expect(await asking(port, tls, loadedVersion)).toBe(VERSION);
  }
  const ledger = await ledgerOf('', through(fleet, { tls }));
  await persist(ledger, () => put(ledger, VOLT0));
});
