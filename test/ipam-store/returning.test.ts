import assert from 'node:assert/strict';
import { beforeEach, describe, expect, test } from 'vitest';
import { askFor, bare, owned, put, refused, ROOT, useStore } from './fixture.ts';
import { fleetOf, forgetMemory, type Member } from './member.ts';

// Gateways that hosts have on their bridges, where the ledger, or the host, has lost what says so.

const store = useStore();
const NET = { network: 'net', subnet: '10.42.0.0/29', gateway: '10.42.0.1', reuseDelaySeconds: 0 };
const MOVED = { ...NET, gateway: '10.42.0.6' };
const VANISHED = {
  code: 'RECOVERING',
  message: expect.stringMatching(/definition of network net has vanished.*--repair/) as string,
};

let one: Member;
let two: Member;
let revision: number;

/** Both hosts have had a workload of the network, and have the gateway on a bridge. */
beforeEach(async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  const [first, second] = await fleetOf(store.ledger, ['h1', 'h2']);
  assert(first !== undefined && second !== undefined);
  [one, two] = [first, second];
  ({ revision } = await one.put(put(store.ledger, NET)));
  for (const member of [one, two]) await useBridge(member);
});

async function useBridge(member: Member): Promise<void> {
  const record = await store.ledger.getNetwork('net');
  assert(record !== null);
  const lease = await member.acquire(record, `of-${member.host}`);
  await store.ledger.release({ ...owned(lease), cool: true });
  member.leases.clear();
  member.bridges.add('net');
  await member.beat({ applied: revision });
}

async function everything(name = 'net'): Promise<string[]> {
  const record = await store.ledger.getNetwork(name);
  assert(record !== null);
  const given: string[] = [];
  for (;;) {
    const id = `all${given.length}`;
    const granted = await store.ledger.acquire(askFor(record, id)).catch(() => undefined);
    if (granted === undefined) break;
    given.push(bare(granted.lease));
  }
  for (const lease of (await store.ledger.listLeases({ network: name })).leases) {
    await store.ledger.release({ ...owned(lease), cool: false });
  }
  return given.toSorted();
}

/** What an operator repairs, hosts answering meanwhile. */
async function repaired(members: readonly Member[] = [one, two]): Promise<string[]> {
  const found: string[] = [];
  for (let round = 0; round < 3; round += 1) {
    for await (const difference of store.ledger.audit()) {
      found.push(difference.what);
      await store.ledger.repair(difference).catch(() => {}); // The next round sees it again.
    }
    for (const member of [...members, ...members]) await member.turn({ applied: revision });
  }
  return found;
}

/** As if it had fallen silent long ago. */
async function silence(host: string): Promise<void> {
  await store.raw.zrem(`${ROOT}:hosts`, host);
  await store.raw.zadd(`${ROOT}:suspects`, 1, host);
}

async function waitsForBoth(name = 'net'): Promise<void> {
  const { revision: moved } = (await store.ledger.getNetwork(name)) ?? { revision: 0 };
  expect(await everything(name)).not.toContain('10.42.0.1');
  await one.beat({ applied: moved });
  expect(await everything(name)).not.toContain('10.42.0.1');
  await two.beat({ applied: moved });
  expect(await everything(name)).toContain('10.42.0.1');
}

describe('a definition that has vanished', () => {
  test('is not put anew, nor deleted, before hosts have said what it was', async () => {
    await store.raw.del(`${ROOT}:net:net`);
    expect(await refused(store.raw, () => put(store.ledger, MOVED))).toMatchObject(VANISHED);
    const deleted = (): Promise<unknown> => store.ledger.deleteNetwork('net');
    expect(await refused(store.raw, deleted)).toMatchObject(VANISHED);
    expect(await repaired()).toContain('network missing');
    expect(await store.ledger.getNetwork('net')).toMatchObject({ revision });
    await put(store.ledger, MOVED, revision);
    await waitsForBoth();
  });

  test('is waited for while a host that is silent may know it', async () => {
    one.networks.clear();
    await silence('h2');
    await one.beat();
    await store.raw.del(`${ROOT}:net:net`);
    await repaired([one]);
    expect(await refused(store.raw, () => put(store.ledger, MOVED))).toMatchObject(VANISHED);
    two.networks.clear();
    await store.ledger.forgetHost('h2');
    await repaired([one]);
    await put(store.ledger, MOVED);
    expect(await everything()).toHaveLength(5);
  });

  test.each(['family:4', 'network'])(
    'in part, `%s`: nothing is moved before it is known',
    async (field) => {
      await store.raw.hdel(`${ROOT}:net:net`, field);
      const moved = (): Promise<unknown> => put(store.ledger, MOVED, revision);
      expect(await refused(store.raw, moved)).toMatchObject(VANISHED);
      const deleted = (): Promise<unknown> => store.ledger.deleteNetwork('net');
      expect(await refused(store.raw, deleted)).toMatchObject(VANISHED);
      await repaired();
      await moved();
      await waitsForBoth();
    },
  );
});

describe('a host that was forgotten, and is there again with its bridge', () => {
  beforeEach(async () => {
    await silence('h2');
    await store.ledger.forgetHost('h2');
  });

  /** Meanwhile nobody waits for it. */
  async function moveAndBack(): Promise<void> {
    for (const keys of [MOVED, NET]) {
      const before = await store.ledger.getNetwork('net');
      const { revision: applied } = await put(store.ledger, keys, before?.revision);
      await one.beat({ applied });
      expect(await everything()).toHaveLength(5);
    }
  }

  test('is waited for', async () => {
    await moveAndBack();
    await two.turn({ applied: revision });
    await one.turn({ applied: revision + 2 });
    await put(store.ledger, MOVED, revision + 2);
    await waitsForBoth();
  });

  test('is waited for also where the network is another since', async () => {
    await moveAndBack();
    await put(store.ledger, MOVED, revision + 2);
    await two.turn({ applied: revision });
    await waitsForBoth();
  });

  test('hears of what was opened when it comes back', async () => {
    await put(store.ledger, MOVED, revision);
    await two.turn({ applied: revision });
    await two.turn({ applied: revision });
    expect((await store.ledger.networkChanges(revision, 'h2')).letGo).toEqual([
      { network: 'net', address: '10.42.0.1' },
    ]);
  });

  test('has nothing of a network that is gone', async () => {
    await store.ledger.deleteNetwork('net');
    const { revision: gone } = await put(store.ledger, { ...NET, network: 'next' });
    await one.beat({ applied: gone });
    await two.turn({ applied: revision });
    expect(await store.raw.exists(`${ROOT}:net:net:hosts`)).toBe(0);
    expect(await store.raw.hexists(`${ROOT}:leases`, '#hosts:net')).toBe(0);
  });
});

test('hosts without a lease are waited for when all data was lost', async () => {
  await store.raw.flushall();
  await forgetMemory(store.raw);
  for (const member of [one, two, one, two]) await member.turn();
  await put(store.ledger, MOVED, revision);
  await waitsForBoth();
});

describe('more than one answer tells', () => {
  const NETS = [1, 2, 3];
  const keysOf = (net: number): object => ({
    network: `net${net}`,
    subnet: `10.${net}.0.0/16`,
    gateway: `10.${net}.0.1`,
    reuseDelaySeconds: 0,
  });
  const excluded = (net: number): string[] =>
    Array.from({ length: 1_024 }, (_, n) => `10.${net}.${n >> 6}.${2 * (n % 64) + 4}`);

  /** Hosts have something of a network that excludes nothing any more. */
  async function open(net: number, members: readonly Member[]): Promise<number> {
    const keys = keysOf(net);
    const before = await put(store.ledger, { ...keys, exclude: excluded(net) });
    for (const member of members) await member.acquire(before, `${net}-of-${member.host}`);
    return (await put(store.ledger, keys, before.revision)).revision;
  }

  test('of a host that has all of it: it hears of each address before it lets go', async () => {
    for (const net of NETS) await open(net, [one, two]);
    const { letGo } = await store.ledger.networkChanges(revision, 'h2');
    expect(letGo).toHaveLength(3 * 1_024);
    expect(new Set(letGo.map(({ address }) => address))).toEqual(
      new Set(NETS.flatMap((net) => excluded(net))),
    );
  });

  test('of hosts that have different parts: nobody waits for what another has yet to let go', async () => {
    await open(1, [one, two]);
    await open(2, [one, two]);
    const last = await open(3, [two]);
    for (let beats = 0; beats < 30; beats += 1) await two.beat({ applied: last });
    const left = await store.raw.zrange(`${ROOT}:leaving:4`, '0', '-1');
    expect(new Set(left.map((entry) => entry.split(' ')[1]))).toEqual(new Set(['net1', 'net2']));
    for (let beats = 0; beats < 30; beats += 1) await one.beat({ applied: last });
    expect(await store.raw.exists(`${ROOT}:leaving:4`)).toBe(0);
  });

  test('of a host that is forgotten, and of a server that was restarted meanwhile', async () => {
    let last = 0;
    for (const net of NETS) last = await open(net, [one, two]);
    await one.beat({ applied: last });
    await two.beat({ applied: last });
    await forgetMemory(store.raw);
    for (let beats = 0; beats < 30; beats += 1) {
      for (const member of [one, two]) await member.turn({ applied: last });
    }
    expect(await store.raw.exists(`${ROOT}:leaving:4`)).toBe(0);
    for (const net of NETS) await open(net + 3, [two]);
    await silence('h2');
    await store.ledger.forgetHost('h2');
    for (let beats = 0; beats < 30; beats += 1) await one.beat({ applied: last });
    expect(await store.raw.exists(`${ROOT}:leaving:4`)).toBe(0);
  });
});
