import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { librarySource } from '#ipam-store/library.ts';
import { askFor, put, VOLT0 } from './fixture.ts';
import { beat, useOpening } from './opening.ts';

// The rights that docs/ledger.md tells operators to give are exactly enough.

const { server, ledgerOf, rawOf, fileWith } = useOpening();

/** Rights of the documented user, without name and password. */
function documentedRights(): string[] {
  const page = readFileSync(new URL('../../docs/ledger.md', import.meta.url), 'utf8');
  const line = /^ACL SETUSER volt on >\S+ ([^`]+)```/m.exec(page)?.[1];
  if (line === undefined) throw new Error('docs/ledger.md has no ACL SETUSER line');
  return line.trim().split(/\s+/);
}

test('the documented user does all that an agent does, and nothing else', async () => {
  const { redis, raw } = await server();
  await raw.function('LOAD', librarySource());
  await raw.call('ACL', 'SETUSER', 'volt', 'on', '>secret', ...documentedRights());
  const passwordFile = fileWith('secret\n');
  const ledger = await ledgerOf(redis.url, { username: 'volt', passwordFile });
  await beat(ledger);
  const dual = { ...VOLT0, ipv6: { subnet: 'fd00:42::/64' } };
  const first = await put(ledger, dual);
  const record = await put(ledger, { ...dual, exclude: ['10.42.0.128/25'] }, first.revision);
  const { lease } = await ledger.acquire(askFor(record, 'a', { ttlSeconds: 60 }));
  await ledger.acquire(askFor(record, 'a', { ttlSeconds: 60 }));
  await ledger.acquire(askFor(record, 'b', { addresses: ['10.42.0.77'] }));
  expect((await ledger.listLeases({ host: 'h1' })).leases).toHaveLength(2);
  expect((await ledger.getNetwork('volt0'))?.usage.used).toBe(2);
  await ledger.release({ ...lease, cool: true });
  await ledger.acquire(askFor(record, 'c', { workload: 'vm-web' }));
  for (const { id, generation, host } of (await ledger.listLeases({})).leases) {
    await ledger.release({ id, generation, host, cool: false });
  }
  expect(await ledger.deleteNetwork('volt0')).toEqual({ deleted: true });

  const agent = rawOf(redis.url.replace('redis://', 'redis://volt:secret@'));
  await expect(agent.eval('return 1', 0)).rejects.toThrow('NOPERM');
  await expect(agent.hset('other', 'a', 'b')).rejects.toThrow('NOPERM');
  await expect(agent.flushall()).rejects.toThrow('NOPERM');
  await expect(agent.function('LOAD', librarySource())).rejects.toThrow('NOPERM');
});
